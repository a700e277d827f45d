"""Paired tests by simulation, and corrections for several tests against statsmodels."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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


SIZES, WEIGHTS = (64, 165, 280, 842, 40), np.array([0.3, 0.25, 0.2, 0.2, 0.05])


@pytest.mark.long
@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_macro_test_errs_in_5_percent_if_paradigms_differ(shift: float) -> None:
    """shift: one paradigm better, another worse, the weighted mean 0."""
    rng, trials = np.random.default_rng(3), 500
    moved = shift * np.array([1 / 3, -0.2, 0, 0, -1])
    assert abs(WEIGHTS @ moved) < 1e-12
    false = 0
    for _ in range(trials):
        strata = [
            changes(rng, n, 0.1 - min(m, 0), 0.1 + max(m, 0))
            for n, m in zip(SIZES, moved, strict=True)
        ]
        false += score_test(strata)[1] < 0.05
    assert 0.02 <= false / trials <= 0.07


def score_test(strata: list[Floats]) -> tuple[statistics.Interval, float]:
    codes = np.repeat(np.arange(len(strata), dtype=np.int32), [len(part) for part in strata])
    return statistics.score_test(np.concatenate(strata), codes, WEIGHTS)


def test_clustered_interval_covers_sampled_paradigms() -> None:
    rng, trials, hits = np.random.default_rng(8), 1500, 0
    for _ in range(trials):
        means = rng.normal(0.02, 0.04, 20) + rng.normal(0, 0.3 / 30, 20)
        low, high = statistics.t_interval_of_means(means, equal(20))
        hits += low <= 0.02 <= high
    assert 0.93 <= hits / trials <= 0.97


@pytest.mark.long
@given(PS)
def test_holm_and_benjamini_hochberg_are_statsmodels(p: list[float]) -> None:
    if not p:
        assert statistics.holm(p) == statistics.benjamini_hochberg(p) == []
        return
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert statistics.benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])


@pytest.mark.long
def test_a_verdict_does_not_wait_for_slow_imports() -> None:
    script = "import sys, antlm_bench.statistics, antlm_bench.metrics\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"scipy.stats", "sklearn", "statsmodels", "pandas", "torch", "pyarrow"} & set(loaded)
