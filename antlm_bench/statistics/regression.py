"""Partial R2: the share of a regression's unexplained variance that one more predictor explains.

    partial R2 = (R2 with - R2 without) / (1 - R2 without) = (RSS without - RSS with) / RSS without

Both regressions are ordinary least squares. BabyLM's reading scores are 100 times partial R2
(evaluation-pipeline-2025, reading/run.py).

Partial R2 is the square of the partial correlation r of outcome and added predictor: the
correlation of their residuals after regression on the design. A score is a weighted mean of squares
theta = sum_j w_j r_j^2. The covariance C of the r_j comes from leaving out one cluster (sentence)
at a time: C = (k - 1) / k sum_c d_c d_c', with d_c the deviation of the r_j without cluster c from
their mean over the k clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval, t_test_of_means
from antlm_bench.statistics.special_functions import gammaincc, ndtr, ndtri, stdtr, stdtrit
from antlm_bench.types import Floats, Ints

NEGLIGIBLE_R2 = 1e-12
"""Differences of R2 below this are rounding errors."""


@dataclass(frozen=True, slots=True)
class NestedRegression:
    """The data of two regressions: on `design`, and on `design` and `added_predictor`."""

    outcome: Floats
    """The dependent variable (n,): reading times."""
    design: Floats
    """The columns of the smaller regression (n, p), with the intercept."""
    added_predictor: Floats
    """The predictor that only the larger regression has (n,): surprisal."""
    cluster: Ints
    """The cluster (sentence) of each row (n,), from 0. Its rows are left out together."""


def design_with_interactions(predictors: Sequence[Floats]) -> Floats:
    """Return columns (n, 1 + k + k(k-1)/2): intercept, k predictors, products of each pair."""
    pairs = [a * b for a, b in combinations(predictors, 2)]
    return np.stack([np.ones(len(predictors[0])), *predictors, *pairs], axis=1)


def partial_r2(regression: NestedRegression) -> float | None:
    """Return partial R2 in 0..1.

    Returns None if there are too few rows for the coefficients, or no unexplained variance.
    """
    rows, columns = regression.design.shape
    if rows < columns + 2 or np.ptp(regression.outcome) == 0:
        return None
    without = _r2(regression.outcome, regression.design)
    full_design = np.column_stack([regression.design, regression.added_predictor])
    with_predictor = _r2(regression.outcome, full_design)
    if not np.isfinite([without, with_predictor]).all() or 1 - without < 1e-12:
        return None
    return min(max((with_predictor - without) / (1 - without), 0.0), 1.0)


def _r2(outcome: Floats, design: Floats) -> float:
    """Return R2 of the least-squares regression of an outcome (n,) on a design (n, p) with an
    intercept. Collinear columns are allowed: the pseudo-inverse gives the shortest solution.
    """
    residuals = outcome - design @ (np.linalg.pinv(design) @ outcome)
    deviations = outcome - outcome.mean()
    return float(1 - residuals @ residuals / (deviations @ deviations))


@dataclass(frozen=True, slots=True)
class PartialCorrelations:
    """The partial correlations of several regressions on the same clusters."""

    values: Floats
    """Partial correlation of each regression (r,)."""
    left_out: Floats
    """The same without each cluster in turn (clusters, r)."""

    @property
    def covariance(self) -> Floats:
        """Jackknife estimate of the covariance (r, r) of `values`."""
        k = len(self.left_out)
        deviations = self.left_out - self.left_out.mean(axis=0)
        return np.asarray((k - 1) / k * deviations.T @ deviations)


def partial_correlations(
    regressions: Sequence[NestedRegression], num_clusters: int
) -> PartialCorrelations | None:
    """Return the partial correlations of r regressions, with each cluster left out in turn.

    Returns None with fewer than two clusters, or if a regression without one of the clusters has
    too few rows for its coefficients.

    A regression needs only the sums of squares and products of its columns. These are computed per
    cluster; to leave out a cluster, its sums are subtracted from the total. Columns are centred and
    scaled first, which keeps the sums accurate and changes no correlation.
    """
    values = np.empty(len(regressions))
    left_out = np.empty((num_clusters, len(regressions)))
    for index, regression in enumerate(regressions):
        rows, num_columns = regression.design.shape
        sizes = np.bincount(regression.cluster, minlength=num_clusters)
        if num_clusters < 2 or rows - sizes.max() < num_columns + 2:
            return None
        columns = np.column_stack(
            [regression.design[:, 1:], regression.added_predictor, regression.outcome]
        )
        spread = columns.std(axis=0)
        scaled = (columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1)
        table = np.column_stack([np.ones(rows), scaled])
        parts = np.split(table[np.argsort(regression.cluster)], np.cumsum(sizes)[:-1])
        sums = np.array([part.T @ part for part in parts])
        total = sums.sum(axis=0)
        values[index] = _correlate_residuals(total[None])[0]
        left_out[:, index] = _correlate_residuals(total - sums)
    return PartialCorrelations(values, left_out)


def _correlate_residuals(grams: Floats) -> Floats:
    """Return the partial correlation (d,) of the last two columns, given the others, in d samples.

    0 if a column has no residuals. grams (d, w, w): sums of products of the w columns.
    """
    size = grams.shape[1] - 2
    ridge = 1e-10 * np.einsum("dii->d", grams)[:, None, None] * np.eye(size)
    moments = grams[:, :size, size:]
    explained = moments.transpose(0, 2, 1) @ np.linalg.solve(
        grams[:, :size, :size] + ridge, moments
    )
    residuals = grams[:, size:, size:] - explained
    tolerance = 1e-9 * grams[:, [size, size + 1], [size, size + 1]]
    squares = np.maximum(residuals[:, [0, 1], [0, 1]], 0)
    is_defined = (squares > tolerance).all(axis=1)
    product = np.where(is_defined, squares.prod(axis=1), 1)
    return np.where(is_defined, np.clip(residuals[:, 0, 1] / product**0.5, -1, 1), 0)


def partial_r2_test(
    correlations: PartialCorrelations, weights: Floats
) -> tuple[Interval, float | None]:
    """Return the interval of theta = sum_j w_j r_j^2 in 0..1, and the p-value that it is 0.

    weights (r,): not negative, with the sum 1. p is below 1 - CONFIDENCE_LEVEL if and only if the
    interval lies above 0. Returns (0, 1) and None if leaving out clusters changes nothing.

    Under a true value of t, the estimate is a weighted sum of squares of normal variables with the
    covariance C, whose means are the r_j scaled to theta = t (`_SumOfSquares`). The p-value of t is
    the probability that the square root of this sum is at least as far from sqrt(t) as that of the
    estimate. It is written as 2 Phi(-z) and replaced by 2 T(-z), Student's t with k - 1 degrees of
    freedom for k clusters. With one regression, p is that of the t test of r / se(r).
    """
    from scipy.optimize import brentq

    estimate = _SumOfSquares.from_correlations(correlations, weights)
    if estimate is None:
        return Interval(0.0, 1.0), None
    df = len(correlations.left_out) - 1
    max_z = float(stdtrit(df, (1 + CONFIDENCE_LEVEL) / 2))
    min_p = 2 * float(ndtr(-max_z))  # t values in the interval have at least this p

    def excess(t: float) -> float:
        return estimate.p_value(t) - min_p

    value = estimate.value
    low = 0.0
    if excess(0) < 0:  # then 0 lies below the interval, however small the estimate is
        share = brentq(lambda share: excess(share * value), 0, 1, xtol=1e-14)
        low = max(share * value, math.ulp(0.0))
    high = brentq(excess, value, 1, xtol=1e-14) if excess(1) < 0 else 1.0
    p = 2 * float(stdtr(df, ndtri(estimate.p_value(0) / 2)))
    return Interval(float(low), float(high)), p


@dataclass(frozen=True, slots=True)
class _SumOfSquares:
    """The estimate of theta = sum_j w_j r_j^2, and its distribution for any true value.

    Let M be the covariance of the sqrt(w_j) r_j, and e the unit vector of their direction. With a
    true value of t, the sum of squares has the cumulants

        t + tr M,    4 t e'M e + 2 tr M^2,    24 t e'M^2 e + 8 tr M^3.

    A shifted gamma distribution with these cumulants approximates it (Pearson 1959; Imhof 1961,
    Biometrika 48). It is exact for one regression and t = 0.
    """

    value: float
    """The estimate of theta."""
    traces: tuple[float, float, float]
    """Traces of M, M^2 and M^3."""
    along_estimate: tuple[float, float]
    """e'M e and e'M^2 e."""

    @classmethod
    def from_correlations(
        cls, correlations: PartialCorrelations, weights: Floats
    ) -> _SumOfSquares | None:
        """Return the estimate; None if its variance is 0."""
        roots = np.sqrt(weights)
        weighted = roots * correlations.values
        m = correlations.covariance * np.outer(roots, roots)
        value = float(weighted @ weighted)
        if np.trace(m) < NEGLIGIBLE_R2**2:
            return None
        e = weighted / value**0.5 if value > 0 else np.linalg.eigh(m)[1][:, -1]
        traces = (float(np.trace(m)), float(np.sum(m * m)), float(np.trace(m @ m @ m)))
        return cls(value, traces, (float(e @ m @ e), float(e @ m @ m @ e)))

    def p_value(self, t: float) -> float:
        """Return the probability, for a true value of t, that the square root of the sum is at
        least as far from sqrt(t) as the estimate's."""
        root, distance = t**0.5, abs(self.value**0.5 - t**0.5)
        above = self._upper_tail(t, (root + distance) ** 2)
        below = 1 - self._upper_tail(t, (root - distance) ** 2) if root > distance else 0.0
        return min(above + below, 1.0)

    def _upper_tail(self, t: float, bound: float) -> float:
        """Return the probability, for a true value of t, that the sum is above a bound."""
        variance = 4 * t * self.along_estimate[0] + 2 * self.traces[1]
        third_cumulant = 24 * t * self.along_estimate[1] + 8 * self.traces[2]
        shape = 4 * variance**3 / third_cumulant**2
        gamma = shape + (bound - t - self.traces[0]) * (shape / variance) ** 0.5
        return float(gammaincc(shape, max(gamma, 0.0)))


def partial_r2_difference(
    a: PartialCorrelations, b: PartialCorrelations, weights: Floats
) -> tuple[Interval, float]:
    """Return the t interval of sum_j w_j (r_bj^2 - r_aj^2), and the p-value that it is 0.

    Both runs have the same k clusters. The standard error comes from leaving out each of them in
    both runs; Student's t has k - 1 degrees of freedom. If both runs explain nothing, the interval
    is too wide, because the slope of a square at 0 is 0.
    """
    change = _round_r2((b.values**2 - a.values**2) @ weights)
    without_cluster = _round_r2((b.left_out**2 - a.left_out**2) @ weights)
    k = len(without_cluster)
    pseudo_values = change + (k - 1) * (without_cluster.mean() - without_cluster)
    (low, high), p = t_test_of_means(pseudo_values, np.full(k, 1 / k))
    return Interval(max(low, -1.0), min(high, 1.0)), p


def _round_r2(values: Floats) -> Floats:
    """Round R2 to multiples of NEGLIGIBLE_R2, so that rounding errors become 0."""
    return np.round(values / NEGLIGIBLE_R2) * NEGLIGIBLE_R2
