"""Confidence intervals of weighted means, ratios and statistics of counts.

An estimate is a weighted mean of stratum means, sum_k w_k mean_k; `macro_weights` returns the w_k
of a macro-average. An interval says how the estimate would vary in one of two populations:

    other items of the same strata (paradigms)   `stratified_score` (credits), `welch_test` (other
                                                 values), `normal_interval`
    other strata like these                      `clustered_interval`

All intervals are two-sided at CONFIDENCE_LEVEL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from antlm_bench.types import Floats

CONFIDENCE_LEVEL = 0.95
DRAWS = 10_000
"""Number of resamples of a bootstrap."""
SEED = 20_250_101
"""Fixed, because the same predictions must give the same interval."""
MAX_DRAWS_AT_ONCE = 2_000_000
"""Largest number of random indices in memory (16 MB)."""
MIN_SAMPLED_GROUPS = 8
"""Fewest groups from which the variance of groups is estimated."""
Z = float(ndtri((1 + CONFIDENCE_LEVEL) / 2))
"""Half the width of a normal interval, in standard errors (1.96)."""


class Interval(NamedTuple):
    low: float
    high: float


def one_sided_p(z: float) -> float:
    """Return the probability that a standard normal variable is above z."""
    return float(ndtr(-z))


def macro_weights(paths: Sequence[tuple[str, ...]]) -> Floats:
    """Return the weight of each stratum in an unweighted macro-average; they sum to 1.

    paths: the labels of each stratum, outermost level first.

    With one level, each weight is 1/K. With nested levels ("mean over files of the mean over
    paradigms"), it is the product over levels of 1/(number of siblings).
    """
    children: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for path in paths:
        for depth in range(len(path)):
            children[path[:depth]].add(path[: depth + 1])
    return np.array(
        [np.prod([1 / len(children[p[:depth]]) for depth in range(len(p))]) for p in paths], float
    )


def bootstrap_ratio_interval(
    numerators: Floats, denominators: Floats, draws: int = DRAWS, seed: int = SEED
) -> Interval:
    """Return the bootstrap percentile interval of sum(numerators) / sum(denominators), (n,) each.

    Pairs of numerator and denominator are resampled. Denominators are not negative and not all 0.
    Resamples whose denominators are all 0 are left out.
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
    """Return the bootstrap percentile interval of statistic(counts).

    counts (m,): number of items in each of m categories. statistic: maps counts (draws, m) to
    values (draws,). The counts of a resample are drawn directly from a multinomial (Efron &
    Tibshirani 1993, ch. 6). If the statistic is equal in all resamples, e.g. because one category
    has all items, the interval has width 0; use `dirichlet_interval`.
    """
    n = int(counts.sum())
    resampled = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)
    return _percentile_interval(statistic(resampled.astype(float)))


def bootstrap_clusters_interval(
    counts: Floats, statistic: Callable[[Floats], Floats], draws: int = DRAWS, seed: int = SEED
) -> Interval:
    """Return the bootstrap percentile interval of statistic(counts) over whole clusters.

    counts (C, m): number of items of each cluster in each of m categories. statistic: maps counts
    (draws, m) to values (draws,).
    """
    rng, num_clusters = np.random.default_rng(seed), len(counts)
    shares = np.full(num_clusters, 1 / num_clusters)
    num_batches = max(1, num_clusters * draws // MAX_DRAWS_AT_ONCE)
    resampled = [
        rng.multinomial(num_clusters, shares, size=size) @ counts
        for size in np.diff(np.linspace(0, draws, num_batches + 1).astype(int))
    ]
    return _percentile_interval(statistic(np.concatenate(resampled)))


def dirichlet_interval(
    counts: Floats,
    prior_weight: float,
    statistic: Callable[[Floats], Floats],
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval:
    """Return the interval of statistic(counts) from the Dirichlet posterior of its rates.

    prior_weight: pseudo-count of every category. Use this if a bootstrap interval has width 0: with
    a pseudo-count, categories that are empty in the sample can occur (for precision, recall and F:
    Goutte & Gaussier 2005). The statistic must not depend on the scale of the counts.
    """
    shape = (draws, len(counts))
    # The rates are these divided by their sum, which does not change the statistic.
    gammas = np.random.default_rng(seed).standard_gamma(counts + prior_weight, size=shape)
    return _percentile_interval(statistic(gammas))


def normal_interval(strata: Sequence[Floats], weights: Floats) -> Interval:
    """Return the normal interval of sum_k w_k mean_k, from its `standard_error`."""
    value = float(sum(w * v.mean() for w, v in zip(weights, strata, strict=True)))
    half_width = Z * standard_error(strata, weights)
    return Interval(value - half_width, value + half_width)


def standard_error(strata: Sequence[Floats], weights: Floats) -> float:
    """Return the standard error of sum_k w_k mean_k: Var = sum_k w_k^2 s_k^2 / n_k.

    For a stratum of one item, s_k^2 is the largest variance that values within the range of all
    strata can have: (max - min)^2 / 4.
    """
    return float(np.sqrt(_stratum_variances(strata, weights).sum()))


def _stratum_variances(strata: Sequence[Floats], weights: Floats) -> Floats:
    """Return the term of each stratum (K,) in the variance of sum_k w_k mean_k."""
    max_variance = float(np.ptp(np.concatenate(strata))) ** 2 / 4
    variances = np.array(
        [values.var(ddof=1) if len(values) > 1 else max_variance for values in strata]
    )
    sizes = np.array([len(values) for values in strata])
    return np.asarray(weights**2 * variances / sizes)


def welch_test(strata: Sequence[Floats], weights: Floats) -> tuple[Interval, float]:
    """Return the t interval of sum_k w_k mean_k, and the two-sided p-value that it is 0.

    For values without a known range or with many distinct values; for credits, use
    `stratified_score`. The degrees of freedom are Welch's and Satterthwaite's, (sum_k v_k)^2 /
    sum_k (v_k^2 / d_k), with v_k = w_k^2 s_k^2 / n_k (see `standard_error`) and d_k = n_k - 1, or 1
    for a stratum of one item. Values without variance have an interval of width 0; p is then 0, or
    1 if the mean is 0.
    """
    value = float(sum(w * v.mean() for w, v in zip(weights, strata, strict=True)))
    variances = _stratum_variances(strata, weights)
    variance = float(variances.sum())
    if not variance:
        return Interval(value, value), float(value == 0)
    df = np.array([max(len(values) - 1, 1) for values in strata])
    return _t_test(value, variance**0.5, variance**2 / float(np.sum(variances**2 / df)))


def clustered_interval(means: Floats, weights: Floats) -> Interval:
    """Return the interval of `clustered_test`."""
    return clustered_test(means, weights)[0]


def clustered_test(means: Floats, weights: Floats) -> tuple[Interval, float]:
    """Return the interval of sum_k w_k mean_k, and the two-sided p-value that it is 0.

    The strata are treated as a sample of strata.

    means: the mean of each stratum (K,), K >= 2. The variance is cluster-robust with the
    finite-cluster factor, K/(K-1) sum_k w_k^2 (mean_k - value)^2, with K-1 degrees of freedom. With
    equal weights, this is the t interval over stratum means. (On clustering: Miller 2024, arXiv
    2411.00640.) If all means are equal, the interval has width 0, and p is 0, or 1 if they are 0.
    """
    k = len(means)
    if k < 2:
        raise ValueError("a clustered interval needs two strata or more")
    value = float(weights @ means)
    error = float(k / (k - 1) * np.sum(weights**2 * (means - value) ** 2)) ** 0.5
    if not error:
        return Interval(value, value), float(value == 0)
    return _t_test(value, error, k - 1)


def sampled_groups_interval(means: Floats, weights: Floats) -> tuple[Interval | None, str]:
    """Return (`clustered_interval` of K groups, ""), or (None, reason why there is none).

    By simulation, 95% intervals of 5 groups with a mean of .97 cover only 66-84%, because so few
    means hardly show how much groups vary. Nor do equal means show that groups do not vary.
    """
    if len(means) < MIN_SAMPLED_GROUPS:
        return None, f"not estimated from {len(means)} groups, {MIN_SAMPLED_GROUPS} are needed"
    if np.ptp(means) == 0:
        return None, "not estimated, because all groups are equal"
    return clustered_interval(means, weights), ""


def _t_test(value: float, error: float, df: float) -> tuple[Interval, float]:
    """Return the t interval of a value with standard error > 0, and the p-value that it is 0."""
    half_width = float(stdtrit(df, (1 + CONFIDENCE_LEVEL) / 2)) * error
    return Interval(value - half_width, value + half_width), 2 * float(
        stdtr(df, -abs(value) / error)
    )


def _percentile_interval(replicates: Floats) -> Interval:
    low, high = np.quantile(replicates, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Interval(float(low), float(high))
