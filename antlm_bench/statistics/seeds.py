"""Finetuned numbers vary twice, over seeds and over items: how far would their mean move if both were drawn again?

Every seed answers the same items, so the design is crossed. With y_si what item i of n adds under seed s of S,

    y_si = mu + a_s + b_i + c_si,    Var(mean of y) = var_a / S + var_b / n + var_c / (S n).

The mean squares of a two-way table without replication, MS_a over seeds, MS_b over items and MS_c what is left, have
the expectations n var_a + var_c, S var_b + var_c and var_c (Searle, Casella & McCulloch 1992, ch. 4), therefore

    Var = (MS_a + MS_b - MS_c) / (S n) = var(seed means) / S + var(item means) / n - MS_c / (S n):

the plain variances over seeds and over items, less the interaction, which both of them hold. The seeds' part,
(MS_a - MS_c) / (S n), is never taken below 0. Degrees of freedom are Satterthwaite's (1946): few seeds that differ
much get the wide quantiles of t. By simulation a 95% interval covers 94-97% with 5 seeds, 92-97% with 3, and with 2,
where seeds differ far more than items, only 87%. (The pigeonhole bootstrap, Owen 2007, resamples both margins of the
same table and counts the interaction up to three times; of 3 to 5 seeds there is hardly anything to resample.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

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
    return _combined(float(values.mean()), [*_seeds(values), *_items(values.mean(axis=0))])


def two_level_change(a: Floats, b: Floats) -> Uncertain:
    """mean(b) - mean(a) of values (S1, n) and (S2, n) on the same n items, and its variance.

    The seeds of the two are independent, their items are the same, so what the items contribute is taken as a
    difference per item: Var = var_a(seeds)/S1 + var_b(seeds)/S2 + var(differences of item means)/n; the seeds' parts
    are as in `two_level`, and 0 where there is one seed, which whoever shows the result must say.

    Raises ValueError where the number of items differs.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} items cannot be paired")
    differences = b.mean(axis=0) - a.mean(axis=0)
    return _combined(float(differences.mean()), [*_seeds(a), *_seeds(b), *_items(differences)])


def two_level_difference(a: Floats, b: Floats) -> tuple[float, Interval, float]:
    """Value, interval, and two-sided p of `two_level_change`. Where all items moved alike, p is that of their signs."""
    found = two_level_change(a, b)
    if found.variance == 0 and found.value:  # no spread to judge by, but n signs that could have been others
        return found.value, found.interval, float(min(1.0, 2.0 ** (1 - a.shape[1])))
    return found.value, found.interval, found.p


def mean_of(parts: Sequence[Uncertain], weights: Sequence[float] | Floats | None = None) -> Uncertain:
    """sum_k w_k value_k of independent estimates (default 1/K each: a macro-average over tasks or suites).

    Var = sum_k w_k^2 var_k; degrees of freedom by Welch and Satterthwaite, Var^2 / sum_k (w_k^2 var_k)^2 / df_k.
    """
    shares = np.full(len(parts), 1 / len(parts)) if weights is None else np.asarray(weights, float)
    components = [(w**2 * part.variance, part.df) for w, part in zip(shares, parts, strict=True)]
    return _combined(float(sum(w * part.value for w, part in zip(shares, parts, strict=True))), components)


Component = tuple[float, float]  # an additive part of a variance (an interaction taken off is negative), and its df


def _seeds(values: Floats) -> list[Component]:
    """What seeds add to the variance of a mean beyond what the items' means already hold."""
    seeds, items = values.shape
    if seeds < 2:
        return []
    margin = float(values.mean(axis=1).var(ddof=1)) / seeds
    if items < 2:
        return [(margin, seeds - 1)]
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    df = (seeds - 1) * (items - 1)
    interaction = float((rest**2).sum()) / df / (seeds * items)
    return [(margin, seeds - 1), (-min(interaction, margin), df)]


def _items(means: Floats) -> list[Component]:
    return [(float(means.var(ddof=1)) / len(means), len(means) - 1)] if len(means) > 1 else []


def _combined(value: float, components: Sequence[Component]) -> Uncertain:
    variance = max(sum(part for part, _ in components), 0.0)
    spread = sum(part**2 / df for part, df in components)
    return Uncertain(value, variance, variance**2 / spread if spread > 0 else np.inf)
