"""Clusters: items that belong together, such as the questions on one passage.

Clusters are sampled, not their items: models tend to be right or wrong on a cluster as a whole. For
an average sum_s w_s m_s over strata, item i of stratum s contributes w_s / n_s (x_i - m_s) to the
deviation of the average. The contributions of a cluster add up, within a stratum and between
strata, and the sums of different clusters are independent. (Miller 2024, arXiv 2411.00640;
Cameron & Miller 2015, J. Human Resources 50, 317-372.)
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from antlm_bench.types import Floats, Ints


def contributions_of_clusters(values: Floats, clusters: Ints | None) -> Floats:
    """Return the contribution of each of C clusters to the mean of values (..., n): (..., C).

    clusters (n,): the cluster of each item; None = items are independent, and the values are
    returned. The mean of the contributions is the mean of the values, and their variance divided by
    C is the variance of that mean if clusters are sampled.
    """
    if clusters is None:
        return values
    mean = values.mean(axis=-1, keepdims=True)
    members, num_clusters = _number_clusters(clusters)
    order, sizes = np.argsort(members, kind="stable"), np.bincount(members)
    starts = np.cumsum(sizes) - sizes
    sums = np.add.reduceat((values - mean)[..., order], starts, axis=-1)
    return np.asarray(mean + sums * (num_clusters / len(members)))


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

    values (n,), codes (n,): the stratum of each item, -1 = none. weights (S,). clusters (n,):
    None = items are independent; then the strata hold their values. With clusters, the result is
    one stratum with the contribution of each cluster (see `contributions_of_clusters`), because
    clusters may span strata.
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


def spanning_effect(
    values: Floats,
    codes: Ints,
    weights: Floats,
    clusters: Ints,
    end_items: float,
    value_range: tuple[float, float],
) -> float:
    """Return the factor by which clusters that span strata raise the variance of an average.

    It is the variance of sum_s w_s m_s if whole clusters are sampled, divided by the variance if
    the parts of a cluster in different strata were independent; at least 1. Arguments as in
    `weighted_strata`.

    `end_items` wrong (lowest) and right (highest) items are added, all of whose clusters are wrong
    or right as a whole. So without any error, the factor is that of clusters without variation.
    """
    used = codes >= 0
    values, codes = values[used], codes[used]
    shares, means = _item_shares(values, codes, weights)
    members, num_clusters = _number_clusters(clusters[used])
    cluster_of_part, part_of_item = intersect_partitions(members, codes)
    if len(cluster_of_part) == num_clusters:
        return 1.0

    def variances(deviations: Floats) -> tuple[float, float]:
        """Return the sums of squares of whole clusters and of their parts."""
        sums = np.bincount(part_of_item, shares * deviations)
        whole = np.bincount(cluster_of_part, sums)
        return float(whole @ whole), float(sums @ sums)

    whole, split = variances(values - means[codes])
    whole_alike, split_alike = variances(np.ones(len(values)))
    average = float(weights @ means)
    added = float(np.mean(shares**2)) * end_items
    added *= sum((end - average) ** 2 for end in value_range)
    effect = (whole + added * whole_alike / split_alike) / (split + added)
    return max(1.0, effect)


def intersect_partitions(a: Ints, b: Ints) -> tuple[Ints, Ints]:
    """Return the group in `a` of each part (k,), and the part of each item (n,).

    a (n,), b (n,): the group of each item in two partitions, from 0. Items of a part share both.
    """
    factor = int(b.max(initial=0)) + 1
    parts, part_of_item = np.unique(a.astype(np.int64) * factor + b, return_inverse=True)
    return (parts // factor).astype(np.int32), part_of_item.reshape(-1).astype(np.int32)


def _item_shares(values: Floats, codes: Ints, weights: Floats) -> tuple[Floats, Floats]:
    """Return the weight w_s / n_s of each item (n,), and the means of the strata (S,)."""
    sizes = np.bincount(codes, minlength=len(weights))
    means = np.bincount(codes, values, minlength=len(weights)) / sizes
    return (weights / sizes)[codes], means


def _number_clusters(clusters: Ints) -> tuple[Ints, int]:
    """Return the clusters (n,) numbered from 0, and how many there are."""
    names, members = np.unique(clusters, return_inverse=True)
    return members.reshape(-1).astype(np.int32), len(names)
