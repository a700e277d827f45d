"""p < .05 exactly where the 95% interval excludes 0, for random and for extreme inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from antlm_bench import statistics
from antlm_bench.statistics.acquisition import pearson_correlation
from antlm_bench.statistics.regression import (
    PartialCorrelations,
    partial_r2_difference,
    partial_r2_test,
)

VALUES = st.one_of(
    st.sampled_from([0.0, 0.0, 1.0, -1.0, 0.5]),  # many ties
    st.floats(-1e3, 1e3),
    st.floats(-1e150, 1e150),
    st.floats(1e-150, 1e-100),
)
CHANGES = st.one_of(
    st.lists(VALUES, min_size=2, max_size=30),
    st.tuples(VALUES, st.integers(2, 30)).map(lambda pair: [pair[0]] * pair[1]),  # constant
    st.lists(VALUES, min_size=2, max_size=2),
)


def assert_agreement(interval, p):
    low, high = interval
    assert low <= high
    if abs(p - 0.05) > 1e-7:  # rounding decides nearer than that
        assert (p < 0.05) == (low > 0 or high < 0), (interval, p)


@given(CHANGES)
def test_words_as_a_sample_agree_with_their_p_value(changes):
    change = np.array(changes)
    assert_agreement(*statistics.t_test_of_means(change, np.full(len(change), 1 / len(change))))


@given(CHANGES)
def test_documents_agree_with_their_p_value(changes):
    assert_agreement(*statistics.welch_test([np.array(changes)], np.ones(1)))


@given(st.lists(CHANGES, min_size=2, max_size=5))
def test_strata_of_values_agree_with_their_p_value(strata):
    parts = [np.array(changes) for changes in strata]
    assert_agreement(*statistics.welch_test(parts, np.full(len(parts), 1 / len(parts))))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=3, max_size=30))
def test_a_correlation_agrees_with_its_p_value(pairs):
    x, y = np.clip(np.array(pairs).T, -1e100, 1e100)
    if np.ptp(x) > 1e-3 * np.abs(x).max() and np.ptp(y) > 1e-3 * np.abs(y).max():
        r, p, interval = pearson_correlation(x, y)
        assert_agreement(interval, p)
        assert interval.low <= r <= interval.high


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(3, 60), st.sampled_from([0.0, 0.5, 0.95]))
def test_a_difference_of_rank_correlations_agrees_with_its_p_value(seed, levels, overlap):
    rng = np.random.default_rng(seed)
    ratings, noise = rng.normal(size=(2, 60))
    runs = [ratings + noise * overlap + rng.normal(size=60) for _ in range(2)]
    tied = [np.round(values * levels / 6) for values in (*runs, ratings)]
    interval, p = statistics.spearman_difference(*tied)
    if p is not None:
        assert_agreement(interval, p)


@st.composite
def draw_partial_correlations(draw):
    """Draw correlations (r,) and those without each of k clusters, near them or far."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    k, r = draw(st.integers(2, 60)), draw(st.integers(1, 5))
    size = draw(st.sampled_from([0.0, 1e-9, 0.01, 0.1, 0.3, 0.9]))
    values = np.clip(size * rng.normal(size=r), -1, 1)
    spread = draw(st.sampled_from([0.0, 1e-9, 0.001, 0.01, 0.1]))
    shared = rng.normal(size=(k, 1)) if draw(st.booleans()) else 0.0
    moved = spread * (rng.normal(size=(k, r)) + shared)
    return PartialCorrelations(values, np.clip(values + moved, -1, 1))


TINY = PartialCorrelations(np.array([-8.3e-10]), np.array([[-6.8e-10], [-5.7e-10]]))


@settings(max_examples=200)
@given(draw_partial_correlations())
@example(TINY)
def test_a_partial_r2_agrees_with_its_p_value(correlations):
    weights = np.full(len(correlations.values), 1 / len(correlations.values))
    interval, p = partial_r2_test(correlations, weights)
    if p is None:
        assert interval == (0, 1)
    else:
        assert_agreement(interval, p)
        value = weights @ correlations.values**2
        assert 0 <= interval.low <= value + 1e-12 and value <= interval.high + 1e-12 <= 1 + 1e-12


@settings(max_examples=200)
@given(draw_partial_correlations(), st.sampled_from([0.0, 1e-17, 1e-3, 0.1]), st.booleans())
def test_a_difference_of_partial_r2_agrees_with_its_p_value(a, size, has_opposite_sign):
    rng = np.random.default_rng(0)
    sign = -1 if has_opposite_sign else 1
    b = PartialCorrelations(
        *(
            sign * np.clip(values + size * rng.normal(size=values.shape), -1, 1)
            for values in (a.values, a.left_out)
        )
    )
    weights = np.full(len(a.values), 1 / len(a.values))
    interval, p = partial_r2_difference(a, b, weights)
    assert_agreement(interval, p)
    if size < 1e-15:
        assert (interval, p) == ((0, 0), 1)


@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_a_constant_change_has_no_width(shift):
    change = np.full(2, shift)
    for interval, p in (
        statistics.t_test_of_means(change, np.full(2, 0.5)),
        statistics.welch_test([change], np.ones(1)),
    ):
        assert interval == (shift, shift) and p == float(shift == 0)
