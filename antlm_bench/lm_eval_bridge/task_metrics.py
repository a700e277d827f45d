"""Answers that a suite judges by code of its own: numbers per document, whose mean is the task's
number.

Nothing here knows lm-eval; what a task's code and its aggregations mean is found by trying them.
Where an aggregation is no mean, what was said is kept as it is, and becomes numbers when all
documents are answered (lm_eval_bridge.jackknife).
"""

from __future__ import annotations

import inspect
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.lm_eval_bridge.jackknife import Aggregation, jackknife_contributions, to_json
from antlm_bench.types import Option, Prediction

MISSING_VALUE = float("nan")  # what is said of a document that is left out
MetricExtractor = Callable[
    [Mapping[str, Any]], float
]  # what was said of a document -> one number of it
ValueParser = Callable[[Any], float]


class DocumentMetrics(NamedTuple):
    """Of one document: its numbers, and as JSON what becomes a number with all other documents (""
    = nothing).
    """

    values: tuple[float, ...]
    raw_values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DocumentScorer:
    """One document and its judge. asides: texts that are asked beside the item's options, after
    them. task: whose it is. kept: names of what is said as it is, and has no number yet.

    process: (document, answers) -> what is said by name, as lm-eval's `process_results`. An answer
    is the log-probability of an option, and whether it was the model's first choice; of a whole
    document the former alone.
    """

    document: Any
    process_results: Callable[[Any, list[Any]], Mapping[str, Any]]
    extractors: Mapping[str, MetricExtractor]
    location: str
    extra_requests: tuple[Option, ...] = ()
    task: str = ""
    raw_value_names: tuple[str, ...] = ()

    def score(self, answers: Sequence[Any]) -> DocumentMetrics:
        """What is said, by the order of `readings` and `kept`. DataError where the code fails, or
        says what is no number.
        """
        try:
            with np.errstate(all="ignore"), redirect_stdout(io.StringIO()):
                said = self.process_results(self.document, list(answers))
                numbers = tuple(float(reading(said)) for reading in self.extractors.values())
                return DocumentMetrics(
                    numbers,
                    tuple(
                        to_json(said[name]) if name in said else "" for name in self.raw_value_names
                    ),
                )
        except Exception as error:  # the task's own code may raise anything
            message = (
                f"the task's own code cannot judge the answer: {type(error).__name__}: {error}"
            )
            raise DataError(
                message, location=self.location, hint="does `lm_eval run --tasks` take it?"
            ) from error


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """The cases of a suite by the ids of its items, and what their numbers are called. about: whose
    code judges.

    wholes: task -> name -> aggregation of those numbers that are no means; the same names, in
    order, for all tasks.
    """

    metric_names: tuple[str, ...]
    scorers: Mapping[str, DocumentScorer]
    code_digest: str
    corpus_metrics: Mapping[str, Mapping[str, Aggregation]] = field(default_factory=dict)

    def key_parts(self) -> list[str]:
        """What a cell's key must know of it."""
        return [self.code_digest, *self.metric_names]

    def missing_metrics(self) -> DocumentMetrics:
        """What is said of a document that does not fit the model."""
        return DocumentMetrics(
            (MISSING_VALUE,) * len(self.metric_names),
            ("",) * len(next(iter(self.corpus_metrics.values()), ())),
        )

    def with_corpus_metrics(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """All predictions of a suite, with what each contributes to the numbers that are no means
        (of its own task).

        Those of another engine, which were not judged, are as they were. DataError where an
        aggregation fails.
        """
        judged = np.array([p.judged for p in predictions], float).reshape(len(predictions), -1)
        for task, aggregations in self.corpus_metrics.items():
            mine = [
                n for n, p in enumerate(predictions) if p.kept and self.scorers[p.id].task == task
            ]
            for at, (name, aggregate) in enumerate(aggregations.items()):
                told = [n for n in mine if predictions[n].kept[at]]
                if told:
                    said = [predictions[n].kept[at] for n in told]
                    judged[told, self.metric_names.index(name)] = jackknife_contributions(
                        aggregate, said, f"{task}: {name}"
                    )
        return [
            replace(p, judged=tuple(row))
            for p, row in zip(predictions, judged.tolist(), strict=True)
        ]


def missing(results: Mapping[str, Any]) -> float:
    """The reading of what becomes a number only when all documents are answered."""
    del results
    return MISSING_VALUE


def to_number(value: Any) -> float:
    """A number as it is, perhaps NaN; bbq's marks are arrays without dimensions. TypeError for what
    is none.
    """
    value = value.item() if isinstance(value, np.ndarray) and not value.ndim else value
    if not isinstance(value, Real | np.bool_) or math.isinf(value):
        raise TypeError(f"{value!r} is no number that has a mean")
    return float(value)


def number_if_marked(value: Any) -> float:
    """(number, mark): the number of a document whose mark is set, else nothing."""
    of, mark = value
    if to_number(mark) not in (0, 1):
        raise TypeError(f"{value!r} has no mark")
    return to_number(of) if mark else MISSING_VALUE


def number_if_unmarked(value: Any) -> float:
    """(number, mark): the number of a document whose mark is not set, else nothing."""
    of, mark = value
    return number_if_marked((of, not to_number(mark)))


# Values that an aggregation may take, what it makes of them if it is a mean, and how such values
# are read then.
MEAN_TRIALS: tuple[tuple[list[Any], float, ValueParser], ...] = (
    ([1.0, 0.0, 0.0, 0.5], 0.375, to_number),
    ([(1, 1), (0, 1), (1, 1), (0, 0)], 2 / 3, number_if_marked),
    ([(1, 0), (0, 0), (1, 0), (0, 1)], 2 / 3, number_if_unmarked),
)
LM_EVAL_METRICS_MODULE = "lm_eval.api.metrics"  # where lm-eval's own aggregations stand
MEAN_AGGREGATIONS = (
    "mean",
    "nanmean",
)  # those of them that are means: the others need no trial, and some a second to import


def find_mean_metrics(
    aggregations: Mapping[str, Callable[[list[Any]], Any]],
) -> dict[str, MetricExtractor]:
    """How a document's number is read, for every name whose aggregation is a mean over documents
    (or marked ones).
    """
    found = {name: _infer_value_parser(aggregation) for name, aggregation in aggregations.items()}
    return {name: partial(_extract_number, name, value) for name, value in found.items() if value}


def _infer_value_parser(aggregation: Callable[[list[Any]], Any]) -> ValueParser | None:
    if getattr(aggregation, "__module__", "") == LM_EVAL_METRICS_MODULE:
        return to_number if aggregation.__name__ in MEAN_AGGREGATIONS else None
    for values, mean, value in MEAN_TRIALS:
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if math.isclose(float(aggregation(list(values))), mean):
                return value
    return None


def _extract_number(name: str, parser: ValueParser, results: Mapping[str, Any]) -> float:
    """lm-eval leaves out documents of which a number is not said at all."""
    return parser(results[name]) if name in results else MISSING_VALUE


def make_length_extractor(*names: str) -> MetricExtractor:
    """How many bytes or words a document has: what its log-probability is divided by in one of
    these perplexities.
    """
    return lambda said: next(
        (to_number(said[name][1]) for name in names if name in said), MISSING_VALUE
    )


LENGTH_EXTRACTORS: dict[str, MetricExtractor] = {
    "bytes": make_length_extractor("bits_per_byte", "byte_perplexity"),
    "words": make_length_extractor("word_perplexity"),
}


def read_source_code(function: Any) -> str:
    """The file that a judge stands in, as text: another file may judge otherwise."""
    with suppress(OSError, TypeError):
        return inspect.getsource(inspect.getmodule(inspect.unwrap(function)) or function)
    return ""
