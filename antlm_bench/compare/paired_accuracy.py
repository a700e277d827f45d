"""Suites whose items earn credit (right, wrong, shares of ties): paired differences of
macro-averages and of groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from antlm_bench import statistics
from antlm_bench.compare.join import JoinedTables
from antlm_bench.compare.results import HEADLINE, Difference, Flip
from antlm_bench.metrics import resolve_metric
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    assign_strata,
    gold_indices,
    parent_names,
)
from antlm_bench.statistics import Interval
from antlm_bench.types import Estimate, Floats, Ints

PairedResult = tuple[
    Difference, tuple[Difference, ...], tuple[Flip, ...]
]  # the headline, the groups, what flipped


@dataclass(frozen=True, slots=True)
class PairedCredits:
    """Credits and margins of n items under both runs. moved (n,): change of margin, nan where there
    is none. same: do the runs agree in every score, as two runs of one model do?
    """

    a: Floats
    b: Floats
    gap_change: Floats
    identical_scores: bool


def compare_accuracy(joined: JoinedTables) -> PairedResult:
    """Headline, groups and flips of a suite whose items earn credit."""
    settings, summary = joined.cells_a[0].settings, joined.cells_a[0].summary
    table, other = joined.tables_a[0], joined.tables_b[0]
    ties, reduction = str(settings.get("ties", "half")), str(settings.get("reduction", "sum"))
    measure = resolve_metric(summary.metric, ties, reduction)
    paired = PairedCredits(
        a=measure.per_item(table, reduction),
        b=measure.per_item(other, reduction),
        gap_change=logprob_gaps(other, reduction) - logprob_gaps(table, reduction),
        identical_scores=table.scores.shape == other.scores.shape
        and bool(np.all(table.scores == other.scores)),
    )
    codes, paths = assign_strata(table, summary.macro)
    headline = _build_difference(
        HEADLINE, joined.suite, "", paired, codes, statistics.macro_weights(paths)
    )
    groups: list[Difference] = []
    levels = [
        level
        for level in dict.fromkeys(group.level for group in summary.groups)
        if level in table.levels
    ]
    for above, level in zip((None, *levels), levels, strict=False):
        groups += _group_differences(level, table, paired, above)
    return headline, tuple(groups), _find_flips(table, paired)


def _group_differences(
    level: str, table: PredictionTable, paired: PairedCredits, parent_level: str | None
) -> list[Difference]:
    """Every group of a label level: differences over its items, as its two values are."""
    codes, names = table.levels[level]
    within = parent_names(table, parent_level, codes, len(names))
    columns = [
        _split_by_group(column, codes, len(names))
        for column in (paired.a, paired.b, paired.gap_change)
    ]
    return [
        _build_difference(
            level,
            name,
            outer,
            PairedCredits(a, b, moved, paired.identical_scores),
            np.zeros(len(a), np.int32),
            np.ones(1),
        )
        for name, outer, a, b, moved in zip(names, within, *columns, strict=True)
    ]


def _build_difference(
    level: str, name: str, within: str, paired: PairedCredits, codes: Ints, weights: Floats
) -> Difference:
    """The weighted mean over strata (a group is one): items are resampled within them; "clustered":
    were they a sample.

    One stratum of right and wrong answers is tested by McNemar's mid-p, everything else by flipping
    signs.
    """
    change = paired.b - paired.a
    parts = _split_by_group(change, codes, len(weights))
    means = np.array([part.mean() for part in parts])
    n, value = len(change), float(weights @ means)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    varies = any(np.ptp(part) > 0 for part in parts)
    whole = len(parts) == 1 and gained + lost == float(np.abs(change).sum())
    if paired.identical_scores:
        interval = Interval(0.0, 0.0)
    elif len(parts) == 1 or not varies:
        interval = statistics.adjusted_wald_macro_interval(parts, weights)
    else:
        interval = statistics.bootstrap_interval(parts, weights)
    views = {
        "closed-form": Estimate(
            value, n, *(statistics.normal_interval(parts, weights) if varies else interval)
        )
    }
    if len(parts) > 1:
        like_these = (
            statistics.clustered_interval(means, weights) if np.ptp(means) > 0 else interval
        )
        views["clustered"] = Estimate(value, n, *like_these)
    return Difference(
        level=level,
        name=name,
        within=within,
        n=n,
        a=_weighted_mean(paired.a, codes, weights),
        b=_weighted_mean(paired.b, codes, weights),
        value=value,
        low=interval.low,
        high=interval.high,
        p=statistics.mcnemar_test(lost, gained)
        if whole
        else statistics.macro_permutation_test(parts, weights),
        views=views,
        gained=gained,
        lost=lost,
        detectable=statistics.min_detectable_difference(parts, weights),
        margin=_mean_gap_change(_split_by_group(paired.gap_change, codes, len(weights)), weights),
    )


def _weighted_mean(credit: Floats, codes: Ints, weights: Floats) -> float:
    return float(weights @ [part.mean() for part in _split_by_group(credit, codes, len(weights))])


def _split_by_group(values: Floats, codes: Ints, num_groups: int) -> list[Floats]:
    """The values of each of `count` groups; items of no group (-1) are left out."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes + 1, minlength=num_groups + 1)
    return np.split(values[order], np.cumsum(sizes)[:-1])[1:]


def logprob_gaps(table: PredictionTable, reduction: str) -> Floats:
    """log P(right option) - log P(best other) (n,) in nats, of the scores that decide; nan where
    one is missing.
    """
    scores = np.where(table.valid, table.reduced_scores(reduction), -np.inf)
    rows, gold = np.arange(len(scores)), gold_indices(table)
    right = scores[rows, gold]
    others = scores.copy()
    others[rows, gold] = -np.inf
    with np.errstate(invalid="ignore"):
        margin = right - others.max(axis=1)
    return np.where(np.isfinite(margin) & ~table.get_flag("too-long"), margin, np.nan)


def _mean_gap_change(parts: Sequence[Floats], weights: Floats) -> Estimate | None:
    """The weighted mean of mean margins with its normal interval; None where a stratum has none or
    too few items.
    """
    known = [part[~np.isnan(part)] for part in parts]
    n = sum(map(len, known))
    if n < 2 or not all(map(len, known)):
        return None
    value = float(sum(w * part.mean() for w, part in zip(weights, known, strict=True)))
    return Estimate(value, n, *statistics.normal_interval(known, weights))


def _find_flips(table: PredictionTable, paired: PairedCredits) -> tuple[Flip, ...]:
    """Items whose credit moved: lost ones first, and of those the ones whose margin fell most."""
    change = paired.b - paired.a
    rows = np.flatnonzero(change)
    rows = rows[np.lexsort((np.nan_to_num(paired.gap_change[rows]), change[rows]))]
    levels = {
        level: (codes[rows].tolist(), names) for level, (codes, names) in table.levels.items()
    }
    margins = [None if np.isnan(moved) else float(moved) for moved in paired.gap_change[rows]]
    return tuple(
        Flip(
            id=table.ids[row],
            labels={
                level: names[codes[i]] for level, (codes, names) in levels.items() if codes[i] >= 0
            },
            a=float(paired.a[row]),
            b=float(paired.b[row]),
            margin=margins[i],
        )
        for i, row in enumerate(rows.tolist())
    )
