"""Answers that a suite judges by code of its own: numbers per document, kept where they are ones that have a mean.

Nothing here knows lm-eval; what a task's code and its aggregations mean is found by trying them.
"""

from __future__ import annotations

import inspect
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.types import Option

NOTHING = float("nan")  # what is said of a document that is left out
Reading = Callable[[Mapping[str, Any]], float]  # what was said of a document -> one number of it
Value = Callable[[Any], float]


@dataclass(frozen=True, slots=True)
class Case:
    """One document and its judge. asides: texts that are asked beside the item's options, after them.

    process: (document, answers) -> what is said by name, as lm-eval's `process_results`. An answer is the
    log-probability of an option, and whether it was the model's first choice; of a whole document the former alone.
    """

    document: Any
    process: Callable[[Any, list[Any]], Mapping[str, Any]]
    readings: Mapping[str, Reading]
    place: str
    asides: tuple[Option, ...] = ()

    def judge(self, answers: Sequence[Any]) -> tuple[float, ...]:
        """The numbers, by the order of `readings`. DataError where the code fails, or says what is no number."""
        try:
            with np.errstate(all="ignore"), redirect_stdout(io.StringIO()):
                said = self.process(self.document, list(answers))
                return tuple(float(reading(said)) for reading in self.readings.values())
        except Exception as error:  # the task's own code may raise anything
            message = f"the task's own code cannot judge the answer: {type(error).__name__}: {error}"
            raise DataError(message, place=self.place, hint="does `lm_eval run --tasks` take it?") from error


@dataclass(frozen=True, slots=True)
class Judge:
    """The cases of a suite by the ids of its items, and what their numbers are called. about: whose code judges."""

    names: tuple[str, ...]
    cases: Mapping[str, Case]
    about: str

    def facts(self) -> list[str]:
        """What a cell's key must know of it."""
        return [self.about, *self.names]


def number(value: Any) -> float:
    """A number as it is, perhaps NaN. TypeError for what is none."""
    if not isinstance(value, Real | np.bool_) or math.isinf(value):
        raise TypeError(f"{value!r} is no number that has a mean")
    return float(value)


def marked(value: Any) -> float:
    """(number, mark): the number of a document whose mark is set, else nothing."""
    of, mark = value
    if number(mark) not in (0, 1):
        raise TypeError(f"{value!r} has no mark")
    return number(of) if mark else NOTHING


def unmarked(value: Any) -> float:
    """(number, mark): the number of a document whose mark is not set, else nothing."""
    of, mark = value
    return marked((of, not number(mark)))


# Values that an aggregation may take, what it makes of them if it is a mean, and how such values are read then.
TRIALS: tuple[tuple[list[Any], float, Value], ...] = (
    ([1.0, 0.0, 0.0, 0.5], 0.375, number),
    ([(1, 1), (0, 1), (1, 1), (0, 0)], 2 / 3, marked),
    ([(1, 0), (0, 0), (1, 0), (0, 1)], 2 / 3, unmarked),
)
REGISTERED = "lm_eval.api.metrics"  # where lm-eval's own aggregations stand
MEANS = ("mean", "nanmean")  # those of them that are means: the others need no trial, and some a second to import


def means(aggregations: Mapping[str, Callable[[list[Any]], Any]]) -> dict[str, Reading]:
    """How a document's number is read, for every name whose aggregation is a mean over documents (or marked ones)."""
    found = {name: _value(aggregation) for name, aggregation in aggregations.items()}
    return {name: partial(_read, name, value) for name, value in found.items() if value}


def _value(aggregation: Callable[[list[Any]], Any]) -> Value | None:
    if getattr(aggregation, "__module__", "") == REGISTERED:
        return number if aggregation.__name__ in MEANS else None
    for values, mean, value in TRIALS:
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if math.isclose(float(aggregation(list(values))), mean):
                return value
    return None


def _read(name: str, value: Value, said: Mapping[str, Any]) -> float:
    """lm-eval leaves out documents of which a number is not said at all."""
    return value(said[name]) if name in said else NOTHING


def counted(*names: str) -> Reading:
    """How many bytes or words a document has: what its log-probability is divided by in one of these perplexities."""
    return lambda said: next((number(said[name][1]) for name in names if name in said), NOTHING)


LENGTHS: dict[str, Reading] = {
    "bytes": counted("bits_per_byte", "byte_perplexity"),
    "words": counted("word_perplexity"),
}


def source(process: Any) -> str:
    """The file that a judge stands in, as text: another file may judge otherwise."""
    with suppress(OSError, TypeError):
        return inspect.getsource(inspect.getmodule(inspect.unwrap(process)) or process)
    return ""
