"""Design effects, contributions of clusters, and intervals that count clusters as units."""

import cluster_sizes
import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from antlm_bench import statistics
from antlm_bench.metrics.classification import F1, ConfusionCounts
from antlm_bench.statistics.clusters import design_effect

CREDITS, CHANGES = (0.0, 1.0), (-1.0, 1.0)


def effect(values, clusters, codes=None, weights=(1.0,), value_range=CREDITS):
    codes = np.zeros(len(values), np.int32) if codes is None else np.asarray(codes, np.int32)
    return design_effect(
        np.asarray(values, float), codes, np.array(weights), np.asarray(clusters), 0.5, value_range
    )


def draw_answers(rng, sizes, rate, correlation, seeds=1):
    """Draw answers (seeds, n): a cluster's items share a part of a normal latent score."""
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    shared = rng.standard_normal(len(sizes))[clusters]
    own = rng.standard_normal((seeds, len(clusters)))
    latent = correlation**0.5 * shared + (1 - correlation) ** 0.5 * own
    return (latent < stats.norm.ppf(rate)).astype(float), clusters


def test_contributions_of_clusters_have_the_cluster_robust_variance():
    answers, clusters = draw_answers(np.random.default_rng(0), [3, 1, 7, 2] * 10, 0.6, 0.5)

    contributions = statistics.contributions_of_clusters(answers, clusters)[0]

    robust = sm.OLS(answers[0], np.ones(130)).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "df_correction": False}
    )
    assert contributions.mean() == pytest.approx(answers.mean())
    assert contributions.var(ddof=1) / 40 == pytest.approx(robust.cov_params().item())


def test_an_average_over_strata_has_the_variance_of_its_weighted_clusters():
    values = np.r_[1, 0, 1, 1, 0, 0, 1.0, 1]
    codes, clusters = np.r_[0, 0, 0, 0, 1, 1, 1, 1], np.r_[0, 0, 1, 2, 0, 1, 1, 2]

    strata = statistics.weighted_strata(values, codes, np.r_[0.25, 0.75], clusters)

    # Means .75 and .5; cluster 0 deviates by (.25 - .75) / 4 * .25 + (-.5) / 4 * .75.
    first = 0.25 / 4 * (0.25 - 0.75) + 0.75 / 4 * -0.5
    assert strata.values[0].mean() == pytest.approx(0.25 * 0.75 + 0.75 * 0.5)
    assert strata.values[0][0] == pytest.approx(0.5625 + 3 * first)


@pytest.mark.parametrize(("sizes", "expected"), [([100], 100), ([99, 1], 98.02)])
def test_items_of_one_large_cluster_count_as_alike(sizes, expected):
    answers, clusters = np.repeat([1.0, 0.0], [60, 40]), np.repeat(range(len(sizes)), sizes)

    assert effect(answers, clusters) == pytest.approx(expected)  # sum of n_c^2 / n


def test_one_large_cluster_covers_its_rate():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(60):
        answers, clusters = draw_answers(rng, [99, 1], 0.7, 0.3)
        one_stratum = np.zeros(100, np.int32)
        interval = statistics.score_interval(answers[0], one_stratum, np.ones(1), clusters=clusters)
        covered += interval.low <= 0.7 <= interval.high
    assert covered >= 54  # 36 if items count as independent


def test_clusters_of_one_have_no_effect():
    assert effect([1, 0, 1, 1], [3, 1, 2, 0]) == 1.0


def test_copies_have_their_number_as_effect_but_for_the_t_quantile():
    answers = np.repeat(np.r_[np.ones(150), np.zeros(50)], 3)

    design = effect(answers, np.repeat(np.arange(200), 3))

    assert design == pytest.approx(
        3 * (stats.t.ppf(0.975, 199) / stats.norm.ppf(0.975)) ** 2, 0.001
    )


def test_clusters_that_span_strata_raise_the_variance():
    values = np.r_[np.ones(60), np.zeros(40)]

    alike = effect(
        np.tile(values, 2), np.tile(np.arange(100), 2), np.repeat([0, 1], 100), (0.5, 0.5)
    )

    assert alike == pytest.approx(2, rel=0.03)


def test_pairs_of_one_right_and_one_wrong_item_lower_the_variance():
    opposite = effect(np.tile([1.0, 0.0], 1000), np.repeat(np.arange(1000), 2))

    assert opposite < 0.01


def test_chance_does_not_lower_the_variance():
    rng = np.random.default_rng(0)
    effects = [effect(rng.random(200) < 0.6, np.repeat(np.arange(100), 2)) for _ in range(100)]

    assert np.mean(np.array(effects) < 1) < 0.06


def test_without_errors_clusters_count_as_alike():
    assert effect(np.ones(6), [0, 0, 0, 1, 1, 2]) == pytest.approx(14 / 6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=30),
    st.floats(0, 0.6),
    st.floats(0, 1),
    st.integers(0, 10_000),
)
def test_p_is_below_5_percent_exactly_where_the_interval_excludes_0(sizes, rate, shared, seed):
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    rates = [rate, 1 - 1.5 * rate, rate / 2]
    by_cluster = rng.choice([-1.0, 0.0, 1.0], len(sizes), p=rates)[clusters]
    own = rng.choice([-1.0, 0.0, 1.0], len(clusters))
    changes = np.where(rng.random(len(clusters)) < shared, by_cluster, own)
    codes = rng.integers(0, 3, len(clusters)).astype(np.int32)
    codes[: min(3, len(codes))] = np.arange(min(3, len(codes)))
    weights = np.full(codes.max() + 1, 1 / (codes.max() + 1))

    headline = statistics.score_test(changes, codes, weights, clusters=clusters)
    groups = [codes == code for code in range(len(weights))]
    by_group = statistics.score_tests_by_group(changes, groups, clusters=clusters)

    for (low, high), p in [headline, *by_group]:
        if abs(p - 0.05) > 1e-6:
            assert (p < 0.05) == (low > 0 or high < 0)


@pytest.mark.long
def test_f1_over_paragraphs_covers_the_truth():
    sizes = list(map(int, cluster_sizes.MULTIRC.split()))
    rng, n = np.random.default_rng(1), sum(sizes)
    gold_rate, hit, false_alarm = 0.43, 0.7, 0.3
    truth = 2 * gold_rate * hit / (gold_rate + gold_rate * hit + (1 - gold_rate) * false_alarm)
    covered = 0
    for _ in range(200):
        gold = (rng.random(n) < gold_rate).astype(np.int32)
        is_hit, clusters = draw_answers(rng, sizes, hit, 0.3)
        predicted = np.where(gold == 1, is_hit[0], is_hit[0] == 0).astype(np.int32)
        pairs, index, counts = np.unique(
            np.column_stack([gold, predicted]), axis=0, return_inverse=True, return_counts=True
        )
        confusions = ConfusionCounts(
            counts.astype(float),
            pairs[:, 0],
            np.eye(2)[pairs[:, 1]],
            index.reshape(-1),
            clusters,
        )
        estimate = confusions.estimate("f1", {})
        covered += estimate.low <= truth <= estimate.high

    assert F1.score(confusions.table) == pytest.approx(estimate.value)
    assert covered / 200 >= 0.93 - 2 * (0.93 * 0.07 / 200) ** 0.5


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_seeds_and_clusters_cover_the_truth(correlation):
    sizes = list(map(int, cluster_sizes.MULTIRC.split()))
    rng, covered = np.random.default_rng(2), 0
    for _ in range(300):
        answers, clusters = draw_answers(rng, sizes, 0.65, correlation, seeds=3)
        contributions = statistics.contributions_of_clusters(answers, clusters)
        low, high = statistics.two_level_mean(contributions).interval
        covered += low <= 0.65 <= high

    assert covered / 300 >= 0.93 - 2 * (0.93 * 0.07 / 300) ** 0.5
