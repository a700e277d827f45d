"""Contrasts of the cells of a factorial design, tested over items.

A cell is a combination of one level per factor. A contrast is a weighted sum of cell means. Each
item gives a score, the weighted sum of its own values, and the scores are the sample of a
one-sample t test: with two conditions, the paired t test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from math import prod, sqrt
from typing import NamedTuple

import numpy as np

from antlm_bench.statistics.intervals import t_test_of_means
from antlm_bench.types import Floats

DesignCell = tuple[str, ...]
"""One level per factor."""
INTERACTION_SIGN = " × "


class Contrast(NamedTuple):
    """A weighted sum of cell means. The weights sum to 0."""

    name: str
    weights: Mapping[DesignCell, float]
    """DesignCell -> weight; cells with weight 0 are left out."""


class MeanOverItems(NamedTuple):
    """A mean over items, with its t interval and the t test of the hypothesis that it is 0."""

    value: float
    low: float | None
    """Lower end of the 95% interval; None for one item."""
    high: float | None
    n: int
    """Number of items."""
    t: float | None
    """Value divided by its standard error; None for one item, or for equal scores."""
    p: float | None
    """Two-sided p-value; None for one item."""

    @property
    def df(self) -> int:
        """Degrees of freedom of the t distribution."""
        return self.n - 1


def mean_over_items(scores: Floats) -> MeanOverItems:
    """Return the mean of the items' scores (n,), n >= 1, with its t interval and test.

    The interval is mean ± t(n - 1) s / sqrt(n), with the standard deviation s of the scores.
    """
    n, value = len(scores), float(scores.mean())
    if n == 1:
        return MeanOverItems(value, None, None, n, None, None)
    interval, p = t_test_of_means(scores, np.full(n, 1 / n))
    error = float(scores.std(ddof=1)) / sqrt(n)
    t = value / error if interval.low < interval.high else None
    return MeanOverItems(value, interval.low, interval.high, n, t, p)


def factorial_contrasts(levels_by_factor: Mapping[str, Sequence[str]]) -> list[Contrast]:
    """Return the main effects and interactions of all factors, in that order.

    Every contrast compares two levels of each of its factors. A main effect is the difference
    between two levels, an interaction the difference between differences, both as means over the
    levels of all other factors. A factor of k levels has k (k - 1) / 2 pairs of levels; the later
    level of a pair is subtracted.
    """
    factors = list(levels_by_factor)
    contrasts = []
    for order in range(1, len(factors) + 1):
        for chosen in combinations(factors, order):
            pairs = [combinations(levels_by_factor[factor], 2) for factor in chosen]
            for compared in product(*pairs):
                contrasts.append(
                    _build_contrast(levels_by_factor, dict(zip(chosen, compared, strict=True)))
                )
    return contrasts


def _build_contrast(
    levels_by_factor: Mapping[str, Sequence[str]], compared: Mapping[str, tuple[str, str]]
) -> Contrast:
    """Return the contrast of two levels of each factor in `compared`."""
    others = prod(len(levels) for name, levels in levels_by_factor.items() if name not in compared)
    weights = {}
    for cell in product(*levels_by_factor.values()):
        sign = 1.0
        for factor, level in zip(levels_by_factor, cell, strict=True):
            if factor in compared:
                plus, minus = compared[factor]
                sign *= (level == plus) - (level == minus)
        if sign:
            weights[cell] = sign / others
    if len(levels_by_factor) == 1:
        [(plus, minus)] = compared.values()
        return Contrast(f"{plus} - {minus}", weights)
    if len(compared) == 1:
        [(factor, (plus, minus))] = compared.items()
        return Contrast(f"{factor}: {plus} - {minus}", weights)
    differences = INTERACTION_SIGN.join(f"({plus} - {minus})" for plus, minus in compared.values())
    return Contrast(f"{INTERACTION_SIGN.join(compared)}: {differences}", weights)


def score_items(values_by_item: Sequence[Mapping[DesignCell, float]], contrast: Contrast) -> Floats:
    """Return the score of each item that has all cells of the contrast, in their order."""
    return np.array(
        [
            sum(weight * values[cell] for cell, weight in contrast.weights.items())
            for values in values_by_item
            if contrast.weights.keys() <= values.keys()
        ],
        float,
    )
