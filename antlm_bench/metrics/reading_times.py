"""Delta R2: the share of the variance of reading times that only surprisal explains.

    partial R2 = (R2 with surprisal - R2 without) / (1 - R2 without)

Both regressions have the baseline predictors (length, frequency, position, ...) and their pairwise
products. The headline is the mean over measures (self-paced reading, eye tracking) of the mean over
their outcomes. Source: BabyLM's reading scores (evaluation-pipeline-2025, reading/run.py), which
are 100 times this value.

Predictions are log-probabilities of words and of the words before them. The suite's data have the
human reading times and the baseline predictors. Corner cases: a regression leaves out rows with a
missing number, such as words that do not fit the model; a regression with too few rows counts as 0,
and its interval is the whole range. Intervals and the tests that surprisal explains nothing leave
out sentences in turn, the same ones in all regressions (statistics.regression).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.metrics.records import DELTA_R2
from antlm_bench.metrics.summary import rounded_estimate
from antlm_bench.statistics import Interval
from antlm_bench.statistics.regression import (
    NestedRegression,
    design_with_interactions,
    partial_correlations,
    partial_r2,
    partial_r2_test,
)
from antlm_bench.types import FLAGS, Floats, Group, Ints, Summary

if TYPE_CHECKING:
    from antlm_bench.predictions import Predictions

SURPRISAL_COLUMN, PREVIOUS_COLUMN = "surprisal", "previous_surprisal"
"""Columns with the model's surprisal of a word, and of the word before it, in nats."""
CLUSTER_LABEL = "sentence"
"""The label whose values are left out in turn."""


@dataclass(frozen=True, slots=True)
class ReadingMeasure:
    """A measure of reading, such as eye tracking."""

    name: str
    outcomes: tuple[str, ...]
    """Columns of reading times."""
    predictors: tuple[str, ...]
    """Columns of the baseline predictors."""


@dataclass(frozen=True, slots=True)
class ReadingTimes:
    """The human data of a suite: reading times and baseline predictors."""

    ids: tuple[str, ...]
    """Id of each item (n,)."""
    columns: Mapping[str, Floats]
    """Name -> values (n,), nan where a value is missing."""
    measures: tuple[ReadingMeasure, ...]


def summarize_reading_times(
    predictions: Predictions,
    times: ReadingTimes,
    *,
    suite: str,
    method: str,
    notes: Sequence[str] = (),
) -> Summary:
    """Return partial R2 in 0..1: the headline, and each measure and each outcome as a group.

    A note has the p-values that surprisal explains nothing of the headline and of the measures.
    Raises DataError if the suite has no reading times of a predicted word.
    """
    columns, sentence_codes = _join_predictions(predictions, times)
    flag_masks = predictions.flags()
    flags = {name: int(flag_masks[name].sum()) for name in FLAGS if name in flag_masks}
    regressions = build_regressions(columns, sentence_codes, times)
    values = [partial_r2(regression) for regression in regressions]
    num_sentences = int(sentence_codes.max()) + 1
    correlations = None if None in values else partial_correlations(regressions, num_sentences)
    groups, p_values = [], {}
    for level, name, parent, weights in estimate_weights(times):
        value = float(weights @ [r2 or 0.0 for r2 in values])
        n = max(len(regressions[i].outcome) for i in np.flatnonzero(weights))
        interval, p = (
            partial_r2_test(correlations, weights) if correlations else (Interval(0.0, 1.0), None)
        )
        estimate = rounded_estimate(value, n, interval, flags, DELTA_R2.value_range)
        groups.append(Group(level, name, estimate, parent))
        if p is not None and level != "outcome":
            p_values[name or "mean"] = p
    headline, *others = groups
    outcomes = [outcome for measure in times.measures for outcome in measure.outcomes]
    undefined = [outcome for outcome, r2 in zip(outcomes, values, strict=True) if r2 is None]
    return Summary(
        suite,
        method,
        DELTA_R2.name,
        macro=("measure", "outcome"),
        headline=headline.estimate,
        views={},
        groups=tuple(others),
        notes=(*notes, *_describe_tests(p_values), *_describe_undefined(undefined)),
    )


def _describe_tests(p_values: Mapping[str, float]) -> Iterator[str]:
    """Yield a note on the tests of each mean of partial R2. p_values: name -> p-value."""
    if p_values:
        listed = ", ".join(f"{name} {p:.2g}" for name, p in p_values.items())
        yield f"p that surprisal explains nothing (sentences left out in turn): {listed}"


def _describe_undefined(outcomes: Sequence[str]) -> Iterator[str]:
    """Yield a note on the outcomes without a regression."""
    if outcomes:
        yield f"too few rows for a regression, shown as 0: {', '.join(outcomes)}"


def estimate_weights(times: ReadingTimes) -> Iterator[tuple[str, str, str, Floats]]:
    """Yield (level, name, parent, weights (r,)) of the headline, each measure and each outcome.

    An estimate is the weighted sum of the partial R2 of the r regressions. The parent of an outcome
    is its measure.
    """
    outcomes = [(outcome, m.name) for m in times.measures for outcome in m.outcomes]
    sizes = [len(measure.outcomes) for measure in times.measures]
    measure_index = np.repeat(np.arange(len(sizes)), sizes)
    measure_weights = [(measure_index == index) / size for index, size in enumerate(sizes)]
    yield "headline", "", "", np.mean(measure_weights, axis=0)
    for measure, weights in zip(times.measures, measure_weights, strict=True):
        yield "measure", measure.name, "", weights
    for (outcome, parent), weights in zip(outcomes, np.eye(len(outcomes)), strict=True):
        yield "outcome", outcome, parent, weights


def build_regressions(
    columns: Mapping[str, Floats], sentence_codes: Ints, times: ReadingTimes
) -> list[NestedRegression]:
    """Return a regression per outcome of each measure, on the rows without missing values.

    columns: name -> values (n,), human data and the model's surprisals. sentence_codes (n,): index
    of each row's sentence.
    """
    return [
        _build_regression(columns, sentence_codes, measure, outcome)
        for measure in times.measures
        for outcome in measure.outcomes
    ]


def align_columns(ids: Sequence[str], times: ReadingTimes) -> dict[str, Floats]:
    """Return the columns of human data in the order of these ids. DataError for an unknown id."""
    row_by_id = {item_id: row for row, item_id in enumerate(times.ids)}
    for item_id in ids:
        if item_id not in row_by_id:
            raise DataError(
                "the suite has no reading times for this item",
                location=f"item {item_id}",
                hint="was the run scored with another version of the suite? score it again",
            )
    rows = [row_by_id[item_id] for item_id in ids]
    return {name: column[rows] for name, column in times.columns.items()}


def _join_predictions(
    predictions: Predictions, times: ReadingTimes
) -> tuple[dict[str, Floats], Ints]:
    """Return the human data and the surprisals (n,), and the index (n,) of each item's sentence."""
    columns = align_columns(predictions.ids, times)
    was_scored = predictions.valid & ~predictions.has_flag("too-long")[:, None]
    surprisal = np.where(was_scored, -predictions.padded("scores"), np.nan)
    for option, name in enumerate((SURPRISAL_COLUMN, PREVIOUS_COLUMN)):
        has_option = option < surprisal.shape[1]  # no word has one before it
        columns[name] = surprisal[:, option] if has_option else np.full(len(surprisal), np.nan)
    labels = predictions.labels(CLUSTER_LABEL)
    sentences = [
        name if label is None else label
        for name, label in zip(predictions.ids, labels, strict=True)
    ]
    return columns, np.unique(sentences, return_inverse=True)[1].reshape(-1).astype(np.int32)


def _build_regression(
    columns: Mapping[str, Floats], sentence_codes: Ints, measure: ReadingMeasure, outcome: str
) -> NestedRegression:
    names = (outcome, SURPRISAL_COLUMN, *measure.predictors)
    complete = np.all([np.isfinite(columns[name]) for name in names], axis=0)
    design = design_with_interactions([columns[name][complete] for name in measure.predictors])
    return NestedRegression(
        columns[outcome][complete],
        design,
        columns[SURPRISAL_COLUMN][complete],
        sentence_codes[complete],
    )
