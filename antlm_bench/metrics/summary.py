"""Summarize predictions: compute a suite's metric for the suite and for each of its groups.

`summarize` returns a Summary. `Metric` is the base class of aggregations; `load_metric` creates one
from the MetricSpec and the settings of a cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics.prediction_table import PredictionTable, build_table, parent_names
from antlm_bench.metrics.records import (
    ACCEPTABILITY_MEASURES,
    CLASS_REDUCTION,
    METRICS,
    REDUCTIONS,
    TIE_RULES,
    ItemKind,
    MetricSpec,
    Target,
)
from antlm_bench.printable import format_count
from antlm_bench.registry import load_target, naming_plugin
from antlm_bench.types import TOO_LONG_HINT, Bools, Cell, Estimate, Floats, Group, Ints, Summary

if TYPE_CHECKING:
    from antlm_bench.predictions import Predictions


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """The settings of a cell that decide how a metric is computed from its log-probabilities."""

    ties: str = "half"
    """How a tie between the best options is resolved: one of TIE_RULES."""
    reduction: str = "sum"
    """How log-probabilities are normalised: one of REDUCTIONS or ACCEPTABILITY_MEASURES, or
    CLASS_REDUCTION."""
    softmax: str = "float64"
    """Precision of probabilities that are correlated with ratings."""

    @classmethod
    def of_cell(cls, cell: Cell) -> MetricSettings:
        """Return the settings of a cell, with defaults for those that its version did not write."""
        settings = {
            field.name: str(cell.settings[field.name])
            for field in fields(cls)
            if field.name in cell.settings
        }
        if cell.seed is not None:  # a finetuned classifier
            settings["reduction"] = CLASS_REDUCTION
        return cls(**settings)

    @property
    def is_classified(self) -> bool:
        """Whether the items are texts that a finetuned model classified."""
        return self.reduction == CLASS_REDUCTION


class Headline(NamedTuple):
    """The score of a suite."""

    estimate: Estimate
    """The headline itself."""
    views: dict[str, Estimate]
    """Name -> the score with another interval, weighting, reduction or metric."""
    notes: tuple[str, ...] = ()
    """Sentences that qualify the estimates."""


class Metric(ABC):
    """A metric under the settings of a cell."""

    def __init__(self, spec: MetricSpec, settings: MetricSettings) -> None:
        self.spec, self.settings = spec, settings

    @abstractmethod
    def per_item(self, table: PredictionTable) -> Floats:
        """Return the contribution (n,) of each item, nan = left out.

        Contributions to a metric that is not a mean over items are linearised: their mean is the
        metric, and their variance divided by n is the sampling variance of the metric.
        """

    @abstractmethod
    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        """Return the score of the suite. macro: label levels whose groups it averages over."""

    @abstractmethod
    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        """Return the estimate of the items where members (n,) is True."""

    def by_group(
        self, table: PredictionTable, codes: Ints, names: Sequence[str]
    ) -> Sequence[Estimate | None]:
        """Return the estimate of each group, None if it is undefined.

        codes (n,): the group of each item, -1 = none.
        """
        masks = (codes == code for code in range(len(names)))
        return [
            None
            if self.find_undefined_reason(table, members)
            else self.estimate_members(table, members)
            for members in masks
        ]

    def find_undefined_reason(self, table: PredictionTable, members: Bools) -> str:
        """Return why the score of the items where members (n,) is True is undefined, "" if it is
        defined. Items that do not fit the model do not count."""
        return self.spec.find_undefined_reason(table.gold[members & ~table.get_flag("too-long")])

    def require_defined(self, table: PredictionTable) -> None:
        """Raise DataError if the score of all items that fit the model is undefined."""
        if reason := self.find_undefined_reason(table, np.ones(len(table.ids), bool)):
            num_too_long = int(table.get_flag("too-long").sum())
            others = f" ({num_too_long} more do not fit the model)" if num_too_long else ""
            raise DataError(
                f"{self.spec.heading} is undefined: {reason}{others}",
                location=f"item {table.ids[0]} and others",
                hint=TOO_LONG_HINT if num_too_long else "score more items",
            )

    def closing_notes(self, estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
        """Return notes that depend on all estimates. estimates: name of the suite or group ->
        estimate."""
        del estimates
        return ()


def summarize(
    predictions: Predictions,
    *,
    suite: str,
    method: str,
    metric: str,
    macro: Sequence[str],
    groups: Sequence[str],
    ties: str = "half",
    reduction: str = "sum",
    softmax: str = "float64",
    notes: Sequence[str] = (),
) -> Summary:
    """Return the Summary of one suite under one method.

    macro: label levels whose groups the headline averages with equal weights, outermost first; ()
    = the mean over items. groups: label levels whose groups are reported, coarse to fine; a group's
    estimate is over its items (as BabyLM prints fields and phenomena). ties, reduction, softmax:
    see MetricSettings. Items flagged `too-long` were not scored; each metric decides how to treat
    them, and `flags` counts them.

    Groups whose score is undefined (an AUC of one class) are left out, with a note.

    Raises UsageError (unknown metric or tie rule), DataError (no predictions, a missing label of a
    `macro` level, a gold that is not the index of an option, an undefined headline),
    CheckpointError (a NaN or +inf score).
    """
    settings = MetricSettings(ties, reduction, softmax)
    loaded = load_metric(metric, settings)
    if loaded.spec.fixed_macro is not None:
        macro, groups = loaded.spec.fixed_macro, ()
    table = build_table(predictions, {*macro, *groups}, reduction)
    with naming_plugin(METRICS.describe(metric)):
        headline = loaded.headline(table, macro)
        group_estimates: list[Group] = []
        undefined_names: list[str] = []
        for parent_level, level in zip((None, *groups), groups, strict=False):
            codes, names = table.levels[level]
            parents = parent_names(table, parent_level, codes, len(names))
            estimates = loaded.by_group(table, codes, names)
            for name, estimate, parent in zip(names, estimates, parents, strict=True):
                if estimate is None:
                    undefined_names.append(name)
                else:
                    group_estimates.append(Group(level, name, estimate, parent))
        closing_notes = loaded.closing_notes(
            {suite: headline.estimate, **{group.name: group.estimate for group in group_estimates}}
        )
    closing_notes = (*describe_undefined_groups(undefined_names, loaded.spec), *closing_notes)
    num_clusters = 0 if table.clusters is None else len(np.unique(table.clusters))
    return Summary(
        suite,
        method,
        metric,
        tuple(macro),
        headline.estimate,
        headline.views,
        tuple(group_estimates),
        (*notes, *headline.notes, *closing_notes, *_cluster_notes(num_clusters, len(table.ids))),
        num_clusters,
    )


def describe_undefined_groups(names: Sequence[str], spec: MetricSpec) -> tuple[str, ...]:
    """Return a note on groups that are left out because their score is undefined; () for none."""
    if not names:
        return ()
    has_classes = spec.item_kind is ItemKind.JUDGEMENT
    reason = "all items are of one class" if has_classes else "too few items, or equal ratings"
    return (f"{', '.join(dict.fromkeys(names))}: {spec.heading} undefined ({reason}), left out",)


def _cluster_notes(num_clusters: int, num_items: int) -> tuple[str, ...]:
    if num_clusters in (0, num_items):
        return ()
    from antlm_bench.statistics.clusters import MIN_VARYING_CLUSTERS  # needs scipy

    clusters = format_count(num_clusters, "cluster")
    few = "; so few count as if their items were alike" * (num_clusters < MIN_VARYING_CLUSTERS)
    return (f"intervals count {clusters} of items that belong together{few}",)


def load_metric(name: str, settings: MetricSettings) -> Metric:
    """Return a metric under these settings.

    Raises UsageError if the metric, tie rule or reduction is unknown, or if the metric is not
    computed from one suite's predictions of this kind.
    """
    spec = METRICS[name]
    _check_name("tie rule", settings.ties, TIE_RULES)
    reductions = dict.fromkeys((*REDUCTIONS, *ACCEPTABILITY_MEASURES, CLASS_REDUCTION))
    _check_name("reduction", settings.reduction, reductions)
    target: Target | None = spec.aggregation
    if settings.is_classified:
        target = "antlm_bench.metrics.classification:ClassificationMetric"
    elif target is None and spec.confusion:
        raise UsageError(
            f"{name} is a metric of classified texts",
            hint=f"use the metric accuracy, or reduction = {CLASS_REDUCTION!r}",
        )
    if target is None:
        raise UsageError(
            f"{name} cannot be computed from the predictions of one suite",
            hint="its own command computes it: antlm-bench score, or antlm-bench acquisition",
        )
    loaded: Metric = load_target(target)(spec, settings)
    if not isinstance(loaded, Metric):
        raise UsageError(
            f"the aggregation of the metric {name!r} is a {type(loaded).__name__}, not a Metric",
            hint="see antlm_bench.metrics.summary.Metric",
        )
    if METRICS.describe(name):
        compute_values = loaded.per_item
        loaded.per_item = lambda table: check_item_values(  # type: ignore[method-assign]
            compute_values(table), table, spec
        )
    return loaded


def check_item_values(values: Any, table: PredictionTable, spec: MetricSpec) -> Floats:
    """Return the values (n,) of a metric as floats.

    Raises DataError, naming the metric, unless they are numbers of the shape (n,). They may be nan
    where an item has no value; those of items that fit the model may not be infinite.
    """
    location, num_items = _describe_metric(spec), len(table.ids)
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of several lengths
        raise DataError(f"no array of numbers: {error}", location=location) from error
    if array.dtype.kind not in "biuf":
        problem = f"are a {type(values).__name__} of type {array.dtype}, not an array of floats"
    elif array.shape != (num_items,):
        problem = f"have the shape {array.shape}, not ({num_items},): one value per item"
    elif len(infinite := np.flatnonzero(np.isinf(array) & ~table.get_flag("too-long"))):
        problem = f"are {array[infinite[0]]} for the item {table.ids[int(infinite[0])]}"
    else:
        return array.astype(float)
    raise DataError(
        f"the values of the items {problem}",
        location=location,
        hint="return a float array with a number per item, nan = left out",
    )


def _describe_metric(spec: MetricSpec) -> str:
    return METRICS.describe(spec.name) or f"the metric {spec.name!r}"


def check_value_range(values: Floats, table: PredictionTable, spec: MetricSpec) -> None:
    """Raise DataError for the first item whose value (n,) is outside the metric's `value_range`."""
    low, high = spec.value_range
    tolerance = 1e-9 * max(1.0, *(abs(end) for end in (low, high) if np.isfinite(end)), 0.0)
    outside = np.flatnonzero((values < low - tolerance) | (values > high + tolerance))
    if len(outside):
        index = int(outside[0])
        raise DataError(
            f"the value of the item {table.ids[index]} is {values[index]:g}, outside the metric's "
            f"value_range {low:g} to {high:g}",
            location=_describe_metric(spec),
            hint="correct the values, or the value_range of the record",
        )


def load_cell_metric(cell: Cell) -> Metric:
    """Return the metric of a cell under the cell's own settings. Raises as `load_metric`."""
    return load_metric(cell.summary.metric, MetricSettings.of_cell(cell))


def rounded_estimate(
    value: float,
    n: int,
    interval: tuple[Any, Any],
    flags: Mapping[str, int],
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Return an Estimate whose value and bounds are clipped to the metric's range and rounded.

    Rounding (`round_value`) removes differences that come from the order of a sum.
    """
    value, low, high = (round_value(float(np.clip(x, *value_range))) for x in (value, *interval))
    return Estimate(value, int(n), low, high, dict(flags))


def round_value(value: float) -> float:
    """Return a value as a Summary holds it, so that equal values of two sums are equal."""
    return round(value, 12)


def _check_name(noun: str, name: str, valid_names: Collection[str]) -> None:
    if name in valid_names:
        return
    matches = get_close_matches(name, valid_names, 1)
    hint = f"did you mean {matches[0]}?" if matches else f"one of {', '.join(valid_names)}"
    raise UsageError(f"unknown {noun} {name!r}", hint=hint)
