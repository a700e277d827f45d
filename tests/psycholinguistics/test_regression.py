"""Partial R2 against plain least-squares fits, its jackknife against refitting, its tests against
scipy, statsmodels and simulated sums of squares.
"""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from coverage_reading_times import READING_CASES, simulate_reading
from scipy import stats

from antlm_bench.statistics.regression import (
    NestedRegression,
    PartialCorrelations,
    _SumOfSquares,
    design_with_interactions,
    partial_correlations,
    partial_r2,
    partial_r2_difference,
    partial_r2_test,
)

CASES = {case.name: case for case in READING_CASES}


def fit_partial_r2(outcome, design, added):
    def residual_sum(columns):
        coefficients = np.linalg.lstsq(columns, outcome, rcond=None)[0]
        return ((outcome - columns @ coefficients) ** 2).sum()

    total = ((outcome - outcome.mean()) ** 2).sum()
    without, full = (
        1 - residual_sum(design) / total,
        1 - residual_sum(np.column_stack([design, added])) / total,
    )
    return (full - without) / (1 - without)


def draw_regression(rng, n=300, clusters=30, effect=0.5):
    columns = [
        rng.normal(10, 3, n),
        rng.integers(1, 12, n).astype(float),
        rng.integers(1, 15, n).astype(float),
    ]
    added = rng.gamma(4, 2, n) + columns[0] / 3
    outcome = (
        200 + 3 * columns[1] + effect * added + rng.normal(0, 5, n) + columns[0] * columns[1] / 10
    )
    return NestedRegression(
        outcome,
        design_with_interactions(columns),
        added,
        rng.integers(clusters, size=n).astype(np.int32),
    )


def test_the_design_is_that_of_the_official_formula():
    a, b, c = np.array([2.0, 3.0]), np.array([5.0, 7.0]), np.array([11.0, 13.0])
    assert design_with_interactions([a, b, c]).tolist() == [
        [1, 2, 5, 11, 10, 22, 55],
        [1, 3, 7, 13, 21, 39, 91],
    ]


@pytest.mark.parametrize("effect", [0.0, 0.5, 5.0])
def test_partial_r2_is_that_of_two_plain_fits(effect):
    regression = draw_regression(np.random.default_rng(0), effect=effect)
    assert partial_r2(regression) == pytest.approx(
        fit_partial_r2(regression.outcome, regression.design, regression.added_predictor), abs=1e-9
    )


def test_a_degenerate_regression_has_no_value():
    regression = draw_regression(np.random.default_rng(1), n=8)
    assert partial_r2(regression) is None
    large = draw_regression(np.random.default_rng(1))
    assert (
        partial_r2(
            NestedRegression(np.ones(300), large.design, large.added_predictor, large.cluster)
        )
        is None
    )


def fit_partial_correlation(outcome, design, added):
    columns = np.column_stack([outcome, added])
    residuals = columns - design @ np.linalg.lstsq(design, columns, rcond=None)[0]
    return np.corrcoef(residuals.T)[0, 1]


def test_partial_correlations_are_those_of_refits_without_each_cluster():
    regressions = [draw_regression(np.random.default_rng(seed), clusters=12) for seed in (2, 3)]
    correlations = partial_correlations(regressions, 12)
    for j, r in enumerate(regressions):
        expected = fit_partial_correlation(r.outcome, r.design, r.added_predictor)
        assert correlations.values[j] == pytest.approx(expected, abs=1e-8)
        assert expected**2 == pytest.approx(partial_r2(r), abs=1e-8)
        for cluster in range(12):
            kept = r.cluster != cluster
            expected = fit_partial_correlation(
                r.outcome[kept], r.design[kept], r.added_predictor[kept]
            )
            assert correlations.left_out[cluster, j] == pytest.approx(expected, abs=1e-8)
    deviations = correlations.left_out - correlations.left_out.mean(axis=0)
    assert correlations.covariance == pytest.approx(11 / 12 * deviations.T @ deviations)


@pytest.mark.parametrize(("n", "clusters"), [(300, 1), (9, 9)])
def test_too_few_clusters_or_rows_have_no_correlations(n, clusters):
    regression = draw_regression(np.random.default_rng(1), n=n, clusters=clusters)
    assert partial_correlations([regression], clusters) is None


def test_a_predictor_without_residuals_explains_nothing_and_has_no_test():
    regression = draw_regression(np.random.default_rng(1))
    collinear = NestedRegression(
        regression.outcome, regression.design, 2 * regression.design[:, 1], regression.cluster
    )
    correlations = partial_correlations([collinear], 30)
    assert correlations.values.tolist() == [0]
    assert partial_r2_test(correlations, np.ones(1)) == ((0, 1), None)


@pytest.mark.parametrize("effect", [0.0, 0.1, 0.3])
def test_one_regression_is_tested_by_t_as_in_statsmodels(effect):
    regression = draw_regression(np.random.default_rng(7), n=1600, clusters=200, effect=effect)
    correlations = partial_correlations([regression], 200)
    error = correlations.covariance[0, 0] ** 0.5
    t = correlations.values[0] / error

    interval, p = partial_r2_test(correlations, np.ones(1))

    assert p == pytest.approx(2 * stats.t.sf(abs(t), 199), rel=1e-6)
    fit = sm.OLS(
        regression.outcome, np.column_stack([regression.design, regression.added_predictor])
    ).fit(cov_type="cluster", cov_kwds={"groups": regression.cluster}, use_t=True)
    assert t == pytest.approx(fit.tvalues[-1], rel=0.1, abs=0.05)
    if effect == 0.3:  # far from 0: the square of the interval of r
        half_width = stats.t.isf(0.025, 199) * error
        expected = np.square(correlations.values[0] + half_width * np.array([-1, 1]))
        assert interval == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("t", [0.0, 0.004, 0.05])
def test_the_p_value_of_a_mean_is_that_of_simulated_sums_of_squares(t):
    rng = np.random.default_rng(3)
    values = np.array([0.12, 0.1, 0.02])
    factor = 0.03 * np.array([[1, 0, 0], [0.9, 0.4, 0], [0.1, 0.1, 1.2]])
    left_out = values + rng.normal(size=(2000, 3)) @ factor.T / 2000**0.5
    correlations = PartialCorrelations(values, left_out)
    weights = np.array([0.25, 0.25, 0.5])
    estimate = weights @ values**2
    draws = values * (t / estimate) ** 0.5 + rng.multivariate_normal(
        np.zeros(3), correlations.covariance, size=200_000
    )
    distances = np.abs(np.sqrt(draws**2 @ weights) - t**0.5)
    expected = np.mean(distances >= abs(estimate**0.5 - t**0.5))

    sum_of_squares = _SumOfSquares.from_correlations(correlations, weights)

    assert sum_of_squares.p_value(t) == pytest.approx(expected, abs=0.006)


def test_equal_independent_correlations_follow_chi_square():
    rng = np.random.default_rng(3)
    deviations = np.linalg.qr(rng.normal(size=(5000, 4)))[0]
    deviations -= deviations.mean(axis=0)
    values = np.array([0.8, -1.3, 2.0, 0.4]) / 40
    scale = (deviations.T @ deviations * 4999 / 5000).diagonal() ** 0.5
    correlations = PartialCorrelations(values, values + deviations / scale / 40)

    _, p = partial_r2_test(correlations, np.full(4, 0.25))

    assert p == pytest.approx(stats.chi2.sf(np.sum((40 * values) ** 2), 4), rel=0.02)


def test_a_difference_is_a_t_test_of_refits_without_each_cluster():
    a, b = (draw_regression(np.random.default_rng(5), clusters=12, effect=e) for e in (0.3, 0.5))
    runs = [partial_correlations([regression], 12) for regression in (a, b)]
    change = partial_r2(b) - partial_r2(a)
    without = np.array(
        [
            np.subtract(
                *[
                    fit_partial_r2(
                        r.outcome[r.cluster != c],
                        r.design[r.cluster != c],
                        r.added_predictor[r.cluster != c],
                    )
                    for r in (b, a)
                ]
            )
            for c in range(12)
        ]
    )
    error = (11 / 12 * np.sum((without - without.mean()) ** 2)) ** 0.5

    interval, p = partial_r2_difference(*runs, np.ones(1))

    half_width = stats.t.isf(0.025, 11) * error
    assert interval == pytest.approx((change - half_width, change + half_width), abs=1e-7)
    assert p == pytest.approx(2 * stats.t.sf(abs(change) / error, 11), abs=1e-6)


def test_runs_that_differ_in_scale_only_do_not_differ():
    regression = draw_regression(np.random.default_rng(5))
    scaled = NestedRegression(
        regression.outcome, regression.design, 3 * regression.added_predictor, regression.cluster
    )
    runs = [partial_correlations([r], 30) for r in (regression, scaled)]

    interval, p = partial_r2_difference(*runs, np.ones(1))

    assert interval == pytest.approx((0, 0), abs=1e-9) and p == 1


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [
        "partial R2 of 0",
        "partial R2 of 0.001",
        "partial R2 of 0.02",
        "two runs of .005",
        "two near-equal runs of .02",
    ],
)
def test_reading_intervals_hold_the_truth_in_93_percent(name):
    case, runs = CASES[name], 150

    results = simulate_reading(case, runs, seed=1)

    assert not [score for score, result in results.items() if result.misses_limits(case.truth)]
