"""The mean of item values: the default aggregation of a metric.

    mean = sum_k w_k mean(values of the items of group k)

The groups are those of `macro`, weighted as in `accuracy`. `MetricSpec.item_values` computes the
values.
Interval: a bootstrap over the items of each group; Wilson's if every value is 0 or 1 and there is
one group, or the values do not vary within any group.
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
from antlm_bench.registry import load_target
from antlm_bench.types import Bools, Estimate, Floats, Ints

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
        views = {}
        if num_strata > 1:
            means = np.array([np.nanmean(values[codes == code]) for code in range(num_strata)])
            views["clustered"] = rounded_estimate(
                headline.value,
                headline.n,
                statistics.clustered_interval(means, weights),
                headline.flags,
                self.spec.value_range,
            )
        num_missing = int((np.isnan(values) & ~table.get_flag("too-long")).sum())
        note = f"left out: {num_missing} items for which the task has no value"
        return Headline(headline, views, (note,) if num_missing else ())

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        codes = np.where(members, 0, -1).astype(np.int32)
        return weighted_mean(table, self.per_item(table), codes, np.ones(1))


def weighted_mean(table: PredictionTable, values: Floats, codes: Ints, weights: Floats) -> Estimate:
    """Return the weighted mean of the means of groups, over the items that have a value.

    values (n,), nan = no value. codes (n,): an item's group, -1 = none. weights (k,). Raises
    DataError if no item of a group has a value.
    """
    has_value = ~np.isnan(values)
    groups = [values[has_value & (codes == code)] for code in range(len(weights))]
    for code, group in enumerate(groups):
        if not len(group):
            raise DataError(
                "none of the items has a value: none fits the model, or the task computes none",
                location=f"item {table.ids[int(np.flatnonzero(codes == code)[0])]} and others",
                hint="raise --max-length, or score the tasks of a group one by one",
            )
    value = float(sum(w * group.mean() for w, group in zip(weights, groups, strict=True)))
    used_values = np.concatenate(groups)
    varies_within_groups = len(groups) > 1 and any(np.ptp(group) > 0 for group in groups)
    if np.isin(used_values, (0, 1)).all() and not varies_within_groups:
        interval = statistics.wilson_macro_interval(groups, weights)
    else:
        interval = statistics.bootstrap_interval(groups, weights)
    flags = table.count_flags(codes >= 0, exclude="tie")  # no option is chosen
    return rounded_estimate(value, len(used_values), interval, flags, UNBOUNDED)
