"""Numbers that a reader re-derives from docs/statistics.md with scipy alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from antlm_bench import statistics
from antlm_bench.statistics.acquisition import pearson_correlation
from antlm_bench.statistics.regression import PartialCorrelations, partial_r2_test

PAGE = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"
CRITICAL = stats.norm.ppf(0.975)


def documented_z(right: int, n: int, t: float) -> float:
    """Return z of one stratum of credits by steps 1 to 4: the fit is t itself."""
    variance = t * (1 - t)
    v = variance / n * (n + 4) / (n + 3)
    absolute_third = variance * (t**2 + (1 - t) ** 2)
    step = absolute_third / n**2 / v
    gap = right / n - t
    z0 = np.sign(gap) * max(abs(gap) - 0.2 * step, 0) / v**0.5
    a = variance * (1 - 2 * t) / n**2 / v**1.5 / 6
    root = optimize.brentq(lambda z: a * z**2 + z - z0 - a, -4, 4)
    return float(root)


def test_an_interval_of_credits_follows_from_the_documented_steps() -> None:
    low = optimize.brentq(lambda t: documented_z(37, 40, t) - CRITICAL, 0.7, 0.92)
    high = optimize.brentq(lambda t: documented_z(37, 40, t) + CRITICAL, 0.93, 0.999)
    credits_ = np.repeat([1.0, 0.0], [37, 3])

    interval = statistics.score_interval(credits_, np.zeros(40, np.int32), np.ones(1))

    assert tuple(interval) == pytest.approx((low, high), abs=1e-8)


def documented_p(lost: int, gained: int, n: int) -> float:
    """Return p of no difference in one stratum: the fit splits losses and gains evenly."""
    moved = np.array([lost, gained]) / n
    pooled = (moved * n + 0.5) / (n + 1)
    cells = np.array([lost, gained]) + 4 * pooled
    # Under a mean of 0 both moves have the same probability, that of their mean.
    variance = cells.sum() / (n + 4)
    v = variance / n * (n + 4) / (n + 3)
    step = variance / n**2 / v  # |x|^3 = x^2 for -1, 0 and 1
    gap = abs(gained - lost) / n
    return float(2 * stats.norm.sf((gap - 0.2 * step) / v**0.5))  # symmetric: no skewness


def test_a_p_value_follows_from_the_documented_steps() -> None:
    changes = np.repeat([-1.0, 1.0, 0.0], [9, 3, 88])

    _, p = statistics.score_test(changes, np.zeros(100, np.int32), np.ones(1))

    assert p == pytest.approx(documented_p(9, 3, 100), abs=1e-9)


def test_the_examples_of_the_page_are_true() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    credits_ = np.repeat([1.0, 0.0], [37, 3])
    changes = np.repeat([-1.0, 1.0, 0.0], [9, 3, 88])
    low, high = statistics.score_interval(credits_, np.zeros(40, np.int32), np.ones(1))
    (worst, best), p = statistics.score_test(changes, np.zeros(100, np.int32), np.ones(1))
    wilson = proportion_confint(37, 40, method="wilson")
    theirs = mcnemar([[88, 9], [3, 0]], exact=False, correction=False).pvalue

    assert f"interval {100 * low:.1f} to {100 * high:.1f}." in text
    assert f"(Wilson: {100 * wilson[0]:.1f} to {100 * wilson[1]:.1f}.)" in text
    assert f"interval {100 * worst:.1f} to {100 * best:.1f}, p = {p:.3f}".replace("0.", ".") in (
        text.replace("0.", ".")
    )
    assert f"(McNemar: p = {theirs:.3f}.)".replace("0.", ".") in text


def test_the_example_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

    assert len(blocks) >= 2
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), {})


def folded_normal_p(s: float, r: float, error: float) -> float:
    """Return the exact p of a true correlation of s: r^2 is the square of a normal variable."""
    distance = abs(r - s)
    far = stats.norm.sf(distance / error) + stats.norm.cdf(-(2 * s + distance) / error)
    near = stats.norm.cdf(-distance / error) - stats.norm.cdf((distance - 2 * s) / error)
    return float(far + (near if s > distance else 0))


def test_a_partial_r2_follows_from_the_documented_steps() -> None:
    text = PAGE.read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1]
    names: dict[str, Any] = {}
    exec(code.rpartition("partial_r2_test(")[0], names)
    correlations = PartialCorrelations(np.array([0.1]), names["left_out"][:, None])
    limit = 2 * stats.norm.sf(stats.t.ppf(0.975, 204))
    low = optimize.brentq(lambda s: folded_normal_p(s, 0.1, 0.04) - limit, 0, 0.0999)
    high = optimize.brentq(lambda s: folded_normal_p(s, 0.1, 0.04) - limit, 0.1, 0.5)

    interval, p = partial_r2_test(correlations, np.ones(1))

    assert p == pytest.approx(2 * stats.t.sf(2.5, 204), rel=1e-6)
    assert tuple(interval) == pytest.approx((low**2, high**2), rel=0.05)
    shown = f"p = {p:.3f} (2 T(-2.5)), interval {interval.low:.4f} to {interval.high:.4f}."
    assert shown.replace("0.", ".") in " ".join(text.split())


def test_a_correlation_of_ages_follows_from_the_documented_steps() -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    x, noise = np.random.default_rng(0).normal(size=(2, 30))
    x = (x - x.mean()) / x.std()
    noise -= noise.mean() + x * (x @ noise) / 30
    y = 0.6 * x + 0.8 * noise / noise.std()
    t = stats.t.ppf(0.975, 28)
    half_width = np.arctanh(t / (28 + t**2) ** 0.5)
    expected = np.tanh(np.arctanh(0.6) + half_width * np.array([-1, 1]))

    correlation = pearson_correlation(x, y)

    assert correlation is not None
    r, p, interval = correlation
    assert (r, p) == pytest.approx(stats.pearsonr(x, y))
    assert tuple(interval) == pytest.approx(expected)
    shown = f"r = {r:.2f} of 30 words: p = {p:.4f}, interval {interval.low:.2f} to "
    assert f"{shown}{interval.high:.2f}.".replace("0.", ".") in text


def test_surprisals_have_the_t_interval_and_test_over_words() -> None:
    change = np.array([0.3, -0.1, 0.2, 0.4, 0.05])
    theirs = stats.ttest_1samp(change, 0)

    interval, p = statistics.clustered_test(change, np.full(5, 1 / 5))

    assert p == pytest.approx(theirs.pvalue)
    assert tuple(interval) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
