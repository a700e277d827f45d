"""The documents of a task of lm-evaluation-harness as items: its own requests, what is right, and who judges it."""

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
from antlm_bench.lm_eval_bridge.shims import lend
from antlm_bench.lm_eval_bridge.task_metrics import LENGTHS, Case, Reading
from antlm_bench.metrics.surprisal import WORD
from antlm_bench.suites.templates import clean
from antlm_bench.types import Item, Option

CHOICE, ALONE, WHOLE = "multiple_choice", "loglikelihood", "loglikelihood_rolling"  # the kinds that are scored
LEVELS = ("group", "task")  # labels of an item of a group, coarse to fine
NO_OPTION = -1  # the right option of a document whose task has another idea of right
AT_HAND = "does `lm_eval run --tasks` take it? Its data set and metrics must be at hand, or the hub in reach"
PACKAGES = "install what it names; of most tasks `pip install 'lm_eval[tasks]'` does (lm-eval's README has the extras)"
SEED, NUMPY_SEED, SHOTS_SEED = 0, 1234, 1234  # what lm_eval fixes when it is told nothing (lm_eval/defaults)


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it was built, and the group it stands in ("" where it was asked for by its own name).

    readings: those of its numbers that are means over documents, in its own order; wholes: the others.
    """

    name: str
    group: str
    built: Any
    readings: Mapping[str, Reading]
    wholes: Mapping[str, Aggregation]

    @property
    def metrics(self) -> list[str]:
        """What it reports, its first number first."""
        return [str(name) for name in self.built.aggregation()]

    @property
    def own(self) -> Any:
        """The code of its own by which it judges answers; None where that is the harness's.

        A task written as a class that asks in words of its own is judged by itself: nobody else knows what is right.
        """
        said = self.built.config.process_results
        inherited = self._inherits("process_results") and self.worded
        return said if callable(said) else None if inherited else self.built.process_results

    @property
    def worded(self) -> bool:
        """Are its requests made of the choices of its configuration, by the harness?"""
        return self._inherits("construct_requests")

    def _inherits(self, method: str) -> bool:
        code = getattr(type(self.built), method)
        return (code.__module__, code.__qualname__) == ("lm_eval.api.task", f"ConfigurableTask.{method}")

    def asked(self, limit: int | None, place: str) -> list[list[Any]]:
        """Its requests per document, in the order in which their answers are judged. DataError where it fails."""
        with at_work(place):
            self.built.set_fewshot_seed(seed=SHOTS_SEED)
            self.built.build_all_requests(limit=limit, rank=0, world_size=1)
            each = groupby(self.built.instances, key=lambda instance: instance.doc_id)
            return [sorted(requests, key=lambda instance: instance.idx) for _, requests in each]

    def kind(self, documents: Sequence[Sequence[Any]]) -> str:
        """CHOICE (which of several texts is the best?), ALONE (how probable is one?), WHOLE (a document, however
        long?), or what else is asked for.

        Of its requests, not of what it says of itself: a class may leave that to a default which is not true of it
        (lm_eval 0.4.13's scrolls are choices, and say `generate_until`).
        """
        everything = [request for requests in documents for request in requests]
        types = {request.request_type for request in everything}
        if types <= {ALONE, WHOLE} and any(not isinstance(part, str) for each in everything for part in each.args):
            types.add("more than text")
        several = any(len(requests) > 1 for requests in documents)
        if types == {ALONE}:
            return CHOICE if several or self.built.OUTPUT_TYPE == CHOICE else ALONE
        return WHOLE if types == {WHOLE} and not several else " and ".join(sorted(types))


@dataclass(frozen=True, slots=True)
class Row:
    """A document. several: are several of its options right, so that only the harness's own code judges it?"""

    item: Item
    case: Case
    several: bool = False


def asked(context: str, continuation: str) -> Option:
    """A request of the harness as one text: white space that ends the context is scored with the continuation.

    The convention is the harness's (`TemplateLM._encode_pair`, 0.4.13): tokens carry the space before them. Where a
    token straddles the border, our span rule counts it whole; the harness drops as many as the context alone has.
    """
    start = len(context.rstrip())
    text = context + continuation
    return Option(text, (start, len(text)) if start else None)


def rows_of(task: Task, documents: Sequence[Sequence[Any]], grouped: bool, place: str) -> Iterator[Row]:
    """The documents of a task as items; ids are those under which results of lm-eval are imported."""
    labels = dict(zip(LEVELS, (task.group, task.name), strict=True)) if grouped else {}
    labels = {level: name for level, name in labels.items() if name}
    own, kind = task.own, task.kind(documents)
    for pairs in documents:
        document, number = pairs[0].doc, pairs[0].doc_id
        here, name = f"{place}, document {number}", f"{task.name}_{number}"
        case = Case(document, task.built.process_results, task.readings, here, task=task.name)
        if kind == WHOLE:
            text = clean(pairs[0].args[0], "document", here)
            yield Row(Item(name, (Option(text),), 0, labels), replace(case, readings=LENGTHS))
            continue
        if kind == ALONE:  # every document is a word of its own: the headline is the mean over documents
            option = _option(pairs[0].args, None, here)
            yield Row(Item(name, (option,), 0, labels if own else {**labels, WORD: name}), case)
            continue
        with at_work(here):
            choices = task.built.doc_to_choice(document) if task.worded else [pair.args[1] for pair in pairs]
            gold = _gold(task, document)
        # For mutual information the harness asks for every continuation twice; the first half has the context.
        lengths = [len(choice) if task.worded else None for choice in choices]
        options = [_option(pair.args, length, here) for pair, length in zip(pairs, lengths, strict=False)]
        asides = [_option(pair.args, None, here) for pair in pairs[len(options) :]]
        right = _right(gold, choices, here, own)
        yield Row(Item(name, tuple(options), right[0], labels), replace(case, asides=tuple(asides)), len(right) > 1)


def _gold(task: Task, document: Any) -> Any:
    """What the task says is right; a task with a judge of its own need not have a word for it."""
    say = task.built.doc_to_text if getattr(task.built, "multiple_input", 0) else task.built.doc_to_target
    if not task.own:
        return say(document)
    with suppress(Exception):
        return say(document)
    return NO_OPTION


def _option(request: tuple[Any, ...], length: int | None, place: str) -> Option:
    """A request, with the length that acc_norm divides by: of the choice as the task spells it, without a delimiter."""
    context, continuation = request[:2]
    option = asked(clean(context, "context", place), clean(continuation, "continuation", place))
    if not continuation:
        raise DataError("a continuation is empty", place=place, hint="mend the task's doc_to_choice or doc_to_target")
    return replace(option, length=length)


def _right(gold: Any, choices: list[str], place: str, judged: bool) -> tuple[int, ...]:
    """The right options by their index: the target itself, or the place of its text among the choices; perhaps several.

    judged: a task with a judge of its own need not say what is right in these words, and is believed: (NO_OPTION,).
    """
    found = [choices.index(one) if isinstance(one, str) and one in choices else one for one in _each(gold)]
    wrong = [one for one in found if isinstance(one, bool) or not isinstance(one, int | np.integer)]
    wrong += [one for one in found if one not in wrong and not 0 <= one < len(choices)]
    if found and not wrong:
        return tuple(int(one) for one in found)
    if judged:
        return (NO_OPTION,)
    hint = "is it a split without answers, or does doc_to_target not give an index or one of doc_to_choice?"
    raise DataError(f"the right answer {gold!r} is none of its {len(choices)} options", place=place, hint=hint)


def _each(gold: Any) -> list[Any]:
    return list(gold) if isinstance(gold, list) else [gold]


@contextmanager
def at_work(place: str) -> Iterator[None]:
    """The harness at work: its seeds set and given back, its progress bars silent, its errors with their place, and
    what its tasks import there."""
    lend()
    states = random.getstate(), np.random.get_state()
    random.seed(SEED)
    np.random.seed(NUMPY_SEED)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except (Exception, SystemExit) as error:  # a task that misses a program ends the process (0.4.13's slr_bench)
        message = f"lm-eval cannot build it: {type(error).__name__}: {error}"
        raise DataError(message, place=place, hint=PACKAGES if isinstance(error, ImportError) else AT_HAND) from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
