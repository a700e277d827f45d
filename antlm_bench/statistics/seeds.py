"""Finetuned numbers vary twice, over seeds and over items: how far would their mean move if both were drawn again?

Every seed answers the same items, so the design is crossed. With y_si what item i of n adds under seed s of S,

    y_si = mu + a_s + b_i + c_si,    Var(mean of y) = var_a / S + var_b / n + var_c / (S n).

The mean squares of a two-way table without replication, MS_a over seeds, MS_b over items and MS_c what is left, have
the expectations n var_a + var_c, S var_b + var_c and var_c (Searle, Casella & McCulloch 1992, ch. 4), therefore

    Var = MS_a / (S n) + (MS_b - MS_c) / (S n) = var(seed means) / S + (var(item means) / n - MS_c / (S n)):

the plain variances over seeds and over items, less the interaction, which both of them hold. It is taken off the items,
whose part is never below 0: so what few seeds know is a sum of squares of its own, on S - 1 degrees of freedom exactly.

The t quantile is Cochran's (1964, Biometrics 20, 191-195), the mean of the parts' own quantiles weighted by the parts.
Satterthwaite's (1946) degrees of freedom alone fail with 2 seeds: where these happen to lie close together, their part
is small and the degrees of freedom are many at once, and the interval is too narrow twice over (it covered 87% where
seeds differed more than items). By simulation over seeds from alike to all that differs, of 50 and of 1000 items and
all shares of interaction, a 95% interval covers 95-97% with 3 or 5 seeds, and 94-98% with 2: too wide where seeds
contribute nothing, which two cannot know (1.3 to 2.6 times as wide as if one knew it). (The pigeonhole bootstrap, Owen
2007, resamples both margins of the same table and counts the interaction up to three times; of 3 to 5 seeds there is
hardly anything to resample.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtridf, stdtrit

from antlm_bench.statistics.intervals import LEVEL, Interval, Z
from antlm_bench.types import Floats


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A number with the variance of its estimation, on `df` degrees of freedom (infinite: as good as known)."""

    value: float
    variance: float
    df: float = np.inf

    @property
    def interval(self) -> Interval:
        """The t interval at LEVEL."""
        half = float(stdtrit(max(self.df, 1.0), (1 + LEVEL) / 2)) * self.variance**0.5
        return Interval(self.value - half, self.value + half)

    @property
    def p(self) -> float:
        """Two-sided p of the hypothesis that the true value is 0."""
        if self.variance == 0:
            return float(self.value == 0)
        return float(2 * stdtr(max(self.df, 1.0), -abs(self.value) / self.variance**0.5))


def from_interval(value: float, interval: Interval) -> Uncertain:
    """The variance that an interval stands for: half of a bootstrap's or Wilson's width is Z standard errors."""
    return Uncertain(value, ((interval.high - interval.low) / (2 * Z)) ** 2)


def two_level(values: Floats) -> Uncertain:
    """Mean of values (S, n), what n items contribute under each of S seeds, and its variance over seeds and items.

    The means of rows are the metric of each seed. One seed knows nothing about seeds: the variance is then that over
    items alone, and whoever shows it must say so. One item: likewise over seeds alone; one of each has none, nan.
    """
    if values.size == 1:
        return Uncertain(float(values.mean()), float("nan"), 1.0)
    return _crossed([values], values.mean(axis=0))


def two_level_change(a: Floats, b: Floats) -> Uncertain:
    """mean(b) - mean(a) of values (S1, n) and (S2, n) on the same n items, and its variance.

    The seeds of the two are independent, their items are the same, so what the items contribute is taken as a
    difference per item: Var = var_a(seeds)/S1 + var_b(seeds)/S2 + var(differences of item means)/n, less the
    interactions; a run of one seed adds nothing to it, which whoever shows the result must say. A 95% interval covers
    93-98% with 2 seeds each (least where all luck is one run's), 94-97% with 3, 95-96% with 5, 91-99% with 2 and 5.

    Raises ValueError where the number of items differs.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} items cannot be paired")
    return _crossed([a, b], b.mean(axis=0) - a.mean(axis=0))


def two_level_difference(a: Floats, b: Floats) -> tuple[float, Interval, float]:
    """Value, interval, and two-sided p of `two_level_change`. Where all items moved alike, p is that of their signs."""
    found = two_level_change(a, b)
    if found.variance == 0 and found.value:  # no spread to judge by, but n signs that could have been others
        return found.value, found.interval, float(min(1.0, 2.0 ** (1 - a.shape[1])))
    return found.value, found.interval, found.p


def mean_of(parts: Sequence[Uncertain], weights: Sequence[float] | Floats | None = None) -> Uncertain:
    """sum_k w_k value_k of independent estimates (default 1/K each: a macro-average over tasks or suites).

    Var = sum_k w_k^2 var_k; degrees of freedom by Welch and Satterthwaite, Var^2 / sum_k (w_k^2 var_k)^2 / df_k. Of 2
    to 7 tasks a 95% interval covers 90-98% with 2 seeds each, 93-97% with 3 (least where one task has all the luck).
    """
    shares = np.full(len(parts), 1 / len(parts)) if weights is None else np.asarray(weights, float)
    value = float(sum(w * part.value for w, part in zip(shares, parts, strict=True)))
    return Uncertain(value, *_added([(w**2 * part.variance, part.df) for w, part in zip(shares, parts, strict=True)]))


Part = tuple[float, float]  # an additive part of a variance, and its degrees of freedom


def _crossed(sides: Sequence[Floats], by_item: Floats) -> Uncertain:
    """The mean of by_item (n,), made of independent seeds on each side (S, n)."""
    several = [side for side in sides if len(side) > 1]
    seeds = _added([(float(side.mean(axis=1).var(ddof=1)) / len(side), len(side) - 1) for side in several])
    if several:  # of very unlike counts of seeds, the many must not speak for the few
        seeds = seeds[0], min(seeds[1], len(several) * (min(map(len, several)) - 1))
    n = len(by_item)
    among = float(by_item.var(ddof=1)) / n - sum(map(_interaction, several)) if n > 1 else 0.0
    parts = [seeds, (max(among, 0.0), n - 1)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Uncertain(float(by_item.mean()), 0.0)
    t = sum(part * float(stdtrit(max(df, 1), (1 + LEVEL) / 2)) for part, df in parts) / variance
    return Uncertain(float(by_item.mean()), variance, float(stdtridf((1 + LEVEL) / 2, t)) if t > Z else np.inf)


def _interaction(values: Floats) -> float:
    """MS_c / (S n): what the interaction of S >= 2 seeds and n >= 2 items adds to the variance of their mean."""
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float((rest**2).sum() / ((len(values) - 1) * (values.shape[1] - 1) * values.size))


def _added(parts: Sequence[Part]) -> Part:
    """The sum of independent parts, on Satterthwaite's degrees of freedom."""
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / df for part, df in parts)
    return variance, variance**2 / spread if spread > 0 else np.inf
