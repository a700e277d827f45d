"""Accuracy: the share of items whose right option has the best score.

    accuracy = sum_k w_k mean(credit of the items of group k)

The credit of an item is 1 if only the right option has the best score, 0 if another option is
better, and depends on the tie rule (`--ties`) if several share the best score. Groups k are those
of `macro` (BLiMP's paradigms), with equal weights within each level. Without groups, the accuracy
is the mean over items.

Source: Warstadt et al. 2020 (BLiMP) and every suite of minimal pairs since.
Interval: `statistics.stratified_score`, which counts clusters of items as units.
Corner cases: two options with the same text tie; an item that does not fit the model is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.metrics.prediction_table import PredictionTable, assign_strata, gold_credits
from antlm_bench.metrics.records import REDUCTIONS
from antlm_bench.metrics.summary import Headline, Metric, rounded_estimate
from antlm_bench.statistics import Interval
from antlm_bench.types import Bools, Estimate, Floats, Ints

CREDIT_RANGE = (0.0, 1.0)


class Accuracy(Metric):
    """Share of items whose right option has the best score."""

    def per_item(self, table: PredictionTable) -> Floats:
        """Return the credit (n,) of each item, in 0..1."""
        return gold_credits(table, self.settings.ties, self.settings.reduction)

    def headline(self, table: PredictionTable, macro: Sequence[str]) -> Headline:
        codes, stratum_labels = assign_strata(table, macro)
        weights = statistics.macro_weights(stratum_labels)
        flags, clusters = table.count_flags(), table.clusters
        flags_without_ties = table.count_flags(exclude="tie")

        def estimate(credits: Floats, flags: Mapping[str, int]) -> Estimate:
            means = np.bincount(codes, credits) / np.bincount(codes)
            interval = statistics.score_interval(credits, codes, weights, CREDIT_RANGE, clusters)
            return rounded_estimate(float(weights @ means), len(credits), interval, flags)

        credits = self.per_item(table)
        headline = estimate(credits, flags)
        strata = statistics.weighted_strata(credits, codes, weights, clusters)
        interval = Interval(headline.low, headline.high)
        if any(np.ptp(stratum) > 0 for stratum in strata.values):
            interval = statistics.normal_interval(strata.values, strata.weights)
        views = {"closed-form": rounded_estimate(headline.value, headline.n, interval, flags)}
        means = np.bincount(codes, credits) / np.bincount(codes)
        clustered, reason = statistics.sampled_groups_interval(means, weights, CREDIT_RANGE)
        if clustered:
            views["clustered"] = rounded_estimate(headline.value, headline.n, clustered, flags)
        views["micro"] = self.estimate_members(table, np.ones(len(credits), bool))
        for reduction in other_reductions(self.settings.reduction):
            other_credits = gold_credits(table, self.settings.ties, reduction)
            # The flag "tie" is that of the deciding reduction.
            views[reduction] = estimate(other_credits, flags_without_ties)
        notes = (f"“like these”: {reason}",) if len(means) > 1 and reason else ()
        return Headline(headline, views, notes)

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        return self.by_group(table, np.where(members, 0, -1).astype(np.int32), ("",))[0]

    def by_group(
        self, table: PredictionTable, codes: Ints, names: Sequence[str]
    ) -> Sequence[Estimate]:
        """Return the mean credit of each group, with its score interval."""
        credits, has_group, num_groups = self.per_item(table), codes >= 0, len(names)
        n = np.bincount(codes[has_group], minlength=num_groups)
        strata = statistics.count_groups(credits, codes, num_groups, CREDIT_RANGE, table.clusters)
        low, high = statistics.score_intervals(strata)
        flag_counts = {
            name: np.bincount(codes[has_group & has_flag], minlength=num_groups)
            for name, has_flag in table.flags.items()
        }
        flags = [
            {name: int(counts[g]) for name, counts in flag_counts.items() if counts[g]}
            for g in range(num_groups)
        ]
        return [
            rounded_estimate(strata.means[g], int(n[g]), (low[g], high[g]), flags[g])
            for g in range(num_groups)
        ]


def other_reductions(reduction: str) -> list[str]:
    """Return all reductions but this one; their results are views."""
    return [other for other in REDUCTIONS if other != reduction]
