"""Reading times: how much of what word length, frequency and position leave unexplained does
surprisal explain?

The predictions of a suite of reading times are log-probabilities of words (and of the words before
them); the human times and the other predictors are the suite's. Everything else is a regression.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench.errors import DataError
from antlm_bench.metrics.measures import count_flags, rounded_estimate
from antlm_bench.statistics import Interval
from antlm_bench.statistics.regression import (
    NestedRegression,
    bias_corrected_interval,
    bootstrap_partial_r2,
    design_with_interactions,
    partial_r2,
)
from antlm_bench.types import Estimate, Floats, Group, Ints, Prediction, Summary

DELTA_R2 = "delta-r2"
SURPRISAL, PREVIOUS_SURPRISAL = (
    "surprisal",
    "previous_surprisal",
)  # columns that the model adds, in nats
CLUSTER_LABEL = "sentence"  # the label of what is resampled


@dataclass(frozen=True, slots=True)
class ReadingMeasure:
    """A way of measuring reading: its outcomes, and the predictors that surprisal has to go beyond.
    """

    name: str
    outcomes: tuple[str, ...]
    predictors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReadingTimes:
    """The human side of a suite: columns (n,) of numbers per item id, NaN where one is missing."""

    ids: tuple[str, ...]
    columns: Mapping[str, Floats]
    measures: tuple[ReadingMeasure, ...]


def summarize_reading_times(
    predictions: Sequence[Prediction],
    times: ReadingTimes,
    *,
    suite: str,
    method: str,
    notes: Sequence[str] = (),
) -> Summary:
    """The headline is the mean over measures of the mean over their outcomes of partial R2, in
    0..1.

    A regression leaves out the rows in which it lacks a number, words that were too long among
    them. Intervals: sentences are drawn again, all measures with the same ones. A regression with
    too few rows counts as 0, over the whole range, and a remark says so.
    """
    columns, cluster = _join_predictions(predictions, times)
    flags = count_flags(predictions)
    made = build_regressions(columns, cluster, times)
    values = [partial_r2(regression) for regression in made]
    clusters = int(cluster.max()) + 1
    vague = clusters < 2 or None in values
    drawn = np.zeros((1, len(made))) if vague else bootstrap_partial_r2(made, clusters)

    def estimate(weights: Floats) -> Estimate:
        value = float(weights @ [v or 0.0 for v in values])
        n = max(len(made[i].outcome) for i in np.flatnonzero(weights))
        interval = Interval(0.0, 1.0) if vague else bias_corrected_interval(value, drawn @ weights)
        return rounded_estimate(value, n, interval, flags)

    lines = [
        Group(level, name, estimate(weights), within)
        for level, name, within, weights in estimate_weights(times)
    ]
    headline, groups = lines[0].estimate, lines[1:]
    outcomes = [outcome for measure in times.measures for outcome in measure.outcomes]
    lost = [outcome for outcome, value in zip(outcomes, values, strict=True) if value is None]
    remarks = [f"too few rows for a regression, shown as 0: {', '.join(lost)}"] if lost else []
    return Summary(
        suite,
        method,
        DELTA_R2,
        ("measure", "outcome"),
        headline,
        {},
        tuple(groups),
        (*notes, *remarks),
    )


def estimate_weights(times: ReadingTimes) -> Iterator[tuple[str, str, str, Floats]]:
    """(level, name, the measure it belongs to, weight of each regression (r,)): the headline,
    measures, outcomes.
    """
    owner = np.array([m for m, measure in enumerate(times.measures) for _ in measure.outcomes])
    of_measures = [(owner == m) / np.count_nonzero(owner == m) for m in range(len(times.measures))]
    yield "headline", "", "", np.mean(of_measures, axis=0)
    for measure, weights in zip(times.measures, of_measures, strict=True):
        yield "measure", measure.name, "", weights
    named = [(outcome, measure.name) for measure in times.measures for outcome in measure.outcomes]
    for (outcome, within), weights in zip(named, np.eye(len(named)), strict=True):
        yield "outcome", outcome, within, weights


def build_regressions(
    columns: Mapping[str, Floats], cluster: Ints, times: ReadingTimes
) -> list[NestedRegression]:
    """One per outcome of each measure, on the rows that lack none of its numbers. columns: human's
    and model's.
    """
    return [
        _build_regression(columns, cluster, measure, o)
        for measure in times.measures
        for o in measure.outcomes
    ]


def align_columns(ids: Sequence[str], times: ReadingTimes) -> dict[str, Floats]:
    """The human columns of exactly these items. DataError where there are none of one."""
    place = {name: row for row, name in enumerate(times.ids)}
    if unknown := [name for name in ids if name not in place]:
        raise DataError("there are no reading times for this item", location=f"item {unknown[0]}")
    rows = [place[name] for name in ids]
    return {name: column[rows] for name, column in times.columns.items()}


def _join_predictions(
    predictions: Sequence[Prediction], times: ReadingTimes
) -> tuple[dict[str, Floats], Ints]:
    """The human columns of exactly these predictions with the model's beside them, and each row's
    sentence.
    """
    columns = align_columns([p.id for p in predictions], times)
    for option, name in enumerate((SURPRISAL, PREVIOUS_SURPRISAL)):
        said = [
            p.scores[option] if len(p.scores) > option and "too-long" not in p.flags else None
            for p in predictions
        ]
        columns[name] = np.array([np.nan if score is None else -score for score in said])
    sentences = [p.labels.get(CLUSTER_LABEL, p.id) for p in predictions]
    return columns, np.unique(sentences, return_inverse=True)[1].reshape(-1).astype(np.int32)


def _build_regression(
    columns: Mapping[str, Floats], cluster: Ints, measure: ReadingMeasure, outcome: str
) -> NestedRegression:
    names = (outcome, SURPRISAL, *measure.predictors)
    known = np.all([np.isfinite(columns[name]) for name in names], axis=0)
    design = design_with_interactions([columns[name][known] for name in measure.predictors])
    return NestedRegression(
        columns[outcome][known], design, columns[SURPRISAL][known], cluster[known]
    )
