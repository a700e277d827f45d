"""Intervals whose coverage is known to be below 95%, for notes beside the numbers concerned.

The figures are those of `benchmarks/coverage.py`, as docs/explanation/statistics.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_FEW_VALUES = 20
"""Largest number of values (words, documents) whose t interval gets a note."""
MAX_FEW_ERRORS = 15
"""Largest number of expected errors that count as few in a mean over seeds."""
NEAR_TOP = 0.1
"""Largest distance from the top of a metric that counts as near."""


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
    def range_text(self) -> str:
        """`91 to 99%`."""
        return f"{self.lowest:g} to {self.highest:g}%"

    @property
    def note(self) -> str:
        """A note beside a number with such an interval."""
        return f"{self.kind}: in simulations, 95% intervals cover {self.range_text}"


TWO_SEEDS = KnownCoverage("2 seeds", 91, 99)
TWO_SEEDS_NOTE = (
    "2 seeds estimate their variation badly, so the interval is wide (that of one run covers "
    f"{TWO_SEEDS.range_text} in simulations): use 3, or 5 for a report"
)
FEW_ERRORS = KnownCoverage("mean of several seeds with few errors", 83, 99)
THRESHOLD_ACCURACY = KnownCoverage("accuracy with thresholds chosen out of sample", 88, 100)
THRESHOLD_CORRELATION = KnownCoverage("MCC with thresholds chosen out of sample", 87, 96)
FEW_VALUES = KnownCoverage("t interval of few values", 92.7, 96.5)


def few_values_notes(num_values: int) -> tuple[str, ...]:
    """Return a note on the t interval of so few values; () for more."""
    return (FEW_VALUES.note,) if 1 < num_values <= MAX_FEW_VALUES else ()


def has_few_errors(num_items: int, distance: float) -> bool:
    """Return whether the errors are so few that t intervals of a mean over seeds begin too high.

    distance: from the mean to the top of the metric. Errors are expected in num_items times it.
    """
    return distance <= NEAR_TOP and num_items * distance <= MAX_FEW_ERRORS


def seed_mean_notes(num_seeds: int, is_too_high: bool) -> tuple[str, ...]:
    """Return a note on the interval of a run's mean over seeds; () if none is needed.

    is_too_high: whether the interval is a t interval although `has_few_errors` holds.
    """
    if num_seeds == 2:
        return (TWO_SEEDS_NOTE,)
    return (FEW_ERRORS.note,) if num_seeds > 2 and is_too_high else ()
