"""Intervals against libraries, each other and simulation: the coverage of 95% is 95%."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from antlm_bench import statistics
from antlm_bench.statistics.acquisition import pearson_correlation
from antlm_bench.types import Floats

RIGHT = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def draw_strata(sizes: list[int], rates: list[float], seed: int = 0) -> list[Floats]:
    rng = np.random.default_rng(seed)
    return [(rng.random(n) < p).astype(float) for n, p in zip(sizes, rates, strict=True)]


def equal_weights(k: int) -> Floats:
    return np.full(k, 1 / k)


@given(RIGHT)
def test_wilson_is_scipys(case: tuple[int, int]) -> None:
    k, n = case
    theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
    low, high = statistics.wilson_interval(k, n)
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_wilson_of_fractional_credit_stays_in_0_to_1(p: float, n: int) -> None:
    low, high = statistics.wilson_interval(p * n, n)
    assert -1e-12 <= low <= p + 1e-12 and p - 1e-12 <= high <= 1 + 1e-12


def test_macro_weights_are_equal_at_each_level() -> None:
    flat = statistics.macro_weights([("a",), ("b",), ("c",)])
    assert flat == pytest.approx([1 / 3] * 3)
    nested = statistics.macro_weights([("x", "1"), ("x", "2"), ("y", "1")])
    assert nested == pytest.approx([1 / 4, 1 / 4, 1 / 2])
    assert statistics.macro_weights([()]) == pytest.approx([1])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123")), min_size=1, unique=True))
def test_macro_weights_sum_to_one(paths: list[tuple[str, ...]]) -> None:
    assert statistics.macro_weights(paths).sum() == pytest.approx(1)


def test_the_bootstrap_equals_resampling_of_items() -> None:
    values = [np.array([0, 0.5, 1, 1, 0, 1, 1, 0.5, 0, 1.0]), np.array([1, 0, 0, 1, 0.0])]
    rng = np.random.default_rng(1)
    naive = sum(v[rng.integers(len(v), size=(200_000, len(v)))].mean(axis=1) / 2 for v in values)
    ours = statistics.bootstrap_interval(values, equal_weights(2), draws=200_000)
    assert tuple(ours) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])), abs=0.02)


@pytest.mark.parametrize("weights", [equal_weights(4), np.array([0.5, 0.25, 0.125, 0.125])])
def test_bootstrap_and_normal_interval_agree(weights: Floats) -> None:
    strata = draw_strata([400, 900, 300, 1000], [0.7, 0.55, 0.9, 0.3])
    assert tuple(statistics.bootstrap_interval(strata, weights)) == pytest.approx(
        tuple(statistics.normal_interval(strata, weights)), abs=0.0015
    )


def test_normal_interval_is_the_formula() -> None:
    a, b = np.array([1, 0, 1, 1.0]), np.array([0.5, 1])
    low, high = statistics.normal_interval([a, b], equal_weights(2))
    variance = (a.var(ddof=1) / 4 + b.var(ddof=1) / 2) / 4
    assert (low + high) / 2 == pytest.approx(0.75)
    assert high - low == pytest.approx(2 * 1.959963984540054 * variance**0.5)


def test_a_stratum_of_one_item_is_not_taken_for_certain() -> None:
    low, high = statistics.normal_interval([np.array([1.0]), np.array([0.0])], equal_weights(2))
    assert high - low == pytest.approx(2 * 1.959963984540054 * (2 * 0.25 / 4) ** 0.5)


def test_the_clustered_interval_is_the_t_interval_over_means() -> None:
    means = np.array([0.6, 0.9, 0.75, 0.5])
    theirs = stats.t.interval(0.95, 3, loc=means.mean(), scale=stats.sem(means))
    assert tuple(statistics.clustered_interval(means, equal_weights(4))) == pytest.approx(theirs)


def test_one_cluster_has_no_clustered_interval() -> None:
    with pytest.raises(ValueError, match="two strata"):
        statistics.clustered_interval(np.array([0.5]), equal_weights(1))


def test_wilson_macro_of_one_and_of_perfect_strata() -> None:
    low, high = statistics.wilson_interval(30, 40)
    values = np.repeat([1.0, 0.0], [30, 10])
    assert tuple(statistics.wilson_macro_interval([values], equal_weights(1))) == pytest.approx(
        (float(low), float(high))
    )
    perfect = statistics.wilson_macro_interval([np.ones(100)] * 10, equal_weights(10))
    assert perfect.high == pytest.approx(1) and 0.98 < perfect.low < 0.999


def coverage(interval: str, sizes: list[int], rates: list[float], trials: int = 1500) -> float:
    weights, rng, hits = equal_weights(len(sizes)), np.random.default_rng(7), 0
    for _ in range(trials):
        strata = [(rng.random(n) < p).astype(float) for n, p in zip(sizes, rates, strict=True)]
        options = {"draws": 800} if interval == "bootstrap_interval" else {}
        low, high = getattr(statistics, interval)(strata, weights, **options)
        hits += low <= np.mean(rates) <= high
    return hits / trials


@pytest.mark.parametrize(
    "interval", ["bootstrap_interval", "normal_interval", "wilson_macro_interval"]
)
def test_macro_intervals_cover_the_truth_95_times_in_100(interval: str) -> None:
    assert 0.93 <= coverage(interval, [64, 165, 280, 842, 400], [0.6, 0.45, 0.7, 0.9, 0.55]) <= 0.97


def test_the_clustered_interval_covers_sampled_paradigms() -> None:
    rng, hits = np.random.default_rng(3), 0
    for _ in range(2000):
        rates = rng.beta(6, 3, size=12)
        means = rng.binomial(200, rates) / 200
        low, high = statistics.clustered_interval(means, equal_weights(12))
        hits += low <= 6 / 9 <= high
    assert 0.93 <= hits / 2000 <= 0.97


def test_spearman_is_scipys_and_unknown_where_undefined() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(50), rng.integers(0, 5, 50).astype(float)
    assert statistics.spearman_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert statistics.spearman_correlation(x, np.ones(50)) is None
    assert statistics.spearman_correlation(x[:2], y[:2]) is None


@pytest.mark.parametrize("n", [20, 50, 200, 1000])
def test_wilson_covers_95_times_in_100_over_all_rates(n: int) -> None:
    """The coverage is summed over all outcomes; at single rates it oscillates around 95%."""
    rates = np.linspace(0.03, 0.97, 95)
    low, high = statistics.wilson_interval(np.arange(n + 1.0), n)
    inside = (low <= rates[:, None]) & (rates[:, None] <= high)
    covered = (stats.binom.pmf(np.arange(n + 1), n, rates[:, None]) * inside).sum(axis=1)
    assert 0.945 <= covered.mean() <= 0.96
    assert covered.min() > 0.9


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_the_bound_of_a_perfect_rate_is_clopper_pearson(n: int) -> None:
    """All n are right: errors of both kinds share a prior of one; the bound is Clopper-Pearson."""
    low, high = statistics.dirichlet_interval(
        np.array([n / 2, 0, 0, n / 2]),
        0.5,
        lambda cells: (cells[:, 0] + cells[:, 3]) / cells.sum(axis=1),
    )
    # The diagonal has a prior, too: one more item.
    assert low ** (n + 1) == pytest.approx(0.025, abs=0.004)
    assert low < stats.beta.ppf(0.5, n, 1) < high < 1


@pytest.mark.parametrize(("n", "r"), [(30, 0.0), (30, 0.8), (200, 0.5)])
def test_pearsons_r_has_nominal_coverage_and_error_rate(n: int, r: float) -> None:
    rng, trials = np.random.default_rng(4), 1200
    covered = significant = 0
    for _ in range(trials):
        x, noise = rng.normal(size=(2, n))
        _, p, (low, high) = pearson_correlation(x, r * x + (1 - r * r) ** 0.5 * noise) or (
            0,
            0,
            (2, 2),
        )
        covered += low <= r <= high
        significant += p < 0.05
    noise = 3 * (0.05 * 0.95 / trials) ** 0.5
    assert abs(covered / trials - 0.95) < noise
    assert r or abs(significant / trials - 0.05) < noise


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=30), min_size=1, max_size=6
    )
)
def test_intervals_hold_their_estimate_and_repeat_exactly(values: list[list[float]]) -> None:
    strata, weights = [np.array(v) for v in values], equal_weights(len(values))
    value = float(np.mean([v.mean() for v in strata]))
    for interval in (
        statistics.bootstrap_interval,
        statistics.normal_interval,
        statistics.wilson_macro_interval,
    ):
        low, high = interval(strata, weights)
        assert low - 1e-9 <= value <= high + 1e-9
        assert interval(strata, weights) == (low, high)


def test_the_bootstrap_draws_counts_not_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost grows with the number of distinct values (two), not with the number of items."""
    strata = draw_strata([1000] * 3, [0.4, 0.7, 0.99], seed=1)
    generator = Mock(wraps=np.random.default_rng(0))
    monkeypatch.setattr(np.random, "default_rng", lambda seed: generator)
    statistics.bootstrap_interval(strata, equal_weights(3))
    assert [name for name, *_ in generator.method_calls] == ["multinomial"] * 3
    assert all(len(args[1]) == 2 for _, args, _ in generator.method_calls)
