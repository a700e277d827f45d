"""The mean of item values: the default aggregation of a metric.

    mean = sum_k w_k mean(values of the items of group k)

The groups are those of `macro`, weighted as in `accuracy`. `MetricSpec.item_values` computes the
values.
Interval: `statistics.stratified_score` if every value is 0 or 1, else `statistics.welch_test`; both
count clusters of items as units.
Corner cases: items whose value is nan are left out and counted; a group without any value is an
error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.errors import DataError
from antlm_bench.metrics.prediction_table import PredictionTable, assign_strata
from antlm_bench.metrics.records import MetricSpec
from antlm_bench.metrics.summary import (
    Headline,
    Metric,
    MetricSettings,
    check_item_values,
    check_value_range,
    rounded_estimate,
)
from antlm_bench.printable import format_count
from antlm_bench.registry import load_target
from antlm_bench.types import TOO_LONG_HINT, Bools, Estimate, Floats, Ints

UNBOUNDED = (-np.inf, np.inf)


class ItemMean(Metric):
    """The mean of `spec.item_values` over the n items that have a value."""

    def __init__(self, spec: MetricSpec, settings: MetricSettings) -> None:
        super().__init__(spec, settings)
        if spec.item_values is None:
            raise TypeError(f"the metric {spec.name} has neither item_values nor an aggregation")
        self._item_values = load_target(spec.item_values)

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the value (n,) of each item, nan where it has none."""
        values = check_item_values(self._item_values(table, self.settings), table, self.spec)
        values[table.get_flag("too-long")] = np.nan
        check_value_range(values, table, self.spec)
        return values

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        values = self.per_item(table)
        codes, stratum_labels = assign_strata(table, macro)
        num_strata = len(stratum_labels)
        weights = statistics.macro_weights(stratum_labels)
        headline = weighted_mean(table, values, codes, weights)
        means = np.array([np.nanmean(values[codes == code]) for code in range(num_strata)])
        clustered, reason = statistics.sampled_groups_interval(
            means, weights, self.spec.value_range
        )
        views = {}
        if clustered:
            n, flags = headline.n, headline.flags
            views["clustered"] = rounded_estimate(
                headline.value, n, clustered, flags, self.spec.value_range
            )
        notes = [f"“like these”: {reason}"] if num_strata > 1 and reason else []
        num_missing = int((np.isnan(values) & ~table.get_flag("too-long")).sum())
        if num_missing:
            notes.append(
                f"left out: {format_count(num_missing, 'item')} for which the task has no value"
            )
        return Headline(headline, views, tuple(notes))

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        codes = np.where(members, 0, -1).astype(np.int32)
        return weighted_mean(table, self.per_item(table), codes, np.ones(1))


def weighted_mean(table: PredictionTable, values: Floats, codes: Ints, weights: Floats) -> Estimate:
    """Return the weighted mean of the means of groups, over the items that have a value.

    values (n,), nan = no value. codes (n,): an item's group, -1 = none. weights (k,). Raises
    DataError if no item of a group has a value.
    """
    has_value = ~np.isnan(values) & (codes >= 0)
    groups = [values[has_value & (codes == code)] for code in range(len(weights))]
    for code, group in enumerate(groups):
        if not len(group):
            raise DataError(
                "none of the items has a value: none fits the model, or the task computes none",
                location=f"item {table.ids[int(np.flatnonzero(codes == code)[0])]} and others",
                hint=f"{TOO_LONG_HINT}; or score the tasks of a group one by one",
            )
    value = float(sum(w * group.mean() for w, group in zip(weights, groups, strict=True)))
    used_values = values[has_value]
    used_codes = codes[has_value]
    clusters = None if table.clusters is None else table.clusters[has_value]
    if is_right_or_wrong(used_values):
        credit_range = (0.0, 1.0)
        interval = statistics.score_interval(
            used_values, used_codes, weights, credit_range, clusters
        )
    else:
        strata = statistics.weighted_strata(used_values, used_codes, weights, clusters)
        interval = statistics.welch_test(*strata)[0]
    flags = table.count_flags(codes >= 0, exclude="tie")  # no option is chosen
    return rounded_estimate(value, len(used_values), interval, flags, UNBOUNDED)


def is_right_or_wrong(values: Floats) -> bool:
    """Return whether all values (n,) are 0 or 1."""
    return bool(np.isin(values, (0, 1)).all())
