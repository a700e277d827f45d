"""Clustered differences if a lost item is kept, or if both runs are exchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from antlm_bench import statistics
from antlm_bench.statistics.clusters import design_effect

TOLERANCE = 1e-8


@st.composite
def clustered_changes(draw, min_clusters=2, max_clusters=7):
    """Draw changes (n,) with at least one lost item, their strata, weights and clusters."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=min_clusters, max_size=max_clusters))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    lost, gained = draw(st.floats(0.05, 0.6)), draw(st.floats(0, 0.35))
    rates = [lost, 1 - lost - gained, gained]
    by_cluster = rng.choice([-1.0, 0.0, 1.0], len(sizes), p=rates)[clusters]
    own = rng.choice([-1.0, 0.0, 1.0], len(clusters), p=rates)
    changes = np.where(rng.random(len(clusters)) < draw(st.floats(0, 1)), by_cluster, own)
    changes[0] = -1.0
    codes = np.arange(len(clusters), dtype=np.int32) % draw(st.integers(1, min(3, len(clusters))))
    weights = np.full(codes.max() + 1, 1 / (codes.max() + 1))
    return changes, codes, weights, clusters


def keep_each_lost_item(changes, codes, weights, clusters, *, limit=6):
    """Yield the interval after each of some lost items is kept."""
    for row in np.flatnonzero(changes < 0)[:limit]:
        kept = changes.copy()
        kept[row] = 0.0
        yield statistics.score_test(kept, codes, weights, clusters=clusters)[0]


@pytest.mark.long
@settings(max_examples=40, deadline=None, derandomize=True)
@given(clustered_changes())
def test_keeping_a_lost_item_of_few_clusters_worsens_no_verdict(drawn):
    before, _ = statistics.score_test(*drawn[:3], clusters=drawn[3])

    for after in keep_each_lost_item(*drawn):
        assert after.low >= before.low - TOLERANCE
        assert after.high >= min(before.high, 0.0) - TOLERANCE


@pytest.mark.long
@settings(max_examples=40, deadline=None, derandomize=True)
@given(clustered_changes(2, 30))
def test_keeping_all_lost_items_worsens_no_verdict(drawn):
    changes, codes, weights, clusters = drawn

    before, _ = statistics.score_test(changes, codes, weights, clusters=clusters)
    after, _ = statistics.score_test(np.maximum(changes, 0), codes, weights, clusters=clusters)

    assert after.low >= before.low - TOLERANCE
    assert after.high >= min(before.high, 0.0) - TOLERANCE


@pytest.mark.parametrize("items_apart", [1, 5, 16])
@pytest.mark.parametrize("num_clusters", [5, 12, 83, 594])
def test_ends_of_16_items_per_cluster_fall_with_each_lost_item(num_clusters, items_apart):
    clusters = np.repeat(np.arange(num_clusters), 16)
    codes = np.zeros(len(clusters), np.int32)
    lows, highs = [], []
    for num_lost in range(4):
        changes = np.zeros(len(clusters))
        changes[: num_lost * items_apart : items_apart] = -1.0
        (low, high), _ = statistics.score_test(changes, codes, np.ones(1), clusters=clusters)
        lows.append(low)
        highs.append(high)

    assert lows == sorted(lows, reverse=True)
    assert highs == sorted(highs, reverse=True)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(clustered_changes(2, 20))
def test_exchanging_both_runs_mirrors_interval_and_p(drawn):
    changes, codes, weights, clusters = drawn

    interval, p = statistics.score_test(changes, codes, weights, clusters=clusters)
    mirrored, mirrored_p = statistics.score_test(-changes, codes, weights, clusters=clusters)

    assert mirrored == pytest.approx((-interval.high, -interval.low), abs=1e-7)
    assert mirrored_p == pytest.approx(p, abs=1e-7)
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (interval.low > 0 or interval.high < 0)


def test_items_of_seven_clusters_count_as_alike():
    changes = np.tile([1.0, 0.0, -1.0, 0.0], 7)

    effect = design_effect(
        changes,
        np.zeros(28, np.int32),
        np.ones(1),
        np.repeat(np.arange(7), 4),
        statistics.END_ITEMS,
        (-1.0, 1.0),
    )

    assert effect == pytest.approx(4)


@pytest.mark.parametrize("df", [2, 7.5, 40])
def test_one_sided_p_is_that_of_the_t_interval(df):
    quantile = stats.t.ppf(0.975, df)

    assert statistics.one_sided_p(1.0, df) == pytest.approx(0.025)
    assert statistics.one_sided_p(1.4, df) == pytest.approx(stats.t.sf(1.4 * quantile, df))
    assert statistics.one_sided_p(1.4) == pytest.approx(stats.norm.sf(1.4 * 1.959964), rel=1e-5)
