"""Accuracy: the share of items whose right option has the best score.

    accuracy = sum_k w_k mean(credit of the items of group k)

The credit of an item is 1 if only the right option has the best score, 0 if another option is
better, and depends on the tie rule (`--ties`) if several share the best score. Groups k are those
of `macro` (BLiMP's paradigms), with equal weights within each level. Without groups, the accuracy
is the mean over items.

Source: Warstadt et al. 2020 (BLiMP) and every suite of minimal pairs since.
Interval: a bootstrap over the items of each group; Wilson's for a single group, or if the credits
do not vary within any group.
Corner cases: two options with the same text tie; an item that does not fit the model is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.metrics.prediction_table import PredictionTable, assign_strata, gold_credits
from antlm_bench.metrics.records import REDUCTIONS
from antlm_bench.metrics.summary import Headline, Metric, rounded_estimate
from antlm_bench.statistics import Interval
from antlm_bench.types import Bools, Estimate, Floats, Ints

IntervalFunction = Callable[[list[Floats], Floats], Interval]


class Accuracy(Metric):
    """Share of items whose right option has the best score."""

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the credit (n,) of each item, in 0..1."""
        return gold_credits(table, self.settings.ties, self.settings.reduction)

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        codes, stratum_labels = assign_strata(table, macro)
        weights = statistics.macro_weights(stratum_labels)
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(stratum_labels)))[:-1]
        flags = table.count_flags()
        flags_without_ties = table.count_flags(exclude="tie")

        def estimate(
            credits: Floats, compute_interval: IntervalFunction, flags: Mapping[str, int]
        ) -> Estimate:
            strata = np.split(credits[order], ends)
            value = float(sum(w * s.mean() for w, s in zip(weights, strata, strict=True)))
            if len(strata) == 1 or all(np.ptp(stratum) == 0 for stratum in strata):
                compute_interval = statistics.wilson_macro_interval
            return rounded_estimate(value, len(credits), compute_interval(strata, weights), flags)

        credits = self.per_item(table)
        headline = estimate(credits, statistics.bootstrap_interval, flags)
        views = {"closed-form": estimate(credits, statistics.normal_interval, flags)}
        if len(stratum_labels) > 1:
            strata = np.split(credits[order], ends)
            means = np.array([stratum.mean() for stratum in strata])
            interval = (
                statistics.clustered_interval(means, weights)
                if np.ptp(means) > 0
                else statistics.wilson_macro_interval(strata, weights)
            )
            views["clustered"] = rounded_estimate(headline.value, headline.n, interval, flags)
        views["micro"] = self.estimate_members(table, np.ones(len(credits), bool))
        for reduction in other_reductions(self.settings.reduction):
            other_credits = gold_credits(table, self.settings.ties, reduction)
            # The flag "tie" is that of the deciding reduction.
            views[reduction] = estimate(
                other_credits, statistics.bootstrap_interval, flags_without_ties
            )
        return Headline(headline, views)

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        return self.by_group(table, np.where(members, 0, -1).astype(np.int32), ("",))[0]

    def by_group(
        self, table: PredictionTable, codes: Ints, names: Sequence[str]
    ) -> Sequence[Estimate]:
        """Return the mean credit of each group, with Wilson's interval."""
        credits, has_group, num_groups = self.per_item(table), codes >= 0, len(names)
        n = np.bincount(codes[has_group], minlength=num_groups).astype(float)
        sums = np.bincount(codes[has_group], credits[has_group], minlength=num_groups).astype(float)
        low, high = statistics.wilson_interval(sums, n)
        flag_counts = {
            name: np.bincount(codes[has_group & has_flag], minlength=num_groups)
            for name, has_flag in table.flags.items()
        }
        flags = [
            {name: int(counts[g]) for name, counts in flag_counts.items() if counts[g]}
            for g in range(num_groups)
        ]
        return [
            rounded_estimate(sums[g] / n[g], int(n[g]), (low[g], high[g]), flags[g])
            for g in range(num_groups)
        ]


def other_reductions(reduction: str) -> list[str]:
    """Return all reductions but this one; their results are views."""
    return [other for other in REDUCTIONS if other != reduction]
