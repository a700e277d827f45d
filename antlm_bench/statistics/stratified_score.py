"""The stratified score interval of a macro-average, and the test that agrees with it.

A macro-average is theta = sum_s w_s m_s with fixed weights over the means m_s of strata. Items take
values in a known range: 0..1 for credits, -1..1 for differences of credits. For a hypothesis
theta = t:

1. Each stratum gets PSEUDO_ITEMS items. They have the distribution of values in the macro-average,
   to which END_ITEMS are added at each end of the range. So every stratum has a variance above 0.
2. The distributions of all strata are fitted by maximum likelihood under sum_s w_s m_s = t:
   p_sk = N_sk / (mu_s + lambda w_s x_k) for a value x_k with N_sk items.
3. The variance is v = sum_s w_s^2 var_s / n_s * (n_s + c) / (n_s + c - 1), with var_s of the fit
   and c pseudo-items. The estimate is moved towards t by CONTINUITY steps, because counts are whole
   numbers: without this, coverage falls to 91.5% at some rates. A step is
   sum_s w_s^3 third_s / n_s^2 / v with the third absolute central moments (w / n for rare flips).
   Then z0 = (estimate - t) / sqrt(v).
4. With a = sum_s w_s^3 skew_s / n_s^2 / v^1.5 / 6 (skew_s: third central moment of the fit), z
   solves a z^2 + z = z0 + a, which corrects z0 for skewness.

The interval contains all t with |z(t)| <= 1.96. The p-value of a hypothesis t is that of z(t). Both
come from one function, so p < .05 exactly where the 95% interval excludes t.

With one stratum and without pseudo-items and corrections, this is Wilson's interval for credits of
0 and 1, Tango's (1998) for differences of such credits, and McNemar's statistic at t = 0. Sources:
Gart & Nam (1988) and Laud (2017, SCAS) for stratified score intervals and step 4; Owen (2001) for
the fit. Coverage by simulation: docs/explanation/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from antlm_bench.statistics.clusters import design_effect
from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval, Z
from antlm_bench.statistics.special_functions import ndtr, stdtrit
from antlm_bench.types import Bools, Floats, Ints

PSEUDO_ITEMS = 4.0
"""Pseudo-items of a stratum."""
END_ITEMS = 0.5
"""Items added at each end of the range before the pooled distribution is taken."""
CONTINUITY = 0.2
"""Share of the step of an item by which an estimate is moved towards a hypothesis."""
MAX_VALUES = 101
"""Largest number of distinct values. More values are spread over a grid of this size."""
MAX_MULTIPLIER = 1e12
"""A larger multiplier, in standard errors, stands for an end of the range."""
DIGITS = 9
"""Digits to which the ends of intervals are rounded, so that all platforms give the same ends."""
MIN_SAMPLED_GROUPS = 8
"""Fewest groups from which the variance of groups is estimated."""
MIN_GROUPS_NEAR_END = 50
"""The same if the mean of the groups lies within NEAR_END of an end of the range."""
NEAR_END = 0.05
RANGE_EXTENSION = 0.5
"""Other groups may lie outside the observed range by this share of its width."""
MAX_STEPS = 200
TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """The corrections of the rule. The defaults are used everywhere outside of tests."""

    pseudo_items: float = PSEUDO_ITEMS
    end_items: float = END_ITEMS
    corrects_skewness: bool = True
    continuity: float = CONTINUITY


class _Fit(NamedTuple):
    """A fitted hypothesis of each macro-average (B,)."""

    theta: Floats
    z: Floats


class _ScoreTests(NamedTuple):
    """Both ends of the intervals, and z of "no difference", of B macro-averages (B,)."""

    low: Floats
    high: Floats
    z: Floats


@dataclass(frozen=True, slots=True)
class StratifiedCounts:
    """Counts of values in R strata, which form B macro-averages."""

    values: Floats
    """Distinct values (K,), ascending. The first and the last are the ends of the range."""
    counts: Floats
    """Items of each stratum with each value (R, K); divided by a design effect if clustered."""
    means: Floats
    """Observed mean of each stratum (R,)."""
    weights: Floats
    """Weight of each stratum in its macro-average (R,)."""
    starts: Ints
    """First stratum of each macro-average (B,), ascending."""

    @property
    def estimates(self) -> Floats:
        """The macro-averages (B,)."""
        return np.asarray(np.add.reduceat(self.weights * self.means, self.starts))


def _count_items(
    values: Floats, codes: Ints, weights: Floats, value_range: tuple[float, float]
) -> StratifiedCounts:
    """Return `count_average` of independent items."""
    used, num_strata = codes >= 0, len(weights)
    values, codes = np.asarray(values, float)[used], codes[used]
    sizes = np.bincount(codes, minlength=num_strata).astype(float)
    means = np.bincount(codes, values, minlength=num_strata) / sizes
    grid, lower, share = _spread_over_grid(values, value_range)
    table = np.zeros((num_strata, len(grid)))
    np.add.at(table, (codes, lower), 1 - share)
    np.add.at(table, (codes, np.minimum(lower + 1, len(grid) - 1)), share)
    starts = np.zeros(1, np.int32)
    return StratifiedCounts(grid, table, means, np.asarray(weights, float), starts)


def count_average(
    values: Floats,
    codes: Ints,
    weights: Floats,
    value_range: tuple[float, float],
    clusters: Ints | None = None,
) -> StratifiedCounts:
    """Return the counts of one macro-average over R strata.

    values (n,): one per item. codes (n,): the stratum of each item, -1 = none. weights (R,).
    clusters (n,): the cluster of each item, in one stratum or in several; None = items are
    independent. The counts are divided by the design effect of the clusters, which multiplies the
    variance of the macro-average by it.
    """
    counts = _count_items(values, codes, weights, value_range)
    if clusters is None:
        return counts
    effect = design_effect(
        np.asarray(values, float), codes, weights, clusters, END_ITEMS, value_range
    )
    return replace(counts, counts=counts.counts / effect)


def count_groups(
    values: Floats,
    codes: Ints,
    num_groups: int,
    value_range: tuple[float, float],
    clusters: Ints | None = None,
) -> StratifiedCounts:
    """Return the counts of groups, each a macro-average of one stratum (B = R).

    codes (n,): the group of each item, -1 = none. Other arguments as in `count_average`.
    """
    counts = _count_items(values, codes, np.ones(num_groups), value_range)
    counts = replace(counts, starts=np.arange(num_groups, dtype=np.int32))
    if clusters is None:
        return counts
    values, one = np.asarray(values, float), np.ones(1)
    effects = [
        design_effect(
            values, np.where(codes == group, 0, -1), one, clusters, END_ITEMS, value_range
        )
        for group in range(num_groups)
    ]
    return replace(counts, counts=counts.counts / np.array(effects)[:, None])


def score_intervals(
    counts: StratifiedCounts, rule: ScoreRule = ScoreRule(), z: float = Z
) -> tuple[Floats, Floats]:
    """Return both ends (B,) of the intervals of B macro-averages. z: 1.96 for 95%."""
    model = _Model(counts, rule)

    def end(critical: float) -> Floats:
        multipliers = _find_roots(lambda u: model.fit(u).z - critical, model.num_averages)
        return model.fit(multipliers).theta

    low, high, estimates = end(z), end(-z), counts.estimates
    low, high = np.round(low, DIGITS), np.round(high, DIGITS)
    return np.minimum(low, estimates), np.maximum(high, estimates)


def score_z(
    counts: StratifiedCounts, null: float | Floats = 0.0, rule: ScoreRule = ScoreRule()
) -> Floats:
    """Return z (B,) of the hypotheses that the macro-averages are `null`; above 0 where the
    estimate lies above it."""
    model = _Model(counts, rule)
    null = np.broadcast_to(np.asarray(null, float), (model.num_averages,))
    multipliers = _find_roots(lambda u: null - model.fit(u).theta, model.num_averages)
    return model.fit(multipliers).z


def score_interval(
    values: Floats,
    codes: Ints,
    weights: Floats,
    value_range: tuple[float, float] = (0.0, 1.0),
    clusters: Ints | None = None,
) -> Interval:
    """Return the interval of one macro-average. Arguments as in `count_average`."""
    low, high = score_intervals(count_average(values, codes, weights, value_range, clusters))
    return Interval(float(low[0]), float(high[0]))


def score_test(
    changes: Floats,
    codes: Ints,
    weights: Floats,
    value_range: tuple[float, float] = (-1.0, 1.0),
    clusters: Ints | None = None,
) -> tuple[Interval, float]:
    """Return the interval of a macro-average of paired differences, and the two-sided p-value of
    "no difference". Arguments as in `count_average`."""

    def count(values: Floats) -> StratifiedCounts:
        return count_average(values, codes, weights, value_range, clusters)

    [test] = score_changes(count, changes, are_clustered=clusters is not None)
    return test


def score_changes(
    count: Callable[[Floats], StratifiedCounts], changes: Floats, *, are_clustered: bool
) -> list[tuple[Interval, float]]:
    """Return the interval and the p-value of each of B macro-averages of paired differences.

    count: function from changes of the same shape as `changes` to their counts.

    The fewer clustered items flip, the less they show how alike the items of a cluster are, so that
    the design effect is larger for few losses than for some more. Therefore the lower end is not
    above that of the same changes without losses, nor the upper end below that without gains: a
    run that lost a few items cannot pass where one that lost none is undecided. p follows the same
    rule.
    """
    tests = _test_counts(count(changes))
    if are_clustered:
        only_gains = _test_counts(count(np.maximum(changes, 0.0)))
        only_losses = _test_counts(count(np.minimum(changes, 0.0)))
        tests = _ScoreTests(
            np.minimum(tests.low, only_gains.low),
            np.maximum(tests.high, only_losses.high),
            np.where(
                tests.z > 0, np.minimum(tests.z, only_gains.z), np.maximum(tests.z, only_losses.z)
            ),
        )
    ends = zip(*map(np.ndarray.tolist, tests[:2]), strict=True)
    p = two_sided_p(tests.z).tolist()
    return [(Interval(*pair), p_value) for pair, p_value in zip(ends, p, strict=True)]


def _test_counts(counts: StratifiedCounts) -> _ScoreTests:
    return _ScoreTests(*score_intervals(counts), score_z(counts))


def count_overlapping_groups(
    changes: Floats,
    groups: Sequence[Bools],
    value_range: tuple[float, float] = (-1.0, 1.0),
    clusters: Ints | None = None,
) -> StratifiedCounts:
    """Return `count_groups` of groups that may overlap. There must be at least one.

    Arguments as in `score_tests_by_group`.
    """
    members = [np.flatnonzero(group) for group in groups]
    codes = np.repeat(np.arange(len(groups), dtype=np.int32), [len(rows) for rows in members])
    rows = np.concatenate(members)
    clusters = None if clusters is None else clusters[rows]
    return count_groups(changes[rows], codes, len(groups), value_range, clusters)


def score_tests_by_group(
    changes: Floats,
    groups: Sequence[Bools],
    value_range: tuple[float, float] = (-1.0, 1.0),
    clusters: Ints | None = None,
) -> list[tuple[Interval, float]]:
    """Return `score_test` of every group, a single stratum each.

    changes (n,), clusters (n,). groups: a mask (n,) per group, with at least one member each.
    Groups may overlap. All are computed at once, which takes hardly longer than one.
    """
    if not groups:
        return []

    def count(values: Floats) -> StratifiedCounts:
        return count_overlapping_groups(values, groups, value_range, clusters)

    return score_changes(count, changes, are_clustered=clusters is not None)


def sampled_groups_interval(
    means: Floats, weights: Floats, value_range: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[Interval | None, str]:
    """Return the interval of sum_k w_k mean_k for K groups that are a sample of groups, or None
    with the reason why there is none.

    means (K,). weights (K,): they sum to 1. The interval is the score interval of one stratum whose
    items are the groups, with the t quantile of K - 1. The range of values is the observed one,
    extended by RANGE_EXTENSION of its width at both ends but not beyond value_range. With unequal
    weights, groups count in proportion to w^2, and K is replaced by 1 / sum w^2.

    There is no interval for few groups near an end of the range, because they do not show how low a
    group can be (by simulation, intervals of 8 groups with a mean of .97 cover 80-96%), nor for
    equal means, which do not show that groups do not vary.
    """
    num_groups, mean = len(means), float(weights @ means)
    if num_groups < MIN_SAMPLED_GROUPS:
        return None, f"not estimated from {num_groups} groups, {MIN_SAMPLED_GROUPS} are needed"
    if np.ptp(means) == 0:
        return None, "not estimated, because all groups are equal"
    is_near_end = min(mean - value_range[0], value_range[1] - mean) < NEAR_END
    if is_near_end and num_groups < MIN_GROUPS_NEAR_END:
        return None, (
            f"not estimated from {num_groups} groups so near an end of the range, "
            f"{MIN_GROUPS_NEAR_END} are needed"
        )
    extension = RANGE_EXTENSION * float(np.ptp(means))
    extended = (
        max(float(means.min()) - extension, value_range[0]),
        min(float(means.max()) + extension, value_range[1]),
    )
    grid, lower, share = _spread_over_grid(means, extended)
    effective_number = 1 / float((weights**2).sum())
    counts, table = (weights * effective_number) ** 2, np.zeros((1, len(grid)))
    np.add.at(table[0], lower, counts * (1 - share))
    np.add.at(table[0], np.minimum(lower + 1, len(grid) - 1), counts * share)
    group_counts = StratifiedCounts(
        grid, table, np.array([mean]), np.ones(1), np.zeros(1, np.int32)
    )
    t = float(stdtrit(effective_number - 1, (1 + CONFIDENCE_LEVEL) / 2))
    (low,), (high,) = score_intervals(group_counts, z=t)
    return Interval(float(low), float(high)), ""


def two_sided_p(z: Floats) -> Floats:
    """Return the two-sided p-values (B,) of z (B,)."""
    return np.asarray(2 * ndtr(-np.abs(z)))


def _spread_over_grid(
    values: Floats, value_range: tuple[float, float]
) -> tuple[Floats, Ints, Floats]:
    """Return a grid of values (K,), the index of the grid point below each value (n,), and the
    share (n,) of each value that belongs to the next grid point.

    The grid has the ends of the range and all distinct values, up to MAX_VALUES of them. Of more
    values it has the quantiles, and each value is split between its two neighbours, which keeps the
    mean and hardly raises the variance.
    """
    grid = np.unique(values)
    if len(grid) > MAX_VALUES:
        grid = np.quantile(grid, np.linspace(0, 1, MAX_VALUES))
    grid = np.unique(np.append(grid, value_range))
    position = np.searchsorted(grid, values, side="right") - 1
    lower = np.clip(position, 0, len(grid) - 2).astype(np.int32)
    return grid, lower, (values - grid[lower]) / (grid[lower + 1] - grid[lower])


class _Model:
    """Fits of B macro-averages as functions of their multipliers lambda (step 2 of the module).

    Each lambda belongs to one hypothesis: as lambda rises, theta falls from the upper to the lower
    end of the range. The unit of u = lambda / scale is about one standard error.
    """

    def __init__(self, counts: StratifiedCounts, rule: ScoreRule) -> None:
        self._data, self._rule = counts, rule
        weights, starts = counts.weights, counts.starts
        self.num_averages = len(starts)
        self._sizes = counts.counts.sum(axis=1)
        self._average = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(weights))))
        pooled = np.add.reduceat((weights / self._sizes)[:, None] * counts.counts, starts, axis=0)
        pooled /= np.add.reduceat(weights, starts)[:, None]
        total = np.add.reduceat(self._sizes, starts)[:, None]
        pooled *= total
        pooled[:, [0, -1]] += rule.end_items
        pooled /= total + 2 * rule.end_items
        self._cells = counts.counts + rule.pseudo_items * pooled[self._average]
        enlarged = self._cells.sum(axis=1)
        variance = self._moments(self._cells / enlarged[:, None])[1]
        self._scale = 1 / np.sqrt(self._sum(weights**2 * variance / enlarged))
        corrected = self._sizes + rule.pseudo_items
        correction = corrected / (corrected - 1) if rule.pseudo_items else 1.0
        self._variance_factor = weights**2 / self._sizes * correction
        self._third_factor = weights**3 / self._sizes**2
        self._estimates = counts.estimates

    def fit(self, multipliers: Floats) -> _Fit:
        """Return the fitted hypotheses at multipliers (B,) in units of the scale."""
        means, variances, thirds, absolute_thirds = self._moments(self._tilt(multipliers))
        theta = self._sum(self._data.weights * means)
        variance = self._sum(self._variance_factor * variances)
        has_variance = variance > 0
        error = np.sqrt(np.where(has_variance, variance, 1.0))
        step = self._sum(self._third_factor * absolute_thirds) / error**2
        gap = self._estimates - theta
        distance = np.maximum(np.abs(gap) - self._rule.continuity * step, 0.0)
        at_end = np.where(np.abs(gap) > TOLERANCE, np.inf, 0.0)
        z0 = np.copysign(np.where(has_variance, distance / error, at_end), gap)
        if not self._rule.corrects_skewness:
            return _Fit(theta, z0)
        third = self._sum(self._third_factor * thirds)
        a = np.where(has_variance, third / error**3 / 6, 0.0)
        root = np.sqrt(np.maximum(1 + 4 * a * (z0 + a), 0.0))
        return _Fit(theta, 2 * (z0 + a) / (1 + root))

    def _tilt(self, multipliers: Floats) -> Floats:
        """Return the fitted distributions (R, K) N / (mu + step * value) of strata.

        mu solves sum_k N_k / (mu + step * x_k) = 1. Values are taken from the end of the range at
        which the denominator is smallest, so that mu >= 0 there. Newton's steps on 1 / sum start
        below the solution and stay below it, because 1 / sum is concave in mu.
        """
        values, cells = self._data.values, self._cells
        steps = (multipliers * self._scale)[self._average] * self._data.weights
        ends = np.where(steps >= 0, values[0], values[-1])
        distances = steps[:, None] * (values - ends[:, None])
        near = np.where(steps >= 0, 0, len(values) - 1)
        rows = np.arange(len(steps))
        mu = np.maximum(cells[rows, near], 1e-300)
        ones = np.ones(len(values))  # a product with it is much faster than sum(axis=1)
        for _ in range(MAX_STEPS):
            inverse = 1 / (mu[:, None] + distances)
            p = cells * inverse
            total = p @ ones
            change = (total - 1) * total / ((p * inverse) @ ones)
            mu = np.maximum(mu + change, 1e-300)
            if np.all(np.abs(change) <= 1e-14 * mu):
                break
        p = cells / (mu[:, None] + distances)
        p[rows, near] = 0.0
        p[rows, near] = np.maximum(1 - p @ ones, 0.0)
        return np.asarray(p)

    def _moments(self, p: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return mean, variance, third and third absolute central moment (R,) of distributions
        (R, K)."""
        means = p @ self._data.values
        deviations = self._data.values - means[:, None]
        weighted = p * deviations**2
        thirds = weighted * deviations
        return means, weighted.sum(axis=1), thirds.sum(axis=1), np.abs(thirds).sum(axis=1)

    def _sum(self, terms: Floats) -> Floats:
        """Return the sums (B,) of terms (R,) over the strata of each macro-average."""
        return np.asarray(np.add.reduceat(terms, self._data.starts))


def _find_roots(function: Callable[[Floats], Floats], size: int) -> Floats:
    """Return the roots (size,) of an increasing elementwise function.

    +-MAX_MULTIPLIER stands for "no root".

    Brackets grow until they hold the root. Then secant steps (Illinois) alternate with bisection.
    """
    low, high = np.full(size, -1.0), np.full(size, 1.0)
    at_low, at_high = function(low), function(high)
    while np.any((at_low > 0) & (low > -MAX_MULTIPLIER)):
        moves = (at_low > 0) & (low > -MAX_MULTIPLIER)
        high, at_high = np.where(moves, low, high), np.where(moves, at_low, at_high)
        low = np.where(moves, 2 * low, low)
        at_low = np.where(moves, function(low), at_low)
    while np.any((at_high < 0) & (high < MAX_MULTIPLIER)):
        moves = (at_high < 0) & (high < MAX_MULTIPLIER)
        low, at_low = np.where(moves, high, low), np.where(moves, at_high, at_low)
        high = np.where(moves, 2 * high, high)
        at_high = np.where(moves, function(high), at_high)
    above, below = at_low > 0, at_high < 0
    for step in range(MAX_STEPS):
        width = high - low
        if np.all(width <= TOLERANCE * np.maximum(np.abs(low), 1)):
            break
        middle = (low + high) / 2
        if step % 3 != 2:
            with np.errstate(invalid="ignore", divide="ignore"):
                secant = high - at_high * width / (at_high - at_low)
            middle = np.where((secant > low) & (secant < high), secant, middle)
        value = function(middle)
        is_low = value <= 0
        # Illinois: the value at an end that stays is halved, so that the other end moves, too.
        at_high = np.where(is_low, at_high / 2, value)
        at_low = np.where(is_low, value, at_low / 2)
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    roots = (low + high) / 2
    return np.asarray(np.where(above, -MAX_MULTIPLIER, np.where(below, MAX_MULTIPLIER, roots)))
