"""Spearman's rho: its interval, and a test whether two runs correlate equally well with the same
ratings.

rho is Pearson's correlation of ranks, so an item has an influence by its own ranks and by shifting
the ranks of all other items. Let u and v be the mid-ranks of x and y, as fractions around 0, and
rho = C / sqrt(A B) with A = mean u^2, B = mean v^2, C = mean u v. Let M_x(m)_i be the mean over all
items j of m_j if j is above i in x, m_j / 2 if they tie, else 0. Up to a constant each, the
influences of item i on A, B and C are

    u_i^2 + 2 M_x(u)_i,    v_i^2 + 2 M_y(v)_i,    u_i v_i + M_x(v)_i + M_y(u)_i

(Croux & Dehon 2010, Stat. Methods Appl. 19, for data without ties). The variance of the influences
estimates the variance of rho, whatever the distribution of the data. Intervals are computed on
Fisher's scale, atanh rho, so that those of large correlations are asymmetric, with Student's t on
n - 1 degrees of freedom. (Heavy tails of the influences need no fewer degrees of freedom, because
what widens the tails of their mean also increases its variance.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval
from antlm_bench.statistics.special_functions import stdtr, stdtrit
from antlm_bench.types import Floats

MIN_UNTIED_ITEMS = 20
"""Fewest items outside the largest tie for an interval."""
MIN_UNTIED_ITEMS_DIFFERENCE = 40
"""Fewest items outside the largest tie for an interval of a difference."""


def spearman_correlation(x: Floats, y: Floats) -> float | None:
    """Return Spearman's rank correlation of x (n,) and y (n,).

    Returns None if it is undefined: n < 3, or x or y is constant.
    """
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    (u, _), (v, _) = _midranks(x), _midranks(y)
    return float((u @ v) / np.sqrt((u @ u) * (v @ v)))


def spearman_interval(x: Floats, y: Floats) -> Interval:
    """Return the interval of Spearman's correlation of x (n,) and y (n,), n >= 3, neither constant.

    It is (-1, 1) with fewer than MIN_UNTIED_ITEMS items outside the largest tie. Coverage by
    simulation, with at least 21 items and correlations of 0 to .95: 94.5-97% without ties and with
    many small ties; 95.3-97.6% if up to half of the items tie in y only; 93.7-97% if 30 to 75% of
    the items tie in both x and y, with correlations of up to .9 (89-93% at .95).
    """
    n = len(x)
    if _count_untied_items(x, y) < MIN_UNTIED_ITEMS:
        return Interval(-1.0, 1.0)
    rho, z, influence, extra_variance = _correlation_influence(x, y)
    error = (influence @ influence / (n * (n - 1)) + extra_variance) ** 0.5
    half_width = _t_quantile(n) * error
    low, high = np.tanh([z - half_width, z + half_width])
    return Interval(float(min(low, rho)), float(max(high, rho)))


def has_narrow_interval(x: Floats, y: Floats) -> bool:
    """Return whether the interval of this correlation covers only 89-93%: |rho| is above .9, and
    30% of the items or more tie in x and in y (see `spearman_interval`)."""
    rho = spearman_correlation(x, y)
    if rho is None or _count_untied_items(x, y) < MIN_UNTIED_ITEMS:
        return False
    largest_ties = [np.unique(values, return_counts=True)[1].max() for values in (x, y)]
    return abs(rho) > 0.9 and min(largest_ties) >= 0.3 * len(x)


def spearman_difference(
    scores_a: Floats, scores_b: Floats, ratings: Floats
) -> tuple[Interval, float | None]:
    """Return the interval of rho(scores_b, ratings) - rho(scores_a, ratings), all (n,), and the
    two-sided p-value that it is 0.

    p is below 1 - CONFIDENCE_LEVEL if and only if the interval excludes 0. The result is (-2, 2)
    and None with fewer than MIN_UNTIED_ITEMS_DIFFERENCE items outside the largest tie. The interval
    on Fisher's scale is multiplied by the slope of rho between the two correlations.

    By simulation of equal correlations with at least 41 items, 3-6% of tests have p < .05: without
    ties; with many small ties; with 30 to 80% of the items tied in the ratings, in both runs, or in
    all three; with a correlation between the runs of 0, .5 or .9. It is 2-3% if the items tie in
    both runs only and all three correlate by .9. With different correlations and 50 or 200 items,
    intervals cover 93-97%.
    """
    if _count_untied_items(scores_a, scores_b, ratings) < MIN_UNTIED_ITEMS_DIFFERENCE:
        return Interval(-2.0, 2.0), None
    n = len(scores_a)
    a, b = (_correlation_influence(scores, ratings) for scores in (scores_a, scores_b))
    influence = b.influence - a.influence
    variance = influence @ influence / (n * (n - 1)) + a.extra_variance + b.extra_variance
    error = float(variance) ** 0.5
    change_of_z, change_of_rho = b.z - a.z, b.rho - a.rho
    change_of_tanh = np.tanh(b.z) - np.tanh(a.z)
    slope = change_of_tanh / change_of_z if change_of_z else 1 - np.tanh(a.z) ** 2
    half_width = _t_quantile(n) * error
    p = 2 * float(stdtr(n - 1, -abs(change_of_z) / error)) if error else 1.0
    ends = [slope * (change_of_z - half_width), slope * (change_of_z + half_width)]
    low, high = np.clip(ends, -2, 2)
    return Interval(float(min(low, change_of_rho)), float(max(high, change_of_rho))), p


def _count_untied_items(*values: Floats) -> int:
    """Return the number of items outside the largest tie in any of these columns, (n,) each.

    With few such items, intervals are too narrow: with 5 items outside a tie of 45 items in both x
    and y, they covered 65%.
    """
    largest_ties = [int(np.unique(column, return_counts=True)[1].max()) for column in values]
    return len(values[0]) - max(largest_ties)


class _CorrelationInfluence(NamedTuple):
    """A correlation, and the terms of its variance."""

    rho: float
    z: float
    """Fisher's z, atanh rho."""
    influence: Floats
    """Each item's influence on z (n,)."""
    extra_variance: float
    """Variance of z in addition to that of the influences."""


def _correlation_influence(x: Floats, y: Floats) -> _CorrelationInfluence:
    """Return the correlation of x (n,) and y (n,) with the items' influences.

    For a correlation of 1 or -1, z is infinite and all influences are 0. Instead, z is that of the
    next possible correlation (two neighbours exchanged), and the extra variance is Bonett &
    Wright's (2000), (1 + rho^2 / 2) / (n - 3).
    """
    n, (u, above_x), (v, above_y) = len(x), _midranks(x), _midranks(y)
    a, b, c = (float(m.mean()) for m in (u * u, v * v, u * v))
    rho = c / (a * b) ** 0.5
    highest = 1 - 12 / (n**3 - n)
    if abs(rho) > highest:
        return _CorrelationInfluence(
            round(rho, 12),
            float(np.copysign(np.arctanh(highest), rho)),
            np.zeros(n),
            1.5 / max(n - 3, 1),
        )
    influence_on_a = u * u + 2 * above_x(u)
    influence_on_b = v * v + 2 * above_y(v)
    influence_on_c = u * v + above_x(v) + above_y(u)
    relative_influence = influence_on_a / a + influence_on_b / b
    influence_on_rho = influence_on_c / (a * b) ** 0.5 - rho / 2 * relative_influence
    influence_on_z = influence_on_rho / (1 - rho**2)
    return _CorrelationInfluence(rho, float(np.arctanh(rho)), influence_on_z, 0.0)


def _midranks(values: Floats) -> tuple[Floats, Callable[[Floats], Floats]]:
    """Return mid-ranks (n,) as fractions around 0, and the function M of the module docstring."""
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    n = len(values)

    def mean_above(m: Floats) -> Floats:
        tie_sums = np.bincount(codes, m)
        return np.asarray((m.sum() - np.cumsum(tie_sums) + tie_sums / 2)[codes] / n)

    return (np.cumsum(counts) - counts / 2)[codes] / n - 0.5, mean_above


def _t_quantile(n: int) -> float:
    return float(stdtrit(n - 1, (1 + CONFIDENCE_LEVEL) / 2))
