"""Intervals against libraries, each other and simulation: the coverage of 95% is 95%."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from antlm_bench import statistics
from antlm_bench.statistics.acquisition import pearson_correlation
from antlm_bench.types import Floats


def equal_weights(k: int) -> Floats:
    return np.full(k, 1 / k)


def test_macro_weights_are_equal_at_each_level() -> None:
    flat = statistics.macro_weights([("a",), ("b",), ("c",)])
    assert flat == pytest.approx([1 / 3] * 3)
    nested = statistics.macro_weights([("x", "1"), ("x", "2"), ("y", "1")])
    assert nested == pytest.approx([1 / 4, 1 / 4, 1 / 2])
    assert statistics.macro_weights([()]) == pytest.approx([1])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123")), min_size=1, unique=True))
def test_macro_weights_sum_to_one(paths: list[tuple[str, ...]]) -> None:
    assert statistics.macro_weights(paths).sum() == pytest.approx(1)


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
    assert tuple(statistics.t_interval_of_means(means, equal_weights(4))) == pytest.approx(theirs)


def test_one_mean_has_no_t_interval() -> None:
    with pytest.raises(ValueError, match="two means"):
        statistics.t_interval_of_means(np.array([0.5]), equal_weights(1))


@pytest.mark.long
def test_normal_macro_interval_covers_the_truth_95_times_in_100() -> None:
    sizes, rates = [64, 165, 280, 842, 400], [0.6, 0.45, 0.7, 0.9, 0.55]
    weights, rng, hits, trials = equal_weights(5), np.random.default_rng(7), 0, 1500
    for _ in range(trials):
        strata = [(rng.random(n) < p).astype(float) for n, p in zip(sizes, rates, strict=True)]
        low, high = statistics.normal_interval(strata, weights)
        hits += low <= np.mean(rates) <= high
    assert 0.93 <= hits / trials <= 0.97


def test_the_clustered_interval_covers_sampled_paradigms() -> None:
    rng, hits = np.random.default_rng(3), 0
    for _ in range(2000):
        rates = rng.beta(6, 3, size=12)
        means = rng.binomial(200, rates) / 200
        low, high = statistics.t_interval_of_means(means, equal_weights(12))
        hits += low <= 6 / 9 <= high
    assert 0.93 <= hits / 2000 <= 0.97


def test_spearman_is_scipys_and_unknown_where_undefined() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(50), rng.integers(0, 5, 50).astype(float)
    assert statistics.spearman_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert statistics.spearman_correlation(x, np.ones(50)) is None
    assert statistics.spearman_correlation(x[:2], y[:2]) is None


@pytest.mark.parametrize("right", [10, 90, 99, 100])
def test_a_posterior_of_two_cells_is_a_beta_distribution(right: int) -> None:
    low, high = statistics.dirichlet_interval(
        np.array([100.0 - right, right]),
        (np.array([1.0, 0.5]), np.array([0.5, 1.0])),
        lambda cells: cells[:, 1] / cells.sum(axis=1),
    )
    assert low == pytest.approx(stats.beta.ppf(0.025, right + 0.5, 101 - right), abs=0.004)
    assert high == pytest.approx(stats.beta.ppf(0.975, right + 1, 100.5 - right), abs=0.004)


def test_the_interval_of_a_ratio_of_equal_lengths_is_a_t_interval_of_its_logarithm() -> None:
    values = np.random.default_rng(1).gamma(4, size=30)
    low, high = statistics.ratio_interval(values, np.full(30, 7.0))
    half = stats.t.ppf(0.975, 29) * stats.sem(values) / values.mean()
    assert (low, high) == pytest.approx(
        (values.mean() / 7 * np.exp(-half), values.mean() / 7 * np.exp(half))
    )


def test_a_ratio_of_one_pair_has_no_interval_and_a_ratio_of_0_none_either() -> None:
    assert statistics.ratio_interval(np.array([0.0, 3.0]), np.array([0.0, 2.0])) == (1.5, 1.5)
    assert statistics.ratio_interval(np.zeros(3), np.ones(3)) == (0, 0)
    low, high = statistics.ratio_interval(np.array([0.0, 3.0]), np.array([1.0, 1e-3]))
    assert 0 < low < high < np.inf


@pytest.mark.long
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


def test_the_clustered_test_is_the_t_test_over_means() -> None:
    means = np.array([0.02, -0.01, 0.05, 0.03])
    interval, p = statistics.t_test_of_means(means, equal_weights(4))
    assert p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    assert (p < 0.05) == (interval.low > 0)


def test_welch_test_of_one_stratum_is_the_t_test() -> None:
    values = np.array([0.3, 0.9, 0.1, -0.4, 0.7])
    interval, p = statistics.welch_test([values], np.ones(1))
    theirs = stats.ttest_1samp(values, 0)
    assert p == pytest.approx(theirs.pvalue)
    assert tuple(interval) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_welch_test_of_a_contrast_is_welchs_test_of_two_samples() -> None:
    a, b = np.array([0.3, 0.9, 0.1, -0.4, 0.7]), np.array([1.4, 0.2, 2.2])
    interval, p = statistics.welch_test([a, b], np.array([1.0, -1.0]))
    theirs = stats.ttest_ind(a, b, equal_var=False)
    assert p == pytest.approx(theirs.pvalue)
    assert tuple(interval) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
