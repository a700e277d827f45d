"""Finetuned numbers vary twice, over seeds and over items: how far would their mean move if both
were drawn again?

Every seed answers the same items, so the design is crossed. With y_si what item i of n adds under
seed s of S,

    y_si = mu + a_s + b_i + c_si,    Var(mean of y) = var_a / S + var_b / n + var_c / (S n).

The mean squares of a two-way table without replication, MS_a over seeds, MS_b over items and MS_c
what is left, have the expectations n var_a + var_c, S var_b + var_c and var_c (Searle, Casella &
McCulloch 1992, ch. 4), therefore

    Var = MS_a / (S n) + (MS_b - MS_c) / (S n) = var(seed means) / S + (var(item means) / n - MS_c / (S n)):

the plain variances over seeds and over items, less the interaction, which both of them hold. It is
taken off the items, whose part is never below 0: so what few seeds know is a sum of squares of its
own, on S - 1 degrees of freedom exactly.

An interval must not take what so few seeds know for more than it is. Let r be the seeds' share in
the whole variance;

    q = t_items + (t_seeds - t_items) max(0, r - 1/20) / (1 - 1/20),

Cochran's (1964, Biometrics 20, 191-195) quantile, the mean of the parts' own weighted by them, but
for a twentieth: what seeds hardly contribute to is not widened. Of 2 seeds, whose t is 12.7, a 95%
interval covers 93.3-96.6% over all true shares (integrated, not drawn); as Cochran has it
93.9-97.8%, with Satterthwaite's degrees of freedom 87%: where two seeds happen to lie close
together, their part is small and the degrees of freedom are many at once.

Means over tasks and differences of runs have a part of each. From 3 seeds on, they are added and
have Welch and Satterthwaite's degrees of freedom, P^2 / sum_k p_k^2 / d_k, with SHY less of each
and SHY more of all: shares are as uncertain as their parts. Parts of one degree of freedom cannot
be added that way: with 7 of them, 90% are covered where one is nearly all, 98% where all are alike.
They need not: if any has but 2 seeds, one contrast of two seeds is taken of each, (y_1 - y_2) /
sqrt(2 S), that varies as the mean does. Their sum has the variance of the whole, so its square has
one degree of freedom exactly, whatever each contributes (Scheffe 1943, Ann. Math. Stat. 14, 35-44),
also where tasks share seeds. The price is an interval as wide as that of a single pair of seeds,
which whoever shows it must say.

By simulation a 95% interval covers 93-97%: of 2 seeds as above; of 3, 4, 5 and 10, one run or two
of equal and of unequal counts, 1 to 14 tasks, seeds from nothing to all of the variance and their
luck from alike to nearly all in one task, 92.9-97.2%, and 93.9-96.6% where none has fewer than 4.
(The pigeonhole bootstrap, Owen 2007, resamples both margins of the same table and counts the
interaction up to three times; of 3 to 5 seeds there is hardly anything to resample.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtridf, stdtrit

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval, Z
from antlm_bench.types import Floats

NEGLIGIBLE_SEED_SHARE = 0.05  # a share of seeds in the variance that is not worth a wider interval
DF_CORRECTION = 0.4  # degrees of freedom that the uncertainty of shares is worth


class VarianceComponent(NamedTuple):
    """An additive part of a variance, and its degrees of freedom (infinite: as good as known).

    contrast: of a part of seeds, a draw around 0 that varies as their mean does.
    """

    variance: float
    df: float = np.inf
    contrast: float = 0.0


@dataclass(frozen=True, slots=True)
class UncertainValue:
    """A number, and the independent parts of its variance: over items, and over seeds where there
    are two or more.
    """

    value: float
    item_components: tuple[VarianceComponent, ...] = ()
    seed_components: tuple[VarianceComponent, ...] = ()

    @property
    def variance(self) -> float:
        """Of the estimation; 0 without parts."""
        return (
            _sum_components(self.item_components).variance
            + _sum_seed_components(self.seed_components).variance
        )

    @property
    def df(self) -> float:
        """The degrees of freedom whose t quantile at LEVEL the interval has."""
        items, seeds = (
            _sum_components(self.item_components),
            _sum_seed_components(self.seed_components),
        )
        whole = items.variance + seeds.variance
        share = (
            max(seeds.variance / whole - NEGLIGIBLE_SEED_SHARE, 0.0) / (1 - NEGLIGIBLE_SEED_SHARE)
            if whole > 0
            else 0.0
        )
        least, most = _t_quantile(items.df), _t_quantile(seeds.df)
        t = least + (most - least) * share
        return float(stdtridf((1 + CONFIDENCE_LEVEL) / 2, t)) if t > Z * (1 + 1e-9) else np.inf

    @property
    def interval(self) -> Interval:
        """The t interval at LEVEL."""
        half = _t_quantile(self.df) * self.variance**0.5
        return Interval(self.value - half, self.value + half)

    @property
    def p(self) -> float:
        """Two-sided p of the hypothesis that the true value is 0; below 1 - LEVEL where the
        interval leaves 0 out.
        """
        if self.variance == 0:
            return float(self.value == 0)
        return float(2 * stdtr(self.df, -abs(self.value) / self.variance**0.5))


def uncertain_from_interval(value: float, interval: Interval) -> UncertainValue:
    """The variance that an interval stands for: half of a bootstrap's or Wilson's width is Z
    standard errors.
    """
    return UncertainValue(
        value, (VarianceComponent(((interval.high - interval.low) / (2 * Z)) ** 2),)
    )


def two_level_mean(values: Floats) -> UncertainValue:
    """Mean of values (S, n), what n items contribute under each of S seeds, and its variance over
    seeds and items.

    The means of rows are the metric of each seed. One seed knows nothing about seeds: the variance
    is then that over items alone, and whoever shows it must say so. One item: likewise over seeds
    alone; one of each has none, nan.
    """
    if values.size == 1:
        return UncertainValue(float(values.mean()), (VarianceComponent(float("nan"), 1.0),))
    return _crossed_mean([values], values.mean(axis=0))


def two_level_change(a: Floats, b: Floats) -> UncertainValue:
    """mean(b) - mean(a) of values (S1, n) and (S2, n) on the same n items, and its variance.

    The seeds of the two are independent, their items are the same, so what the items contribute is
    taken as a difference per item: Var = var_a(seeds)/S1 + var_b(seeds)/S2 + var(differences of
    item means)/n, less the interactions; a run of one seed adds nothing to it, which whoever shows
    the result must say.

    Raises ValueError where the number of items differs.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} items cannot be paired")
    return _crossed_mean([-a, b], b.mean(axis=0) - a.mean(axis=0))


def two_level_test(a: Floats, b: Floats) -> tuple[float, Interval, float]:
    """Value, interval, and two-sided p of `two_level_change`. Where all items moved alike, p is
    that of their signs.
    """
    found = two_level_change(a, b)
    if (
        found.variance == 0 and found.value
    ):  # no spread to judge by, but n signs that could have been others
        return found.value, found.interval, float(min(1.0, 2.0 ** (1 - a.shape[1])))
    return found.value, found.interval, found.p


def weighted_mean(
    estimates: Sequence[UncertainValue], weights: Sequence[float] | Floats | None = None
) -> UncertainValue:
    """sum_k w_k value_k of independent estimates (default 1/K each: a macro-average over tasks or
    suites).

    Var = sum_k w_k^2 var_k, and every part keeps its degrees of freedom.
    """
    shares = (
        np.full(len(estimates), 1 / len(estimates))
        if weights is None
        else np.asarray(weights, float)
    )
    pairs = [(float(w), part) for w, part in zip(shares, estimates, strict=True)]
    return UncertainValue(
        sum(w * part.value for w, part in pairs),
        tuple(
            VarianceComponent(w**2 * one.variance, one.df)
            for w, part in pairs
            for one in part.item_components
        ),
        tuple(
            VarianceComponent(w**2 * one.variance, one.df, w * one.contrast)
            for w, part in pairs
            for one in part.seed_components
        ),
    )


def _crossed_mean(sides: Sequence[Floats], item_means: Floats) -> UncertainValue:
    """The mean of by_item (n,), the sum of independent sides (S, n)."""
    several, n = [side for side in sides if len(side) > 1], len(item_means)
    seeds = []
    for side in several:
        means, count = side.mean(axis=1), len(side)
        contrast = float(means[0] - means[1]) / (2 * count) ** 0.5
        seeds.append(VarianceComponent(float(means.var(ddof=1)) / count, count - 1, contrast))
    among = (
        float(item_means.var(ddof=1)) / n - sum(map(_interaction_variance, several))
        if n > 1
        else 0.0
    )
    return UncertainValue(
        float(item_means.mean()), (VarianceComponent(max(among, 0.0), n - 1),), tuple(seeds)
    )


def _interaction_variance(values: Floats) -> float:
    """MS_c / (S n): what the interaction of S >= 2 seeds and n >= 2 items adds to the variance of
    their mean.
    """
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float((rest**2).sum() / ((len(values) - 1) * (values.shape[1] - 1) * values.size))


def _sum_seed_components(components: Sequence[VarianceComponent]) -> VarianceComponent:
    """The sum of parts of seeds: of their contrasts, if any has but two."""
    if any(part.df == 1 for part in components):
        return VarianceComponent(sum(part.contrast for part in components) ** 2, 1)
    return _sum_components(components, DF_CORRECTION)


def _sum_components(
    components: Sequence[VarianceComponent], df_correction: float = 0.0
) -> VarianceComponent:
    """The sum of independent parts, on Satterthwaite's degrees of freedom (of shy: see above)."""
    if len(components) == 1:
        return components[0]
    variance = sum(part.variance for part in components)
    spread = sum(
        part.variance**2 / (part.df - df_correction) for part in components if part.variance
    )
    return VarianceComponent(
        variance, variance**2 / spread + df_correction if spread > 0 else np.inf
    )


def _t_quantile(df: float) -> float:
    return float(stdtrit(max(df, 1.0), (1 + CONFIDENCE_LEVEL) / 2)) if df < np.inf else Z
