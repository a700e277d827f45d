"""The mean of what items have a value of: the aggregation of every metric that names no other.

    mean = sum_k w_k mean(values of the items of group k)

with the groups of `macro`, as in an accuracy. The values are `MetricSpec.item_values`.
Corner cases: nan is not a value, its item is left out and counted; a group without any value is an
error. Intervals: `statistics.stratified_score` where every value is 0 or 1, else
`statistics.welch_test`.
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
    rounded_estimate,
)
from antlm_bench.registry import load_target
from antlm_bench.types import Bools, Estimate, Floats, Ints

NO_VALUES_HINT = "raise --max-length, or score its tasks one by one"


class ItemMean(Metric):
    """The mean of `spec.item_values` over the items that have one; n counts those."""

    def __init__(self, spec: MetricSpec, settings: MetricSettings) -> None:
        super().__init__(spec, settings)
        if spec.item_values is None:
            raise TypeError(f"the metric {spec.name} has neither item_values nor an aggregation")
        self._item_values = load_target(spec.item_values)

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the value (n,) of each item, nan where it has none."""
        values = np.asarray(self._item_values(table, self.settings), float)
        return np.where(table.get_flag("too-long"), np.nan, values)

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        values, (codes, paths) = self.per_item(table), assign_strata(table, macro)
        weights = statistics.macro_weights(paths)
        headline = weighted_mean(table, values, codes, weights)
        means = np.array([np.nanmean(values[codes == code]) for code in range(len(paths))])
        clustered, reason = statistics.sampled_groups_interval(means, weights)
        views = {}
        if clustered:
            n, flags = headline.n, headline.flags
            views["clustered"] = rounded_estimate(
                headline.value, n, clustered, flags, self.spec.value_range
            )
        notes = [f"“like these”: {reason}"] if len(paths) > 1 and reason else []
        missing = int((np.isnan(values) & ~table.get_flag("too-long")).sum())
        if missing:
            notes.append(f"left out: {missing} items for which the task has no value")
        return Headline(headline, views, tuple(notes))

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        codes = np.where(members, 0, -1).astype(np.int32)
        return weighted_mean(table, self.per_item(table), codes, np.ones(1))


def weighted_mean(table: PredictionTable, values: Floats, codes: Ints, weights: Floats) -> Estimate:
    """Return the weighted mean of the means of groups, over the items that have a value.

    values (n,), nan = none. codes (n,): an item's group, -1 = none. weights (k,). Raises DataError
    where a group has no value at all.
    """
    known = ~np.isnan(values) & (codes >= 0)
    parts = [values[known & (codes == code)] for code in range(len(weights))]
    if not all(map(len, parts)):
        empty = next(code for code, part in enumerate(parts) if not len(part))
        raise DataError(
            "none of the items has a value: none fits the model, or the task computes none",
            location=f"item {table.ids[int(np.flatnonzero(codes == empty)[0])]} and others",
            hint=NO_VALUES_HINT,
        )
    value = float(sum(w * part.mean() for w, part in zip(weights, parts, strict=True)))
    used = values[known]
    if is_right_or_wrong(used):
        interval = statistics.score_interval(used, codes[known], weights)
    else:
        interval = statistics.welch_test(parts, weights)[0]
    flags = table.count_flags(codes >= 0, exclude="tie")  # nothing is chosen, so nothing ties
    return rounded_estimate(value, len(used), interval, flags, UNBOUNDED)


def is_right_or_wrong(values: Floats) -> bool:
    """Return whether all values (n,) are 0 or 1."""
    return bool(np.isin(values, (0, 1)).all())


UNBOUNDED = (-np.inf, np.inf)
