"""Confidence intervals: how far would an estimate move if the items had been drawn again?

An estimate is a weighted mean of stratum means, sum_k w_k mean_k; `macro_weights` gives the w_k of
a macro-average. Two questions have two answers:

    this benchmark          strata (paradigms) fixed, items sampled: `bootstrap_interval`,
                            `normal_interval`; where nothing varies, `wilson_macro_interval`
    paradigms like these    the strata themselves are a sample: `clustered_interval`

All intervals are two-sided at CONFIDENCE_LEVEL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

from antlm_bench.types import Floats

CONFIDENCE_LEVEL = 0.95
DRAWS = 10_000
SEED = 20_250_101
"""Fixed: the same predictions must print the same interval."""
MAX_DRAWS_AT_ONCE = 2_000_000
"""Numbers that are drawn at once: 16 MB."""
Z = float(ndtri((1 + CONFIDENCE_LEVEL) / 2))
"""Half of a normal interval in standard errors: 1.96."""


class Interval(NamedTuple):
    low: float
    high: float


def wilson_interval(successes: Floats | float, n: Floats | float) -> tuple[Floats, Floats]:
    """Return Wilson's (1927) score interval of `successes` out of n trials, elementwise; n >= 1.

    Fractional successes (ties with 1/k credit) are allowed, which scipy's binomtest refuses; a
    tie's credit varies less than a coin's, so the interval is then a little too wide, never too
    narrow. At 0 and n the bound is exactly 0 and 1.
    """
    k, n = np.asarray(successes, float), np.asarray(n, float)
    p = k / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return np.where(k <= 0, 0.0, centre - half), np.where(k >= n, 1.0, centre + half)


def macro_weights(paths: Sequence[tuple[str, ...]]) -> Floats:
    """Return the weight of each stratum in an unweighted macro-average; they sum to 1.

    paths: of each stratum, its labels, outermost level first.

    One level: 1/K each. Nested ("mean over files of the mean over paradigms"): the product of
    1/(number of siblings).
    """
    children: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for path in paths:
        for depth in range(len(path)):
            children[path[:depth]].add(path[: depth + 1])
    return np.array(
        [np.prod([1 / len(children[p[:depth]]) for depth in range(len(p))]) for p in paths], float
    )


def bootstrap_interval(
    strata: Sequence[Floats], weights: Floats, draws: int = DRAWS, seed: int = SEED
) -> Interval:
    """Return the percentile interval of sum_k w_k mean_k when the items of each stratum are
    resampled with replacement.

    Instead of drawing n_k items, the counts of the distinct values among n_k draws are drawn: they
    are multinomial, so the replicates have exactly the distribution of the ordinary bootstrap
    (Efron & Tibshirani 1993, ch. 6 and 8) at a cost that grows with the number of distinct values
    (two or three for accuracies), not with n_k.
    """
    rng = np.random.default_rng(seed)
    replicates = np.zeros(draws)
    for values, weight in zip(strata, weights, strict=True):
        distinct, counts = np.unique(values, return_counts=True)
        n = len(values)
        resampled = rng.multinomial(n, counts / n, size=draws) if len(distinct) > 1 else counts
        replicates += weight * (resampled @ distinct) / n
    return _percentile_interval(replicates)


def bootstrap_ratio_interval(
    numerators: Floats, denominators: Floats, draws: int = DRAWS, seed: int = SEED
) -> Interval:
    """Return the percentile interval of sum(numerators) / sum(denominators) when the n pairs are
    resampled.

    Denominators are 0 or more, not all 0; the few replicates in which all are 0 are left out.
    """
    rng, n = np.random.default_rng(seed), len(numerators)
    num_batches = max(1, n * draws // MAX_DRAWS_AT_ONCE)
    ratios = []
    for size in np.diff(np.linspace(0, draws, num_batches + 1).astype(int)):
        rows = rng.integers(n, size=(size, n))
        total = denominators[rows].sum(axis=1)
        ratios.append(numerators[rows].sum(axis=1)[total > 0] / total[total > 0])
    return _percentile_interval(np.concatenate(ratios))


def bootstrap_counts_interval(
    counts: Floats, statistic: Callable[[Floats], Floats], draws: int = DRAWS, seed: int = SEED
) -> Interval:
    """Return the percentile interval of statistic(counts), n items in m cells resampled.

    counts (m,); statistic maps counts (draws, m) to numbers (draws,). Counts are drawn as in
    `bootstrap_interval`. Where no replicate differs (one cell holds everything, or the statistic
    does not depend on the others), see `dirichlet_interval`.
    """
    n = int(counts.sum())
    resampled = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)
    return _percentile_interval(statistic(resampled.astype(float)))


def dirichlet_interval(
    counts: Floats,
    prior_weight: float,
    statistic: Callable[[Floats], Floats],
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval:
    """Return the interval of statistic(counts) from the Dirichlet posterior of the cells' rates.

    prior_weight: of every cell, in items. For data in which the statistic does not vary, so that a
    bootstrap would claim certainty: cells that happened to stay empty are given their chance (for
    precision, recall and F: Goutte & Gaussier 2005). The statistic must not depend on scale.
    """
    shape = (draws, len(counts))
    rates = np.random.default_rng(seed).standard_gamma(counts + prior_weight, size=shape)
    return _percentile_interval(statistic(rates))


def normal_interval(strata: Sequence[Floats], weights: Floats) -> Interval:
    """Return the normal interval of sum_k w_k mean_k, from its `standard_error`."""
    value = float(sum(w * v.mean() for w, v in zip(weights, strata, strict=True)))
    half = Z * standard_error(strata, weights)
    return Interval(value - half, value + half)


def standard_error(strata: Sequence[Floats], weights: Floats) -> float:
    """Return the standard error of sum_k w_k mean_k: Var = sum_k w_k^2 s_k^2 / n_k.

    A stratum of one item has no s_k; it gets the largest variance its range allows, (max - min)^2 /
    4 over all values.
    """
    widest = float(np.ptp(np.concatenate(strata))) ** 2 / 4
    variances = np.array([values.var(ddof=1) if len(values) > 1 else widest for values in strata])
    sizes = np.array([len(values) for values in strata])
    return float(np.sqrt(np.sum(weights**2 * variances / sizes)))


def wilson_macro_interval(strata: Sequence[Floats], weights: Floats) -> Interval:
    """Return the interval of sum_k w_k p_k from the strata's Wilson intervals (MOVER: Zou & Donner
    2008), for values in 0..1.

    Each side adds up the squares of the strata's own distances to that side. It covers also where
    nothing varies (all right, or one item each), where `bootstrap_interval` and `normal_interval`
    would claim certainty. One stratum: Wilson's interval.
    """
    sizes = np.array([len(values) for values in strata], float)
    means = np.array([values.mean() for values in strata])
    low, high = wilson_interval(means * sizes, sizes)
    value = float(weights @ means)
    below = float(np.sqrt(np.sum((weights * (means - low)) ** 2)))
    above = float(np.sqrt(np.sum((weights * (high - means)) ** 2)))
    return Interval(value - below, value + above)


def clustered_interval(means: Floats, weights: Floats) -> Interval:
    """Return the interval of sum_k w_k mean_k when the K >= 2 strata are themselves a sample
    ("paradigms like these").

    Cluster-robust with the finite-cluster factor: Var = K/(K-1) sum_k w_k^2 (mean_k - value)^2, K-1
    degrees of freedom; with equal weights it is the t interval over stratum means. (Why to cluster:
    Miller 2024, arXiv 2411.00640.)
    """
    k = len(means)
    if k < 2:
        raise ValueError("a clustered interval needs two strata or more")
    value = float(weights @ means)
    variance = k / (k - 1) * float(np.sum(weights**2 * (means - value) ** 2))
    half = float(stdtrit(k - 1, (1 + CONFIDENCE_LEVEL) / 2)) * variance**0.5
    return Interval(value - half, value + half)


def _percentile_interval(replicates: Floats) -> Interval:
    low, high = np.quantile(replicates, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Interval(float(low), float(high))
