"""Notes with a simulated coverage: when they are shown, and whether the page has their figures."""

from pathlib import Path

import pytest

from antlm_bench.statistics.known_coverage import (
    FEW_ERRORS,
    FEW_VALUES,
    THRESHOLD_ACCURACY,
    THRESHOLD_CORRELATION,
    TWO_SEEDS,
    TWO_SEEDS_NOTE,
    KnownCoverage,
    few_values_notes,
    has_few_errors,
    seed_mean_notes,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "statistics.md"


@pytest.mark.parametrize(
    "coverage", [TWO_SEEDS, FEW_ERRORS, FEW_VALUES, THRESHOLD_ACCURACY, THRESHOLD_CORRELATION]
)
def test_the_page_states_the_coverage_of_every_note(coverage: KnownCoverage) -> None:
    text = " ".join(PAGE.read_text(encoding="utf-8").split())

    assert f"states {coverage.range_text}" in text
    assert TWO_SEEDS.range_text in TWO_SEEDS_NOTE


@pytest.mark.parametrize(
    ("num_seeds", "is_too_high", "notes"),
    [
        (1, True, ()),  # no t interval
        (2, False, (TWO_SEEDS_NOTE,)),
        (5, True, (FEW_ERRORS.note,)),
        (5, False, ()),
    ],
)
def test_a_mean_over_seeds_has_a_note(num_seeds: int, is_too_high: bool, notes) -> None:
    assert seed_mean_notes(num_seeds, is_too_high) == notes


@pytest.mark.parametrize(
    ("num_items", "accuracy", "few"),
    [(104, 0.95, True), (277, 0.95, True), (277, 0.9, False), (40, 0.75, False)],
)
def test_few_errors_are_few_and_near_the_top(num_items: int, accuracy: float, few: bool) -> None:
    assert has_few_errors(num_items, 1 - accuracy) == few


@pytest.mark.parametrize(("num_values", "has_note"), [(1, False), (2, True), (20, True)])
def test_few_values_have_a_note(num_values: int, has_note: bool) -> None:
    assert bool(few_values_notes(num_values)) == has_note
    assert few_values_notes(21) == ()
