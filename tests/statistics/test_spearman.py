"""Spearman's correlation: its influences by brute force, its interval and test by libraries and by
simulation.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from antlm_bench import statistics
from antlm_bench.statistics.spearman import has_narrow_interval
from antlm_bench.types import Floats

TRIALS = 800
NOISE = 3 * (0.05 * 0.95 / TRIALS) ** 0.5  # of a share of 5% that is counted in so many trials


def rated(rng: np.random.Generator, n: int, kind: str, rho: float) -> tuple[Floats, Floats, Floats]:
    """Two runs and ratings, all of one Spearman correlation, on scales of their own. kind: "alike",
    both runs normal with the ratings; "copied", one as if it had copied a share of them; "kin", the
    runs share half of their noise.
    """
    ratings, r = rng.normal(size=n), 2 * np.sin(np.pi * rho / 6)
    shared = rng.normal(size=n)
    noise = [rng.normal(size=n) for _ in range(2)]
    if kind == "kin":
        noise = [(shared + own) / 2**0.5 for own in noise]
    first, second = (r * ratings + (1 - r * r) ** 0.5 * own for own in noise)
    copied = np.where(rng.random(n) < rho, ratings, rng.normal(size=n))
    return 9 * first - 80, np.exp(copied if kind == "copied" else second), ratings


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 30), st.integers(21, 40))
def test_the_interval_is_that_of_the_influence_of_weights(seed: int, steps: int, n: int) -> None:
    """What an item does is found slowly here: the weighted correlation of mid-ranks, the item's
    weight nudged.
    """
    rng = np.random.default_rng(seed)
    x = rng.integers(0, steps, n).astype(float)
    y = x + rng.integers(0, steps, n).astype(float)

    def fisher(w: Floats) -> float:
        ranks = [[(w * ((v < own) + (v == own) / 2)).sum() / w.sum() for own in v] for v in (x, y)]
        u, v = (np.array(each) - 0.5 for each in ranks)
        return float(np.arctanh((w * u * v).sum() / ((w * u * u).sum() * (w * v * v).sum()) ** 0.5))

    if np.ptp(x) == 0 or np.ptp(y) == 0 or abs(stats.spearmanr(x, y).statistic) > 0.99:
        return
    if max(np.unique(v, return_counts=True)[1].max() for v in (x, y)) > n - 20:
        return
    nudge = 1e-5 * n * np.eye(n)
    influence = np.array([(fisher(1 + one) - fisher(1 - one)) / 2e-5 for one in nudge])
    half = stats.t.ppf(0.975, n - 1) * (influence @ influence / (n * (n - 1))) ** 0.5
    z = np.arctanh(stats.spearmanr(x, y).statistic)
    assert tuple(statistics.spearman_interval(x, y)) == pytest.approx(
        tuple(np.tanh([z - half, z + half])), rel=1e-4
    )


@pytest.mark.long
def test_many_items_give_scipys_bootstrap_and_fishers_interval() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=400)
    y = x + rng.normal(size=400)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="BCa",
        random_state=1,
    ).confidence_interval
    ours = tuple(statistics.spearman_interval(x, y))
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours == pytest.approx(
        tuple(stats.pearsonr(*map(stats.rankdata, (x, y))).confidence_interval()), abs=0.02
    )


@pytest.mark.long
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    ("n", "rho"), [(50, 0.0), (50, 0.5), (50, 0.8), (50, 0.95), (200, 0.5), (200, 0.95)]
)
def test_the_interval_of_a_correlation_covers_95_times_in_100(
    n: int, rho: float, steps: int
) -> None:
    rng = np.random.default_rng(5)

    def drawn(size: int) -> tuple[Floats, Floats]:
        x, _, y = rated(rng, size, "alike", rho)
        return x, np.round(steps * y) if steps else y

    truth = statistics.spearman_correlation(*drawn(300_000)) or 0.0
    assert steps or truth == pytest.approx(rho, abs=0.006)
    hits = 0
    for _ in range(TRIALS):
        low, high = statistics.spearman_interval(*drawn(n))
        hits += low <= truth <= high
    assert 0.93 - NOISE <= hits / TRIALS <= 0.97 + NOISE


@pytest.mark.long
@pytest.mark.parametrize("rho", [0.5, 0.8])
@pytest.mark.parametrize(
    ("n", "kind"), [(50, "alike"), (50, "copied"), (50, "kin"), (200, "copied")]
)
def test_equal_correlations_are_told_apart_5_times_in_100(n: int, kind: str, rho: float) -> None:
    rng, false = np.random.default_rng(9), 0
    for _ in range(TRIALS):
        (low, high), p = statistics.spearman_difference(*rated(rng, n, kind, rho))
        assert (p < 0.05) == (low > 0 or high < 0)
        false += p < 0.05
    assert 0.03 - NOISE <= false / TRIALS <= 0.07 + NOISE


@pytest.mark.long
def test_a_difference_is_covered_95_times_in_100() -> None:
    rng, hits, r = np.random.default_rng(3), 0, 2 * np.sin(np.pi * 0.8 / 6)
    for _ in range(TRIALS):
        x, _, y = rated(rng, 50, "alike", 0.5)
        z = r * y + (1 - r * r) ** 0.5 * rng.normal(size=50)
        low, high = statistics.spearman_difference(x, z, y)[0]
        hits += low <= 0.3 <= high
    assert 0.93 - NOISE <= hits / TRIALS <= 0.97 + NOISE


def test_a_better_correlation_is_found_whatever_its_scale() -> None:
    rng = np.random.default_rng(4)
    ratings = rng.normal(size=5000)
    x, z = ratings + rng.normal(0, 2, 5000), ratings + rng.normal(0, 0.7, 5000)
    (low, high), p = statistics.spearman_difference(x, z, ratings)
    assert 0 < low < high and p < 0.001
    back, same = statistics.spearman_difference(z, x, ratings)
    assert tuple(back) == pytest.approx((-high, -low)) and same == p
    assert statistics.spearman_difference(np.exp(x / 9), 7 * z, ratings)[1] == p
    assert statistics.spearman_difference(x, np.exp(x / 9), ratings) == ((0, 0), 1)


def test_a_perfect_correlation_is_not_certain() -> None:
    y = np.arange(41.0)
    low, high = statistics.spearman_interval(y, y)
    assert 0.98 < low < 0.9999 and high == 1
    assert tuple(statistics.spearman_interval(-y, y)) == pytest.approx((-high, -low))
    assert tuple(statistics.spearman_interval(y[:20], y[:20])) == (-1, 1)
    (low, high), p = statistics.spearman_difference(-y, y, y)
    assert 0 < low < high and 0 < p < 0.01


@pytest.mark.parametrize("tied", [1, 30])
def test_few_items_beside_the_largest_tie_tell_nothing(tied: int) -> None:
    rng = np.random.default_rng(8)

    def drawn(outside: int) -> tuple[Floats, Floats, Floats, Floats]:
        """Three rows of numbers, and the first of them with so many items beside its tie."""
        x, z, y = rng.normal(size=(3, outside + tied))
        return x, z, y, np.where(np.arange(len(x)) < outside, x, 0.0)

    x, _, y, some = drawn(19)
    for one, other in ((some, y), (y, some)):
        assert statistics.spearman_interval(one, other) == (-1, 1)
    x, z, y, some = drawn(39)
    for three in ((some, z, y), (x, some, y), (x, z, some)):
        assert statistics.spearman_difference(*three) == ((-2, 2), None)
    x, _, y, some = drawn(20)
    assert statistics.spearman_interval(some, y) != (-1, 1)
    x, z, y, some = drawn(40)
    assert statistics.spearman_difference(some, z, y)[1] is not None


def alike(
    rng: np.random.Generator, n: int, kin: float, tied: float
) -> tuple[Floats, Floats, Floats]:
    """Two runs, whose scores correlate by `kin`, and ratings, with which both correlate by .7; a
    share `tied` of items has one value throughout.
    """
    all_three = np.array([[1, kin, 0.7], [kin, 1, 0.7], [0.7, 0.7, 1]])
    x, z, y = (rng.normal(size=(n, 3)) @ np.linalg.cholesky(all_three).T).T
    same = rng.random(n) < tied
    return np.where(same, 0, x), np.where(same, 0, z), np.where(same, 0, y)


@pytest.mark.long
@pytest.mark.parametrize(
    ("n", "kin", "tied"),
    [(50, 0, 0), (50, 0.9, 0), (100, 0.5, 0.5), (100, 0.9, 0.5), (200, 0.5, 0.8)],
)
def test_tied_runs_that_agree_differ_in_5_percent(n: int, kin: float, tied: float) -> None:
    rng, found = np.random.default_rng(11), []
    while len(found) < TRIALS:
        p = statistics.spearman_difference(*alike(rng, n, kin, tied))[1]
        found += [p < 0.05] if p is not None else []
    assert 0.03 - NOISE <= np.mean(found) <= 0.07 + NOISE


@pytest.mark.long
@pytest.mark.parametrize("outside", [20, 30])
def test_ties_on_the_same_items_leave_a_correlation_covered(outside: int) -> None:
    rng = np.random.default_rng(12)
    truth = statistics.spearman_correlation(*alike(rng, 400_000, 0.5, 1 - outside / 100)[1:]) or 0.0
    hits = []
    while len(hits) < TRIALS:
        low, high = statistics.spearman_interval(*alike(rng, 100, 0.5, 1 - outside / 100)[1:])
        hits += [low <= truth <= high] if high < 1 else []
    assert 0.93 - NOISE <= np.mean(hits) <= 0.97 + NOISE


def test_no_table_of_pairs_of_items_is_built() -> None:
    rng, n = np.random.default_rng(4), 5000
    ratings, x, z = rng.normal(size=(3, n))
    tracemalloc.start()
    try:
        statistics.spearman_difference(x, z, ratings)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < n * n  # bytes: one boolean per pair


@pytest.mark.parametrize(
    ("num_tied", "noise", "is_narrow"), [(40, 0.02, True), (20, 0.02, False), (40, 1.0, False)]
)
def test_narrow_intervals_are_those_of_high_tied_correlations(num_tied, noise, is_narrow) -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.zeros(num_tied), 1 + np.arange(100.0 - num_tied) / 100])
    y = np.where(x > 0, x + noise * rng.normal(size=100), 0)

    assert has_narrow_interval(x, y) == is_narrow
