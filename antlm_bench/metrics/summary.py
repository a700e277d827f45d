"""From predictions to a Summary: the metric that a suite declares, at every level that it declares.

`summarize` is the way in. `Metric` is what a metric's aggregation offers, `load_metric` makes one
from the metric's record and the settings of a cell.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np

from antlm_bench.errors import UsageError
from antlm_bench.metrics.prediction_table import PredictionTable, build_table, parent_names
from antlm_bench.metrics.records import (
    CLASS_REDUCTION,
    METRICS,
    REDUCTIONS,
    TIE_RULES,
    MetricSpec,
    Target,
)
from antlm_bench.predictions import Predictions
from antlm_bench.registry import load_target
from antlm_bench.types import Bools, Cell, Estimate, Floats, Group, Ints, Summary


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """The settings of a cell that decide how its scores become numbers."""

    ties: str = "half"
    """How a tie between the best options is resolved: one of TIE_RULES."""
    reduction: str = "sum"
    """How log-probabilities are normalised: one of REDUCTIONS; "class" for classified texts."""
    softmax: str = "float64"
    """Precision of the probabilities that a correlation with ratings ranks."""

    @classmethod
    def of_cell(cls, cell: Cell) -> MetricSettings:
        """Return the settings of a cell of any version."""
        recorded = {name: str(value) for name, value in cell.settings.items() if name in SETTINGS}
        if cell.seed is not None:
            recorded["reduction"] = CLASS_REDUCTION
        return cls(**recorded)

    @property
    def is_classified(self) -> bool:
        return self.reduction == CLASS_REDUCTION


SETTINGS = ("ties", "reduction", "softmax")


class Headline(NamedTuple):
    """The number that gets published, the same number computed otherwise, and what a reader must
    know of them."""

    estimate: Estimate
    views: dict[str, Estimate]
    notes: tuple[str, ...] = ()


class Metric(ABC):
    """A metric under the settings of a cell."""

    def __init__(self, spec: MetricSpec, settings: MetricSettings) -> None:
        self.spec, self.settings = spec, settings

    @abstractmethod
    def per_item(self, table: PredictionTable) -> Floats:
        """Return what each item contributes (n,), nan = nothing.

        Where the metric is not a mean of items, contributions are linearised: their mean is the
        metric, and their variance divided by n that of its estimation.
        """

    @abstractmethod
    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        """Return the headline of the suite. macro: levels whose groups it averages over."""

    @abstractmethod
    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        """Return the estimate of the items where members (n,) is True."""

    def by_group(
        self, table: PredictionTable, codes: Ints, names: Sequence[str]
    ) -> Sequence[Estimate]:
        """Return the estimate of each group. codes (n,): the group of each item, -1 = none."""
        return [self.estimate_members(table, codes == code) for code in range(len(names))]

    def closing_notes(self, estimates: Mapping[str, Estimate]) -> tuple[str, ...]:
        """Return what a reader must know of the finished numbers: the headline's and the groups',
        by name."""
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

    macro: levels that the headline averages over without weights, outermost first; () = over items.
    groups: the levels reported, coarse to fine; a group's estimate is over its items (as BabyLM
    prints fields and phenomena). ties, reduction, softmax: see MetricSettings. Items flagged
    `too-long` were not scored; each metric decides how to treat them, `flags` counts them.

    Raises UsageError (unknown metric or tie rule), DataError (no predictions, a missing label of a
    `macro` level, a gold that is not the index of an option), CheckpointError (a NaN or +inf
    score).
    """
    settings = MetricSettings(ties, reduction, softmax)
    loaded = load_metric(metric, settings)
    if loaded.spec.fixed_macro is not None:
        macro, groups = loaded.spec.fixed_macro, ()
    table = build_table(predictions, {*macro, *groups}, reduction)
    headline = loaded.headline(table, macro)
    lines = []
    for above, level in zip((None, *groups), groups, strict=False):
        codes, names = table.levels[level]
        within = parent_names(table, above, codes, len(names))
        estimates = loaded.by_group(table, codes, names)
        lines += [Group(level, n, e, w) for n, e, w in zip(names, estimates, within, strict=True)]
    closing = loaded.closing_notes(
        {suite: headline.estimate, **{line.name: line.estimate for line in lines}}
    )
    return Summary(
        suite,
        method,
        metric,
        tuple(macro),
        headline.estimate,
        headline.views,
        tuple(lines),
        (*notes, *headline.notes, *closing),
    )


def load_metric(name: str, settings: MetricSettings) -> Metric:
    """Return a metric under these settings.

    Raises UsageError where a name is unknown, or the metric is not one of such items.
    """
    spec = METRICS[name]
    _check_name("tie rule", settings.ties, TIE_RULES)
    _check_name("reduction", settings.reduction, (*REDUCTIONS, CLASS_REDUCTION))
    target: Target | None = spec.aggregation
    if settings.is_classified:
        target = "antlm_bench.metrics.classification:ClassificationMetric"
    elif target is None and spec.confusion:
        raise UsageError(
            f"{name} is a metric of classified texts",
            hint=f"accuracy, or reduction = {CLASS_REDUCTION}",
        )
    if target is None:
        raise UsageError(
            f"{name} cannot be computed from the predictions of one suite",
            hint="score the suite again: the command that makes this number records it",
        )
    loaded: Metric = load_target(target)(spec, settings)
    return loaded


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
    """Return an Estimate within a metric's range, without the noise that the order of a sum leaves
    in its last digits."""
    value, low, high = (
        round(float(np.clip(number, *value_range)), 12) for number in (value, *interval)
    )
    return Estimate(value, int(n), low, high, dict(flags))


def _check_name(noun: str, name: str, known: Collection[str]) -> None:
    if name in known:
        return
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
    raise UsageError(f"unknown {noun} {name!r}", hint=hint)
