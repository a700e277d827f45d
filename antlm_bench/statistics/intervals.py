"""Confidence intervals of weighted means, ratios and statistics of counts.

An estimate is a weighted mean of stratum means, sum_k w_k mean_k; `macro_weights` gives the w_k of
a macro-average. An interval is about one of two populations:

    new items of these strata (paradigms)   `stratified_score` (credits), `welch_test` (other
                                            values), `normal_interval`
    new strata of the same sort             `clustered_interval`

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
SEED = 20_250_101
"""Fixed: the same predictions must print the same interval."""
MAX_DRAWS_AT_ONCE = 2_000_000
"""Random indices in memory at once: 16 MB."""
MIN_SAMPLED_GROUPS = 8
"""Groups from which it is estimated how much other groups like these would vary."""
Z = float(ndtri((1 + CONFIDENCE_LEVEL) / 2))
"""Half the width of a normal interval in standard errors: 1.96."""


class Interval(NamedTuple):
    low: float
    high: float


def one_sided_p(z: float) -> float:
    """Return the probability of a standard normal number above z."""
    return float(ndtr(-z))


def macro_weights(paths: Sequence[tuple[str, ...]]) -> Floats:
    """Return the weight of each stratum in an unweighted macro-average; they sum to 1.

    paths: the labels of each stratum, outermost level first.

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
    """Return the percentile interval of statistic(counts) when the n items of m
    categories are resampled.

    counts (m,); statistic maps counts (draws, m) to numbers (draws,). The counts of a resample are
    drawn, not its items one by one (Efron & Tibshirani 1993, ch. 6). If all replicates are equal
    (one category holds all items, or the statistic ignores the others), the interval has width 0;
    use `dirichlet_interval`.
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
    """Return the interval of statistic(counts) from the Dirichlet posterior of its rates.

    prior_weight: pseudo-count of every category. Use this where a bootstrap interval has width 0:
    the pseudo-count lets categories occur that are empty in the sample (for precision, recall and
    F: Goutte & Gaussier 2005). The statistic must not depend on the scale of the counts.
    """
    shape = (draws, len(counts))
    # Normalised, these would be the rates; the statistic does not depend on their sum.
    gammas = np.random.default_rng(seed).standard_gamma(counts + prior_weight, size=shape)
    return _percentile_interval(statistic(gammas))


def normal_interval(strata: Sequence[Floats], weights: Floats) -> Interval:
    """Return the normal interval of sum_k w_k mean_k, from its `standard_error`."""
    value = float(sum(w * v.mean() for w, v in zip(weights, strata, strict=True)))
    half = Z * standard_error(strata, weights)
    return Interval(value - half, value + half)


def standard_error(strata: Sequence[Floats], weights: Floats) -> float:
    """Return the standard error of sum_k w_k mean_k: Var = sum_k w_k^2 s_k^2 / n_k.

    A stratum of one item has no s_k; it gets the largest variance that values in the range of all
    strata can have, (max - min)^2 / 4.
    """
    return float(np.sqrt(_stratum_variances(strata, weights).sum()))


def _stratum_variances(strata: Sequence[Floats], weights: Floats) -> Floats:
    """Return what each stratum (K,) adds to the variance of sum_k w_k mean_k."""
    max_variance = float(np.ptp(np.concatenate(strata))) ** 2 / 4
    variances = np.array(
        [values.var(ddof=1) if len(values) > 1 else max_variance for values in strata]
    )
    sizes = np.array([len(values) for values in strata])
    return np.asarray(weights**2 * variances / sizes)


def welch_test(strata: Sequence[Floats], weights: Floats) -> tuple[Interval, float]:
    """Return the t interval of sum_k w_k mean_k, and the two-sided p-value that it is 0.

    For values without a known range or with many distinct values; credits have `stratified_score`.
    The degrees of freedom are Welch's and Satterthwaite's, (sum_k v_k)^2 / sum_k v_k^2 / (n_k - 1)
    with v_k = w_k^2 s_k^2 / n_k; a stratum of one item, whose s_k is that of `standard_error`, has
    one. Values without any variance have an interval of width 0, and p is 0, or 1 if all are 0.
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
    """Return the interval of sum_k w_k mean_k when the K >= 2 strata are themselves a sample, and
    the two-sided p-value that it is 0.

    means: the mean of each stratum (K,).

    Cluster-robust with the finite-cluster factor: Var = K/(K-1) sum_k w_k^2 (mean_k - value)^2, K-1
    degrees of freedom; with equal weights it is the t interval over stratum means. (Why to cluster:
    Miller 2024, arXiv 2411.00640.) Equal means have no variance: the interval has width 0, and p is
    0, or 1 if all are 0.
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
    """Return `clustered_interval` of K groups, or None and the reason why there is none.

    By simulation, t intervals of 5 groups with a mean of .97 cover 66-84%: so few means hardly show
    how much groups vary. Equal means do not show that groups do not vary.
    """
    if len(means) < MIN_SAMPLED_GROUPS:
        return None, f"not estimated from {len(means)} groups, {MIN_SAMPLED_GROUPS} are needed"
    if np.ptp(means) == 0:
        return None, "not estimated, because all groups are equal"
    return clustered_interval(means, weights), ""


def _t_test(value: float, error: float, df: float) -> tuple[Interval, float]:
    """Return the t interval of a value with a standard error > 0, and the p-value that it is 0."""
    half = float(stdtrit(df, (1 + CONFIDENCE_LEVEL) / 2)) * error
    return Interval(value - half, value + half), 2 * float(stdtr(df, -abs(value) / error))


def _percentile_interval(replicates: Floats) -> Interval:
    low, high = np.quantile(replicates, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return Interval(float(low), float(high))
