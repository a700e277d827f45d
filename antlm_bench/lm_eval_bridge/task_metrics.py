"""Metrics that a task's own code computes: values per document, whose mean is the task's metric.

Nothing here imports lm-eval. A trial finds out whether an aggregation is a mean. If it is not, the
results of a document are stored as they are (raw values), and become numbers when all documents
have been scored (lm_eval_bridge.jackknife).
"""

from __future__ import annotations

import inspect
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.lm_eval_bridge.jackknife import Aggregation, jackknife_contributions, to_json
from antlm_bench.predictions import Predictions
from antlm_bench.types import Option

MISSING_VALUE = float("nan")  # value of a document that is left out
MetricExtractor = Callable[[Mapping[str, Any]], float]  # results of a document -> one metric
ValueParser = Callable[[Any], float]


class DocumentMetrics(NamedTuple):
    """The metrics of one document."""

    values: tuple[float, ...]
    raw_values: tuple[str, ...]
    """JSON of the results that an aggregation over all documents needs; "" = no such result."""


@dataclass(frozen=True, slots=True)
class DocumentScorer:
    """One document, and the code that scores its responses."""

    document: Any
    process_results: Callable[[Any, list[Any]], Mapping[str, Any]]
    """lm-eval's function of that name: (document, responses) -> results by name. A response is the
    log-probability of an option and whether it is greedy; of a whole document the former only.
    """
    extractors: Mapping[str, MetricExtractor]
    location: str
    """The document, as error messages name it."""
    extra_requests: tuple[Option, ...] = ()
    """Texts that are scored after the item's options."""
    task: str = ""
    raw_value_names: tuple[str, ...] = ()
    """Names of results that have no number yet."""

    def score(self, responses: Sequence[Any]) -> DocumentMetrics:
        """Return the metrics in the order of `extractors` and `raw_value_names`.

        Raises DataError where the task's code fails, or returns no number.
        """
        try:
            with np.errstate(all="ignore"), redirect_stdout(io.StringIO()):
                results = self.process_results(self.document, list(responses))
                values = (float(extract(results)) for extract in self.extractors.values())
                raw_values = (
                    to_json(results[name]) if name in results else ""
                    for name in self.raw_value_names
                )
                return DocumentMetrics(tuple(values), tuple(raw_values))
        except Exception as error:  # the task's own code may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"the task's own code fails on the answer: {reason}",
                location=self.location,
                hint="does `lm_eval run --tasks` take it?",
            ) from error


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """The metrics of a suite, and the scorers of its documents."""

    metric_names: tuple[str, ...]
    scorers: Mapping[str, DocumentScorer]
    """Item id -> its scorer."""
    code_digest: str
    """sha256 of lm-eval's version and of the task's own code."""
    corpus_metrics: Mapping[str, Mapping[str, Aggregation]] = field(default_factory=dict)
    """Task -> name -> aggregation, for metrics that are not means; the names are the same, in the
    same order, for all tasks.
    """

    def key_parts(self) -> list[str]:
        """Return what enters a cell's content key."""
        return [self.code_digest, *self.metric_names]

    def missing_metrics(self) -> DocumentMetrics:
        """Return the metrics of a document that does not fit the model."""
        num_raw_values = len(next(iter(self.corpus_metrics.values()), ()))
        return DocumentMetrics((MISSING_VALUE,) * len(self.metric_names), ("",) * num_raw_values)

    def with_corpus_metrics(self, predictions: Predictions) -> Predictions:
        """Return all predictions of a suite with their contributions to its task's corpus metrics.

        Predictions of another engine, which have no metrics, stay as they are. Raises DataError
        where an aggregation fails.
        """
        values, raw_values = predictions.task_values.copy(), predictions.raw_values()
        tasks = [self.scorers[name].task for name in predictions.ids] if any(raw_values) else []
        for task, aggregations in self.corpus_metrics.items():
            for column, (name, aggregate) in enumerate(aggregations.items()):
                rows = [
                    row
                    for row, row_task in enumerate(tasks)
                    if row_task == task and raw_values[row] and raw_values[row][column]
                ]
                if rows:
                    values[rows, self.metric_names.index(name)] = jackknife_contributions(
                        aggregate, [raw_values[row][column] for row in rows], f"{task}: {name}"
                    )
        return predictions.with_task_values(values)


def missing(results: Mapping[str, Any]) -> float:
    """Return NaN: the extractor of a metric that needs all documents."""
    del results
    return MISSING_VALUE


def to_number(value: Any) -> float:
    """Return a number, perhaps NaN. Raises TypeError for anything else.

    bbq's marks are arrays without dimensions.
    """
    value = value.item() if isinstance(value, np.ndarray) and not value.ndim else value
    if not isinstance(value, Real | np.bool_) or math.isinf(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)


def number_if_marked(value: Any) -> float:
    """Return the number of (number, mark) where the mark is set, else NaN."""
    number, mark = value
    if to_number(mark) not in (0, 1):
        raise TypeError(f"{value!r} has no mark")
    return to_number(number) if mark else MISSING_VALUE


def number_if_unmarked(value: Any) -> float:
    """Return the number of (number, mark) where the mark is not set, else NaN."""
    number, mark = value
    return number_if_marked((number, not to_number(mark)))


# (values that an aggregation may take, its result if it is a mean, how such values are read then)
MEAN_TRIALS: tuple[tuple[list[Any], float, ValueParser], ...] = (
    ([1.0, 0.0, 0.0, 0.5], 0.375, to_number),
    ([(1, 1), (0, 1), (1, 1), (0, 0)], 2 / 3, number_if_marked),
    ([(1, 0), (0, 0), (1, 0), (0, 1)], 2 / 3, number_if_unmarked),
)
LM_EVAL_METRICS_MODULE = "lm_eval.api.metrics"  # lm-eval's own aggregations
# Those of them that are means. The others need no trial, and some take a second to import.
MEAN_AGGREGATIONS = ("mean", "nanmean")


def find_mean_metrics(
    aggregations: Mapping[str, Callable[[list[Any]], Any]],
) -> dict[str, MetricExtractor]:
    """Return the extractors of all metrics that are means over documents (or marked ones)."""
    parsers = {name: _infer_value_parser(aggregation) for name, aggregation in aggregations.items()}
    return {name: partial(_extract_number, name, parse) for name, parse in parsers.items() if parse}


def _infer_value_parser(aggregation: Callable[[list[Any]], Any]) -> ValueParser | None:
    if getattr(aggregation, "__module__", "") == LM_EVAL_METRICS_MODULE:
        return to_number if aggregation.__name__ in MEAN_AGGREGATIONS else None
    for values, mean, parser in MEAN_TRIALS:
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if math.isclose(float(aggregation(list(values))), mean):
                return parser
    return None


def _extract_number(name: str, parser: ValueParser, results: Mapping[str, Any]) -> float:
    """Return a result's number; NaN where it is absent, for lm-eval leaves such documents out."""
    return parser(results[name]) if name in results else MISSING_VALUE


def make_length_extractor(*names: str) -> MetricExtractor:
    """Return the extractor of a document's bytes or words: the divisor in these perplexities."""

    def extract_length(results: Mapping[str, Any]) -> float:
        lengths = (to_number(results[name][1]) for name in names if name in results)
        return next(lengths, MISSING_VALUE)

    return extract_length


LENGTH_EXTRACTORS: dict[str, MetricExtractor] = {
    "bytes": make_length_extractor("bits_per_byte", "byte_perplexity"),
    "words": make_length_extractor("word_perplexity"),
}


def read_source_code(function: Any) -> str:
    """Return the source of the file that defines a function; "" where there is none."""
    with suppress(OSError, TypeError):
        return inspect.getsource(inspect.getmodule(inspect.unwrap(function)) or function)
    return ""
