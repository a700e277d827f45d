"""The metrics: what each item contributes, and how contributions become a number with an interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.special import softmax

from antlm_bench import statistics
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.metrics.prediction_table import Table, chosen, gold_options, strata
from antlm_bench.statistics import Interval
from antlm_bench.types import FLAGS, Bools, Estimate, Floats, Ints, Prediction

REDUCTIONS = ("sum", "per-token", "per-character")


class Accuracy:
    """Share of items whose right option has the best score."""

    def __init__(self, ties: str, reduction: str) -> None:
        self.ties, self.reduction = ties, reduction

    def values(self, table: Table, reduction: str) -> Floats:
        """Credit (n,) in 0..1 of each item."""
        gold = gold_options(table)
        return np.asarray(chosen(table, self.ties, reduction)[np.arange(len(gold)), gold])

    def whole(self, table: Table, macro: Sequence[str]) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]:
        codes, paths = strata(table, macro)
        weights = statistics.macro_weights(paths)
        order, ends = np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=len(paths)))[:-1]

        def estimate(credit: Floats, interval: Callable[[list[Floats], Floats], Interval]) -> Estimate:
            parts = np.split(credit[order], ends)
            value = float(sum(w * part.mean() for w, part in zip(weights, parts, strict=True)))
            if len(parts) == 1 or all(np.ptp(part) == 0 for part in parts):
                interval = statistics.wilson_macro  # one stratum, or nothing varies: see there
            return rounded(value, len(credit), interval(parts, weights), flags)

        flags = {name: int(raised.sum()) for name, raised in table.flags.items() if raised.any()}
        credit = self.values(table, self.reduction)
        headline = estimate(credit, statistics.bootstrap)
        views = {"closed-form": estimate(credit, statistics.closed_form)}
        if len(paths) > 1:
            parts = np.split(credit[order], ends)
            means = np.array([part.mean() for part in parts])
            spread = np.ptp(means) > 0
            interval = statistics.clustered(means, weights) if spread else statistics.wilson_macro(parts, weights)
            views["clustered"] = rounded(headline.value, headline.n, interval, flags)
        everything = np.zeros(len(credit), np.int32)
        views["micro"] = self._counted(credit, everything, 1, table)[0]
        flags = {name: count for name, count in flags.items() if name != "tie"}  # counted for the deciding score only
        for reduction in _others(self.reduction):
            views[reduction] = estimate(self.values(table, reduction), statistics.bootstrap)
        return headline, views, ()

    def parts(self, table: Table, codes: Ints, names: Sequence[str]) -> list[Estimate]:
        return self._counted(self.values(table, self.reduction), codes, len(names), table)

    def _counted(self, credit: Floats, codes: Ints, count: int, table: Table) -> list[Estimate]:
        """Mean and Wilson interval of each of `count` groups of items."""
        known = codes >= 0
        n = np.bincount(codes[known], minlength=count).astype(np.float64)
        right = np.bincount(codes[known], credit[known], minlength=count)
        low, high = statistics.wilson(right.astype(np.float64), n)
        raised = {name: np.bincount(codes[known & on], minlength=count) for name, on in table.flags.items()}
        flags = [{name: int(counts[g]) for name, counts in raised.items() if counts[g]} for g in range(count)]
        return [rounded(right[g] / n[g], int(n[g]), Interval(low[g], high[g]), flags[g]) for g in range(count)]


class Spearman:
    """Rank correlation of the first option's probability with the human rating, as BabyLM scores WUG.

    The probability is the softmax over the options' summed log-probabilities, the correlation over all of the suite
    (evaluation-pipeline-2025, sentence_zero_shot/compute_results.py). Items that are too long are left out; n says so.
    softmax: the precision of that probability, float64 or float32. BabyLM's is float32, where probabilities near 1 are
    equal, and share a rank.
    """

    def __init__(self, ties: str, reduction: str, softmax: str = "float64") -> None:
        del ties  # ranks take care of equal values
        self.reduction, self.precision = reduction, np.dtype(softmax)

    def values(self, table: Table, reduction: str) -> Floats:
        """Probability (n,) of the first option."""
        scores = np.where(table.valid, table.reduced(reduction), -np.inf).astype(self.precision)
        with np.errstate(invalid="ignore"):
            probability = softmax(scores, axis=1)[:, 0].astype(np.float64)
        lost = np.isnan(probability) & ~table.flag("too-long")
        if lost.any():
            place = f"item {table.ids[int(np.flatnonzero(lost)[0])]}"
            raise CheckpointError("every option has probability 0", place=place, hint="score in float32")
        return np.asarray(probability)

    def whole(self, table: Table, macro: Sequence[str]) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]:
        if len(strata(table, macro)[1]) > 1:
            raise UsageError("spearman runs over all items of a suite", hint="leave `macro` empty in the suite's TOML")
        everything = np.ones(len(table.ids), bool)
        headline = self._correlate(table, everything, self.reduction)
        views = {other: self._correlate(table, everything, other) for other in _others(self.reduction)}
        if statistics.spearman(*self._pairs(table, everything, self.reduction)) is None:
            return headline, views, ("correlation undefined (too few items, or all equal): shown as 0",)
        return headline, views, ()

    def parts(self, table: Table, codes: Ints, names: Sequence[str]) -> list[Estimate]:
        return [self._correlate(table, codes == g, self.reduction) for g in range(len(names))]

    def _pairs(self, table: Table, members: Bools, reduction: str) -> tuple[Floats, Floats]:
        use = members & ~table.flag("too-long")
        return self.values(table, reduction)[use], table.gold[use]

    def _correlate(self, table: Table, members: Bools, reduction: str) -> Estimate:
        x, y = self._pairs(table, members, reduction)
        flags = {name: int((on & members).sum()) for name, on in table.flags.items() if (on & members).any()}
        value = statistics.spearman(x, y)
        if value is None:  # we know nothing: the whole range
            return rounded(0.0, len(x), Interval(-1.0, 1.0), flags, -1.0)
        return rounded(value, len(x), statistics.spearman_interval(x, y), flags, -1.0)


def untold(names: Sequence[str], what: str, least: int) -> tuple[str, ...]:
    """The remark on those among which `what` has no interval, if there are any."""
    why = f"no interval of a {what} is known with fewer than {least} items beside the largest tie"
    return (f"{', '.join(dict.fromkeys(names))}: {why}",) if names else ()


def _others(reduction: str) -> list[str]:
    """The reductions that are shown beside the one that decides."""
    return [other for other in REDUCTIONS if other != reduction]


def flag_counts(predictions: Sequence[Prediction]) -> dict[str, int]:
    """How many predictions carry each flag, in the order of FLAGS; flags that none carries are left out."""
    counts = {name: sum(name in p.flags for p in predictions) for name in FLAGS}
    return {name: count for name, count in counts.items() if count}


def rounded(value: float, n: int, interval: Interval, flags: Mapping[str, int], floor: float = 0.0) -> Estimate:
    """An Estimate in floor..1, free of the noise in the last digits that the order of a sum leaves."""
    value, low, high = (round(float(np.clip(number, floor, 1.0)), 12) for number in (value, *interval))
    return Estimate(value, int(n), low, high, dict(flags))
