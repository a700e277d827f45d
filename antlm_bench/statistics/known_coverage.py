"""Intervals whose coverage is known to be below 95%, for notes beside the numbers concerned.

The figures are those of `benchmarks/coverage.py`, as docs/statistics.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_FEW_VALUES = 20
"""Largest number of values (words, documents) whose t interval gets a note."""
MAX_FEW_ERRORS = 15
"""Largest number of expected errors that count as few in a mean over seeds."""


@dataclass(frozen=True, slots=True)
class KnownCoverage:
    """The simulated coverage of a kind of intervals."""

    kind: str
    """What the intervals have in common."""
    lowest: float
    """Lowest coverage of the simulated cases, in percent."""
    highest: float
    """Highest coverage of the simulated cases, in percent."""

    @property
    def note(self) -> str:
        """A note beside a number with such an interval."""
        coverage = f"{self.lowest:g} to {self.highest:g}%"
        return f"{self.kind}: in simulations, 95% intervals cover {coverage}"


TWO_SEEDS = KnownCoverage("mean of 2 seeds", 91, 99)
FEW_ERRORS = KnownCoverage("mean of several seeds with few errors", 83, 99)
FEW_VALUES = KnownCoverage("t interval of few values", 92.7, 94.0)


def few_values_notes(num_values: int) -> tuple[str, ...]:
    """Return a note on the t interval of so few values; () for more."""
    return (FEW_VALUES.note,) if 1 < num_values <= MAX_FEW_VALUES else ()


def seed_mean_notes(num_seeds: int, expected_errors: float) -> tuple[str, ...]:
    """Return a note on the interval of one run's mean over seeds; () if it covers 93% or more.

    expected_errors: number of items, times the distance of the mean from the top of the metric.
    """
    if num_seeds == 2:
        return (TWO_SEEDS.note,)
    return (FEW_ERRORS.note,) if num_seeds > 2 and expected_errors <= MAX_FEW_ERRORS else ()
