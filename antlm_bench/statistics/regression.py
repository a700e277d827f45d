"""Partial R2: how much of what a regression leaves unexplained does one more predictor explain?

    partial R2 = (R2 with - R2 without) / (1 - R2 without) = (RSS without - RSS with) / RSS without

of two ordinary least squares. BabyLM's reading scores are 100 times this
(evaluation-pipeline-2025, reading/run.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, DRAWS, SEED, Interval
from antlm_bench.types import Floats, Ints


@dataclass(frozen=True, slots=True)
class NestedRegression:
    """A regression without and with one more predictor."""

    outcome: Floats
    """(n,)"""
    design: Floats
    """(n, p), including the intercept."""
    added_predictor: Floats
    """(n,): the predictor in question."""
    cluster: Ints
    """(n,): the cluster 0.. of each row; its rows are resampled together."""


def design_with_interactions(predictors: Sequence[Floats]) -> Floats:
    """Return the intercept, k columns (n,) and the product of every two of them, as
    (n, 1 + k + k(k-1)/2)."""
    pairs = [a * b for a, b in combinations(predictors, 2)]
    return np.stack([np.ones(len(predictors[0])), *predictors, *pairs], axis=1)


def partial_r2(regression: NestedRegression) -> float | None:
    """Return partial R2 in 0..1; None where there are too few rows for the coefficients, or nothing
    is left to explain.

    statsmodels fits by a pseudo-inverse, so collinear predictors are no error.
    """
    from statsmodels.regression.linear_model import OLS

    rows, columns = regression.design.shape
    if rows < columns + 2 or np.ptp(regression.outcome) == 0:
        return None
    without = float(OLS(regression.outcome, regression.design).fit().rsquared)
    both = np.column_stack([regression.design, regression.added_predictor])
    explained = float(OLS(regression.outcome, both).fit().rsquared)
    if not np.isfinite([without, explained]).all() or 1 - without < 1e-12:
        return None
    return min(max((explained - without) / (1 - without), 0.0), 1.0)


def bootstrap_partial_r2(
    regressions: Sequence[NestedRegression], num_clusters: int, draws: int = DRAWS, seed: int = SEED
) -> NDArray[np.float64]:
    """Return replicates (draws, number of regressions) under resampling of whole clusters, the same
    draw for all regressions.

    A resampled regression needs only sums of squares and products, which are added up from those of
    the clusters, so no replicate reads the rows again. Columns are centred and scaled first, which
    changes no R2 but keeps the sums accurate.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(
        num_clusters, np.full(num_clusters, 1 / num_clusters), size=draws
    ).astype(float)
    replicates = np.empty((draws, len(regressions)))
    for index, regression in enumerate(regressions):
        columns = np.column_stack(
            [regression.design[:, 1:], regression.added_predictor, regression.outcome]
        )
        spread = columns.std(axis=0)
        scaled = (columns - columns.mean(axis=0)) / np.where(spread > 0, spread, 1)
        table = np.column_stack([np.ones(len(columns)), scaled])
        width = table.shape[1]
        sums = np.zeros((num_clusters, width, width))
        np.add.at(sums, regression.cluster, table[:, :, None] * table[:, None, :])
        grams = (counts @ sums.reshape(num_clusters, -1)).reshape(draws, width, width)
        without = _residual_sum_of_squares(grams, width - 2)
        both = _residual_sum_of_squares(grams, width - 1)
        explained = (without - both) / np.where(without > 0, without, 1)
        replicates[:, index] = np.where(without > 0, explained, 0)
    return np.clip(replicates, 0, 1)


def _residual_sum_of_squares(grams: Floats, size: int) -> Floats:
    """Return the residual sum of squares (d,) of the last column on the first `size`.

    grams (d, k, k): sums of products of the columns, in d resamples.
    """
    ridge = 1e-10 * np.einsum("dii->d", grams)[:, None, None] * np.eye(size)
    moments = grams[:, :size, -1:]
    coefficients = np.linalg.solve(grams[:, :size, :size] + ridge, moments)
    return np.asarray(grams[:, -1, -1] - (moments * coefficients).sum(axis=(1, 2)))


def bias_corrected_interval(value: float, replicates: Floats) -> Interval:
    """Return the bias-corrected percentile interval (Efron 1981).

    Resampling noise only ever makes an R2 larger, so that the plain percentiles of a small R2 lie
    above it.
    """
    share = np.clip((replicates < value).mean(), 1 / len(replicates), 1 - 1 / len(replicates))
    ends = ndtri([(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    low, high = np.quantile(replicates, ndtr(2 * ndtri(share) + ends))
    return Interval(float(min(low, value)), float(max(high, value)))


def cluster_influences(regression: NestedRegression, num_clusters: int) -> Floats:
    """Return by how much each cluster (clusters,) moves the partial R2: the sum of its rows'
    first-order influences.

    Partial R2 is the square of r = C / sqrt(A B), with A, B, C the mean squares and products of
    what the design leaves of the added predictor (h) and of the outcome (e). That these are
    residuals of fitted coefficients changes nothing: C does not vary with them to first order. A
    row moves r by (h e / sqrt(A B) - r / 2 (h^2 / A + e^2 / B)) / n, and R2 by 2 r times that.
    """
    scaled = regression.design / np.maximum(np.abs(regression.design).max(axis=0), 1e-300)
    columns = np.column_stack([regression.added_predictor, regression.outcome])
    h, e = (columns - scaled @ np.linalg.lstsq(scaled, columns, rcond=None)[0]).T
    a, b = float(h @ h) / len(h), float(e @ e) / len(e)
    if not a * b > 0:
        return np.zeros(num_clusters)
    r = float(h @ e) / len(h) / (a * b) ** 0.5
    moved = 2 * r * (h * e / (a * b) ** 0.5 - r / 2 * (h**2 / a + e**2 / b)) / len(h)
    return np.asarray(np.bincount(regression.cluster, moved, minlength=num_clusters), float)


def clustered_t_test(value: float, influence: Floats) -> float:
    """Return the two-sided p that a value is 0, from the influences (k,) of clusters on it:
    Student's t, k - 1 degrees of freedom.

    For a difference of partial R2 on the same 80 or 205 sentences, a nominal 5% is 5 to 6% by
    simulation, whatever shape and scale the two predictors have. The test is cautious where they
    explain little: 4% at an R2 of .01 on 1640 rows, 1% on 400, 0 where there is nothing, since a
    square has no slope at 0. (Exchanging sentences between runs, as signs are flipped elsewhere,
    would mix two predictors whose scales differ.)
    """
    k = len(influence)
    error = (k / (k - 1) * float(influence @ influence)) ** 0.5
    return 2 * float(stdtr(k - 1, -abs(value) / error)) if error else 1.0
