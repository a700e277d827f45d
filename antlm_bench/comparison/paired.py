"""Paired comparisons of one suite in two runs.

Each function takes joined tables and returns the difference of the headline, the differences of the
groups, and the items that flipped. The record of a metric names its function
(`MetricSpec.comparison`):

    compare_accuracy      credits of items (right, wrong, shares of ties); lists flipped items and
                          changes of the log-probability gap
    compare_item_values   other values of items
    compare_correlations  rank correlations with the same ratings
    compare_surprisal     paired t test over the mean surprisals of words

Interval and p-value of a difference come from one statistic, so p < .05 if and only if the 95%
interval excludes 0. For credits and for values of 0 and 1, it is the stratified score
(`statistics.stratified_score`); for other values, Welch's t. Both treat clusters of items as the
sample, if there are any.

`paired_reading_times` compares reading times, which need the suite's data. `paired_seeds` compares
finetuned tasks, which have seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from antlm_bench import statistics
from antlm_bench.comparison.join import JoinedTables
from antlm_bench.comparison.results import HEADLINE, Difference, Flip, PairedResult
from antlm_bench.errors import NotComparable
from antlm_bench.metrics import Metric, load_cell_metric
from antlm_bench.metrics.item_mean import is_right_or_wrong
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    assign_strata,
    gold_indices,
    parent_names,
)
from antlm_bench.metrics.spearman import no_interval_note
from antlm_bench.metrics.summary import describe_undefined_groups
from antlm_bench.metrics.surprisal import word_means
from antlm_bench.statistics import Interval, WeightedStrata
from antlm_bench.statistics.clusters import MIN_VARYING_CLUSTERS
from antlm_bench.statistics.known_coverage import few_values_notes
from antlm_bench.statistics.spearman import MIN_UNTIED_ITEMS_DIFFERENCE
from antlm_bench.types import TOO_LONG_HINT, Bools, Estimate, Floats, Ints

UNDETECTABLE_NOTE = "too few items: no true difference would be detected with a power of 80%"
FEW_CLUSTERS = 50
"""With fewer clusters, FEW_CLUSTERS_NOTE is shown (rates: docs/explanation/statistics.md)."""
FEW_CLUSTERS_NOTE = (
    "few clusters of items: if a lost item were kept, an end of the interval could fall slightly"
)
TestedInterval = tuple[Interval, float]
"""Interval of a difference, and the p-value that there is no difference."""


class GroupKey(NamedTuple):
    """The key of a headline or group; its fields are those of Difference."""

    level: str
    name: str
    within: str = ""


class Strata(NamedTuple):
    """The strata of a macro-average, with the clusters of its items."""

    codes: Ints
    """The stratum of each item (n,), -1 = none."""
    weights: Floats
    """The weight of each stratum; they sum to 1."""
    clusters: Ints | None
    """The cluster of each item (n,), None = items are independent."""

    def split(self, values: Floats) -> list[Floats]:
        """Return the values (n_s,) of each stratum, without items of no stratum (-1)."""
        return statistics.weighted_strata(values, self.codes, self.weights, None).values

    def independent_values(self, values: Floats) -> WeightedStrata:
        """Return independent values with the same weighted mean (see `weighted_strata`)."""
        return statistics.weighted_strata(values, self.codes, self.weights, self.clusters)


def single_stratum(members: Bools, clusters: Ints | None) -> Strata:
    """Return one stratum of the items in a mask (n,)."""
    return Strata(np.where(members, 0, -1).astype(np.int32), np.ones(1), clusters)


def iterate_groups(joined: JoinedTables) -> Iterator[tuple[GroupKey, Bools]]:
    """Yield every group of the first run's summary and the mask of its items (n,).

    Groups of the coarsest level come first.
    """
    table, summary = joined.tables_a[0], joined.cells_a[0].summary
    summary_levels = dict.fromkeys(group.level for group in summary.groups)
    levels = [level for level in summary_levels if level in table.levels]
    for parent_level, level in zip((None, *levels), levels, strict=False):
        codes, names = table.levels[level]
        parents = parent_names(table, parent_level, codes, len(names))
        for code, (name, within) in enumerate(zip(names, parents, strict=True)):
            yield GroupKey(level, name, within), codes == code


def require_defined_in_both(joined: JoinedTables, metric: Metric, in_both: Bools) -> None:
    """Raise NotComparable if the metric is undefined for the items (n,) that fit both models."""
    if reason := metric.find_undefined_reason(joined.tables_a[0], in_both):
        raise NotComparable(
            f"nothing to compare, {metric.spec.heading} is undefined: {reason}",
            location=joined.suite,
            hint="score more items in both runs",
        )


def split_defined_groups(
    joined: JoinedTables, metric: Metric, in_both: Bools
) -> tuple[list[tuple[GroupKey, Bools]], tuple[str, ...]]:
    """Return the groups whose score is defined, with the mask (n,) of their items that fit both
    models, and a note on the others."""
    masks = [(key, in_both & members) for key, members in iterate_groups(joined)]
    reasons = [metric.find_undefined_reason(joined.tables_a[0], members) for _, members in masks]
    defined = [each for each, reason in zip(masks, reasons, strict=True) if not reason]
    names = [key.name for (key, _), reason in zip(masks, reasons, strict=True) if reason]
    return defined, describe_undefined_groups(names, metric.spec)


# ---- credits of items


@dataclass(frozen=True, slots=True)
class PairedCredits:
    """Credits of n items under both runs."""

    a: Floats
    b: Floats
    gap_change: Floats
    """Change of each item's `logprob_gaps` (n,); nan if a run has none."""

    @property
    def change(self) -> Floats:
        return self.b - self.a


def compare_accuracy(joined: JoinedTables) -> PairedResult:
    """Compare the credits of items: 1 for right, 0 for wrong, a share for a tie."""
    cell, table_a, table_b = joined.cells_a[0], joined.tables_a[0], joined.tables_b[0]
    metric = load_cell_metric(cell)
    reduction = metric.settings.reduction
    paired = PairedCredits(
        a=metric.per_item(table_a),
        b=metric.per_item(table_b),
        gap_change=logprob_gaps(table_b, reduction) - logprob_gaps(table_a, reduction),
    )
    codes, paths = assign_strata(table_a, cell.summary.macro)
    strata = Strata(codes, statistics.macro_weights(paths), joined.clusters)
    groups = list(iterate_groups(joined))
    tests = _test_changes(
        paired.change,
        strata,
        [members for _, members in groups],
        is_same_model=np.array_equal(table_a.scores, table_b.scores),
    )
    headline = replace(
        _credit_difference(GroupKey(HEADLINE, joined.suite), paired, strata, tests[0]),
        design_effect=_find_design_effect(paired.change, strata),
    )
    differences = [
        _credit_difference(key, paired, single_stratum(members, joined.clusters), test)
        for (key, members), test in zip(groups, tests[1:], strict=True)
    ]
    notes = few_clusters_notes(joined.clusters)
    result = PairedResult(headline, tuple(differences), _find_flips(table_a, paired), notes)
    return _add_detectable_drops(result, paired.change, strata, [members for _, members in groups])


def _find_design_effect(change: Floats, strata: Strata) -> float | None:
    """Return the factor by which clusters change the variance of a mean change of credits (n,)."""
    if strata.clusters is None:
        return None
    arguments = (strata.codes, strata.weights, strata.clusters, statistics.END_ITEMS, (-1.0, 1.0))
    return statistics.design_effect(change, *arguments)


def few_clusters_notes(clusters: Ints | None) -> tuple[str, ...]:
    """Return a note if clusters (n,) are so few that a single one can decide an interval.

    With fewer than MIN_VARYING_CLUSTERS, the items of each count as alike, so none can.
    """
    num_clusters = 0 if clusters is None else len(np.unique(clusters))
    is_few = MIN_VARYING_CLUSTERS <= num_clusters < FEW_CLUSTERS
    return (FEW_CLUSTERS_NOTE,) if is_few else ()


def _add_detectable_drops(
    result: PairedResult, change: Floats, strata: Strata, groups: Sequence[Bools]
) -> PairedResult:
    """Return a comparison of credits with the drop that its headline and each group detect.

    change (n,): of credit. groups: the mask (n,) of each group of the result.
    """
    headline_drop, *drops = statistics.observed_detectable_drops(change, *strata, groups=groups)
    differences = zip(result.groups, drops, strict=True)
    return result._replace(
        headline=replace(result.headline, detectable=headline_drop),
        groups=tuple(replace(difference, detectable=drop) for difference, drop in differences),
        notes=(*result.notes, *(() if headline_drop else (UNDETECTABLE_NOTE,))),
    )


def _test_changes(
    change: Floats,
    strata: Strata,
    groups: Sequence[Bools],
    is_same_model: bool,
) -> list[TestedInterval]:
    """Return the score test of the changes (n,) of the headline, then that of each group.

    is_same_model: whether both runs have the same scores; then the difference is exactly 0.
    """
    if is_same_model:
        return [(Interval(0.0, 0.0), 1.0)] * (1 + len(groups))
    headline = statistics.score_test(change, *strata[:2], clusters=strata.clusters)
    by_group = statistics.score_tests_by_group(change, groups, clusters=strata.clusters)
    return [headline, *by_group]


def _credit_difference(
    key: GroupKey, paired: PairedCredits, strata: Strata, test: TestedInterval
) -> Difference:
    """Return the change of credit, averaged over strata, with its test and further intervals."""
    (interval, p), weights = test, strata.weights
    parts = strata.split(paired.change)
    independent = strata.independent_values(paired.change)
    change, means = np.concatenate(parts), np.array([part.mean() for part in parts])
    n, value = len(change), float(weights @ means)
    varies = any(np.ptp(part) > 0 for part in parts)
    closed_form = statistics.normal_interval(*independent) if varies else interval
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
        flip_rate=float(weights @ [(part != 0).mean() for part in parts]),
        margin=_mean_gap_change(paired.gap_change, strata),
    )


def logprob_gaps(table: PredictionTable, reduction: str) -> Floats:
    """Return log P(right option) - log P(best other option) (n,) in nats, of the reduced scores.

    nan for an item that lacks one of the two, or was too long.
    """
    scores = np.where(table.valid, table.reduced_scores(reduction), -np.inf)
    rows, gold = np.arange(len(scores)), gold_indices(table)
    right = scores[rows, gold]
    others = scores.copy()
    others[rows, gold] = -np.inf
    with np.errstate(invalid="ignore"):
        gap = right - others.max(axis=1)
    return np.where(np.isfinite(gap) & ~table.get_flag("too-long"), gap, np.nan)


def _mean_gap_change(gap_change: Floats, strata: Strata) -> Estimate | None:
    """Return the weighted mean change (n,) of the gap with its normal interval.

    Returns None if a stratum has no item with a gap, or if all strata together have fewer than two
    gaps or clusters.
    """
    with_gap = strata._replace(codes=np.where(np.isnan(gap_change), -1, strata.codes))
    parts = with_gap.split(gap_change)
    n = sum(map(len, parts))
    if n < 2 or not all(map(len, parts)):
        return None
    value = _weighted_mean(gap_change, with_gap)
    independent = with_gap.independent_values(gap_change)
    if sum(map(len, independent.values)) < 2:  # a single cluster
        return None
    return Estimate(value, n, *statistics.normal_interval(*independent))


def _find_flips(table: PredictionTable, paired: PairedCredits) -> tuple[Flip, ...]:
    """Return the items whose credit changed, sorted by the change of credit, then of the gap."""
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
    return float(strata.weights @ [part.mean() for part in strata.split(values)])


# ---- other values of items


def compare_item_values(joined: JoinedTables) -> PairedResult:
    """Compare the mean value of the items that have a value in both runs. Lists no flips.

    Values other than 0 and 1 have no interval if they are those of a single item or cluster: such a
    group is left out, with a note. Raises NotComparable if this holds for the headline, or if a
    stratum of the headline has no item with a value.
    """
    cell, table_a, table_b = joined.cells_a[0], joined.tables_a[0], joined.tables_b[0]
    metric = load_cell_metric(cell)
    values = metric.per_item(table_a), metric.per_item(table_b)
    in_both = ~np.isnan(values[0] + values[1])
    codes, paths = assign_strata(table_a, cell.summary.macro)
    if len(np.unique(codes[in_both])) < len(paths):
        raise NotComparable(
            "no item has a value in both runs",
            location=joined.suite,
            hint="see the notes of each run",
        )
    lower_is_better = metric.spec.lower_is_better
    change = values[1] - values[0]
    has_same_scores = np.array_equal(table_a.scores, table_b.scores)
    is_same_model = has_same_scores and not change[in_both].any()
    groups = [
        (key, in_both & members)
        for key, members in iterate_groups(joined)
        if (in_both & members).any()
    ]
    weights, clusters = statistics.macro_weights(paths), joined.clusters
    strata = Strata(np.where(in_both, codes, -1), weights, clusters)
    is_credit = is_right_or_wrong(np.concatenate([run_values[in_both] for run_values in values]))
    is_t_test = not (is_same_model or is_credit)
    notes: tuple[str, ...] = ()
    if not is_t_test:
        tests = _test_changes(change, strata, [members for _, members in groups], is_same_model)
    else:
        groups, notes = _leave_out_single_values(groups, clusters)
        num_values = sum(map(len, strata.independent_values(change).values))
        notes += few_values_notes(num_values)
        if num_values < 2:
            raise NotComparable(
                "an interval needs two items (or clusters) with a value in both runs, there is one",
                location=joined.suite,
                hint="score more items",
            )
        all_strata = [strata, *(single_stratum(members, clusters) for _, members in groups)]
        tests = [statistics.welch_test(*each.independent_values(change)) for each in all_strata]
    headline = _value_difference(
        GroupKey(HEADLINE, joined.suite), values, strata, tests[0], lower_is_better, is_t_test
    )
    differences = [
        _value_difference(
            key, values, single_stratum(members, clusters), test, lower_is_better, is_t_test
        )
        for (key, members), test in zip(groups, tests[1:], strict=True)
    ]
    result = PairedResult(headline, tuple(differences), notes=notes)
    if not is_credit:
        return result
    return _add_detectable_drops(result, change, strata, [members for _, members in groups])


def _leave_out_single_values(
    groups: Sequence[tuple[GroupKey, Bools]], clusters: Ints | None
) -> tuple[list[tuple[GroupKey, Bools]], tuple[str, ...]]:
    """Return the groups of two items (or clusters) or more, and a note on the others."""
    units = np.arange(len(groups[0][1])) if groups and clusters is None else clusters
    kept, left_out = [], []
    for key, members in groups:
        if units is not None and len(np.unique(units[members])) < 2:
            left_out.append(key.name)
        else:
            kept.append((key, members))
    note = f"one item or cluster has no interval, left out: {', '.join(left_out)}"
    return kept, (note,) if left_out else ()


def _value_difference(
    key: GroupKey,
    values: tuple[Floats, Floats],
    strata: Strata,
    test: TestedInterval,
    lower_is_better: bool,
    is_t_test: bool,
) -> Difference:
    """Return the change of value (b - a), averaged over strata, with its test and intervals.

    is_t_test: whether the test is Welch's, not the score test.
    """
    (interval, p), weights = test, strata.weights
    parts = strata.split(values[1] - values[0])
    independent = strata.independent_values(values[1] - values[0])
    a, b = (_weighted_mean(run_values, strata) for run_values in values)
    change, value = np.concatenate(parts), b - a
    df = statistics.welch_df(*independent)
    means = np.array([part.mean() for part in parts])
    clustered, _ = statistics.sampled_groups_interval(means, weights)
    views = {"clustered": Estimate(value, len(change), *clustered)} if clustered else {}
    num_higher, num_lower = int((change > 0).sum()), int((change < 0).sum())
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
        gained=num_lower if lower_is_better else num_higher,
        lost=num_higher if lower_is_better else num_lower,
        detectable=statistics.detectable_by_t(interval, df),
        df=df if is_t_test and np.isfinite(df) else None,
    )


# ---- correlations with ratings


def compare_correlations(joined: JoinedTables) -> PairedResult:
    """Compare the rank correlations of two runs with the same ratings.

    Groups of too few items or of equal ratings are left out, with a note. Raises NotComparable if
    this holds for all items that fit both models.
    """
    table_a, table_b = joined.tables_a[0], joined.tables_b[0]
    metric = load_cell_metric(joined.cells_a[0])
    values = metric.per_item(table_a), metric.per_item(table_b)
    in_both = ~(table_a.get_flag("too-long") | table_b.get_flag("too-long"))

    def compare_group(key: GroupKey, members: Bools) -> Difference:
        return _correlation_difference(
            key, values[0][members], values[1][members], table_a.gold[members]
        )

    require_defined_in_both(joined, metric, in_both)
    headline = compare_group(GroupKey(HEADLINE, joined.suite), in_both)
    masks, undefined_notes = split_defined_groups(joined, metric, in_both)
    groups = tuple(compare_group(key, members) for key, members in masks)
    untested = [d.name for d in (headline, *groups) if d.p is None]
    notes = no_interval_note(untested, "difference", MIN_UNTIED_ITEMS_DIFFERENCE)
    return PairedResult(headline, groups, notes=undefined_notes + notes)


def _correlation_difference(
    key: GroupKey, values_a: Floats, values_b: Floats, ratings: Floats
) -> Difference:
    """Return the difference of two correlations. values_a, values_b, ratings (n,)."""
    a = statistics.spearman_correlation(values_a, ratings)
    b = statistics.spearman_correlation(values_b, ratings)
    p: float | None
    if a is None or b is None:  # equal predictions: 0 with the whole range, as in a Summary
        interval, p = Interval(-2.0, 2.0), None
    elif np.array_equal(values_a, values_b):
        interval, p = Interval(0.0, 0.0), 1.0
    else:
        interval, p = statistics.spearman_difference(values_a, values_b, ratings)
    a, b = a or 0.0, b or 0.0
    detectable = None
    if p is not None:
        detectable = statistics.detectable_correlation_drop(a, b, interval, len(ratings))
    df = len(ratings) - 1
    return Difference(*key, len(ratings), a, b, b - a, *interval, p, detectable=detectable, df=df)


# ---- surprisal of words


def compare_surprisal(joined: JoinedTables) -> PairedResult:
    """Compare the mean over words of each word's mean surprisal.

    A word's mean is over the contexts that are not too long for either model. Words are the sample,
    as in the interval of one run. Lists no groups and no flips. Raises NotComparable if fewer
    than two words are left.
    """
    tables = (joined.tables_a[0], joined.tables_b[0])
    in_both = ~(tables[0].get_flag("too-long") | tables[1].get_flag("too-long"))
    a, b = (word_means(tables[0], -table.scores[:, 0], in_both) for table in tables)
    if len(a) < 2:
        raise NotComparable(
            f"an interval needs two words that fit both models, but there are {len(a)}",
            location=joined.suite,
            hint=f"{TOO_LONG_HINT}; or score more words",
        )
    change: Floats = b - a
    interval, p = statistics.t_test_of_means(change, np.full(len(change), 1 / len(change)))
    headline = Difference(
        HEADLINE,
        joined.suite,
        "",
        n=int(in_both.sum()),
        a=float(a.mean()),
        b=float(b.mean()),
        value=float(change.mean()),
        low=interval.low,
        high=interval.high,
        p=p,
        gained=int((change < 0).sum()),
        lost=int((change > 0).sum()),
        detectable=statistics.detectable_by_t(interval, len(change) - 1),
        df=len(change) - 1,
    )
    return PairedResult(headline, (), notes=few_values_notes(len(change)))
