"""Simulate the t intervals of correlations of ages, bits per byte, surprisals and contrasts.

`coverage.py` prints the results.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from antlm_bench.metrics.bits_per_byte import document_contributions
from antlm_bench.statistics import (
    Contrast,
    DesignCell,
    mean_over_items,
    score_items,
    t_test_of_means,
    welch_test,
)
from antlm_bench.statistics.acquisition import pearson_correlation
from antlm_bench.statistics.intervals import Interval

Draw = Callable[[np.random.Generator], tuple[Interval, float]]
"""Draws a sample. Returns the interval and the true value."""
BITS_PER_BYTE = 1.2


def simulate_small_sample(draw: Draw, runs: int, seed: int = 0) -> float:
    """Return the share of intervals that contain the true value."""
    rng = np.random.default_rng(seed)
    num_covered = 0
    for _ in range(runs):
        (low, high), truth = draw(rng)
        num_covered += low <= truth <= high
    return num_covered / runs


def ages(n: int, rho: float, is_skewed: bool = False) -> Draw:
    """Return a draw of n ages of words with a true correlation of rho before ages are skewed."""
    sigma = 0.5
    skewed_rho = rho * sigma / float(np.exp(sigma**2) - 1) ** 0.5

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        x, noise = rng.normal(size=(2, n))
        y = rho * x + (1 - rho**2) ** 0.5 * noise
        correlation = pearson_correlation(np.exp(sigma * x) if is_skewed else x, y)
        assert correlation is not None
        return correlation[2], skewed_rho if is_skewed else rho

    return draw


def documents(n: int) -> Draw:
    """Return a draw of two equal runs on n documents with lognormal lengths."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        lengths = np.exp(rng.normal(7, 0.8, n))
        bits = lengths * rng.normal(BITS_PER_BYTE, 0.2, n)
        contributions = document_contributions(bits, lengths)
        changed = document_contributions(bits + lengths * rng.normal(0, 0.02, n), lengths)
        return welch_test([changed - contributions], np.ones(1))[0], 0.0

    return draw


def words(n: int) -> Draw:
    """Return a draw of the changes of n words' surprisals: gamma, with skewness 1.4."""

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        return t_test_of_means(rng.gamma(2, 1, n), np.full(n, 1 / n))[0], 2.0

    return draw


def contrasts(n: int, num_cells: int) -> Draw:
    """Return a draw of an effect of 2 conditions, or of the interaction of a 2 x 2 design.

    The surprisals of n items are lognormal and correlated by item; the last cell is more variable.
    """
    weights: dict[DesignCell, float] = {("a",): 1.0, ("b",): -1.0}
    if num_cells == 4:
        weights = {("a", "c"): 1.0, ("a", "d"): -1.0, ("b", "c"): -1.0, ("b", "d"): 1.0}
    means, sd = np.arange(1.0, num_cells + 1), 0.6
    truth = float(np.array(list(weights.values())) @ means)

    def draw(rng: np.random.Generator) -> tuple[Interval, float]:
        latent = 0.6 * rng.normal(size=(n, 1)) + 0.8 * rng.normal(size=(n, num_cells))
        values = means * np.exp(sd * latent - sd**2 / 2)
        items = [dict(zip(weights, row, strict=True)) for row in values.tolist()]
        mean = mean_over_items(score_items(items, Contrast("", weights)))
        assert mean.low is not None and mean.high is not None
        return Interval(mean.low, mean.high), truth

    return draw


SMALL_SAMPLES: dict[str, Draw] = {
    **{
        f"ages of {n} words, r = {rho:g}{', skewed' * skewed}": ages(n, rho, skewed)
        for n in (3, 5, 50, 400)
        for rho in (0.0, 0.6, 0.9)
        for skewed in (False, True)
    },
    **{f"difference in {n} documents": documents(n) for n in (3, 10, 30, 100)},
    **{f"surprisal of {n} words": words(n) for n in (2, 20, 300)},
    **{
        f"effect of {num_cells} conditions over {n} items": contrasts(n, num_cells)
        for num_cells in (2, 4)
        for n in (4, 8, 24, 100)
    },
}
MIN_COVERAGE = 0.91
"""Lower than elsewhere, because t intervals of few skewed values are too narrow."""


def print_small_samples(names: list[str], runs: int) -> int:
    """Print a line per case. Return the number of cases below MIN_COVERAGE beyond chance."""
    print("coverage  case")
    misses = 0
    tolerance = 2 * (MIN_COVERAGE * (1 - MIN_COVERAGE) / runs) ** 0.5
    for index, name in enumerate(names):
        coverage = simulate_small_sample(SMALL_SAMPLES[name], runs, seed=index)
        is_missed = coverage < MIN_COVERAGE - tolerance
        misses += is_missed
        print(f"{coverage:8.3f}  {name}{'  MISSED' * is_missed}", flush=True)
    return misses
