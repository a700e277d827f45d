"""Numbers that a reader re-derives from docs/statistics.md with scipy alone."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from antlm_bench import statistics

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
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)

    exec(compile(code, str(PAGE), "exec"), {})


def test_surprisals_have_the_t_interval_and_test_over_words() -> None:
    change = np.array([0.3, -0.1, 0.2, 0.4, 0.05])
    theirs = stats.ttest_1samp(change, 0)

    interval, p = statistics.clustered_test(change, np.full(5, 1 / 5))

    assert p == pytest.approx(theirs.pvalue)
    assert tuple(interval) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
