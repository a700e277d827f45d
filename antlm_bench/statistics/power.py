"""Power of tests of paired differences: the drop that a test finds in 80% of repetitions.

A repetition draws other items from the same strata. A true drop of d in every stratum leaves the
share of items that flip as it is, but more of the flips are losses. Let m_v be the share of items
of a stratum that change by v or -v (v = 1 for credits without ties):

1. Observed shares are pulled towards that of all strata, the more, the less strata differ beyond
   chance (empirical Bayes). So a small stratum without flips is not taken for one that never flips.
2. A flip is a loss with probability (1 + r) / 2, with r = d / sum_v v m_v. With v = 1, the shares
   of losses and gains are (m + d) / 2 and (m - d) / 2, as in Connor (1987, Biometrics 43).
3. If d is larger than sum_v v m_v, all flips are losses, and further items are lost. So with 0
   flips, d is the share of lost items, and a test needs some 7 of them whatever their number.

The estimate T of `stratified_score` is taken to be normal with mean -d and its variance under these
shares. d is detectable if the test rejects at the 80% quantile of T, given the counts that are
expected there (E[N | T] = E[N] + cov(N, T) / var(T) (T - E[T])). If all flips are losses of equal
weight h, T is a multiple of h, and the critical value is half-way between two of them.

Simulated power: docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import chdtri, nctdtr, ndtr, ndtri, stdtrit

from antlm_bench.statistics.crossed_design import UncertainValue, VarianceComponent
from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval, Z
from antlm_bench.statistics.stratified_score import (
    CONTINUITY,
    END_ITEMS,
    PSEUDO_ITEMS,
    StratifiedCounts,
    count_average,
    count_items_by_group,
    score_z,
)
from antlm_bench.types import Bools, Floats, Ints

POWER = 0.8
"""Share of the repetitions in which a detectable drop is significant."""
MIN_PRIOR_ITEMS = 4.0
"""Fewest items that the flip rate of all strata counts for in each stratum."""
MIN_DROP = 1e-7
"""Smallest drop that is tried."""
MIN_DF = 4
"""Fewest degrees of freedom from which a t test's detectable mean is computed."""
NUM_QUANTILES = 100
"""Quantiles of a standard error that an expectation is computed from."""
MAX_CORRELATION = 0.999
"""Correlations nearer to 1 have no finite place on Fisher's scale."""
MAX_STEPS = 100
TOLERANCE = 1e-4
"""Relative tolerance of a detectable drop."""


@dataclass(frozen=True, slots=True)
class FlipRates:
    """How often the items of R strata change, and by how much, in B macro-averages."""

    sizes: Floats
    """Items of each stratum (R,), or the effective number of clusters."""
    changes: Floats
    """Absolute changes (V,) above 0, ascending. The last is the largest that is possible."""
    shares: Floats
    """Share of the items of each stratum with each change (R, V)."""
    weights: Floats
    """Weight of each stratum in its macro-average (R,)."""
    starts: Ints
    """First stratum of each macro-average (B,), ascending."""

    @property
    def averages(self) -> Ints:
        """The macro-average of each stratum (R,)."""
        sizes = np.diff(np.append(self.starts, len(self.sizes)))
        return np.repeat(np.arange(len(self.starts), dtype=np.int32), sizes)

    def sum_strata(self, terms: Floats) -> Floats:
        """Return the sums (B, ...) of terms (R, ...) over the strata of each macro-average."""
        return np.asarray(np.add.reduceat(terms, self.starts, axis=0))

    def expected_counts(self, drops: Floats) -> StratifiedCounts:
        """Return the expected counts under a drop of each macro-average (B,).

        See steps 2 and 3 of the module docstring. The values are -v, ..., 0, ..., v.
        """
        drops, reach = drops[self.averages], self.shares @ self.changes
        ratio = np.divide(drops, reach, out=np.ones_like(reach), where=reach > drops)[:, None]
        largest = self.changes[-1]
        further = np.clip((drops - reach) / np.maximum(largest - reach, MIN_DROP), 0, 1)[:, None]
        lost = self.shares * (1 + ratio) / 2 * (1 - further)
        lost[:, -1:] += further
        gained = self.shares * (1 - ratio) / 2 * (1 - further)
        same = np.maximum(1 - lost.sum(axis=1) - gained.sum(axis=1), 0)[:, None]
        counts = self.sizes[:, None] * np.hstack([lost[:, ::-1], same, gained])
        return self._with_means(counts)

    def counts_given_estimate(self, drops: Floats, estimates: Floats) -> StratifiedCounts:
        """Return the expected counts under drops (B,), given estimates (B,) of the difference."""
        expected = self.expected_counts(drops)
        variance = np.maximum(self.variance(drops), MIN_DROP**2)
        slope = ((estimates + drops) / variance)[self.averages] * self.weights / self.sizes
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
    """Return the smoothed flip rates of counts of paired differences.

    A loss and a gain of equal size are the same flip.
    """
    sizes, magnitudes = counts.counts.sum(axis=1), np.abs(counts.values)
    changes = np.unique(magnitudes[magnitudes > 0])
    flips = counts.counts @ (magnitudes[:, None] == changes)
    rates = FlipRates(sizes, changes, flips, counts.weights, counts.starts)
    strength = _prior_strength(rates)[rates.averages]
    reliability = counts.weights / (1 + sizes / strength)  # per item; lower in large strata
    pooled = rates.sum_strata(reliability[:, None] * flips)
    pooled /= rates.sum_strata(reliability * sizes)[:, None]
    share = (sizes / (sizes + strength))[:, None]
    return replace(
        rates, shares=share * flips / sizes[:, None] + (1 - share) * pooled[rates.averages]
    )


def _prior_strength(rates: FlipRates) -> Floats:
    """Return how many items (B,) the flip rate of all strata counts for in each stratum.

    By moments: with the heterogeneity Q = sum_s n_s (m_s - m)^2 / (m (1 - m)) of S strata, it is
    (n - sum_s n_s^2 / n) / (Q - (S - 1)), as for a beta-binomial distribution.

    rates: with numbers of flips as shares.
    """
    flips = rates.shares.sum(axis=1)
    total, all_flips = rates.sum_strata(rates.sizes), rates.sum_strata(flips)
    mean = all_flips / total
    squares = rates.sum_strata(rates.sizes * (flips / rates.sizes - mean[rates.averages]) ** 2)
    heterogeneity = squares / np.maximum(mean * (1 - mean), MIN_DROP)
    num_strata = np.bincount(rates.averages)
    items = total - rates.sum_strata(rates.sizes**2) / total
    excess = np.maximum(heterogeneity - (num_strata - 1), MIN_DROP)
    return np.clip(items / excess, MIN_PRIOR_ITEMS, 1 / MIN_DROP)


def planned_flip_rates(sizes: Floats, weights: Floats, flips: float) -> FlipRates:
    """Return flip rates of one macro-average over strata of these sizes (R,) and weights (R,), in
    which this share of the items flips from right to wrong or back."""
    shares = np.full((len(sizes), 1), float(flips))
    return FlipRates(np.asarray(sizes, float), np.ones(1), shares, weights, np.zeros(1, np.int32))


def detectable_drops(
    rates: FlipRates, alpha: float = 1 - CONFIDENCE_LEVEL, power: float = POWER
) -> Floats:
    """Return the smallest true drops (B,) for which the test rejects "no difference" with this
    power; nan where no possible drop is large enough.

    alpha: level of the two-sided test.
    """
    z = float(ndtri(1 - alpha / 2))
    critical_quantile, largest = float(ndtri(power)), rates.changes[-1] * (1 - MIN_DROP)

    def quantile(drops: Floats) -> Floats:
        return np.asarray(drops - critical_quantile * np.sqrt(rates.variance(drops)))

    def excess(drops: Floats) -> Floats:
        low = quantile(drops)
        counts = rates.counts_given_estimate(drops, -np.maximum(low, 0))
        return np.where(low > 0, -_z_of_no_difference(counts) - z, -z)

    num_averages = len(rates.starts)
    drops = _find_roots(excess, num_averages, largest)
    critical = quantile(drops)
    steps = rates.weights / rates.sizes * rates.changes[0]
    step = np.minimum.reduceat(steps, rates.starts)
    has_equal_steps = np.maximum.reduceat(steps, rates.starts) < step * (1 + TOLERANCE)
    has_losses_only = drops >= rates.sum_strata(rates.weights * (rates.shares @ rates.changes))
    halfway = (np.ceil(critical / step - TOLERANCE) - 0.5) * step
    critical = np.where(has_equal_steps & has_losses_only, halfway, critical)
    return np.where(
        np.isnan(drops),
        np.nan,
        _find_roots(lambda drops: quantile(drops) - critical, num_averages, largest),
    )


def _z_of_no_difference(counts: StratifiedCounts) -> Floats:
    """Return `score_z` (B,). Of single strata, in closed form, because many groups are tested.

    Under "no difference" in one stratum, the fit leaves the flips as they are, half of them losses:
    z is then McNemar's, with pseudo-items and CONTINUITY, and has no skewness. With ties, this is
    an approximation.
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
    `count_average`. groups: the members (n,) of each group, one at least.
    """
    counts = [count_average(changes, codes, weights, (-1.0, 1.0), clusters)]
    if groups:
        counts.append(count_items_by_group(changes, groups, clusters=clusters))
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
    if excess(np.zeros(1))[0] > 0:  # not even an estimate of 0 passes: a gain would be needed
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
    """Return the factor on the items of every stratum with which the interval of one macro-average
    excludes -margin with this power, if the true drop is `true_drop`.

    nan if the true drop is the margin, or if a million times the items are not enough.
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
    """Return the number of items of a single stratum with this share of flips that detects the same
    drop as `num_items` items of several strata do."""

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

    interval: the t interval of the observed mean. df: its degrees of freedom. The mean is a
    multiple c of the observed standard error, which is itself uncertain: with independent errors U
    of the observed and U' of the repeated standard error (relative to the true one, U^2 and U'^2
    chi-squared with df degrees of freedom, divided by df), E[Phi(c U - t U')] = power. None with
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
    """Return the drop from the correlation a that the test of `spearman_difference` finds with a
    power of 80%.

    a, b: the observed correlations of n items. interval: of b - a. The step that is found is one
    on Fisher's scale, where errors do not depend on the correlation.
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

    sd: standard deviation of a task's score over seeds, above 0. seeds: of each of the two runs.
    alpha: level of the two-sided t test of `crossed_design`, which has a noncentral t distribution.
    The score of a seed varies over items, too; that is part of sd.
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
    """Return standard error and degrees of freedom of a difference of two means over tasks."""
    num_components = 2 * tasks
    variance = sd**2 / seeds / tasks**2
    contrast = (variance / num_components) ** 0.5  # so that their sum squared is the variance
    component = VarianceComponent(variance, seeds - 1, contrast)
    mean = UncertainValue(0.0, seed_components=(component,) * num_components)
    return mean.variance**0.5, mean.df


def _t_quantile(share: float, df: float) -> float:
    return float(stdtrit(df, share) if np.isfinite(df) else ndtri(share))


def _find_roots(function: Callable[[Floats], Floats], size: int, largest: float) -> Floats:
    """Return the drops (size,) in 0..largest at which an increasing function is 0; nan if it is
    below 0 everywhere."""
    low, high = np.full(size, np.log(MIN_DROP)), np.full(size, np.log(largest))
    return np.asarray(np.exp(_bisect(lambda logs: function(np.exp(logs)), low, high)))


def _bisect(function: Callable[[Floats], Floats], low: Floats, high: Floats) -> Floats:
    """Return the roots of an increasing elementwise function in low..high, nan without one.

    Secant steps (Illinois) alternate with bisection.
    """
    at_low, at_high = function(low), function(high)
    has_none = at_high < 0
    for step in range(MAX_STEPS):
        if np.all((high - low <= TOLERANCE) | has_none):
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
    return np.where(has_none, np.nan, high)
