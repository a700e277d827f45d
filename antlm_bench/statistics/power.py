"""Power of tests of paired differences: the true drop that is significant in 80% of repetitions.

A repetition draws other items from the same strata. A true drop of d in every stratum is assumed to
leave the share of items that flip unchanged and to turn more of the flips into losses. Let m_v be
the share of items of a stratum that change by v or -v (v = 1 for credits without ties):

1. The observed shares of a stratum are shrunk towards those of all strata (empirical Bayes), more
   strongly if strata differ little beyond chance. So a small stratum without observed flips still
   has a flip rate above 0.
2. A flip is a loss with probability (1 + r) / 2, with r = d / sum_v v m_v. With v = 1, the shares
   of losses and gains are (m + d) / 2 and (m - d) / 2, as in Connor (1987, Biometrics 43).
3. If d is larger than sum_v v m_v, all flips are losses, and further items are lost. With 0 flips,
   d is the share of lost items, and about 7 lost items are detected, whatever the number of items.

The estimate T of the difference (`stratified_score`) is treated as normal, with mean -d and its
variance under these shares. d is detectable if the test is significant for the estimate that 80% of
repetitions exceed in size, with the counts that are expected for this estimate (E[N | T] = E[N] +
cov(N, T) / var(T) (T - E[T])). If all flips are losses of equal weight h, T is a multiple of h, and
the critical value is half-way between two of them.

Simulated power: docs/explanation/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from antlm_bench.statistics.crossed_design import UncertainValue, VarianceComponent
from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval, Z
from antlm_bench.statistics.special_functions import chdtri, nctdtr, ndtr, ndtri, stdtrit
from antlm_bench.statistics.stratified_score import (
    CONTINUITY,
    END_ITEMS,
    PSEUDO_ITEMS,
    StratifiedCounts,
    count_average,
    count_overlapping_groups,
    score_z,
)
from antlm_bench.types import Bools, Floats, Ints

POWER = 0.8
"""Share of the repetitions in which a detectable drop is significant."""
MIN_PRIOR_ITEMS = 4.0
"""Smallest weight, in items, of the flip rate of all strata in the smoothed rate of a stratum."""
MIN_DROP = 1e-7
"""Smallest drop that is tried."""
MIN_DF = 4
"""Fewest degrees of freedom from which a t test's detectable mean is computed."""
NUM_QUANTILES = 100
"""Number of quantiles of a standard error from which an expectation is computed."""
MAX_CORRELATION = 0.999
"""Correlations are clipped to this size, because 1 is infinite on Fisher's scale."""
MAX_STEPS = 100
TOLERANCE = 1e-4
"""Relative tolerance of a detectable drop."""


@dataclass(frozen=True, slots=True)
class FlipRates:
    """Rates at which the items of R strata change between two runs, in B macro-averages."""

    sizes: Floats
    """Items of each stratum (R,), or the effective number of clusters."""
    changes: Floats
    """Absolute changes (V,) above 0, ascending. The last one is the largest possible change."""
    shares: Floats
    """Share of the items of each stratum with each change (R, V)."""
    weights: Floats
    """Weight of each stratum in its macro-average (R,)."""
    starts: Ints
    """First stratum of each macro-average (B,), ascending."""

    @property
    def average_of_stratum(self) -> Ints:
        """Index of the macro-average of each stratum (R,)."""
        sizes = np.diff(np.append(self.starts, len(self.sizes)))
        return np.repeat(np.arange(len(self.starts), dtype=np.int32), sizes)

    def sum_strata(self, terms: Floats) -> Floats:
        """Return the sums (B, ...) of terms (R, ...) over the strata of each macro-average."""
        return np.asarray(np.add.reduceat(terms, self.starts, axis=0))

    def expected_counts(self, drops: Floats) -> StratifiedCounts:
        """Return the expected counts under a drop of each macro-average (B,).

        See steps 2 and 3 of the module docstring. The values are -v, ..., 0, ..., v.
        """
        drops = drops[self.average_of_stratum]
        mean_change = self.shares @ self.changes
        can_explain_drop = mean_change > drops
        ratio = np.ones_like(mean_change)
        ratio = np.divide(drops, mean_change, out=ratio, where=can_explain_drop)[:, None]
        room = np.maximum(self.changes[-1] - mean_change, MIN_DROP)
        extra_losses = np.clip((drops - mean_change) / room, 0, 1)[:, None]
        lost = self.shares * (1 + ratio) / 2 * (1 - extra_losses)
        lost[:, -1:] += extra_losses
        gained = self.shares * (1 - ratio) / 2 * (1 - extra_losses)
        same = np.maximum(1 - lost.sum(axis=1) - gained.sum(axis=1), 0)[:, None]
        counts = self.sizes[:, None] * np.hstack([lost[:, ::-1], same, gained])
        return self._with_means(counts)

    def counts_given_estimate(self, drops: Floats, estimates: Floats) -> StratifiedCounts:
        """Return the expected counts under drops (B,), given estimates (B,) of the difference."""
        expected = self.expected_counts(drops)
        variance = np.maximum(self.variance(drops), MIN_DROP**2)
        slope = (
            ((estimates + drops) / variance)[self.average_of_stratum] * self.weights / self.sizes
        )
        deviations = expected.values - expected.means[:, None]
        counts = expected.counts * np.maximum(1 + slope[:, None] * deviations, 0)
        return self._with_means(counts * (self.sizes / counts.sum(axis=1))[:, None])

    def variance(self, drops: Floats) -> Floats:
        """Return the variance (B,) of the estimates under drops (B,)."""
        expected = self.expected_counts(drops)
        squares = expected.counts @ expected.values**2 / self.sizes
        return self.sum_strata(self.weights**2 * (squares - expected.means**2) / self.sizes)

    def _with_means(self, counts: Floats) -> StratifiedCounts:
        values = np.concatenate([-self.changes[::-1], [0.0], self.changes])
        means = counts @ values / self.sizes
        return StratifiedCounts(values, counts, means, self.weights, self.starts)


def observed_flip_rates(counts: StratifiedCounts) -> FlipRates:
    """Return the smoothed flip rates (step 1 of the module) of counts of paired differences.

    A loss and a gain of equal size count as the same change.
    """
    sizes, magnitudes = counts.counts.sum(axis=1), np.abs(counts.values)
    changes = np.unique(magnitudes[magnitudes > 0])
    flips = counts.counts @ (magnitudes[:, None] == changes)
    rates = FlipRates(sizes, changes, flips, counts.weights, counts.starts)
    strength = _prior_strength(rates)[rates.average_of_stratum]
    reliability = counts.weights / (1 + sizes / strength)  # per item; lower in large strata
    pooled = rates.sum_strata(reliability[:, None] * flips)
    pooled /= rates.sum_strata(reliability * sizes)[:, None]
    own_weight = (sizes / (sizes + strength))[:, None]
    own, others = flips / sizes[:, None], pooled[rates.average_of_stratum]
    return replace(rates, shares=own_weight * own + (1 - own_weight) * others)


def _prior_strength(rates: FlipRates) -> Floats:
    """Return the weight (B,), in items, of the flip rate of all strata in that of a stratum.

    Method of moments: with the heterogeneity Q = sum_s n_s (m_s - m)^2 / (m (1 - m)) of S strata,
    it is (n - sum_s n_s^2 / n) / (Q - (S - 1)), as for a beta-binomial distribution.

    rates: its `shares` are numbers of flips here.
    """
    flips = rates.shares.sum(axis=1)
    total, all_flips = rates.sum_strata(rates.sizes), rates.sum_strata(flips)
    mean = all_flips / total
    squares = rates.sum_strata(
        rates.sizes * (flips / rates.sizes - mean[rates.average_of_stratum]) ** 2
    )
    heterogeneity = squares / np.maximum(mean * (1 - mean), MIN_DROP)
    num_strata = np.bincount(rates.average_of_stratum)
    items = total - rates.sum_strata(rates.sizes**2) / total
    excess = np.maximum(heterogeneity - (num_strata - 1), MIN_DROP)
    return np.clip(items / excess, MIN_PRIOR_ITEMS, 1 / MIN_DROP)


def planned_flip_rates(sizes: Floats, weights: Floats, flips: float) -> FlipRates:
    """Return the flip rates of one macro-average whose strata all have the same share of flips.

    sizes (R,): items of each stratum. weights (R,). flips: share of the items that flip from right
    to wrong or back.
    """
    shares = np.full((len(sizes), 1), float(flips))
    return FlipRates(np.asarray(sizes, float), np.ones(1), shares, weights, np.zeros(1, np.int32))


def detectable_drops(
    rates: FlipRates, alpha: float = 1 - CONFIDENCE_LEVEL, power: float = POWER
) -> Floats:
    """Return the smallest true drop (B,) that is significant with this power; nan = none is.

    alpha: level of the two-sided test.
    """
    z = float(ndtri(1 - alpha / 2))
    num_errors, largest = float(ndtri(power)), rates.changes[-1] * (1 - MIN_DROP)

    def observed_drop(drops: Floats) -> Floats:
        """Return the observed drops that this share of the repetitions exceeds."""
        return np.asarray(drops - num_errors * np.sqrt(rates.variance(drops)))

    def excess(drops: Floats) -> Floats:
        observed = observed_drop(drops)
        counts = rates.counts_given_estimate(drops, -np.maximum(observed, 0))
        return np.where(observed > 0, -_z_of_no_difference(counts) - z, -z)

    num_averages = len(rates.starts)
    drops = _find_roots(excess, num_averages, largest)
    critical = observed_drop(drops)
    steps = rates.weights / rates.sizes * rates.changes[0]
    step = np.minimum.reduceat(steps, rates.starts)
    has_equal_steps = np.maximum.reduceat(steps, rates.starts) < step * (1 + TOLERANCE)
    has_losses_only = drops >= rates.sum_strata(rates.weights * (rates.shares @ rates.changes))
    halfway = (np.ceil(critical / step - TOLERANCE) - 0.5) * step
    critical = np.where(has_equal_steps & has_losses_only, halfway, critical)
    return np.where(
        np.isnan(drops),
        np.nan,
        _find_roots(lambda drops: observed_drop(drops) - critical, num_averages, largest),
    )


def _z_of_no_difference(counts: StratifiedCounts) -> Floats:
    """Return `score_z` (B,), for single strata in closed form, because many groups are tested.

    Under "no difference" in one stratum, the fit keeps the number of flips and makes half of them
    losses. Then z is McNemar's, with pseudo-items and CONTINUITY, and has no skewness. With ties,
    this is an approximation.
    """
    if len(counts.starts) < len(counts.means):
        return score_z(counts)
    sizes, magnitudes = counts.counts.sum(axis=1), np.abs(counts.values)
    cells = counts.counts * (1 + PSEUDO_ITEMS / (sizes + 2 * END_ITEMS))[:, None]
    cells[:, [0, -1]] += (PSEUDO_ITEMS * END_ITEMS / (sizes + 2 * END_ITEMS))[:, None]
    enlarged = sizes + PSEUDO_ITEMS
    variance = cells @ magnitudes**2 / enlarged / sizes * enlarged / (enlarged - 1)
    step = cells @ magnitudes**3 / enlarged / sizes**2 / variance
    distance = np.maximum(np.abs(counts.means) - CONTINUITY * step, 0)
    return np.asarray(np.copysign(distance / np.sqrt(variance), counts.means))


def observed_detectable_drops(
    changes: Floats,
    codes: Ints,
    weights: Floats,
    clusters: Ints | None = None,
    groups: Sequence[Bools] = (),
) -> list[float | None]:
    """Return the detectable drop of a macro-average of paired differences, then of each group.

    None where no drop could be detected. changes, codes, clusters (n,), weights (R,): see
    `count_average`. groups: a mask (n,) per group, with at least one member each.
    """
    counts = [count_average(changes, codes, weights, (-1.0, 1.0), clusters)]
    if groups:
        counts.append(count_overlapping_groups(changes, groups, clusters=clusters))
    drops = np.concatenate([detectable_drops(observed_flip_rates(each)) for each in counts])
    return [None if np.isnan(drop) else float(drop) for drop in drops]


def pass_probability(rates: FlipRates, margin: float, z: float = Z) -> float:
    """Return the probability that the interval of one macro-average lies above -margin, if there is
    no true difference.
    """
    nulls, no_drop = np.full(1, -margin), np.zeros(1)

    def excess(losses: Floats) -> Floats:
        return z - score_z(rates.counts_given_estimate(no_drop, -losses), nulls)

    error = float(np.sqrt(rates.variance(no_drop)[0]))
    if excess(np.zeros(1))[0] > 0:  # an estimate of 0 does not pass; only a gain does
        [gain] = _find_roots(lambda gains: -excess(-gains), 1, rates.changes[-1] * (1 - MIN_DROP))
        return 0.0 if np.isnan(gain) or not error else float(ndtr(-gain / error))
    if not error:
        return 1.0
    [loss] = _find_roots(excess, 1, margin)
    if np.isnan(loss):  # every loss below the margin passes
        loss = margin
    return float(ndtr(loss / error))


def items_factor(
    rates: FlipRates, margin: float, true_drop: float = 0.0, power: float = POWER
) -> float:
    """Return the factor by which every stratum must be larger, so that the interval of one
    macro-average excludes -margin with this power.

    true_drop: the assumed true drop.

    nan if the true drop is the margin, or if the factor would be above a million.
    """
    side = 1.0 if true_drop < margin else -1.0
    drops, nulls = np.full(1, true_drop), np.full(1, -margin)
    if true_drop == margin:
        return float("nan")

    def excess(logarithms: Floats) -> Floats:
        scaled = replace(rates, sizes=rates.sizes * float(np.exp(logarithms[0])))
        shift = side * float(ndtri(power)) * np.sqrt(scaled.variance(drops))
        counts = scaled.counts_given_estimate(drops, -drops - shift)
        return np.asarray(side * score_z(counts, nulls) - Z)

    low, high = -np.log(rates.sizes.max()), np.log(1e6)
    return float(np.exp(_bisect(excess, np.full(1, low), np.full(1, high))[0]))


def equivalent_items(detectable: float, flips: float, num_items: int) -> float:
    """Return the number of items of a single stratum that detects the drop `detectable`.

    flips: its share of flips. At most `num_items`, the items of the strata that it replaces.
    """

    def excess(logarithms: Floats) -> Floats:
        rates = planned_flip_rates(np.exp(logarithms), np.ones(1), flips)
        return detectable - np.nan_to_num(detectable_drops(rates), nan=np.inf)

    with np.errstate(invalid="ignore"):
        [root] = _bisect(excess, np.zeros(1), np.full(1, np.log(num_items)))
    return float(np.exp(root)) if np.isfinite(root) else float(num_items)


def detectable_by_t(
    interval: Interval, df: float, power: float = POWER, largest: float = np.inf
) -> float | None:
    """Return the true mean for which a two-sided t test rejects 0 with this power.

    interval: the t interval of the observed mean. df: its degrees of freedom. The mean is c
    observed standard errors, where E[Phi(c U - t U')] = power. U and U' are the standard errors of
    the observed and of the repeated data, divided by the true one: U^2 and U'^2 are independent
    chi-squared variables with df degrees of freedom, divided by df. None with
    fewer than MIN_DF degrees of freedom, for an interval of width 0, and if the mean would be above
    `largest`, the largest that is possible.
    """
    half_width = (interval.high - interval.low) / 2
    if df < MIN_DF or not half_width > 0:
        return None
    upper = (1 + CONFIDENCE_LEVEL) / 2
    if not np.isfinite(df):
        detectable = half_width * float(1 + ndtri(power) / ndtri(upper))
        return detectable if detectable <= largest else None
    critical = float(stdtrit(df, upper))
    shares = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    errors = np.sqrt(chdtri(df, shares) / df)

    def excess(factor: Floats) -> Floats:
        return np.asarray([ndtr(factor * errors[:, None] - critical * errors).mean() - power])

    [factor] = _bisect(excess, np.zeros(1), np.full(1, 10 * critical))
    detectable = float(factor) / critical * half_width
    return detectable if detectable <= largest else None


def detectable_correlation_drop(a: float, b: float, interval: Interval, n: int) -> float | None:
    """Return the drop from the correlation a that `spearman_difference` detects with a power of
    80%.

    a, b: the observed correlations of n items. interval: of b - a. The drop is computed on Fisher's
    scale, where standard errors do not depend on the correlation.
    """
    difference = detectable_by_t(interval, n - 1)
    if difference is None:
        return None
    a, b = np.clip([a, b], -MAX_CORRELATION, MAX_CORRELATION)
    slope = 1 - ((a + b) / 2) ** 2
    return float(a - np.tanh(np.arctanh(a) - difference / slope))


def seeds_power(
    difference: float, sd: float, seeds: int, tasks: int, alpha: float = 1 - CONFIDENCE_LEVEL
) -> float:
    """Return the probability that a true difference of two means over tasks is significant.

    sd: standard deviation of a task's score over seeds, above 0; it includes variation over items.
    seeds: number of seeds of each of the two runs. alpha: level of the two-sided t test of
    `crossed_design`, whose statistic has a noncentral t distribution.
    """
    error, df = _seeds_error(sd, seeds, tasks)
    critical = _t_quantile(1 - alpha / 2, df)
    return float(1 - nctdtr(df, difference / error, critical))


def seeds_detectable(
    sd: float, seeds: int, tasks: int, alpha: float = 1 - CONFIDENCE_LEVEL, power: float = POWER
) -> float:
    """Return the smallest true difference that is significant with this power.

    Arguments as in `seeds_power`.
    """
    error, df = _seeds_error(sd, seeds, tasks)
    critical = _t_quantile(1 - alpha / 2, df)

    def excess(noncentrality: Floats) -> Floats:
        return np.asarray(1 - nctdtr(df, noncentrality, critical) - power)

    [noncentrality] = _bisect(excess, np.zeros(1), np.full(1, 3 * critical + 10))
    return float(noncentrality) * error


def _seeds_error(sd: float, seeds: int, tasks: int) -> tuple[float, float]:
    """Return the standard error and degrees of freedom of a difference of two means over tasks."""
    num_components = 2 * tasks
    variance = sd**2 / seeds / tasks**2
    contrast = (variance / num_components) ** 0.5  # the square of their sum is the variance
    component = VarianceComponent(variance, seeds - 1, contrast)
    mean = UncertainValue(0.0, seed_components=(component,) * num_components)
    return mean.variance**0.5, mean.df


def _t_quantile(share: float, df: float) -> float:
    return float(stdtrit(df, share) if np.isfinite(df) else ndtri(share))


def _find_roots(function: Callable[[Floats], Floats], size: int, largest: float) -> Floats:
    """Return the drops (size,) in 0..largest at which an increasing function is 0; nan if it is
    negative everywhere."""
    low, high = np.full(size, np.log(MIN_DROP)), np.full(size, np.log(largest))
    return np.asarray(np.exp(_bisect(lambda logs: function(np.exp(logs)), low, high)))


def _bisect(function: Callable[[Floats], Floats], low: Floats, high: Floats) -> Floats:
    """Return the roots of an increasing elementwise function in low..high, nan without one.

    Secant steps (Illinois) alternate with bisection.
    """
    at_low, at_high = function(low), function(high)
    has_no_root = at_high < 0
    for step in range(MAX_STEPS):
        if np.all((high - low <= TOLERANCE) | has_no_root):
            break
        middle = (low + high) / 2
        if step % 3:
            with np.errstate(invalid="ignore", divide="ignore"):
                secant = high - at_high * (high - low) / (at_high - at_low)
            middle = np.where((secant > low) & (secant < high), secant, middle)
        value = function(middle)
        is_low = value <= 0
        at_high = np.where(is_low, at_high / 2, value)
        at_low = np.where(is_low, value, at_low / 2)
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    return np.where(has_no_root, np.nan, high)
