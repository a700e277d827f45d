"""Tests between two runs: against scipy and statsmodels, by enumeration, and by simulation: 5% must
mean 5%.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from antlm_bench import statistics
from antlm_bench.types import Floats

PS = st.lists(
    st.sampled_from([0.0, 1e-9, 0.003, 0.01, 0.02, 0.049, 0.05, 0.3, 0.9, 1.0]), max_size=12
)


def equal(k: int) -> Floats:
    return np.full(k, 1 / k)


def changes(rng: np.random.Generator, n: int, lost: float, gained: float) -> Floats:
    """Differences of credit, -1, 0 or 1."""
    return rng.choice([-1.0, 0.0, 1.0], p=[lost, 1 - lost - gained, gained], size=n)


@given(st.integers(0, 400), st.integers(0, 400))
def test_exact_mcnemar_is_statsmodels(lost: int, gained: int) -> None:
    theirs = statsmodels_mcnemar([[5, lost], [gained, 7]], exact=True).pvalue
    assert statistics.mcnemar_test(lost, gained, mid_p=False) == pytest.approx(theirs, rel=1e-9)


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_mid_p_counts_half_of_what_was_observed(lost: int, gained: int) -> None:
    if lost == gained:
        assert statistics.mcnemar_test(lost, gained) == 1
        return
    n, fewer = lost + gained, min(lost, gained)
    expected = stats.binomtest(fewer, n).pvalue - stats.binom.pmf(fewer, n, 0.5)
    assert statistics.mcnemar_test(lost, gained) == pytest.approx(expected, rel=1e-7)
    assert statistics.mcnemar_test(lost, gained) == statistics.mcnemar_test(gained, lost)


def test_the_mid_p_errs_5_times_in_100_or_a_little_less() -> None:
    for n in (6, 20, 61, 400):
        p = np.array([statistics.mcnemar_test(k, n - k) for k in range(n + 1)])
        size = stats.binom.pmf(np.arange(n + 1), n, 0.5)[p < 0.05].sum()
        exact = np.array([statistics.mcnemar_test(k, n - k, mid_p=False) for k in range(n + 1)])
        assert 0.03 <= size <= 0.055
        assert stats.binom.pmf(np.arange(n + 1), n, 0.5)[exact < 0.05].sum() <= size


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 1 / 3, 0.5, 1.0]), min_size=1, max_size=10))
@example([-1.0, -1.0, 1 / 3, 1 / 3, 1 / 3, 1.0])  # adds up to nothing, but for the last digit
def test_flipping_signs_is_every_flip_in_turn(values: list[float]) -> None:
    d = np.array(values)
    sums = np.array([np.dot(signs, d) for signs in product([-1, 1], repeat=len(d))])
    exact = np.mean(np.abs(sums) >= abs(d.sum()) - 1e-9)
    assert statistics.permutation_test(d) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("kind", ["ties", "nats"])
def test_flipping_signs_is_scipys_permutation_test(kind: str) -> None:
    rng = np.random.default_rng(0)
    d = (
        rng.choice([-1, -0.5, 0, 0.5, 1], size=300) + 0.0
        if kind == "ties"
        else rng.normal(0.1, 1, size=700)
    )
    theirs = stats.permutation_test(
        (d,),
        np.mean,
        permutation_type="samples",
        n_resamples=4000,
        vectorized=True,
        rng=np.random.default_rng(1),
    ).pvalue
    assert statistics.permutation_test(d) == pytest.approx(theirs, abs=0.025)


def test_where_credit_is_whole_flipping_signs_is_mcnemar() -> None:
    d = np.repeat([1.0, -1.0, 0.0], [61, 40, 200])
    assert statistics.permutation_test(d) == pytest.approx(
        statistics.mcnemar_test(40, 61, mid_p=False), abs=0.01
    )


def test_no_difference_has_p_1_and_no_p_is_0() -> None:
    assert statistics.permutation_test(np.zeros(5)) == 1
    assert statistics.macro_permutation_test([np.zeros(5), np.array([1.0, -1.0])], equal(2)) == 1
    assert statistics.permutation_test(np.ones(400)) == pytest.approx(1 / 10_001)
    assert statistics.permutation_test(np.ones(4)) == pytest.approx(0.125, abs=0.01)
    assert statistics.macro_permutation_test([np.ones(1), np.ones(1)], equal(2)) == pytest.approx(
        0.5, abs=0.02
    )


def test_p_is_symmetric_and_reproducible() -> None:
    d = [changes(np.random.default_rng(k), 200, 0.1, 0.13) for k in range(3)]
    assert statistics.macro_permutation_test(d, equal(3)) == statistics.macro_permutation_test(
        d, equal(3)
    )
    assert statistics.macro_permutation_test(
        [-x for x in d], equal(3)
    ) == statistics.macro_permutation_test(d, equal(3))
    assert statistics.macro_permutation_test(
        [1e-3 * x for x in d], equal(3)
    ) == statistics.macro_permutation_test(d, equal(3))


SIZES, WEIGHTS = (64, 165, 280, 842, 40), np.array([0.3, 0.25, 0.2, 0.2, 0.05])


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_macro_test_errs_in_5_percent_if_paradigms_differ(
    shift: float,
) -> None:
    """shift: one paradigm better, another worse, the weighted mean 0: no item is exchangeable any
    more.
    """
    rng, trials = np.random.default_rng(3), 1200
    moved = shift * np.array([1 / 3, -0.2, 0, 0, -1])
    assert abs(WEIGHTS @ moved) < 1e-12
    false = 0
    for trial in range(trials):
        strata = [
            changes(rng, n, 0.1 - min(m, 0), 0.1 + max(m, 0))
            for n, m in zip(SIZES, moved, strict=True)
        ]
        false += statistics.macro_permutation_test(strata, WEIGHTS, draws=400, seed=trial) < 0.05
    assert 0.035 <= false / trials <= 0.066


@pytest.mark.parametrize(
    "interval", ["bootstrap_interval", "normal_interval", "adjusted_wald_macro_interval"]
)
def test_paired_macro_intervals_cover_95_percent(interval: str) -> None:
    rng, trials, hits = np.random.default_rng(5), 1500, 0
    gained = np.array([0.12, 0.2, 0.05, 0.1, 0.3])
    for trial in range(trials):
        strata = [changes(rng, n, 0.08, g) for n, g in zip(SIZES, gained, strict=True)]
        extra = {"draws": 600, "seed": trial} if interval == "bootstrap_interval" else {}
        low, high = getattr(statistics, interval)(strata, WEIGHTS, **extra)
        hits += low <= WEIGHTS @ (gained - 0.08) <= high
    assert 0.93 <= hits / trials <= 0.97


@pytest.mark.parametrize(
    ("n", "lost", "gained"), [(1000, 0.005, 0.008), (60, 0.05, 0.02), (200, 0.1, 0.2)]
)
def test_the_adjusted_interval_covers_where_few_items_differ(
    n: int, lost: float, gained: float
) -> None:
    rng = np.random.default_rng(6)
    less, more, _ = rng.multinomial(n, [lost, gained, 1 - lost - gained], size=20_000).T
    low, high = statistics.adjusted_wald_interval(more - less, more + less, n)
    covered = np.mean((low <= gained - lost) & (gained - lost <= high))
    assert 0.935 <= covered <= 0.992  # of four flips or so it is too wide, never too narrow


def test_clustered_interval_covers_sampled_paradigms() -> None:
    rng, trials, hits = np.random.default_rng(8), 1500, 0
    for _ in range(trials):
        means = rng.normal(0.02, 0.04, 20) + rng.normal(0, 0.3 / 30, 20)
        low, high = statistics.clustered_interval(means, equal(20))
        hits += low <= 0.02 <= high
    assert 0.93 <= hits / trials <= 0.97


def test_what_is_said_to_be_detectable_is_detected_8_times_in_10() -> None:
    rng, trials = np.random.default_rng(7), 600
    base = [changes(rng, n, 0.1, 0.1) for n in SIZES]
    smallest = statistics.min_detectable_difference(base, WEIGHTS)
    assert smallest == pytest.approx(
        (1.959964 + 0.841621) * statistics.standard_error(base, WEIGHTS), rel=1e-5
    )
    found = 0
    for trial in range(trials):
        moved = [changes(rng, n, 0.1 - smallest / 2, 0.1 + smallest / 2) for n in SIZES]
        found += statistics.macro_permutation_test(moved, WEIGHTS, draws=400, seed=trial) < 0.05
    assert 0.74 <= found / trials <= 0.86


def test_where_no_item_differs_not_every_difference_is_detectable() -> None:
    nothing = statistics.min_detectable_difference([np.zeros(100), np.zeros(100)], equal(2))
    assert nothing == pytest.approx(2.801585 / 200, rel=1e-4)
    more = statistics.min_detectable_difference(
        [changes(np.random.default_rng(0), 100, 0.1, 0.1)] * 2, equal(2)
    )
    assert more > nothing


@given(PS)
def test_holm_and_benjamini_hochberg_are_statsmodels(p: list[float]) -> None:
    if not p:
        assert statistics.holm(p) == statistics.benjamini_hochberg(p) == []
        return
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert statistics.benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_signs_of_equal_differences_are_drawn_as_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost grows with the number of distinct sizes of a difference, not with the items."""
    rng = np.random.default_rng(0)
    strata = [rng.choice([-1, 0, 0.5, 1], p=[0.2, 0.4, 0.2, 0.2], size=1000) for _ in range(3)]
    generator = Mock(wraps=np.random.default_rng(0))
    monkeypatch.setattr(np.random, "default_rng", lambda seed: generator)
    statistics.macro_permutation_test(strata, equal(3), draws=100)
    sizes = [(name, kwargs["size"]) for name, _, kwargs in generator.method_calls]
    assert sizes == [("binomial", (100, 2)), ("integers", (100, 0))] * 3


def test_a_verdict_does_not_wait_for_slow_imports() -> None:
    script = "import sys, antlm_bench.statistics, antlm_bench.metrics\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"scipy.stats", "sklearn", "statsmodels", "pandas", "torch", "pyarrow"} & set(loaded)
