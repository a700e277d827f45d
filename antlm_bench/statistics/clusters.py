"""Clusters: items that belong together, such as the questions on one passage.

Models tend to be right or wrong on a cluster as a whole. Therefore the clusters are treated as the
sample, not the items. In an average sum_s w_s m_s over strata, item i of stratum s contributes
w_s / n_s (x_i - m_s) to the deviation of the average. The contributions of a cluster's items are
summed, within and across strata; the sums of different clusters are independent. (Miller 2024,
arXiv 2411.00640; Cameron & Miller 2015, J. Human Resources 50, 317-372.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Z
from antlm_bench.statistics.special_functions import stdtrit
from antlm_bench.types import Floats, Ints

MIN_VARYING_CLUSTERS = 8
"""Fewest effective clusters from which a design effect is estimated."""
MIN_CLUSTERS_BELOW_1 = 50
"""Fewest effective clusters whose design effect may be below 1."""
MIN_EFFECTIVE_CLUSTERS = 1.999
"""Fewest effective clusters (2, less rounding) whose sums estimate a variance."""


def contributions_of_clusters(values: Floats, clusters: Ints | None) -> Floats:
    """Return the contribution of each of C clusters to the mean of values (..., n): (..., C).

    clusters (n,): the cluster of each item; None = items are independent, so the values themselves
    are returned. The contributions have the mean of the values. If clusters are the sample, the
    variance of that mean is the variance of the contributions, divided by C.
    """
    if clusters is None:
        return values
    mean = values.mean(axis=-1, keepdims=True)
    members, num_clusters = _number_clusters(clusters)
    order, sizes = np.argsort(members, kind="stable"), np.bincount(members)
    starts = np.cumsum(sizes) - sizes
    sums = np.add.reduceat((values - mean)[..., order], starts, axis=-1)
    return np.asarray(mean + sums * (num_clusters / len(members)))


def has_one_large_cluster(clusters: Ints | None) -> bool:
    """Return whether one cluster has nearly all of the items (n,), so that clusters do not show how
    much they vary. None = items are independent."""
    if clusters is None:
        return False
    sizes = np.unique(clusters, return_counts=True)[1]
    num_effective = float(sizes.sum() ** 2 / (sizes**2).sum())
    return len(clusters) > 1 and num_effective < MIN_EFFECTIVE_CLUSTERS


class WeightedStrata(NamedTuple):
    """Independent values in strata, whose weighted mean is an average."""

    values: list[Floats]
    """The values (n_s,) of each stratum."""
    weights: Floats
    """The weight of each stratum; they sum to 1."""


def weighted_strata(
    values: Floats, codes: Ints, weights: Floats, clusters: Ints | None
) -> WeightedStrata:
    """Return independent values whose weighted mean is sum_s w_s m_s.

    values (n,). codes (n,): the stratum of each item, -1 = none. weights (S,): of the strata.
    clusters (n,): the cluster of each item, None = items are independent. Without clusters, the
    result has the values of each stratum. With clusters, it is one stratum with a contribution per
    cluster (see `contributions_of_clusters`), because a cluster may span strata.
    """
    used = codes >= 0
    values, codes = values[used], codes[used]
    if clusters is None:
        order, sizes = np.argsort(codes, kind="stable"), np.bincount(codes, minlength=len(weights))
        ends = np.cumsum(sizes)[:-1]
        return WeightedStrata(np.split(values[order], ends), weights)
    shares, means = _item_shares(values, codes, weights)
    members, num_clusters = _number_clusters(clusters[used])
    sums = np.bincount(members, shares * (values - means[codes]), minlength=num_clusters)
    return WeightedStrata([np.asarray(weights @ means + num_clusters * sums)], np.ones(1))


def design_effect(
    values: Floats,
    codes: Ints,
    weights: Floats,
    clusters: Ints,
    end_items: float,
    value_range: tuple[float, float],
) -> float:
    """Return the factor by which clusters change the variance of sum_s w_s m_s.

    It is the variance if whole clusters are sampled, divided by the variance if items were
    independent (Kish 1965; Rao & Scott 1992, Biometrics 48, 577-585: counts divided by it can be
    analysed as counts of independent items). Arguments as in `weighted_strata`.

    Three corrections, explained in docs/explanation/statistics.md:

    - `end_items` items are added at each end of the range. They are alike within their clusters, so
      values without any variation get the factor of clusters whose items are all alike.
    - The variance over clusters is multiplied by (t / z)^2, because few clusters estimate it badly.
      The degrees of freedom of t are Kish's effective number of clusters, less 1.
    - A factor below 1 (one item of a pair tends to be right where the other is wrong) is raised by
      two standard errors, factor * sqrt(2 / df) each, but not above 1. With fewer than
      MIN_CLUSTERS_BELOW_1 effective clusters it is 1, because a few sums can agree by chance.

    Fewer than MIN_VARYING_CLUSTERS effective clusters do not show how alike their items are. Items
    of a cluster then count as if they were alike. So the factor does not depend on the answers, and
    an item that is kept instead of lost lowers no end of an interval.
    """
    used = codes >= 0
    values, codes = values[used], codes[used]
    shares, means = _item_shares(values, codes, weights)
    members, num_clusters = _number_clusters(clusters[used])
    if num_clusters == len(members):
        return 1.0
    deviations = shares * (values - means[codes])
    cluster_variance = float(np.sum(np.bincount(members, deviations) ** 2))
    squared_cluster_shares = float(np.sum(np.bincount(members, shares) ** 2))
    squared_item_shares = float(np.sum(shares**2))
    effective_number = 1 / squared_cluster_shares
    if effective_number < MIN_VARYING_CLUSTERS:
        return squared_cluster_shares / squared_item_shares
    df = effective_number - 1
    cluster_variance *= float(stdtrit(df, (1 + CONFIDENCE_LEVEL) / 2) / Z) ** 2
    average = float(weights @ means)
    end_variance = end_items * sum((end - average) ** 2 for end in value_range) / len(members)
    effect = cluster_variance + end_variance * squared_cluster_shares
    effect /= float(deviations @ deviations) + end_variance * squared_item_shares
    if effective_number < MIN_CLUSTERS_BELOW_1:
        return max(effect, 1.0)
    return max(effect, min(1.0, effect * (1 + 2 * math.sqrt(2 / df))))


def _item_shares(values: Floats, codes: Ints, weights: Floats) -> tuple[Floats, Floats]:
    """Return the share w_s / n_s of each item (n,) in the average, and the stratum means (S,)."""
    sizes = np.bincount(codes, minlength=len(weights))
    means = np.bincount(codes, values, minlength=len(weights)) / sizes
    return (weights / sizes)[codes], means


def _number_clusters(clusters: Ints) -> tuple[Ints, int]:
    """Return the cluster of each item (n,), numbered from 0, and the number of clusters."""
    distinct, members = np.unique(clusters, return_inverse=True)
    return members.reshape(-1).astype(np.int32), len(distinct)
