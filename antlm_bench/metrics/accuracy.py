"""Accuracy: the share of items whose right option has the best score.

    accuracy = sum_k w_k mean(credit of the items of group k)

credit is 1 where the right option alone has the best score, 0 where it has not, and by the tie rule
in between. Groups k are those of `macro` (BLiMP's paradigms), with equal weights within each level;
without groups it is the mean over items.

Source: Warstadt et al. 2020 (BLiMP) and every suite of minimal pairs since.
Corner cases: a tie (`--ties`); two options of one text, which tie by definition; an item that does
not fit the model, which is wrong; a suite in which nothing varies, whose interval is Wilson's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
        codes, paths = assign_strata(table, macro)
        weights = statistics.macro_weights(paths)
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(paths)))[:-1]
        flags = table.count_flags()

        def estimate(credit: Floats, interval: IntervalFunction) -> Estimate:
            parts = np.split(credit[order], ends)
            value = float(sum(w * part.mean() for w, part in zip(weights, parts, strict=True)))
            if len(parts) == 1 or all(np.ptp(part) == 0 for part in parts):
                interval = statistics.wilson_macro_interval  # nothing to resample: see there
            return rounded_estimate(value, len(credit), interval(parts, weights), flags)

        credit = self.per_item(table)
        headline = estimate(credit, statistics.bootstrap_interval)
        views = {"closed-form": estimate(credit, statistics.normal_interval)}
        if len(paths) > 1:
            parts = np.split(credit[order], ends)
            means = np.array([part.mean() for part in parts])
            interval = (
                statistics.clustered_interval(means, weights)
                if np.ptp(means) > 0
                else statistics.wilson_macro_interval(parts, weights)
            )
            views["clustered"] = rounded_estimate(headline.value, headline.n, interval, flags)
        views["micro"] = self.estimate_members(table, np.ones(len(credit), bool))
        flags.pop("tie", None)  # ties are those of the deciding score
        for reduction in other_reductions(self.settings.reduction):
            views[reduction] = estimate(
                gold_credits(table, self.settings.ties, reduction), statistics.bootstrap_interval
            )
        return Headline(headline, views)

    def estimate_members(self, table: PredictionTable, members: Bools) -> Estimate:
        return self.by_group(table, np.where(members, 0, -1).astype(np.int32), ("",))[0]

    def by_group(
        self, table: PredictionTable, codes: Ints, names: Sequence[str]
    ) -> Sequence[Estimate]:
        """Return the mean credit of each group, with Wilson's interval."""
        credit, known, count = self.per_item(table), codes >= 0, len(names)
        n = np.bincount(codes[known], minlength=count).astype(float)
        right = np.bincount(codes[known], credit[known], minlength=count).astype(float)
        low, high = statistics.wilson_interval(right, n)
        flag_counts = {
            name: np.bincount(codes[known & raised], minlength=count)
            for name, raised in table.flags.items()
        }
        flags = [
            {name: int(counts[g]) for name, counts in flag_counts.items() if counts[g]}
            for g in range(count)
        ]
        return [
            rounded_estimate(right[g] / n[g], int(n[g]), (low[g], high[g]), flags[g])
            for g in range(count)
        ]


def other_reductions(reduction: str) -> list[str]:
    """Return the reductions that are shown beside the one that decides."""
    return [other for other in REDUCTIONS if other != reduction]
