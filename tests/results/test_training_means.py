"""Means over trainings of one recipe that differ in their seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from antlm_bench.reporting.html_data import _describe_trainings
from antlm_bench.reporting.results_table import ResultsColumn
from antlm_bench.results.seeds import average_trainings
from antlm_bench.types import Cell, Estimate, Manifest, Run, Summary


def test_mean_of_trainings_has_a_t_interval() -> None:
    mean, interval = average_trainings([0.5, 0.6, 0.7], "accuracy")

    assert mean == pytest.approx(0.6)
    # t(2 df, .975) = 4.302653, sd = .1
    assert interval == pytest.approx((0.6 - 4.302653 * 0.1 / 3**0.5, 0.6 + 4.302653 * 0.1 / 3**0.5))


def test_interval_of_trainings_ends_with_the_metric() -> None:
    _, interval = average_trainings([0.9, 1.0], "accuracy")
    assert interval is not None
    assert interval.high == 1.0


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5]])
def test_equal_trainings_have_no_interval(values: list[float]) -> None:
    assert average_trainings(values, "accuracy") == (0.5, None)


def make_column(value: float, suite: str = "blimp") -> ResultsColumn:
    estimate = Estimate(value, 100, value - 0.1, value + 0.1)
    summary = Summary(suite, "causal", "accuracy", (), estimate, {}, ())
    return ResultsColumn("m", "causal", {suite: Cell(suite, "causal", "k", {}, summary)})


def test_trainings_of_a_recipe_have_one_sentence() -> None:
    columns = [make_column(0.5), make_column(0.6), make_column(0.7), make_column(0.9)]
    runs = [Run(f"runs/{number}", Manifest(2, {}, {}, ""), ()) for number in range(4)]
    recipes = {Path(f"runs/{number}"): "llama" for number in range(3)} | {Path("runs/3"): "bert"}

    [sentence] = _describe_trainings(columns, runs, recipes)

    assert sentence.startswith("llama (causal), mean over 3 trainings that differ in their seed")
    assert sentence.endswith("blimp 60.0 [35.2, 84.8].")


def test_suite_that_one_training_lacks_has_no_mean() -> None:
    runs = [Run(f"runs/{number}", Manifest(2, {}, {}, ""), ()) for number in range(2)]
    columns = [make_column(0.5), make_column(0.6, "comps")]
    assert not list(_describe_trainings(columns, runs, {Path(run.path): "x" for run in runs}))
