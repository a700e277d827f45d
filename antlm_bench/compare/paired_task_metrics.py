"""Suites whose items have numbers of their own (what a task's judge says, bits of documents):
paired differences.
"""

from __future__ import annotations

import numpy as np

from antlm_bench import statistics
from antlm_bench.compare.join import JoinedTables
from antlm_bench.compare.paired_accuracy import PairedResult
from antlm_bench.compare.results import HEADLINE, Difference
from antlm_bench.errors import NotComparable
from antlm_bench.metrics import LOWER_IS_BETTER, resolve_metric
from antlm_bench.metrics.prediction_table import assign_strata, parent_names
from antlm_bench.statistics import Interval
from antlm_bench.types import Estimate, Floats, Ints


def compare_task_metrics(joined: JoinedTables) -> PairedResult:
    """Headline and groups over the items that have a number in both runs; of single items nothing
    flips.

    NotComparable where a group that the headline averages over has none.
    """
    table, other, summary = joined.tables_a[0], joined.tables_b[0], joined.cells_a[0].summary
    measure = resolve_metric(summary.metric, "half", "sum")
    lower = summary.metric in LOWER_IS_BETTER
    sides = measure.per_item(table, "sum"), measure.per_item(other, "sum")
    known = ~np.isnan(sides[0] + sides[1])
    codes, paths = assign_strata(table, summary.macro)
    if len(np.unique(codes[known])) < len(paths):
        raise NotComparable(
            "no item has a number in both runs",
            location=joined.suite,
            hint="see the notes of each run",
        )
    weights = statistics.macro_weights(paths)
    headline = _build_difference(
        (HEADLINE, joined.suite, ""), sides, np.where(known, codes, -1), weights, lower
    )
    groups = []
    levels = [
        level
        for level in dict.fromkeys(group.level for group in summary.groups)
        if level in table.levels
    ]
    for above, level in zip((None, *levels), levels, strict=False):
        mine, names = table.levels[level]
        for code, (name, within) in enumerate(
            zip(names, parent_names(table, above, mine, len(names)), strict=True)
        ):
            members = np.where(known & (mine == code), 0, -1)
            if (members == 0).any():
                groups.append(
                    _build_difference((level, name, within), sides, members, np.ones(1), lower)
                )
    return headline, tuple(groups), ()


def _build_difference(
    group_key: tuple[str, str, str],
    run_values: tuple[Floats, Floats],
    codes: Ints,
    weights: Floats,
    lower_is_better: bool,
) -> Difference:
    """The weighted mean over strata of how much more the second run has; items are resampled within
    them.
    """
    strata_of = [codes == code for code in range(len(weights))]
    parts = [(run_values[1] - run_values[0])[members] for members in strata_of]
    a, b = (float(weights @ [side[members].mean() for members in strata_of]) for side in run_values)
    change, value = np.concatenate(parts), b - a
    whole = np.isin(np.concatenate([side[codes >= 0] for side in run_values]), (0, 1)).all()
    if not change.any():
        interval = Interval(0.0, 0.0)
    elif whole and len(parts) == 1:
        interval = statistics.adjusted_wald_macro_interval(parts, weights)
    else:
        interval = statistics.bootstrap_interval(parts, weights)
    views = {}
    if len(parts) > 1:
        means = np.array([part.mean() for part in parts])
        views["clustered"] = Estimate(
            value, len(change), *statistics.clustered_interval(means, weights)
        )
    more, less = int((change > 0).sum()), int((change < 0).sum())
    tested = (
        statistics.mcnemar_test(less, more)
        if whole and len(parts) == 1
        else statistics.macro_permutation_test(parts, weights)
    )
    return Difference(
        *group_key,
        n=len(change),
        a=a,
        b=b,
        value=value,
        low=interval.low,
        high=interval.high,
        p=tested,
        views=views,
        gained=less if lower_is_better else more,
        lost=more if lower_is_better else less,
        detectable=statistics.min_detectable_difference(parts, weights),
    )
