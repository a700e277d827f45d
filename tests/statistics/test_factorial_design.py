"""Contrasts of a factorial design: weights by hand, tests against scipy, coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from antlm_bench.statistics import (
    Contrast,
    factorial_contrasts,
    mean_over_items,
    score_items,
)

TWO_BY_TWO = {"gap": ["yes", "no"], "filler": ["wh", "that"]}


def test_two_conditions_give_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(5, 2, 17), rng.normal(4.5, 2, 17)
    mean = mean_over_items(first - second)
    expected = stats.ttest_rel(first, second)
    low, high = expected.confidence_interval(0.95)
    assert (mean.n, mean.df) == (17, 16)
    assert mean.value == pytest.approx(first.mean() - second.mean())
    assert (mean.t, mean.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (mean.low, mean.high) == pytest.approx((low, high))


def test_one_item_has_a_value_and_no_test() -> None:
    mean = mean_over_items(np.array([2.5]))
    assert mean == (2.5, None, None, 1, None, None)


@pytest.mark.parametrize("n", range(2, 12))
@pytest.mark.parametrize("score", [1.5, 0.1, 0.452701])  # the sum of the last two is rounded
def test_equal_scores_have_an_interval_of_width_0(n: int, score: float) -> None:
    mean = mean_over_items(np.full(n, score))
    assert mean.low == mean.high == pytest.approx(score, rel=1e-15)
    assert (mean.value, mean.t, mean.p) == (pytest.approx(score, rel=1e-15), None, 0.0)


def test_a_2x2_design_has_two_main_effects_and_an_interaction() -> None:
    gap, filler, interaction = factorial_contrasts(TWO_BY_TWO)
    assert gap == Contrast(
        "gap: yes - no",
        {("yes", "wh"): 0.5, ("yes", "that"): 0.5, ("no", "wh"): -0.5, ("no", "that"): -0.5},
    )
    assert filler.name == "filler: wh - that"
    assert interaction == Contrast(
        "gap × filler: (yes - no) × (wh - that)",
        {("yes", "wh"): 1, ("yes", "that"): -1, ("no", "wh"): -1, ("no", "that"): 1},
    )


def test_the_interaction_is_the_difference_of_differences() -> None:
    # by hand: (9 - 4) - (6 - 5) = 4 and (7 - 3) - (2 - 4) = 6
    items = [
        {("yes", "wh"): 9.0, ("yes", "that"): 4.0, ("no", "wh"): 6.0, ("no", "that"): 5.0},
        {("yes", "wh"): 7.0, ("yes", "that"): 3.0, ("no", "wh"): 2.0, ("no", "that"): 4.0},
    ]
    gap, filler, interaction = factorial_contrasts(TWO_BY_TWO)
    assert score_items(items, interaction).tolist() == [4, 6]
    assert score_items(items, gap).tolist() == [1, 2]  # (9 + 4)/2 - (6 + 5)/2, (7 + 3)/2 - 6/2
    assert score_items(items, filler).tolist() == [3, 1]


def test_an_item_without_a_cell_of_the_contrast_is_left_out() -> None:
    [contrast] = factorial_contrasts({"condition": ["a", "b"]})
    items = [{("a",): 3.0, ("b",): 1.0}, {("a",): 5.0}]
    assert contrast.name == "a - b"
    assert score_items(items, contrast).tolist() == [2]


@pytest.mark.parametrize(
    ("sizes", "count"),
    [((2,), 1), ((3,), 3), ((2, 2), 3), ((2, 3), 1 + 3 + 3), ((2, 2, 2), 7)],
)
def test_contrasts_of_larger_designs_sum_to_0(sizes: tuple[int, ...], count: int) -> None:
    levels = {f"f{i}": [f"l{k}" for k in range(size)] for i, size in enumerate(sizes)}
    contrasts = factorial_contrasts(levels)
    assert len(contrasts) == count == len({contrast.name for contrast in contrasts})
    for contrast in contrasts:
        assert sum(contrast.weights.values()) == pytest.approx(0)


def test_main_effects_and_interaction_equal_the_analysis_of_variance() -> None:
    """For single-df effects of a within-items design, F = t^2 (statsmodels' AnovaRM)."""
    import pandas as pd
    from statsmodels.stats.anova import AnovaRM

    rng = np.random.default_rng(3)
    cells = [(gap, filler) for gap in ("yes", "no") for filler in ("wh", "that")]
    items = [{cell: rng.normal(3 * (cell[0] == "yes"), 1) for cell in cells} for _ in range(9)]
    frame = pd.DataFrame(
        [
            {"item": number, "gap": gap, "filler": filler, "value": values[gap, filler]}
            for number, values in enumerate(items)
            for gap, filler in cells
        ]
    )
    table = AnovaRM(frame, "value", "item", within=["gap", "filler"]).fit().anova_table
    means = [mean_over_items(score_items(items, c)) for c in factorial_contrasts(TWO_BY_TWO)]
    assert [mean.t**2 for mean in means if mean.t] == pytest.approx(list(table["F Value"]))
    assert [mean.p for mean in means] == pytest.approx(list(table["Pr > F"]))


def test_intervals_of_an_interaction_cover_it_in_95_percent() -> None:
    """Items differ, and their four values correlate: the paired interval does not care."""
    rng = np.random.default_rng(11)
    draws, num_items, effect = 2000, 24, 0.7
    base = rng.normal(8, 3, (draws, num_items, 1))
    noise = rng.normal(0, 1.5, (draws, num_items, 4))
    scores = (base + noise + np.array([effect, 0, 0, 0])) @ np.array([1, -1, -1, 1])
    means = [mean_over_items(row) for row in scores]
    covered = np.mean([mean.low <= effect <= mean.high for mean in means])  # type: ignore[operator]
    error = (0.95 * 0.05 / draws) ** 0.5
    assert abs(covered - 0.95) < 4 * error
