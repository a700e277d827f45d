"""The variance of a mean over seeds and items, and its confidence interval.

Finetuned numbers vary over seeds and over items. How far would their mean move if both were drawn
again? Every seed answers the same items, so the design is crossed. With y_si the contribution of
item i of n under seed s of S,

    y_si = mu + a_s + b_i + c_si,    Var(mean of y) = var_a / S + var_b / n + var_c / (S n).

The mean squares of a two-way table without replication, MS_a over seeds, MS_b over items and MS_c
what is left, have the expectations n var_a + var_c, S var_b + var_c and var_c (Searle, Casella &
McCulloch 1992, ch. 4), therefore

    Var = MS_a / (S n) + (MS_b - MS_c) / (S n)
        = var(seed means) / S + (var(item means) / n - MS_c / (S n)):

the plain variances over seeds and over items, less the interaction, which both of them contain. It
is subtracted from the items' part, which is never below 0: so the seeds' part stays a sum of
squares with S - 1 degrees of freedom exactly.

An interval must account for how little few seeds tell. Let r be the seeds' share in the whole
variance;

    q = t_items + (t_seeds - t_items) max(0, r - 1/20) / (1 - 1/20),

Cochran's (1964, Biometrics 20, 191-195) quantile, the mean of the parts' own quantiles weighted by
the parts, except that a seeds' share below 1/20 (NEGLIGIBLE_SEED_SHARE) widens nothing. With 2
seeds, whose t is 12.7, a 95% interval covers 93.3-96.6% over all true shares (integrated, not
drawn); Cochran's own quantile covers 93.9-97.8%, Satterthwaite's degrees of freedom 87%: where two
seeds happen to lie close together, their part is small and the degrees of freedom are many at once.

Means over tasks and differences of runs have a part of each task or run. With 3 seeds or more, the
parts are added with Welch and Satterthwaite's degrees of freedom, P^2 / sum_k p_k^2 / d_k, with
DF_CORRECTION subtracted from each d_k and added to the sum: shares are as uncertain as their parts.
Parts with one degree of freedom cannot be added that way: with 7 of them, 90% are covered where one
is nearly all, 98% where all are equal. If any part has 2 seeds, one contrast of two seeds is taken
of each part, (y_1 - y_2) / sqrt(2 S), that varies as the mean does. Their sum has the variance of
the whole, so its square has one degree of freedom exactly, whatever each contributes (Scheffe 1943,
Ann. Math. Stat. 14, 35-44), also where tasks share seeds. The price is an interval as wide as that
of a single pair of seeds, which must be noted where it is shown.

By simulation a 95% interval covers 93-97%: with 2 seeds as above; with 3, 4, 5 and 10 seeds, one
run or two with equal and unequal numbers of seeds, 1 to 14 tasks, seeds with none to all of the
variance, equal in all tasks or nearly all in one, 92.9-97.2%, and 93.9-96.6% where no run has fewer
than 4. (The pigeonhole bootstrap, Owen 2007, resamples both margins of the same table and counts
the interaction up to three times; with 3 to 5 seeds there is hardly anything to resample.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtridf, stdtrit

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval, Z
from antlm_bench.statistics.stratified_score import score_interval
from antlm_bench.types import Bools, Floats

NEGLIGIBLE_SEED_SHARE = 0.05
"""A share of seeds in the variance that does not widen the interval."""
DF_CORRECTION = 0.4
"""Degrees of freedom that account for the uncertainty of the shares."""


class VarianceComponent(NamedTuple):
    """An additive part of a variance."""

    variance: float
    df: float = np.inf
    """Degrees of freedom; infinite: as good as known."""
    contrast: float = 0.0
    """For a variance of seeds: a draw around 0 that varies as the mean over seeds does."""


@dataclass(frozen=True, slots=True)
class UncertainValue:
    """A number and the independent parts of its variance."""

    value: float
    item_components: tuple[VarianceComponent, ...] = ()
    """Over items."""
    seed_components: tuple[VarianceComponent, ...] = ()
    """Over seeds, where there are two or more."""

    @property
    def variance(self) -> float:
        """The variance of the estimation; 0 without parts."""
        items, seeds = self._variance_components
        return items.variance + seeds.variance

    @property
    def df(self) -> float:
        """The degrees of freedom whose t quantile at CONFIDENCE_LEVEL the interval has."""
        (items, seeds), whole = self._variance_components, self.variance
        share = 0.0
        if whole > 0:
            excess = max(seeds.variance / whole - NEGLIGIBLE_SEED_SHARE, 0.0)
            share = excess / (1 - NEGLIGIBLE_SEED_SHARE)
        t_items, t_seeds = _t_quantile(items.df), _t_quantile(seeds.df)
        t = t_items + (t_seeds - t_items) * share
        return float(stdtridf((1 + CONFIDENCE_LEVEL) / 2, t)) if t > Z * (1 + 1e-9) else np.inf

    @property
    def interval(self) -> Interval:
        """The t interval at CONFIDENCE_LEVEL."""
        half = _t_quantile(self.df) * self.variance**0.5
        return Interval(self.value - half, self.value + half)

    @property
    def p(self) -> float:
        """Two-sided p of the hypothesis that the true value is 0; below 1 - CONFIDENCE_LEVEL where
        the interval excludes 0."""
        if self.variance == 0:
            return float(self.value == 0)
        return float(2 * stdtr(self.df, -abs(self.value) / self.variance**0.5))

    @property
    def _variance_components(self) -> tuple[VarianceComponent, VarianceComponent]:
        """The sums over items and over seeds."""
        return _sum_components(self.item_components), _sum_seed_components(self.seed_components)


def uncertain_from_interval(value: float, interval: Interval) -> UncertainValue:
    """Return a value with the variance that its interval stands for: half of a bootstrap's or
    Wilson's width is Z standard errors."""
    standard_error = (interval.high - interval.low) / (2 * Z)
    return UncertainValue(value, (VarianceComponent(standard_error**2),))


def two_level_mean(values: Floats) -> UncertainValue:
    """Return the mean of values (S, n), the contributions of n items under each of S seeds, with
    its variance over seeds and items.

    The means of rows are the metric of each seed. With one seed the variance is that over items
    alone, which must be noted where it is shown; with one item that over seeds alone; with one of
    each it is nan.
    """
    if values.size == 1:
        return UncertainValue(float(values.mean()), (VarianceComponent(float("nan"), 1.0),))
    return _crossed_mean([values], values.mean(axis=0))


def mixture_interval(values: Floats, collapsed: Bools) -> Interval:
    """Return the interval of the mean of values (S, n) where some seeds collapsed (S,) and some did
    not.

    Such seeds are two populations, so that no t interval over seeds holds. The mean is
    m - share * gap, with m over the seeds that did not collapse. The interval of the share is the
    score interval of the collapsed seeds, that of m is over these seeds and the items; their
    distances to the mean add up as squares (MOVER: Zou & Donner 2008).
    """
    kept, share = two_level_mean(values[~collapsed]), float(collapsed.mean())
    gap = kept.value - float(values[collapsed].mean())
    one_stratum = np.zeros(len(collapsed), np.int32)
    least, most = score_interval(collapsed.astype(float), one_stratum, np.ones(1))
    change_of_share = sorted((-gap * (most - share), gap * (share - least)))
    within = (1 - share) * (kept.interval.high - kept.value)
    value = float(values.mean())
    below, above = (float(np.hypot(within, change)) for change in change_of_share)
    return Interval(value - below, value + above)


def two_level_change(a: Floats, b: Floats) -> UncertainValue:
    """Return mean(b) - mean(a) of values (S1, n) and (S2, n) on the same n items, with its
    variance.

    The seeds of the two are independent, their items are the same, so items enter by their
    differences: Var = var_a(seeds)/S1 + var_b(seeds)/S2 + var(differences of item means)/n, less
    the interactions. A run of one seed adds nothing to it, which must be noted where it is shown.

    Raises ValueError where the number of items differs.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} and {b.shape[1]} items cannot be paired")
    return _crossed_mean([-a, b], b.mean(axis=0) - a.mean(axis=0))


def two_level_test(a: Floats, b: Floats) -> tuple[float, Interval, float]:
    """Return value, interval and two-sided p of `two_level_change`. Where all items moved by the
    same amount, p is that of their signs."""
    change = two_level_change(a, b)
    if change.variance == 0 and change.value:  # no spread, but n signs that could differ
        return change.value, change.interval, float(min(1.0, 2.0 ** (1 - a.shape[1])))
    return change.value, change.interval, change.p


def weighted_mean(
    estimates: Sequence[UncertainValue], weights: Sequence[float] | Floats | None = None
) -> UncertainValue:
    """Return sum_k w_k value_k of independent estimates; default weights 1/K (a macro-average over
    tasks or suites).

    Var = sum_k w_k^2 var_k, and every part keeps its degrees of freedom.
    """
    if weights is None:
        weights = np.full(len(estimates), 1 / len(estimates))
    pairs = [(float(w), estimate) for w, estimate in zip(weights, estimates, strict=True)]
    items = [_scale(part, w) for w, estimate in pairs for part in estimate.item_components]
    seeds = [_scale(part, w) for w, estimate in pairs for part in estimate.seed_components]
    value = sum(w * estimate.value for w, estimate in pairs)
    return UncertainValue(value, tuple(items), tuple(seeds))


def _scale(part: VarianceComponent, weight: float) -> VarianceComponent:
    return VarianceComponent(weight**2 * part.variance, part.df, weight * part.contrast)


def _crossed_mean(sides: Sequence[Floats], item_means: Floats) -> UncertainValue:
    """Return the mean of item_means (n,), the sum of independent sides (S, n)."""
    several, n = [side for side in sides if len(side) > 1], len(item_means)
    seeds = []
    for side in several:
        means, count = side.mean(axis=1), len(side)
        contrast = float(means[0] - means[1]) / (2 * count) ** 0.5
        seeds.append(VarianceComponent(float(means.var(ddof=1)) / count, count - 1, contrast))
    variance = 0.0
    if n > 1:
        variance = float(item_means.var(ddof=1)) / n - sum(map(_interaction_variance, several))
    items = VarianceComponent(max(variance, 0.0), n - 1)
    return UncertainValue(float(item_means.mean()), (items,), tuple(seeds))


def _interaction_variance(values: Floats) -> float:
    """Return MS_c / (S n): what the interaction of S >= 2 seeds and n >= 2 items adds to the
    variance of their mean."""
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float((rest**2).sum() / ((len(values) - 1) * (values.shape[1] - 1) * values.size))


def _sum_seed_components(components: Sequence[VarianceComponent]) -> VarianceComponent:
    """Return the sum of parts of seeds; of their contrasts, if any part has only two seeds."""
    if any(part.df == 1 for part in components):
        return VarianceComponent(sum(part.contrast for part in components) ** 2, 1)
    return _sum_components(components, DF_CORRECTION)


def _sum_components(
    components: Sequence[VarianceComponent], df_correction: float = 0.0
) -> VarianceComponent:
    """Return the sum of independent parts, with Satterthwaite's degrees of freedom."""
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
