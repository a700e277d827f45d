"""Compute the metrics of an lm-eval task with the task's own code. Does not import lm-eval.

The task's `process_results` gives results per document, and its aggregations turn them into
metrics. A trial with known inputs detects whether an aggregation is a mean. If it is, each document
has a value, and the metric is the mean of the values. If it is not, a prediction stores the
document's result as a raw value (JSON). When all documents are scored, raw values become the
documents' contributions to the metric (lm_eval_bridge.jackknife).
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

MISSING_VALUE = float("nan")  # value of a document that a metric leaves out
MetricExtractor = Callable[[Mapping[str, Any]], float]  # (results of a document) -> metric value
ValueParser = Callable[[Any], float]  # (one result) -> metric value


class MetricValues(NamedTuple):
    """The task metric values of one document."""

    values: tuple[float, ...]
    """One value per metric."""
    raw_values: tuple[str, ...]
    """One result (JSON) per metric that is not a mean; "" = the document has no such result."""


@dataclass(frozen=True, slots=True)
class DocumentMetrics:
    """The code that computes the task metric values of one document from a model's responses."""

    document: Any
    """lm-eval's doc."""
    process_results: Callable[[Any, list[Any]], Mapping[str, Any]]
    """The task's method: (document, responses) -> results by metric name. A response is (the
    log-probability of an option, whether it is greedy); for a whole document its log-probability.
    """
    extractors: Mapping[str, MetricExtractor]
    """Metric name -> extractor of its value."""
    location: str
    """The document, as error messages name it."""
    unconditional_options: tuple[Option, ...] = ()
    """The item's options without context, which acc_mutual_info needs. Their responses follow those
    of the options.
    """
    task: str = ""
    """The task's name."""
    raw_value_names: tuple[str, ...] = ()
    """Names of the metrics that are not means."""

    def compute(self, responses: Sequence[Any]) -> MetricValues:
        """Return the values in the order of `extractors`, raw values in that of `raw_value_names`.

        Raises DataError if the task's code fails or returns no number.
        """
        try:
            with np.errstate(all="ignore"), redirect_stdout(io.StringIO()):
                results = self.process_results(self.document, list(responses))
                values = (float(extract(results)) for extract in self.extractors.values())
                raw_values = (
                    to_json(results[name]) if name in results else ""
                    for name in self.raw_value_names
                )
                return MetricValues(tuple(values), tuple(raw_values))
        except Exception as error:  # the task's own code may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise DataError(
                f"the task's own metric code fails: {reason}",
                location=self.location,
                hint="check whether `lm_eval run --tasks` can score the task",
            ) from error


@dataclass(frozen=True, slots=True)
class TaskMetrics:
    """The task metrics of a suite."""

    metric_names: tuple[str, ...]
    document_metrics: Mapping[str, DocumentMetrics]
    """Item id -> the metrics of its document."""
    code_digest: str
    """sha256 of lm-eval's version and of the task's own code."""
    corpus_metrics: Mapping[str, Mapping[str, Aggregation]] = field(default_factory=dict)
    """Task -> metric name -> aggregation, for metrics that are not means. All tasks have the same
    names in the same order.
    """

    def key_parts(self) -> list[str]:
        """Return the strings that are part of a cell's content key."""
        return [self.code_digest, *self.metric_names]

    def missing_values(self) -> MetricValues:
        """Return the values of a document that does not fit the model."""
        num_raw_values = len(next(iter(self.corpus_metrics.values()), ()))
        return MetricValues((MISSING_VALUE,) * len(self.metric_names), ("",) * num_raw_values)

    def with_corpus_metrics(self, predictions: Predictions) -> Predictions:
        """Return all predictions of a suite with their contributions to corpus metrics.

        Predictions without raw values (those of other engines) do not change. Raises DataError if
        an aggregation fails.
        """
        values, raw_values = predictions.task_values.copy(), predictions.raw_values()
        tasks = (
            [self.document_metrics[name].task for name in predictions.ids]
            if any(raw_values)
            else []
        )
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


def extract_nan(results: Mapping[str, Any]) -> float:
    """Return NaN. This is the extractor of a corpus metric until all documents are scored."""
    del results
    return MISSING_VALUE


def parse_number(value: Any) -> float:
    """Return a number or NaN. Raises TypeError for anything else.

    Arrays without dimensions count as numbers: bbq's flags are such arrays.
    """
    value = value.item() if isinstance(value, np.ndarray) and not value.ndim else value
    if not isinstance(value, Real | np.bool_) or math.isinf(value):
        raise TypeError(f"{value!r} is not a finite number")
    return float(value)


def parse_included(value: Any) -> float:
    """Return the number of a pair (number, is_included), NaN if it is not included."""
    number, is_included = value
    if parse_number(is_included) not in (0, 1):
        raise TypeError(f"{value!r} is not a pair of a number and a flag")
    return parse_number(number) if is_included else MISSING_VALUE


def parse_not_excluded(value: Any) -> float:
    """Return the number of a pair (number, is_excluded), NaN if it is excluded."""
    number, is_excluded = value
    return parse_included((number, not parse_number(is_excluded)))


# (results of four documents, their mean, parser of such results). An aggregation that returns this
# mean for these results is a mean over documents, and the parser returns the value of a document.
MEAN_TRIALS: tuple[tuple[list[Any], float, ValueParser], ...] = (
    ([1.0, 0.0, 0.0, 0.5], 0.375, parse_number),
    ([(1, 1), (0, 1), (1, 1), (0, 0)], 2 / 3, parse_included),
    ([(1, 0), (0, 0), (1, 0), (0, 1)], 2 / 3, parse_not_excluded),
)
LM_EVAL_METRICS_MODULE = "lm_eval.api.metrics"  # the module of lm-eval's own aggregations
# The means in this module. Its other aggregations need no trial, which may import a slow library.
MEAN_AGGREGATIONS = ("mean", "nanmean")


def find_mean_metrics(
    aggregations: Mapping[str, Callable[[list[Any]], Any]],
) -> dict[str, MetricExtractor]:
    """Return the extractors of all metrics that are means over (included) documents."""
    parsers = {name: _infer_value_parser(aggregation) for name, aggregation in aggregations.items()}
    return {
        name: partial(_extract_value, name, parser) for name, parser in parsers.items() if parser
    }


def _infer_value_parser(aggregation: Callable[[list[Any]], Any]) -> ValueParser | None:
    """Return the parser of an aggregation's values; None if the aggregation is not a mean."""
    if getattr(aggregation, "__module__", "") == LM_EVAL_METRICS_MODULE:
        return parse_number if aggregation.__name__ in MEAN_AGGREGATIONS else None
    for values, mean, parser in MEAN_TRIALS:
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if math.isclose(float(aggregation(list(values))), mean):
                return parser
    return None


def _extract_value(name: str, parser: ValueParser, results: Mapping[str, Any]) -> float:
    """Return a metric value; NaN if the document has no such result (lm-eval leaves it out)."""
    return parser(results[name]) if name in results else MISSING_VALUE


def make_length_extractor(*names: str) -> MetricExtractor:
    """Return an extractor of a document's length: the divisor in the perplexities `names`."""

    def extract_length(results: Mapping[str, Any]) -> float:
        lengths = (parse_number(results[name][1]) for name in names if name in results)
        return next(lengths, MISSING_VALUE)

    return extract_length


LENGTH_EXTRACTORS: dict[str, MetricExtractor] = {
    "bytes": make_length_extractor("bits_per_byte", "byte_perplexity"),
    "words": make_length_extractor("word_perplexity"),
}


def read_source_code(function: Any) -> str:
    """Return the source code of the module that defines a function; "" if there is none."""
    with suppress(OSError, TypeError):
        return inspect.getsource(inspect.getmodule(inspect.unwrap(function)) or function)
    return ""
