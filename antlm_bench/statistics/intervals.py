"""Intervals for the numbers we print: how far would this estimate move if the items had been drawn
again?

Two questions, two answers. *This benchmark*: strata (paradigms) fixed, items sampled: `bootstrap`,
`normal_interval`.
*Paradigms like these*: the strata themselves are a sample: `clustered`. All intervals are two-sided at LEVEL.
An estimate is a weighted mean of stratum means, sum_k w_k mean_k; `macro_weights` gives the w_k of
a macro-average.
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
SEED = 20_250_101  # fixed: the same predictions must print the same interval
MAX_DRAWS_AT_ONCE = 2_000_000  # numbers that are drawn at once: 16 MB
Z = float(ndtri((1 + CONFIDENCE_LEVEL) / 2))


class Interval(NamedTuple):
    low: float
    high: float


def wilson_interval(successes: Floats | float, n: Floats | float) -> tuple[Floats, Floats]:
    """Wilson (1927) score interval of `successes` out of n trials, elementwise; n >= 1.

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
    """Weight of each stratum in an unweighted macro-average, outermost level first; sums to 1.

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
    """Percentile interval of sum_k w_k mean_k when the items of each stratum are resampled with
    replacement.

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
    """Percentile interval of sum(over) / sum(under) when the n pairs are resampled; `under` is 0 or
    more, not all 0.

    The few replicates in which it is 0 throughout are left out.
    """
    rng = np.random.default_rng(seed)
    found = []
    for size in np.diff(
        np.linspace(0, draws, max(1, len(numerators) * draws // MAX_DRAWS_AT_ONCE) + 1).astype(int)
    ):
        pick = rng.integers(len(numerators), size=(size, len(numerators)))
        total = denominators[pick].sum(axis=1)
        found.append(numerators[pick].sum(axis=1)[total > 0] / total[total > 0])
    return _percentile_interval(np.concatenate(found))


def bootstrap_counts_interval(
    counts: Floats, statistic: Callable[[Floats], Floats], draws: int = DRAWS, seed: int = SEED
) -> Interval:
    """Percentile interval of measure(counts), n items in m cells resampled; exact, for the reason
    `bootstrap` gives.

    counts (m,); measure maps counts (draws, m) to numbers (draws,). Where no replicate differs (one
    cell holds everything, or the measure does not see the others), see `dirichlet_interval`.
    """
    n = int(counts.sum())
    return _percentile_interval(
        statistic(np.random.default_rng(seed).multinomial(n, counts / n, size=draws).astype(float))
    )


def dirichlet_interval(
    counts: Floats,
    prior_weight: float,
    statistic: Callable[[Floats], Floats],
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval:
    """Interval of measure(counts) from the Dirichlet posterior of the cells' rates, every cell a
    prior of `unseen`.

    For measures by which nothing varies, so that a bootstrap would claim certainty: cells that
    happened to stay empty are given their chance (for precision, recall and F: Goutte & Gaussier
    2005). The measure must not depend on scale.
    """
    rates = np.random.default_rng(seed).standard_gamma(
        counts + prior_weight, size=(draws, len(counts))
    )
    return _percentile_interval(statistic(rates))


def normal_interval(strata: Sequence[Floats], weights: Floats) -> Interval:
    """Normal interval of sum_k w_k mean_k, from its `standard_error`."""
    value = float(sum(w * v.mean() for w, v in zip(weights, strata, strict=True)))
    half = Z * standard_error(strata, weights)
    return Interval(value - half, value + half)


def standard_error(strata: Sequence[Floats], weights: Floats) -> float:
    """Of sum_k w_k mean_k: Var = sum_k w_k^2 s_k^2 / n_k (plain macro-average: 1/K^2 sum s_k^2 /
    n_k).

    A stratum of one item has no s_k; it gets the largest variance its range allows, (max - min)^2 /
    4 over all values.
    """
    widest = float(np.ptp(np.concatenate(strata))) ** 2 / 4
    variances = np.array([values.var(ddof=1) if len(values) > 1 else widest for values in strata])
    sizes = np.array([len(values) for values in strata])
    return float(np.sqrt(np.sum(weights**2 * variances / sizes)))


def wilson_macro_interval(strata: Sequence[Floats], weights: Floats) -> Interval:
    """Interval of sum_k w_k p_k from the strata's Wilson intervals (MOVER: Zou & Donner 2008), for
    values in 0..1.

    Each side adds up the strata's own distances to that side in squares. It stays honest where
    nothing varies (all right, or one item each), where `bootstrap` and `normal_interval` would
    claim certainty. One stratum: Wilson's interval.
    """
    sizes = np.array([len(values) for values in strata], float)
    means = np.array([values.mean() for values in strata])
    low, high = wilson_interval(means * sizes, sizes)
    value = float(weights @ means)
    below = float(np.sqrt(np.sum((weights * (means - low)) ** 2)))
    above = float(np.sqrt(np.sum((weights * (high - means)) ** 2)))
    return Interval(value - below, value + above)


def clustered_interval(means: Floats, weights: Floats) -> Interval:
    """Interval of sum_k w_k mean_k when the K >= 2 strata are themselves a sample ("paradigms like
    these").

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
