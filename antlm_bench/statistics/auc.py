"""Area under the ROC curve (AUC): its interval, and a test of the difference between two runs.

The AUC is the probability that a positive item has a higher score than a negative one, where a tie
counts half. The placement of a positive item is the share of negative items below it, that of a
negative item the share of positive items above it; the means of both are the AUC A. With the
variances S+ and S- of the placements of m positive and n negative items,

    Var(A) = S+ / m + S- / n

(DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44, 837-845). For the difference of two runs, S+
and S- are variances of the differences of their placements. Clusters of items, if there are any,
are the units of the sample: the influences of a cluster's items are summed (Obuchowski 1997,
Biometrics 53, 567-578).

Near A = 1, few placements differ, and a sample variance is too small or 0. Therefore each class has
PRIOR_ITEMS more items, with the variance of placements in an exponential model: the mean of
A / (2 - A) - A^2 and 2 A^2 / (1 + A) - A^2 (Hanley & McNeil 1982, Radiology 143, 29-36). The
interval of one run is computed on the scale of log(A / (1 - A)), that of a difference on its own
scale; both are Student's t with Satterthwaite's degrees of freedom. A difference has fewer degrees
of freedom if few placements differ much (`_df_from_kurtosis`). The variance of an AUC is at most
A (1 - A) / min(m, n) (Birnbaum & Klose 1957, Ann. Math. Stat. 28, 933-945), so the interval of one
run is cut at the ends of Wilson's interval of a share of min(m, n) items.

By simulation (`benchmarks/coverage.py --only AUC`, docs/explanation/statistics.md), intervals of
one run cover 93 to 98.5%, and those of a difference 93 to 100%.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from antlm_bench.statistics.clusters import (
    MIN_CLUSTERS_BELOW_1,
    contributions_of_clusters,
)
from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval, Z
from antlm_bench.statistics.special_functions import expit, logit, stdtr, stdtrit
from antlm_bench.types import Bools, Floats, Ints

MIN_CLASS_ITEMS = 2
"""Fewest items of each class for an interval."""
PRIOR_ITEMS = 2.0
"""Weight, in items of each class, of the variance of the exponential model."""
MAX_DIFFERENCE = 1.0
"""Largest difference of two AUCs."""


class TestedAucDifference(NamedTuple):
    """A difference of two AUCs with its t test."""

    interval: Interval
    p: float | None
    """Two-sided p-value of the hypothesis that it is 0; None = there is no test."""
    df: float | None
    """Degrees of freedom of the t distribution; None = there is no test."""


def compute_auc(scores: Floats, is_positive: Bools) -> float | None:
    """Return the AUC of scores (n,), None if all items are of one class."""
    if is_positive.all() or not is_positive.any():
        return None
    return float(_placements(scores, is_positive)[is_positive].mean())


def auc_contributions(scores: Floats, is_positive: Bools) -> Floats:
    """Return the contribution (n,) of each item; neither class is empty. The mean of the
    contributions is the AUC, and their variance / n estimates its variance.
    """
    placements, n = _placements(scores, is_positive), len(scores)
    value = placements[is_positive].mean()
    num_in_class = np.where(is_positive, is_positive.sum(), (~is_positive).sum())
    return np.asarray(value + (placements - value) * n / num_in_class)


def auc_interval(scores: Floats, is_positive: Bools, clusters: Ints | None = None) -> Interval:
    """Return the interval of the AUC of scores (n,); (0, 1) if a class has fewer than
    MIN_CLASS_ITEMS items.

    clusters (n,): the cluster of each item; None = items are independent.
    """
    if _smallest_class(is_positive) < MIN_CLASS_ITEMS:
        return Interval(0.0, 1.0)
    placements = _placements(scores, is_positive)
    value = float(placements[is_positive].mean())
    model_variance = _model_variance(value, is_positive)
    variance, df, design_effect = _variance(placements, is_positive, model_variance, clusters)
    # Half of the smallest possible distance from 0 and 1 keeps the scale finite.
    num_positive = int(is_positive.sum())
    margin = 0.5 / (num_positive * (len(scores) - num_positive))
    inside = float(np.clip(value, margin, 1 - margin))
    half_width = _t_quantile(df) * variance**0.5 / (inside * (1 - inside))
    low, high = expit([logit(inside) - half_width, logit(inside) + half_width])
    widest = _wilson_interval(value, _smallest_class(is_positive) / design_effect)
    return Interval(
        float(min(max(low, widest.low), value)), float(max(min(high, widest.high), value))
    )


def auc_difference(
    scores_a: Floats, scores_b: Floats, is_positive: Bools, clusters: Ints | None = None
) -> TestedAucDifference:
    """Return the interval of AUC(scores_b) - AUC(scores_a), both (n,), with its t test.

    p is below 1 - CONFIDENCE_LEVEL if and only if the interval excludes 0. Scores in the same order
    have an interval of width 0. The interval is (-1, 1), without a test, if a class has fewer than
    MIN_CLASS_ITEMS items. clusters (n,): the cluster of each item; None = items are independent.
    """
    if _smallest_class(is_positive) < MIN_CLASS_ITEMS:
        return TestedAucDifference(Interval(-MAX_DIFFERENCE, MAX_DIFFERENCE), None, None)
    a, b = (_placements(scores, is_positive) for scores in (scores_a, scores_b))
    value_a, value_b = (float(placements[is_positive].mean()) for placements in (a, b))
    value = value_b - value_a
    if np.array_equal(a, b):
        return TestedAucDifference(Interval(0.0, 0.0), 1.0, None)
    model_variances = [_model_variance(each, is_positive) for each in (value_a, value_b)]
    variance, df, _ = _variance(b - a, is_positive, sum(model_variances) / 2, clusters)
    df, error = min(df, _df_from_kurtosis(b - a, is_positive)), variance**0.5
    half_width = _t_quantile(df) * error
    p = 2 * float(stdtr(df, -abs(value) / error))
    low, high = np.clip([value - half_width, value + half_width], -MAX_DIFFERENCE, MAX_DIFFERENCE)
    return TestedAucDifference(Interval(float(low), float(high)), p, df)


def _placements(scores: Floats, is_positive: Bools) -> Floats:
    """Return the placement (n,) of each item: the share of items of the other class on whose right
    side it is. A tie counts half.
    """
    placements = np.empty(len(scores))
    for members, sign in ((is_positive, 1.0), (~is_positive, -1.0)):
        own, others = sign * scores[members], np.sort(sign * scores[~members])
        num_below = np.searchsorted(others, own, "left") + np.searchsorted(others, own, "right")
        placements[members] = num_below / (2 * len(others))
    return placements


def _model_variance(value: float, is_positive: Bools) -> float:
    """Return the variance of placements in the exponential model, for an AUC inside (0, 1)."""
    margin = 0.5 / (_smallest_class(is_positive) + 1)
    a = min(max(value, margin), 1 - margin)
    return (a / (2 - a) + 2 * a * a / (1 + a)) / 2 - a * a


def _variance(
    placements: Floats, is_positive: Bools, model_variance: float, clusters: Ints | None
) -> tuple[float, float, float]:
    """Return the variance of an AUC or a difference, its degrees of freedom, and the design effect:
    the factor by which clusters change the variance.

    placements (n,): of one run, or their differences between two runs.
    """
    terms, degrees, sampled = [], [], 0.0
    influences = np.empty(len(placements))
    for members in (is_positive, ~is_positive):
        values = placements[members]
        n, df = len(values), len(values) - 1
        sample_variance = float(values.var(ddof=1))
        pooled = (df * sample_variance + PRIOR_ITEMS * model_variance) / (df + PRIOR_ITEMS)
        sampled += sample_variance / n
        terms.append(pooled / n)
        degrees.append(df)
        influences[members] = (values - values.mean()) * len(placements) / n
    variance = sum(terms)
    df_of_items = variance**2 / sum(term**2 / df for term, df in zip(terms, degrees, strict=True))
    if clusters is None or not sampled:
        return variance, df_of_items, 1.0
    sums = contributions_of_clusters(influences, clusters)
    if len(sums) < 2:  # one cluster counts as one item
        return variance * len(placements), 1.0, float(len(placements))
    design_effect = float(sums.var(ddof=1)) / len(sums) / sampled
    if len(sums) < MIN_CLUSTERS_BELOW_1:
        design_effect = max(design_effect, 1.0)
    return variance * design_effect, min(df_of_items, len(sums) - 1), design_effect


def _df_from_kurtosis(placements: Floats, is_positive: Bools) -> float:
    """Return the degrees of freedom, at least 1, of the variance of a difference of AUCs.

    The variance of a sample variance s^2 of n values is s^4 (kurtosis - 1) / n (Cramer 1946, ch.
    27), that of a chi-squared variable 2 s^4 / df. A few placements that differ much estimate a
    variance badly. placements (n,): their differences between two runs.
    """
    variance = variance_of_variance = 0.0
    for members in (is_positive, ~is_positive):
        deviations = placements[members] - placements[members].mean()
        n, mean_square = len(deviations), float((deviations**2).mean())
        if mean_square:
            kurtosis = float((deviations**4).mean()) / mean_square**2
            variance += mean_square / n
            variance_of_variance += (mean_square / n) ** 2 * (kurtosis - 1) / n
    return max(2 * variance**2 / variance_of_variance, 1.0) if variance_of_variance else np.inf


def _wilson_interval(share: float, n: float) -> Interval:
    """Return Wilson's (1927) interval of a share of n items."""
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half_width = Z * (share * (1 - share) / n + Z * Z / (4 * n * n)) ** 0.5 / (1 + Z * Z / n)
    return Interval(centre - half_width, centre + half_width)


def _smallest_class(is_positive: Bools) -> int:
    num_positive = int(is_positive.sum())
    return min(num_positive, len(is_positive) - num_positive)


def _t_quantile(df: float) -> float:
    return float(stdtrit(df, (1 + CONFIDENCE_LEVEL) / 2))
