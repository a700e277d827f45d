"""Accuracy: the share of items whose right option has the best score.

    accuracy = sum_k w_k mean(credit of the items of group k)

credit is 1 where the right option alone has the best score, 0 where it has not, and by the tie rule
in between. Groups k are those of `macro` (BLiMP's paradigms), with equal weights within each level;
without groups it is the mean over items.

Source: Warstadt et al. 2020 (BLiMP) and every suite of minimal pairs since.
Intervals: `statistics.stratified_score`. Corner cases: a tie (`--ties`); two options of one text,
which tie by definition; an item that does not fit the model, which is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        codes, paths = assign_strata(table, macro)
        weights = statistics.macro_weights(paths)
        flags = table.count_flags()

        def estimate(credit: Floats) -> Estimate:
            means = np.bincount(codes, credit) / np.bincount(codes)
            interval = statistics.score_interval(credit, codes, weights)
            return rounded_estimate(float(weights @ means), len(credit), interval, flags)

        credit = self.per_item(table)
        headline = estimate(credit)
        parts = np.split(
            credit[np.argsort(codes, kind="stable")], np.cumsum(np.bincount(codes))[:-1]
        )
        interval: Interval = Interval(headline.low, headline.high)
        if any(np.ptp(part) > 0 for part in parts):
            interval = statistics.normal_interval(parts, weights)
        views = {"closed-form": rounded_estimate(headline.value, len(credit), interval, flags)}
        means = np.array([part.mean() for part in parts])
        clustered, reason = statistics.sampled_groups_interval(means, weights)
        if clustered:
            views["clustered"] = rounded_estimate(headline.value, headline.n, clustered, flags)
        views["micro"] = self.estimate_members(table, np.ones(len(credit), bool))
        flags.pop("tie", None)  # ties are those of the deciding score
        for reduction in other_reductions(self.settings.reduction):
            views[reduction] = estimate(gold_credits(table, self.settings.ties, reduction))
        notes = (f"“like these”: {reason}",) if len(parts) > 1 and reason else ()
        return Headline(headline, views, notes)

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        return self.by_group(table, np.where(members, 0, -1).astype(np.int32), ("",))[0]

    def by_group(
        self, table: PredictionTable, codes: Ints, names: Sequence[str]
    ) -> Sequence[Estimate]:
        """Return the mean credit of each group, with its score interval."""
        credit, known, count = self.per_item(table), codes >= 0, len(names)
        n = np.bincount(codes[known], minlength=count)
        strata = statistics.count_items(credit, codes, np.ones(count), CREDIT_RANGE)
        low, high = statistics.score_intervals(statistics.separate_averages(strata))
        flag_counts = {
            name: np.bincount(codes[known & raised], minlength=count)
            for name, raised in table.flags.items()
        }
        flags = [
            {name: int(counts[g]) for name, counts in flag_counts.items() if counts[g]}
            for g in range(count)
        ]
        return [
            rounded_estimate(strata.means[g], int(n[g]), (low[g], high[g]), flags[g])
            for g in range(count)
        ]


def other_reductions(reduction: str) -> list[str]:
    """Return the reductions that are shown beside the one that decides."""
    return [other for other in REDUCTIONS if other != reduction]
