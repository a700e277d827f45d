"""Partial R2 against plain least-squares fits, its bootstrap against refitting."""

from __future__ import annotations

import numpy as np
import pytest

from antlm_bench.statistics.regression import (
    NestedRegression,
    bias_corrected_interval,
    bootstrap_partial_r2,
    cluster_influences,
    clustered_t_test,
    design_with_interactions,
    partial_r2,
)


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


def test_every_replicate_is_the_fit_of_its_resampled_clusters():
    regressions = [draw_regression(np.random.default_rng(seed), clusters=12) for seed in (2, 3)]
    drawn = bootstrap_partial_r2(regressions, 12, draws=20, seed=7)
    counts = np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), size=20)
    for replicate, count in zip(drawn, counts, strict=True):
        for value, regression in zip(replicate, regressions, strict=True):
            rows = np.concatenate(
                [
                    np.flatnonzero(regression.cluster == c)
                    for c in range(12)
                    for _ in range(count[c])
                ]
            )
            expected = fit_partial_r2(
                regression.outcome[rows], regression.design[rows], regression.added_predictor[rows]
            )
            assert value == pytest.approx(expected, abs=1e-7)


def test_a_bias_corrected_interval_contains_its_value():
    replicates = np.linspace(0.02, 0.08, 1001)
    low, high = bias_corrected_interval(0.025, replicates)
    assert low < 0.025 < high < 0.08
    assert bias_corrected_interval(0.05, replicates) == pytest.approx(
        tuple(np.quantile(replicates, [0.025, 0.975])), abs=1e-3
    )


@pytest.mark.long
def test_partial_r2_intervals_have_nominal_coverage():
    """One predictor explains 0.2^2 / (1 + 0.2^2), about 4%, of the residual variance."""
    rng, covered, n, trials = np.random.default_rng(4), 0, 400, 60
    for _ in range(trials):
        added, other = rng.normal(size=n), rng.normal(size=n)
        regression = NestedRegression(
            0.2 * added + other + rng.normal(size=n),
            design_with_interactions([other]),
            added,
            np.repeat(np.arange(80), 5),
        )
        value = partial_r2(regression)
        low, high = bias_corrected_interval(
            value, bootstrap_partial_r2([regression], 80, draws=400)[:, 0]
        )
        covered += low <= 0.04 / 1.04 <= high
    assert covered >= 0.85 * trials


@pytest.mark.long
def test_intervals_of_a_difference_have_nominal_coverage():
    """Two noisy copies of a signal that explains 0.5^2 / 1.25 of the residual variance.

    They carry 1 / 1.25 and 1 / 2 of the signal; the residuals of a sentence are correlated.
    Coverage in 200 trials: 0.93 to 0.96 in four such cases, 0.99 without an effect.
    """
    rng, covered, trials = np.random.default_rng(6), 0, 60
    sentence = np.repeat(np.arange(80), 5)
    for _ in range(trials):
        signal, other = rng.normal(size=400), rng.normal(size=400)
        outcome = (
            other + 0.5 * signal + 0.6 * rng.normal(size=80)[sentence] + 0.8 * rng.normal(size=400)
        )
        regressions = [
            NestedRegression(
                outcome,
                design_with_interactions([other]),
                signal + noise * rng.normal(size=400),
                sentence,
            )
            for noise in (0.5, 1.0)
        ]
        drawn = bootstrap_partial_r2(regressions, 80, draws=400)
        difference = partial_r2(regressions[1]) - partial_r2(regressions[0])
        low, high = bias_corrected_interval(difference, drawn[:, 1] - drawn[:, 0])
        covered += low <= 0.25 / 1.25 * (1 / 2 - 1 / 1.25) <= high
    assert 0.85 * trials <= covered


def test_the_influence_of_a_cluster_is_what_its_weight_moves():
    regression = draw_regression(np.random.default_rng(5), clusters=12)
    influences = cluster_influences(regression, 12)

    def weighted(cluster, weight):
        w = np.where(regression.cluster == cluster, weight, 1) ** 0.5
        return fit_uncentred_partial_r2(
            w * regression.outcome, w[:, None] * regression.design, w * regression.added_predictor
        )

    expected = [(weighted(c, 1 + 1e-4) - weighted(c, 1 - 1e-4)) / 2e-4 for c in range(12)]
    assert influences == pytest.approx(np.array(expected), rel=1e-4, abs=1e-9)
    assert influences.sum() == pytest.approx(0, abs=1e-12)


def fit_uncentred_partial_r2(outcome, design, added):
    residual_sums = [
        ((outcome - columns @ np.linalg.lstsq(columns, outcome, rcond=None)[0]) ** 2).sum()
        for columns in (design, np.column_stack([design, added]))
    ]
    return 1 - residual_sums[1] / residual_sums[0]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["alike", "skewed", "kin", "lumps", "nothing"])
def test_equal_predictors_differ_5_times_in_100(kind):
    """skewed: noise of another shape and scale. kin: the predictors share most of their noise.
    lumps: one carries the signal in some sentences and none in others. nothing: no effect.
    """
    rng, trials, rejections = np.random.default_rng(1), 600, 0
    sentence = np.repeat(np.arange(80), 5).astype(np.int32)
    for _ in range(trials):
        signal, other, own_noise, shared_noise = rng.normal(size=(4, 400))
        first = signal + 0.8 * (
            0.9 * shared_noise + 0.19**0.5 * rng.normal(size=400) if kind == "kin" else own_noise
        )
        second = {
            "skewed": 9 * (signal + 0.8 * (rng.exponential(size=400) - 1)),
            "kin": signal + 0.8 * (0.9 * shared_noise + 0.19**0.5 * rng.normal(size=400)),
            "lumps": np.where(
                rng.random(80)[sentence] < 1 / 1.64**0.5, signal, rng.normal(size=400)
            ),
        }.get(kind, signal + 0.8 * rng.normal(size=400))
        outcome = other + 0.5 * (kind != "nothing") * signal + 0.6 * rng.normal(size=80)[sentence]
        outcome += 0.8 * rng.normal(size=400)
        regressions = [
            NestedRegression(outcome, design_with_interactions([other]), added, sentence)
            for added in (first, second)
        ]
        change = np.subtract(
            *[fit_uncentred_partial_r2(r.outcome, r.design, r.added_predictor) for r in regressions]
        )
        rejections += (
            clustered_t_test(
                change,
                cluster_influences(regressions[0], 80) - cluster_influences(regressions[1], 80),
            )
            < 0.05
        )
    noise = 3 * (0.05 * 0.95 / trials) ** 0.5
    assert rejections / trials <= 0.06 + noise
    assert rejections / trials >= 0.04 - noise or kind == "nothing"
