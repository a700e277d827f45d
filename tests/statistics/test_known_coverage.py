"""Notes with a simulated coverage: when they are shown, and whether the page has their figures."""

from pathlib import Path

import pytest

from antlm_bench.statistics.known_coverage import (
    FEW_ERRORS,
    FEW_VALUES,
    TWO_SEEDS,
    KnownCoverage,
    few_values_notes,
    seed_mean_notes,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "statistics.md"


@pytest.mark.parametrize("coverage", [TWO_SEEDS, FEW_ERRORS, FEW_VALUES])
def test_the_page_states_the_coverage_of_every_note(coverage: KnownCoverage) -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())

    figures = f"{coverage.lowest:g} to {coverage.highest:g}%"

    assert figures in coverage.note
    assert f"states {figures}" in text


@pytest.mark.parametrize(
    ("num_seeds", "expected_errors", "notes"),
    [
        (1, 3.0, ()),  # a score interval
        (2, 300.0, (TWO_SEEDS.note,)),
        (5, 15.0, (FEW_ERRORS.note,)),
        (5, 16.0, ()),
    ],
)
def test_a_mean_over_seeds_has_a_note(num_seeds: int, expected_errors: float, notes) -> None:
    assert seed_mean_notes(num_seeds, expected_errors) == notes


@pytest.mark.parametrize(("num_values", "has_note"), [(1, False), (2, True), (20, True)])
def test_few_values_have_a_note(num_values: int, has_note: bool) -> None:
    assert bool(few_values_notes(num_values)) == has_note
    assert few_values_notes(21) == ()
