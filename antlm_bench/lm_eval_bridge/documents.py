"""The documents of a task of lm-evaluation-harness as items: its own requests, what is right, and
who judges it.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.lm_eval_bridge.jackknife import Aggregation
from antlm_bench.lm_eval_bridge.shims import install_shims
from antlm_bench.lm_eval_bridge.task_metrics import (
    LENGTH_EXTRACTORS,
    DocumentScorer,
    MetricExtractor,
)
from antlm_bench.metrics.surprisal import WORD_LABEL
from antlm_bench.suites.templates import check_text
from antlm_bench.types import Item, Option

MULTIPLE_CHOICE, LOGLIKELIHOOD, ROLLING = (
    "multiple_choice",
    "loglikelihood",
    "loglikelihood_rolling",
)  # the kinds that are scored
GROUP_LEVELS = ("group", "task")  # labels of an item of a group, coarse to fine
NO_GOLD = -1  # the right option of a document whose task has another idea of right
BUILD_HINT = "does `lm_eval run --tasks` take it? Its data set and metrics must be at hand, or the hub in reach"
INSTALL_HINT = "install what it names; of most tasks `pip install 'lm_eval[tasks]'` does (lm-eval's README has the extras)"
RANDOM_SEED, NUMPY_SEED, FEWSHOT_SEED = (
    0,
    1234,
    1234,
)  # what lm_eval fixes when it is told nothing (lm_eval/defaults)


@dataclass(frozen=True, slots=True)
class LmEvalTask:
    """A task as it was built, and the group it stands in ("" where it was asked for by its own
    name).

    readings: those of its numbers that are means over documents, in its own order; wholes: the
    others.
    """

    name: str
    group: str
    task_object: Any
    mean_metrics: Mapping[str, MetricExtractor]
    corpus_metrics: Mapping[str, Aggregation]

    @property
    def metric_names(self) -> list[str]:
        """What it reports, its first number first."""
        return [str(name) for name in self.task_object.aggregation()]

    @property
    def custom_process_results(self) -> Any:
        """The code of its own by which it judges answers; None where that is the harness's.

        A task written as a class that asks in words of its own is judged by itself: nobody else
        knows what is right.
        """
        said = self.task_object.config.process_results
        inherited = self._inherits_method("process_results") and self.has_standard_requests
        return said if callable(said) else None if inherited else self.task_object.process_results

    @property
    def has_standard_requests(self) -> bool:
        """Are its requests made of the choices of its configuration, by the harness?"""
        return self._inherits_method("construct_requests")

    def _inherits_method(self, method: str) -> bool:
        code = getattr(type(self.task_object), method)
        return (code.__module__, code.__qualname__) == (
            "lm_eval.api.task",
            f"ConfigurableTask.{method}",
        )

    def build_requests(self, limit: int | None, location: str) -> list[list[Any]]:
        """Its requests per document, in the order in which their answers are judged. DataError
        where it fails.
        """
        with lm_eval_context(location):
            self.task_object.set_fewshot_seed(seed=FEWSHOT_SEED)
            self.task_object.build_all_requests(limit=limit, rank=0, world_size=1)
            each = groupby(self.task_object.instances, key=lambda instance: instance.doc_id)
            return [sorted(requests, key=lambda instance: instance.idx) for _, requests in each]

    def infer_output_type(self, requests_by_document: Sequence[Sequence[Any]]) -> str:
        """CHOICE (which of several texts is the best?), ALONE (how probable is one?), WHOLE (a
        document, however long?), or what else is asked for.

        Of its requests, not of what it says of itself: a class may leave that to a default which is
        not true of it (lm_eval 0.4.13's scrolls are choices, and say `generate_until`).
        """
        everything = [request for requests in requests_by_document for request in requests]
        types = {request.request_type for request in everything}
        if types <= {LOGLIKELIHOOD, ROLLING} and any(
            not isinstance(part, str) for each in everything for part in each.args
        ):
            types.add("more than text")
        several = any(len(requests) > 1 for requests in requests_by_document)
        if types == {LOGLIKELIHOOD}:
            return (
                MULTIPLE_CHOICE
                if several or self.task_object.OUTPUT_TYPE == MULTIPLE_CHOICE
                else LOGLIKELIHOOD
            )
        return ROLLING if types == {ROLLING} and not several else " and ".join(sorted(types))


@dataclass(frozen=True, slots=True)
class DocumentItem:
    """A document. several: are several of its options right, so that only the harness's own code
    judges it?
    """

    item: Item
    scorer: DocumentScorer
    has_multiple_golds: bool = False


def request_to_option(context: str, continuation: str) -> Option:
    """A request of the harness as one text: white space that ends the context is scored with the
    continuation.

    The convention is the harness's (`TemplateLM._encode_pair`, 0.4.13): tokens carry the space
    before them. Where a token straddles the border, our span rule counts it whole; the harness
    drops as many as the context alone has.
    """
    start = len(context.rstrip())
    text = context + continuation
    return Option(text, (start, len(text)) if start else None)


def build_document_items(
    task: LmEvalTask,
    requests_by_document: Sequence[Sequence[Any]],
    with_group_labels: bool,
    location: str,
) -> Iterator[DocumentItem]:
    """The documents of a task as items; ids are those under which results of lm-eval are imported."""
    labels = (
        dict(zip(GROUP_LEVELS, (task.group, task.name), strict=True)) if with_group_labels else {}
    )
    labels = {level: name for level, name in labels.items() if name}
    own, kind = task.custom_process_results, task.infer_output_type(requests_by_document)
    for pairs in requests_by_document:
        document, number = pairs[0].doc, pairs[0].doc_id
        here, name = f"{location}, document {number}", f"{task.name}_{number}"
        case = DocumentScorer(
            document, task.task_object.process_results, task.mean_metrics, here, task=task.name
        )
        if kind == ROLLING:
            text = check_text(pairs[0].args[0], "document", here)
            yield DocumentItem(
                Item(name, (Option(text),), 0, labels), replace(case, extractors=LENGTH_EXTRACTORS)
            )
            continue
        if (
            kind == LOGLIKELIHOOD
        ):  # every document is a word of its own: the headline is the mean over documents
            option = _build_option(pairs[0].args, None, here)
            yield DocumentItem(
                Item(name, (option,), 0, labels if own else {**labels, WORD_LABEL: name}), case
            )
            continue
        with lm_eval_context(here):
            choices = (
                task.task_object.doc_to_choice(document)
                if task.has_standard_requests
                else [pair.args[1] for pair in pairs]
            )
            gold = _get_gold(task, document)
        # For mutual information the harness asks for every continuation twice; the first half has
        # the context.
        lengths = [len(choice) if task.has_standard_requests else None for choice in choices]
        options = [
            _build_option(pair.args, length, here)
            for pair, length in zip(pairs, lengths, strict=False)
        ]
        asides = [_build_option(pair.args, None, here) for pair in pairs[len(options) :]]
        right = _resolve_gold_indices(gold, choices, here, own)
        yield DocumentItem(
            Item(name, tuple(options), right[0], labels),
            replace(case, extra_requests=tuple(asides)),
            len(right) > 1,
        )


def _get_gold(task: LmEvalTask, document: Any) -> Any:
    """What the task says is right; a task with a judge of its own need not have a word for it."""
    say = (
        task.task_object.doc_to_text
        if getattr(task.task_object, "multiple_input", 0)
        else task.task_object.doc_to_target
    )
    if not task.custom_process_results:
        return say(document)
    with suppress(Exception):
        return say(document)
    return NO_GOLD


def _build_option(request: tuple[Any, ...], length: int | None, location: str) -> Option:
    """A request, with the length that acc_norm divides by: of the choice as the task spells it,
    without a delimiter.
    """
    context, continuation = request[:2]
    option = request_to_option(
        check_text(context, "context", location), check_text(continuation, "continuation", location)
    )
    if not continuation:
        raise DataError(
            "a continuation is empty",
            location=location,
            hint="mend the task's doc_to_choice or doc_to_target",
        )
    return replace(option, length=length)


def _resolve_gold_indices(
    gold: Any, choices: list[str], location: str, has_custom_scorer: bool
) -> tuple[int, ...]:
    """The right options by their index: the target itself, or the place of its text among the
    choices; perhaps several.

    judged: a task with a judge of its own need not say what is right in these words, and is
    believed: (NO_OPTION,).
    """
    found = [
        choices.index(one) if isinstance(one, str) and one in choices else one
        for one in _as_list(gold)
    ]
    wrong = [one for one in found if isinstance(one, bool) or not isinstance(one, int | np.integer)]
    wrong += [one for one in found if one not in wrong and not 0 <= one < len(choices)]
    if found and not wrong:
        return tuple(int(one) for one in found)
    if has_custom_scorer:
        return (NO_GOLD,)
    hint = "is it a split without answers, or does doc_to_target not give an index or one of doc_to_choice?"
    raise DataError(
        f"the right answer {gold!r} is none of its {len(choices)} options",
        location=location,
        hint=hint,
    )


def _as_list(gold: Any) -> list[Any]:
    return list(gold) if isinstance(gold, list) else [gold]


@contextmanager
def lm_eval_context(location: str) -> Iterator[None]:
    """The harness at work: its seeds set and given back, its progress bars silent, its errors with
    their place, and what its tasks import there.
    """
    install_shims()
    states = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except (
        Exception,
        SystemExit,
    ) as error:  # a task that misses a program ends the process (0.4.13's slr_bench)
        message = f"lm-eval cannot build it: {type(error).__name__}: {error}"
        raise DataError(
            message,
            location=location,
            hint=INSTALL_HINT if isinstance(error, ImportError) else BUILD_HINT,
        ) from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
