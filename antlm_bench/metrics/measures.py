"""The metrics: what each item contributes, and how contributions become a number with an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import softmax

from antlm_bench import statistics
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.metrics.prediction_table import (
    PredictionTable,
    assign_strata,
    choice_shares,
    gold_indices,
)
from antlm_bench.statistics import Interval
from antlm_bench.types import FLAGS, Bools, Estimate, Floats, Ints, Prediction

REDUCTIONS = ("sum", "per-token", "per-character")


class Accuracy:
    """Share of items whose right option has the best score."""

    def __init__(self, ties: str, reduction: str) -> None:
        self.ties, self.reduction = ties, reduction

    def per_item(self, table: PredictionTable, reduction: str) -> Floats:
        """Credit (n,) in 0..1 of each item."""
        gold = gold_indices(table)
        return np.asarray(choice_shares(table, self.ties, reduction)[np.arange(len(gold)), gold])

    def headline(
        self, table: PredictionTable, macro: Sequence[str]
    ) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]:
        codes, paths = assign_strata(table, macro)
        weights = statistics.macro_weights(paths)
        order, ends = (
            np.argsort(codes, kind="stable"),
            np.cumsum(np.bincount(codes, minlength=len(paths)))[:-1],
        )

        def estimate(
            credit: Floats, interval: Callable[[list[Floats], Floats], Interval]
        ) -> Estimate:
            parts = np.split(credit[order], ends)
            value = float(sum(w * part.mean() for w, part in zip(weights, parts, strict=True)))
            if len(parts) == 1 or all(np.ptp(part) == 0 for part in parts):
                interval = (
                    statistics.wilson_macro_interval
                )  # one stratum, or nothing varies: see there
            return rounded_estimate(value, len(credit), interval(parts, weights), flags)

        flags = {name: int(raised.sum()) for name, raised in table.flags.items() if raised.any()}
        credit = self.per_item(table, self.reduction)
        headline = estimate(credit, statistics.bootstrap_interval)
        views = {"closed-form": estimate(credit, statistics.normal_interval)}
        if len(paths) > 1:
            parts = np.split(credit[order], ends)
            means = np.array([part.mean() for part in parts])
            spread = np.ptp(means) > 0
            interval = (
                statistics.clustered_interval(means, weights)
                if spread
                else statistics.wilson_macro_interval(parts, weights)
            )
            views["clustered"] = rounded_estimate(headline.value, headline.n, interval, flags)
        everything = np.zeros(len(credit), np.int32)
        views["micro"] = self._wilson_estimates(credit, everything, 1, table)[0]
        flags = {
            name: count for name, count in flags.items() if name != "tie"
        }  # counted for the deciding score only
        for reduction in _other_reductions(self.reduction):
            views[reduction] = estimate(
                self.per_item(table, reduction), statistics.bootstrap_interval
            )
        return headline, views, ()

    def by_group(self, table: PredictionTable, codes: Ints, names: Sequence[str]) -> list[Estimate]:
        return self._wilson_estimates(
            self.per_item(table, self.reduction), codes, len(names), table
        )

    def _wilson_estimates(
        self, credit: Floats, codes: Ints, num_groups: int, table: PredictionTable
    ) -> list[Estimate]:
        """Mean and Wilson interval of each of `count` groups of items."""
        known = codes >= 0
        n = np.bincount(codes[known], minlength=num_groups).astype(np.float64)
        right = np.bincount(codes[known], credit[known], minlength=num_groups)
        low, high = statistics.wilson_interval(right.astype(np.float64), n)
        raised = {
            name: np.bincount(codes[known & on], minlength=num_groups)
            for name, on in table.flags.items()
        }
        flags = [
            {name: int(counts[g]) for name, counts in raised.items() if counts[g]}
            for g in range(num_groups)
        ]
        return [
            rounded_estimate(right[g] / n[g], int(n[g]), Interval(low[g], high[g]), flags[g])
            for g in range(num_groups)
        ]


class Spearman:
    """Rank correlation of the first option's probability with the human rating, as BabyLM scores
    WUG.

    The probability is the softmax over the options' summed log-probabilities, the correlation over
    all of the suite (evaluation-pipeline-2025, sentence_zero_shot/compute_results.py). Items that
    are too long are left out; n says so. softmax: the precision of that probability, float64 or
    float32. BabyLM's is float32, where probabilities near 1 are equal, and share a rank.
    """

    def __init__(self, ties: str, reduction: str, softmax: str = "float64") -> None:
        del ties  # ranks take care of equal values
        self.reduction, self.precision = reduction, np.dtype(softmax)

    def per_item(self, table: PredictionTable, reduction: str) -> Floats:
        """Probability (n,) of the first option."""
        scores = np.where(table.valid, table.reduced_scores(reduction), -np.inf).astype(
            self.precision
        )
        with np.errstate(invalid="ignore"):
            probability = softmax(scores, axis=1)[:, 0].astype(np.float64)
        lost = np.isnan(probability) & ~table.get_flag("too-long")
        if lost.any():
            place = f"item {table.ids[int(np.flatnonzero(lost)[0])]}"
            raise CheckpointError(
                "every option has probability 0", location=place, hint="score in float32"
            )
        return np.asarray(probability)

    def headline(
        self, table: PredictionTable, macro: Sequence[str]
    ) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]:
        if len(assign_strata(table, macro)[1]) > 1:
            raise UsageError(
                "spearman runs over all items of a suite",
                hint="leave `macro` empty in the suite's TOML",
            )
        everything = np.ones(len(table.ids), bool)
        headline = self._correlate(table, everything, self.reduction)
        views = {
            other: self._correlate(table, everything, other)
            for other in _other_reductions(self.reduction)
        }
        if (
            statistics.spearman_correlation(
                *self._probabilities_and_ratings(table, everything, self.reduction)
            )
            is None
        ):
            return (
                headline,
                views,
                ("correlation undefined (too few items, or all equal): shown as 0",),
            )
        return headline, views, ()

    def by_group(self, table: PredictionTable, codes: Ints, names: Sequence[str]) -> list[Estimate]:
        return [self._correlate(table, codes == g, self.reduction) for g in range(len(names))]

    def _probabilities_and_ratings(
        self, table: PredictionTable, members: Bools, reduction: str
    ) -> tuple[Floats, Floats]:
        use = members & ~table.get_flag("too-long")
        return self.per_item(table, reduction)[use], table.gold[use]

    def _correlate(self, table: PredictionTable, members: Bools, reduction: str) -> Estimate:
        x, y = self._probabilities_and_ratings(table, members, reduction)
        flags = {
            name: int((on & members).sum())
            for name, on in table.flags.items()
            if (on & members).any()
        }
        value = statistics.spearman_correlation(x, y)
        if value is None:  # we know nothing: the whole range
            return rounded_estimate(0.0, len(x), Interval(-1.0, 1.0), flags, -1.0)
        return rounded_estimate(value, len(x), statistics.spearman_interval(x, y), flags, -1.0)


def no_interval_note(names: Sequence[str], statistic: str, min_items: int) -> tuple[str, ...]:
    """The remark on those among which `what` has no interval, if there are any."""
    why = f"no interval of a {statistic} is known with fewer than {min_items} items beside the largest tie"
    return (f"{', '.join(dict.fromkeys(names))}: {why}",) if names else ()


def _other_reductions(reduction: str) -> list[str]:
    """The reductions that are shown beside the one that decides."""
    return [other for other in REDUCTIONS if other != reduction]


def count_flags(predictions: Sequence[Prediction]) -> dict[str, int]:
    """How many predictions carry each flag, in the order of FLAGS; flags that none carries are left
    out.
    """
    counts = {name: sum(name in p.flags for p in predictions) for name in FLAGS}
    return {name: count for name, count in counts.items() if count}


def rounded_estimate(
    value: float, n: int, interval: Interval, flags: Mapping[str, int], floor: float = 0.0
) -> Estimate:
    """An Estimate in floor..1, free of the noise in the last digits that the order of a sum leaves.
    """
    value, low, high = (
        round(float(np.clip(number, floor, 1.0)), 12) for number in (value, *interval)
    )
    return Estimate(value, int(n), low, high, dict(flags))
