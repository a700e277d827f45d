"""Confidence intervals of weighted means, ratios and statistics of counts.

An estimate is a weighted mean of stratum means, sum_k w_k mean_k; `macro_weights` returns the w_k
of a macro-average. Either of two things is treated as the sample:

    the items of each stratum (paradigm)   `stratified_score` (credits), `welch_test` (others),
                                           `normal_interval`
    the strata (or words, documents)       `t_test_of_means`, `t_interval_of_means`,
                                           `stratified_score.sampled_groups_interval`

All intervals are two-sided at CONFIDENCE_LEVEL.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from antlm_bench.statistics.special_functions import betaincinv, ndtr, stdtr, stdtrit
from antlm_bench.types import Floats

CONFIDENCE_LEVEL = 0.95
DRAWS = 10_000
"""Number of draws of a bootstrap or of a posterior."""
SEED = 20_250_101
"""Fixed, because the same predictions must give the same interval."""
MAX_LOG_DISTANCE = 10.0
"""Largest distance of an end of a ratio's interval on the logarithmic scale; keeps it finite."""
Z = 1.959963984540054  # ndtri((1 + CONFIDENCE_LEVEL) / 2)
"""Half the width of a normal interval, in standard errors (1.96)."""


class Interval(NamedTuple):
    low: float
    high: float


def one_sided_p(half_widths: float, df: float = np.inf) -> float:
    """Return the one-sided p-value of a distance from a hypothesis in half widths of an interval.

    df: degrees of freedom of the t interval; infinite = normal. One half width has p = 2.5%.
    """
    if not np.isfinite(df):
        return float(ndtr(-Z * half_widths))
    return float(stdtr(df, -float(stdtrit(df, (1 + CONFIDENCE_LEVEL) / 2)) * half_widths))


def rate_upper_bound(count: int, n: int, confidence: float = CONFIDENCE_LEVEL) -> float:
    """Return the one-sided upper bound of the rate of an event that occurred in `count` of n items.

    Clopper & Pearson (1934). With a count of 0 it is 1 - .05^(1/n), about 3/n.
    """
    return float(betaincinv(count + 1, n - count, confidence)) if count < n else 1.0


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


def ratio_interval(numerators: Floats, denominators: Floats) -> Interval:
    """Return the interval of sum(numerators) / sum(denominators), (n,) each: a jackknife t interval
    on a logarithmic scale.

    The standard error is the jackknife's, over the ratios without one pair (Efron & Tibshirani
    1993, ch. 11). Few large pairs can decide the ratio, so the degrees of freedom are those of the
    effective number of pairs, sum(denominators)^2 / sum(denominators^2) - 1, at least 1. Numerators
    and denominators are not negative. If one pair has all of the denominators, the
    interval has width 0, and the caller must add a note.
    """
    total, value = denominators.sum(), float(numerators.sum() / denominators.sum())
    rest = total - denominators
    if value == 0 or not (rest > 0).all():
        return Interval(value, value)
    n = len(numerators)
    ratios_without_one = (numerators.sum() - numerators) / rest
    variance = (n - 1) / n * float(((ratios_without_one - ratios_without_one.mean()) ** 2).sum())
    df = max(float(total**2 / (denominators**2).sum()) - 1, 1.0)
    distance = float(stdtrit(df, (1 + CONFIDENCE_LEVEL) / 2)) * variance**0.5 / value
    factor = float(np.exp(min(distance, MAX_LOG_DISTANCE)))
    return Interval(value / factor, value * factor)


def dirichlet_interval(
    counts: Floats,
    priors: tuple[Floats, Floats],
    statistic: Callable[[Floats], Floats],
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval:
    """Return the interval of statistic(counts) from Dirichlet posteriors of the categories' rates.

    counts (m,): number of items in each of m categories. priors: the pseudo-counts (m,) of the
    lower and of the upper end. With pseudo-counts, categories that are empty in the sample can
    occur (for precision, recall and F: Goutte & Gaussier 2005). statistic: maps counts (draws, m)
    to values (draws,); it must not depend on the scale of the counts.
    """
    rng, shape = np.random.default_rng(seed), (draws, len(counts))
    # Gamma variables divided by their sum are Dirichlet; the statistic ignores the scale.
    low, high = (statistic(rng.standard_gamma(counts + prior, size=shape)) for prior in priors)
    tail = (1 - CONFIDENCE_LEVEL) / 2
    return Interval(float(np.quantile(low, tail)), float(np.quantile(high, 1 - tail)))


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
    `stratified_score.score_test`. The degrees of freedom are Welch's and Satterthwaite's, (sum_k
    v_k)^2 / sum_k (v_k^2 / d_k), with v_k = w_k^2 s_k^2 / n_k (see `standard_error`) and d_k = n_k
    - 1, or 1 for a stratum of one item. Values without variance have an interval of width 0; p is
    then 0, or 1 if the mean is 0.
    """
    value = float(sum(w * v.mean() for w, v in zip(weights, strata, strict=True)))
    variances = _stratum_variances(strata, weights)
    variance = float(variances.sum())
    if not variance:
        return Interval(value, value), float(value == 0)
    return _t_test(value, variance**0.5, welch_df(strata, weights))


def welch_df(strata: Sequence[Floats], weights: Floats) -> float:
    """Return the degrees of freedom of `welch_test`; infinity for values without variance."""
    variances = _stratum_variances(strata, weights)
    df = np.array([max(len(values) - 1, 1) for values in strata])
    total = float(variances.sum())
    if not total:
        return float("inf")
    return 1 / float(np.sum((variances / total) ** 2 / df))


def t_interval_of_means(means: Floats, weights: Floats) -> Interval:
    """Return the interval of `t_test_of_means`."""
    return t_test_of_means(means, weights)[0]


def t_test_of_means(means: Floats, weights: Floats) -> tuple[Interval, float]:
    """Return the interval of sum_k w_k mean_k, and the two-sided p-value that it is 0.

    The means (K,), K >= 2, are the sample: of strata, words or documents. With equal weights, this
    is the one-sample t test. In general, the variance is K/(K-1) sum_k w_k^2 (mean_k - value)^2
    with K-1 degrees of freedom (cluster-robust: Miller 2024, arXiv 2411.00640). If all are equal,
    the interval has width 0, and p is 0, or 1 if they are 0.
    """
    k = len(means)
    if k < 2:
        raise ValueError("a t interval needs two means or more")
    value = float(weights @ means)
    error = float(k / (k - 1) * np.sum(weights**2 * (means - value) ** 2)) ** 0.5
    if not error or np.all(means == means[0]):  # rounding can make the error of equal means > 0
        return Interval(value, value), float(value == 0)
    return _t_test(value, error, k - 1)


def _t_test(value: float, error: float, df: float) -> tuple[Interval, float]:
    """Return the t interval of a value with standard error > 0, and the p-value that it is 0."""
    half_width = float(stdtrit(df, (1 + CONFIDENCE_LEVEL) / 2)) * error
    return Interval(value - half_width, value + half_width), 2 * float(
        stdtr(df, -abs(value) / error)
    )
