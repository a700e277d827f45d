"""Delta R2: how much of what other predictors leave of reading times does surprisal explain?

    partial R2 = (R2 with surprisal - R2 without) / (1 - R2 without)

The predictors without it are length, frequency, position and the like, with their products of two;
the headline is the mean over measures (self-paced reading, eye tracking) of the mean over their
outcomes. Source: BabyLM's reading scores (evaluation-pipeline-2025, reading/run.py), which are 100
times this.

The predictions are log-probabilities of words and of the words before them; the human times and the
other predictors are the suite's. Corner cases: a regression leaves out rows that lack a number,
words that were too long among them; with too few rows it counts as 0 over the whole range.
Intervals draw sentences again, all regressions with the same ones (statistics.regression).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.metrics.records import DELTA_R2
from antlm_bench.metrics.summary import rounded_estimate
from antlm_bench.predictions import Predictions
from antlm_bench.statistics import Interval
from antlm_bench.statistics.regression import (
    NestedRegression,
    bias_corrected_interval,
    bootstrap_partial_r2,
    design_with_interactions,
    partial_r2,
)
from antlm_bench.types import FLAGS, Estimate, Floats, Group, Ints, Summary

SURPRISAL_COLUMN, PREVIOUS_COLUMN = "surprisal", "previous_surprisal"
"""Predictors that the model adds, in nats: of a word, and of the word before it."""
CLUSTER_LABEL = "sentence"
"""The label of what is resampled."""


@dataclass(frozen=True, slots=True)
class ReadingMeasure:
    """A way of measuring reading."""

    name: str
    outcomes: tuple[str, ...]
    """Columns of reading times."""
    predictors: tuple[str, ...]
    """Columns that surprisal has to go beyond."""


@dataclass(frozen=True, slots=True)
class ReadingTimes:
    """The human side of a suite."""

    ids: tuple[str, ...]
    """Id of each item (n,)."""
    columns: Mapping[str, Floats]
    """Name -> numbers (n,), nan where one is missing."""
    measures: tuple[ReadingMeasure, ...]


def summarize_reading_times(
    predictions: Predictions,
    times: ReadingTimes,
    *,
    suite: str,
    method: str,
    notes: Sequence[str] = (),
) -> Summary:
    """Return the mean over measures of the mean over their outcomes of partial R2, in 0..1, and
    both as groups.

    Raises DataError where the suite has no reading times of a prediction.
    """
    columns, sentence = _join_predictions(predictions, times)
    raised = predictions.flags()
    flags = {name: int(raised[name].sum()) for name in FLAGS if name in raised}
    regressions = build_regressions(columns, sentence, times)
    values = [partial_r2(regression) for regression in regressions]
    num_sentences = int(sentence.max()) + 1
    undefined = num_sentences < 2 or None in values
    replicates = (
        np.zeros((1, len(regressions)))
        if undefined
        else bootstrap_partial_r2(regressions, num_sentences)
    )

    def estimate(weights: Floats) -> Estimate:
        value = float(weights @ [r2 or 0.0 for r2 in values])
        n = max(len(regressions[i].outcome) for i in np.flatnonzero(weights))
        interval = (
            Interval(0.0, 1.0)
            if undefined
            else bias_corrected_interval(value, replicates @ weights)
        )
        return rounded_estimate(value, n, interval, flags, DELTA_R2.value_range)

    headline, *groups = [
        Group(level, name, estimate(weights), within)
        for level, name, within, weights in estimate_weights(times)
    ]
    outcomes = [outcome for measure in times.measures for outcome in measure.outcomes]
    skipped = [outcome for outcome, r2 in zip(outcomes, values, strict=True) if r2 is None]
    note = f"too few rows for a regression, shown as 0: {', '.join(skipped)}"
    return Summary(
        suite,
        method,
        DELTA_R2.name,
        ("measure", "outcome"),
        headline.estimate,
        {},
        tuple(groups),
        (*notes, *([note] if skipped else [])),
    )


def estimate_weights(times: ReadingTimes) -> Iterator[tuple[str, str, str, Floats]]:
    """Yield (level, name, the measure it belongs to, weight of each regression (r,)) of the
    headline, each measure and each outcome."""
    owner = np.array([m for m, measure in enumerate(times.measures) for _ in measure.outcomes])
    of_measures = [(owner == m) / np.count_nonzero(owner == m) for m in range(len(times.measures))]
    yield "headline", "", "", np.mean(of_measures, axis=0)
    for measure, weights in zip(times.measures, of_measures, strict=True):
        yield "measure", measure.name, "", weights
    named = [(outcome, measure.name) for measure in times.measures for outcome in measure.outcomes]
    for (outcome, within), weights in zip(named, np.eye(len(named)), strict=True):
        yield "outcome", outcome, within, weights


def build_regressions(
    columns: Mapping[str, Floats], sentence: Ints, times: ReadingTimes
) -> list[NestedRegression]:
    """Return a regression per outcome of each measure, on the rows that lack none of its numbers.

    columns: the human's and the model's, (n,) each. sentence (n,): which sentence a row is of.
    """
    return [
        _build_regression(columns, sentence, measure, outcome)
        for measure in times.measures
        for outcome in measure.outcomes
    ]


def align_columns(ids: Sequence[str], times: ReadingTimes) -> dict[str, Floats]:
    """Return the human columns of exactly these items. DataError where there are none of one."""
    row_of = {name: row for row, name in enumerate(times.ids)}
    if unknown := [name for name in ids if name not in row_of]:
        raise DataError("there are no reading times for this item", location=f"item {unknown[0]}")
    rows = [row_of[name] for name in ids]
    return {name: column[rows] for name, column in times.columns.items()}


def _join_predictions(
    predictions: Predictions, times: ReadingTimes
) -> tuple[dict[str, Floats], Ints]:
    """Return the human's and the model's columns of these predictions, and each row's sentence."""
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
    columns: Mapping[str, Floats], sentence: Ints, measure: ReadingMeasure, outcome: str
) -> NestedRegression:
    names = (outcome, SURPRISAL_COLUMN, *measure.predictors)
    known = np.all([np.isfinite(columns[name]) for name in names], axis=0)
    design = design_with_interactions([columns[name][known] for name in measure.predictors])
    return NestedRegression(
        columns[outcome][known], design, columns[SURPRISAL_COLUMN][known], sentence[known]
    )
