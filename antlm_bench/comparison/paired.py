"""Paired comparisons of one suite in two runs: a function per way in which items make a number.

Each takes joined tables and returns the headline's difference, the groups' differences and the
items that flipped. A metric's record names its function (`MetricSpec.comparison`):

    compare_accuracy      items earn credit: flips, margins
    compare_item_values   items have values of their own
    compare_correlations  correlations with ratings: Fisher's z of both and their covariance
    compare_surprisal     words are the sample: t test of their means

Interval and p-value of a difference come from one statistic: p < .05 exactly where the 95% interval
excludes 0. For credits and values of 0 and 1 it is the stratified score
(`statistics.stratified_score`), for other values Welch's t.

Reading times need the suite's data (`paired_reading_times`), finetuned tasks have seeds
(`paired_seeds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from antlm_bench import statistics
from antlm_bench.comparison.join import JoinedTables
from antlm_bench.comparison.results import HEADLINE, POWER_FACTOR, Difference, Flip, PairedResult
from antlm_bench.errors import NotComparable
from antlm_bench.metrics import load_cell_metric
from antlm_bench.metrics.item_mean import is_right_or_wrong
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    assign_strata,
    gold_indices,
    parent_names,
)
from antlm_bench.metrics.spearman import no_interval_note
from antlm_bench.metrics.surprisal import word_means
from antlm_bench.statistics import Interval
from antlm_bench.statistics.spearman import MIN_UNTIED_ITEMS_DIFFERENCE
from antlm_bench.types import Bools, Estimate, Floats, Ints

TestedInterval = tuple[Interval, float]
"""An interval of a difference and the p-value of no difference, from one statistic."""


class GroupKey(NamedTuple):
    """Identifies a line of a comparison; see Difference."""

    level: str
    name: str
    within: str = ""


class Strata(NamedTuple):
    """The strata that a macro-average is over."""

    codes: Ints
    """The stratum of each item (n,), -1 = none."""
    weights: Floats
    """The weight of each stratum; they sum to 1."""


def single_stratum(members: Bools) -> Strata:
    """Return some items (n,) as one stratum."""
    return Strata(np.where(members, 0, -1).astype(np.int32), np.ones(1))


def iterate_groups(joined: JoinedTables) -> Iterator[tuple[GroupKey, Bools]]:
    """Yield every group of the first run's summary with its members (n,), coarse to fine."""
    table, summary = joined.tables_a[0], joined.cells_a[0].summary
    reported = dict.fromkeys(group.level for group in summary.groups)
    levels = [level for level in reported if level in table.levels]
    for above, level in zip((None, *levels), levels, strict=False):
        codes, names = table.levels[level]
        parents = parent_names(table, above, codes, len(names))
        for code, (name, within) in enumerate(zip(names, parents, strict=True)):
            yield GroupKey(level, name, within), codes == code


# ---- items that earn credit


@dataclass(frozen=True, slots=True)
class PairedCredits:
    """Credits of n items under both runs."""

    a: Floats
    b: Floats
    gap_change: Floats
    """Change of each item's `logprob_gaps` (n,), nan where there is none."""

    @property
    def change(self) -> Floats:
        return self.b - self.a


def compare_accuracy(joined: JoinedTables) -> PairedResult:
    """Compare suites whose items earn credit: right, wrong, shares of ties."""
    cell, table, other = joined.cells_a[0], joined.tables_a[0], joined.tables_b[0]
    metric = load_cell_metric(cell)
    reduction = metric.settings.reduction
    paired = PairedCredits(
        a=metric.per_item(table),
        b=metric.per_item(other),
        gap_change=logprob_gaps(other, reduction) - logprob_gaps(table, reduction),
    )
    codes, paths = assign_strata(table, cell.summary.macro)
    strata = Strata(codes, statistics.macro_weights(paths))
    lines = list(iterate_groups(joined))
    tests = _test_changes(
        paired.change,
        strata,
        [members for _, members in lines],
        is_same_model=np.array_equal(table.scores, other.scores),
    )
    headline = _credit_difference(GroupKey(HEADLINE, joined.suite), paired, strata, tests[0])
    groups = [
        _credit_difference(key, paired, single_stratum(members), test)
        for (key, members), test in zip(lines, tests[1:], strict=True)
    ]
    return PairedResult(headline, tuple(groups), _find_flips(table, paired))


def _test_changes(
    change: Floats,
    strata: Strata,
    groups: Sequence[Bools],
    is_same_model: bool,
) -> list[TestedInterval]:
    """Return the test of the headline's strata, then of each group, of the changes (n,) of credits.

    is_same_model: two runs of one model differ by nothing, and no sampling error is stated.
    """
    if is_same_model:
        return [(Interval(0.0, 0.0), 1.0)] * (1 + len(groups))
    headline = statistics.score_test(change, strata.codes, strata.weights)
    return [headline, *statistics.score_tests_by_group(change, groups)]


def _credit_difference(
    key: GroupKey, paired: PairedCredits, strata: Strata, test: TestedInterval
) -> Difference:
    """Return the weighted mean over strata. The view "clustered" takes the strata as a sample."""
    (interval, p), weights = test, strata.weights
    parts = _split(paired.change, strata)
    change, means = np.concatenate(parts), np.array([part.mean() for part in parts])
    n, value = len(change), float(weights @ means)
    varies = any(np.ptp(part) > 0 for part in parts)
    closed_form = statistics.normal_interval(parts, weights) if varies else interval
    views = {"closed-form": Estimate(value, n, *closed_form)}
    clustered, _ = statistics.sampled_groups_interval(means, weights)
    if clustered:
        views["clustered"] = Estimate(value, n, *clustered)
    return Difference(
        *key,
        n=n,
        a=_weighted_mean(paired.a, strata),
        b=_weighted_mean(paired.b, strata),
        value=value,
        low=interval.low,
        high=interval.high,
        p=p,
        views=views,
        gained=int((change > 0).sum()),
        lost=int((change < 0).sum()),
        detectable=statistics.min_detectable_difference(parts, weights),
        margin=_mean_gap_change(_split(paired.gap_change, strata), weights),
    )


def logprob_gaps(table: PredictionTable, reduction: str) -> Floats:
    """Return log P(right option) - log P(best other) (n,) in nats, of the scores that decide; nan
    where one is missing."""
    scores = np.where(table.valid, table.reduced_scores(reduction), -np.inf)
    rows, gold = np.arange(len(scores)), gold_indices(table)
    right = scores[rows, gold]
    others = scores.copy()
    others[rows, gold] = -np.inf
    with np.errstate(invalid="ignore"):
        gap = right - others.max(axis=1)
    return np.where(np.isfinite(gap) & ~table.get_flag("too-long"), gap, np.nan)


def _mean_gap_change(parts: Sequence[Floats], weights: Floats) -> Estimate | None:
    """Return the weighted mean change of the gap with its normal interval; None where a stratum has
    none or too few items."""
    known = [part[~np.isnan(part)] for part in parts]
    n = sum(map(len, known))
    if n < 2 or not all(map(len, known)):
        return None
    value = float(sum(w * part.mean() for w, part in zip(weights, known, strict=True)))
    return Estimate(value, n, *statistics.normal_interval(known, weights))


def _find_flips(table: PredictionTable, paired: PairedCredits) -> tuple[Flip, ...]:
    """Return the items whose credit moved: lost ones first, of those the ones whose gap fell
    most."""
    change = paired.change
    rows = np.flatnonzero(change)
    rows = rows[np.lexsort((np.nan_to_num(paired.gap_change[rows]), change[rows]))]
    labels = {
        level: (codes[rows].tolist(), names) for level, (codes, names) in table.levels.items()
    }
    margins = [None if np.isnan(gap) else float(gap) for gap in paired.gap_change[rows]]
    return tuple(
        Flip(
            id=table.ids[row],
            labels={
                level: names[codes[i]] for level, (codes, names) in labels.items() if codes[i] >= 0
            },
            a=float(paired.a[row]),
            b=float(paired.b[row]),
            margin=margins[i],
        )
        for i, row in enumerate(rows.tolist())
    )


def _weighted_mean(values: Floats, strata: Strata) -> float:
    return float(strata.weights @ [part.mean() for part in _split(values, strata)])


def _split(values: Floats, strata: Strata) -> list[Floats]:
    """Return the values of each stratum; items of none (-1) are left out."""
    order = np.argsort(strata.codes, kind="stable")
    sizes = np.bincount(strata.codes + 1, minlength=len(strata.weights) + 1)
    return np.split(values[order], np.cumsum(sizes)[:-1])[1:]


# ---- items that have values of their own


def compare_item_values(joined: JoinedTables) -> PairedResult:
    """Compare the mean value of items, over those that have one in both runs; no item flips.

    Raises NotComparable where a group that the headline averages over has none.
    """
    cell, table = joined.cells_a[0], joined.tables_a[0]
    metric = load_cell_metric(cell)
    values = metric.per_item(table), metric.per_item(joined.tables_b[0])
    known = ~np.isnan(values[0] + values[1])
    codes, paths = assign_strata(table, cell.summary.macro)
    if len(np.unique(codes[known])) < len(paths):
        raise NotComparable(
            "no item has a number in both runs",
            location=joined.suite,
            hint="see the notes of each run",
        )
    lower_is_better = metric.spec.lower_is_better
    change = values[1] - values[0]
    same_scores = np.array_equal(table.scores, joined.tables_b[0].scores)
    is_same_model = same_scores and not change[known].any()
    lines = [
        (key, known & members) for key, members in iterate_groups(joined) if (known & members).any()
    ]
    strata = Strata(np.where(known, codes, -1), statistics.macro_weights(paths))
    if is_same_model or is_right_or_wrong(np.concatenate([side[known] for side in values])):
        tests = _test_changes(change, strata, [members for _, members in lines], is_same_model)
    else:
        every_strata = [strata, *(single_stratum(members) for _, members in lines)]
        tests = [statistics.welch_test(_split(change, s), s.weights) for s in every_strata]
    headline = _value_difference(
        GroupKey(HEADLINE, joined.suite), values, strata, tests[0], lower_is_better
    )
    groups = [
        _value_difference(key, values, single_stratum(members), test, lower_is_better)
        for (key, members), test in zip(lines, tests[1:], strict=True)
    ]
    return PairedResult(headline, tuple(groups))


def _value_difference(
    key: GroupKey,
    values: tuple[Floats, Floats],
    strata: Strata,
    test: TestedInterval,
    lower_is_better: bool,
) -> Difference:
    """Return the weighted mean over strata of how much more the second run has."""
    (interval, p), weights = test, strata.weights
    parts = _split(values[1] - values[0], strata)
    a, b = (_weighted_mean(run_values, strata) for run_values in values)
    change, value = np.concatenate(parts), b - a
    means = np.array([part.mean() for part in parts])
    clustered, _ = statistics.sampled_groups_interval(means, weights)
    views = {"clustered": Estimate(value, len(change), *clustered)} if clustered else {}
    more, less = int((change > 0).sum()), int((change < 0).sum())
    return Difference(
        *key,
        n=len(change),
        a=a,
        b=b,
        value=value,
        low=interval.low,
        high=interval.high,
        p=p,
        views=views,
        gained=less if lower_is_better else more,
        lost=more if lower_is_better else less,
        detectable=statistics.min_detectable_difference(parts, weights),
    )


# ---- correlations with ratings


def compare_correlations(joined: JoinedTables) -> PairedResult:
    """Compare how well two runs correlate with the same ratings, by the influence of each item on
    both correlations."""
    table, other = joined.tables_a[0], joined.tables_b[0]
    metric = load_cell_metric(joined.cells_a[0])
    values = metric.per_item(table), metric.per_item(other)
    used = ~(table.get_flag("too-long") | other.get_flag("too-long"))

    def difference(key: GroupKey, members: Bools) -> Difference:
        return _correlation_difference(
            key, values[0][members], values[1][members], table.gold[members]
        )

    headline = difference(GroupKey(HEADLINE, joined.suite), used)
    groups = tuple(difference(key, used & members) for key, members in iterate_groups(joined))
    untested = [d.name for d in (headline, *groups) if d.p is None]
    notes = no_interval_note(untested, "difference", MIN_UNTIED_ITEMS_DIFFERENCE)
    return PairedResult(headline, groups, notes=notes)


def _correlation_difference(key: GroupKey, x: Floats, z: Floats, ratings: Floats) -> Difference:
    """x, z (n,): values of the first and of the second run."""
    a = statistics.spearman_correlation(x, ratings)
    b = statistics.spearman_correlation(z, ratings)
    p: float | None
    if a is None or b is None:  # undefined, and shown as 0 as in a Summary: the whole range
        interval, p = Interval(-2.0, 2.0), None
    elif np.array_equal(x, z):
        interval, p = Interval(0.0, 0.0), 1.0
    else:
        interval, p = statistics.spearman_difference(x, z, ratings)
    a, b = a or 0.0, b or 0.0
    detectable = POWER_FACTOR * (interval.high - interval.low) / 2 if p is not None else None
    return Difference(*key, len(ratings), a, b, b - a, *interval, p, detectable=detectable or None)


# ---- words as the sample


def compare_surprisal(joined: JoinedTables) -> PairedResult:
    """Compare the mean surprisal of words, each word's over the contexts that fit both models.

    The interval is that of words like these, as a run's own. There are no groups, and no item
    flips. Raises NotComparable where fewer than two words are left.
    """
    tables = (joined.tables_a[0], joined.tables_b[0])
    used = ~(tables[0].get_flag("too-long") | tables[1].get_flag("too-long"))
    a, b = (word_means(tables[0], -table.scores[:, 0], used) for table in tables)
    if len(a) < 2:
        raise NotComparable(
            f"a difference needs two words, here are {len(a)}",
            location=joined.suite,
            hint="raise --max-length, or score more words",
        )
    change: Floats = b - a
    interval, p = statistics.clustered_test(change, np.full(len(change), 1 / len(change)))
    headline = Difference(
        HEADLINE,
        joined.suite,
        "",
        n=int(used.sum()),
        a=float(a.mean()),
        b=float(b.mean()),
        value=float(change.mean()),
        low=interval.low,
        high=interval.high,
        p=p,
        gained=int((change < 0).sum()),
        lost=int((change > 0).sum()),
        detectable=statistics.min_detectable_difference([change], np.ones(1))
        if change.any()
        else None,
    )
    return PairedResult(headline, ())
