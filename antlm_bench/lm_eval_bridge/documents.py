"""Documents of a task of lm-evaluation-harness as items: its own requests, gold, and metrics."""

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
from antlm_bench.metrics.records import WORD_LABEL
from antlm_bench.suites.templates import check_text
from antlm_bench.types import Item, Option

# The output types of lm-eval that are scored.
MULTIPLE_CHOICE = "multiple_choice"
LOGLIKELIHOOD = "loglikelihood"
ROLLING = "loglikelihood_rolling"
GROUP_LEVELS = ("group", "task")  # labels of an item of a group, coarse to fine
NO_GOLD = -1  # the gold of a document that only its task's own code can judge
BUILD_HINT = (
    "does `lm_eval run --tasks` take it? "
    "Its data set and metrics must be installed, or the hub within reach"
)
INSTALL_HINT = (
    "install what it names; for most tasks `pip install 'lm_eval[tasks]'` is enough "
    "(lm-eval's README has the extras)"
)
# The defaults of lm-eval (lm_eval/defaults).
RANDOM_SEED, NUMPY_SEED, FEWSHOT_SEED = 0, 1234, 1234


@dataclass(frozen=True, slots=True)
class LmEvalTask:
    """A task that lm-eval has built."""

    name: str
    group: str
    """The group it belongs to; "" where the task itself was requested."""
    task_object: Any
    mean_metrics: Mapping[str, MetricExtractor]
    """The metrics that are means over documents, in the task's order."""
    corpus_metrics: Mapping[str, Aggregation]
    """The other metrics."""

    @property
    def metric_names(self) -> list[str]:
        """What the task reports, its first metric first."""
        return [str(name) for name in self.task_object.aggregation()]

    @property
    def custom_process_results(self) -> Any:
        """The task's own code that scores responses; None where lm-eval's is used.

        A task class that builds requests of its own also scores them itself, for nobody else knows
        what is right.
        """
        configured = self.task_object.config.process_results
        if callable(configured):
            return configured
        inherited = self._inherits_method("process_results") and self.has_standard_requests
        return None if inherited else self.task_object.process_results

    @property
    def has_standard_requests(self) -> bool:
        """Whether lm-eval builds the requests from the choices of the task's configuration."""
        return self._inherits_method("construct_requests")

    def _inherits_method(self, method: str) -> bool:
        code = getattr(type(self.task_object), method)
        return (code.__module__, code.__qualname__) == (
            "lm_eval.api.task",
            f"ConfigurableTask.{method}",
        )

    def build_requests(self, limit: int | None, location: str) -> list[list[Any]]:
        """Return the requests per document, in the order in which their responses are scored.

        Raises DataError where lm-eval fails.
        """
        with lm_eval_context(location):
            self.task_object.set_fewshot_seed(seed=FEWSHOT_SEED)
            self.task_object.build_all_requests(limit=limit, rank=0, world_size=1)
            documents = groupby(self.task_object.instances, key=lambda instance: instance.doc_id)
            return [sorted(requests, key=lambda request: request.idx) for _, requests in documents]

    def infer_output_type(self, requests_by_document: Sequence[Sequence[Any]]) -> str:
        """Return MULTIPLE_CHOICE, LOGLIKELIHOOD or ROLLING, or the other types of requests.

        It is inferred from the requests, for a class may keep a default that is wrong for it
        (lm_eval 0.4.13's scrolls are choices, and declare `generate_until`).
        """
        requests = [request for document in requests_by_document for request in document]
        types = {request.request_type for request in requests}
        is_text = all(isinstance(part, str) for request in requests for part in request.args)
        if types <= {LOGLIKELIHOOD, ROLLING} and not is_text:
            types.add("more than text")
        has_choices = any(len(document) > 1 for document in requests_by_document)
        if types == {LOGLIKELIHOOD}:
            declared = self.task_object.OUTPUT_TYPE == MULTIPLE_CHOICE
            return MULTIPLE_CHOICE if has_choices or declared else LOGLIKELIHOOD
        return ROLLING if types == {ROLLING} and not has_choices else " and ".join(sorted(types))


@dataclass(frozen=True, slots=True)
class DocumentItem:
    """A document of a task."""

    item: Item
    scorer: DocumentScorer
    has_multiple_golds: bool = False
    """Whether several options are right, so that only lm-eval's own code can score it."""


def request_to_option(context: str, continuation: str) -> Option:
    """Return a request of lm-eval as one text whose scored span is the continuation.

    White space at the end of the context is scored with the continuation, as in lm-eval
    (`TemplateLM._encode_pair`, 0.4.13), for tokens carry the space before them. Where a token
    straddles the border, our span rule counts it whole; lm-eval drops as many tokens as the context
    has when it is tokenized alone.
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
    """Yield the documents of a task as items; their ids are those of imported lm-eval results."""
    levels = zip(GROUP_LEVELS, (task.group, task.name), strict=True) if with_group_labels else ()
    labels = {level: name for level, name in levels if name}
    output_type = task.infer_output_type(requests_by_document)
    for requests in requests_by_document:
        document, number = requests[0].doc, requests[0].doc_id
        place, item_id = f"{location}, document {number}", f"{task.name}_{number}"
        scorer = DocumentScorer(
            document, task.task_object.process_results, task.mean_metrics, place, task=task.name
        )
        if output_type == ROLLING:
            text = check_text(requests[0].args[0], "document", place)
            item = Item(item_id, (Option(text),), 0, labels)
            yield DocumentItem(item, replace(scorer, extractors=LENGTH_EXTRACTORS))
        elif output_type == LOGLIKELIHOOD:
            option = _build_option(requests[0].args, None, place)
            # Each document is a word of its own, so that the headline is the mean over documents.
            word = {} if task.custom_process_results else {WORD_LABEL: item_id}
            yield DocumentItem(Item(item_id, (option,), 0, {**labels, **word}), scorer)
        else:
            yield _build_choice(task, requests, scorer, item_id, labels)


def _build_choice(
    task: LmEvalTask,
    requests: Sequence[Any],
    scorer: DocumentScorer,
    item_id: str,
    labels: Mapping[str, str],
) -> DocumentItem:
    document, location = requests[0].doc, scorer.location
    with lm_eval_context(location):
        choices = [request.args[1] for request in requests]
        if task.has_standard_requests:
            choices = task.task_object.doc_to_choice(document)
        gold = _get_gold(task, document)
    # For mutual information lm-eval requests every continuation twice; the first half has the
    # context.
    lengths = [len(choice) if task.has_standard_requests else None for choice in choices]
    options = [
        _build_option(request.args, length, location)
        for request, length in zip(requests, lengths, strict=False)
    ]
    extra = [_build_option(request.args, None, location) for request in requests[len(options) :]]
    golds = _resolve_gold_indices(gold, choices, location, bool(task.custom_process_results))
    item = Item(item_id, tuple(options), golds[0], labels)
    return DocumentItem(item, replace(scorer, extra_requests=tuple(extra)), len(golds) > 1)


def _get_gold(task: LmEvalTask, document: Any) -> Any:
    """Return the gold as the task declares it; NO_GOLD where a task with own metrics has none."""
    multiple_input = getattr(task.task_object, "multiple_input", 0)
    to_gold = task.task_object.doc_to_text if multiple_input else task.task_object.doc_to_target
    if not task.custom_process_results:
        return to_gold(document)
    with suppress(Exception):
        return to_gold(document)
    return NO_GOLD


def _build_option(request: tuple[Any, ...], length: int | None, location: str) -> Option:
    """Return a request as an option. length: of the choice, which acc_norm divides by."""
    context, continuation = request[:2]
    check_text(context, "context", location)
    check_text(continuation, "continuation", location)
    if not continuation:
        hint = "mend the task's doc_to_choice or doc_to_target"
        raise DataError("a continuation is empty", location=location, hint=hint)
    return replace(request_to_option(context, continuation), length=length)


def _resolve_gold_indices(
    gold: Any, choices: list[str], location: str, has_custom_scorer: bool
) -> tuple[int, ...]:
    """Return the indices of the right options: gold is an index or a choice's text, or several.

    (NO_GOLD,) where a task with code of its own declares no such gold. Raises DataError elsewhere.
    """
    golds = gold if isinstance(gold, list) else [gold]
    indices = [choices.index(g) if isinstance(g, str) and g in choices else g for g in golds]
    if indices and all(
        isinstance(i, int | np.integer) and not isinstance(i, bool) and 0 <= i < len(choices)
        for i in indices
    ):
        return tuple(map(int, indices))
    if has_custom_scorer:
        return (NO_GOLD,)
    message = f"the right answer {gold!r} is none of its {len(choices)} options"
    hint = (
        "is it a split without answers, or does doc_to_target not give an index "
        "or one of doc_to_choice?"
    )
    raise DataError(message, location=location, hint=hint)


@contextmanager
def lm_eval_context(location: str) -> Iterator[None]:
    """Run code of lm-eval: with its seeds, silent progress bars, and the shims its tasks import.

    Raises DataError, naming the location, for any error of lm-eval.
    """
    install_shims()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except (Exception, SystemExit) as error:
        # SystemExit: a task that misses a program ends the process (0.4.13's slr_bench).
        message = f"lm-eval cannot build it: {type(error).__name__}: {error}"
        hint = INSTALL_HINT if isinstance(error, ImportError) else BUILD_HINT
        raise DataError(message, location=location, hint=hint) from error
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
