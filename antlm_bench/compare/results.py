"""What a comparison says: the typed values that everything downstream (tables, gates, plots) is
written against.

A difference is b minus a; whether more is better, it says itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from antlm_bench.types import Estimate, Labels

HEADLINE = "headline"


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a comparison: run b minus run a on the same n items.

    level: "headline", a label level (field, phenomenon, paradigm) or "task"; name: its value;
    within: as of a Group. a, b: the two values; value: b - a; low, high: its 95% interval.
    Fractions (correlations and nats: as they are). p: two-sided, of "no difference"; None where
    there is no test. adjusted: p within its `family` (see families). views: the same difference
    otherwise: "clustered" (were the groups a sample: paradigms like these), "closed-form". gained,
    lost: items (words) that got better or worse. detectable: the smallest true difference that so
    many items that vary so much show with 80% power. margin: mean difference of margins, log
    P(right option) - log P(best other), in nats.
    """

    level: str
    name: str
    within: str
    n: int
    a: float
    b: float
    value: float
    low: float
    high: float
    p: float | None = None
    adjusted: float | None = None
    family: str = ""
    views: Mapping[str, Estimate] = field(default_factory=dict)
    gained: int = 0
    lost: int = 0
    detectable: float | None = None
    margin: Estimate | None = None
    lower_is_better: bool = False

    @property
    def gain(self) -> float:
        """How much better the second run is."""
        return -self.value if self.lower_is_better else self.value

    @property
    def gain_interval(self) -> tuple[float, float]:
        """The interval of `gain`, the worst first."""
        return (-self.high, -self.low) if self.lower_is_better else (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Flip:
    """An item that the two runs answered differently: its credit under each, and how far its margin
    moved (nats).
    """

    id: str
    labels: Labels
    a: float
    b: float
    margin: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two runs say of one suite, or of the finetuned tasks of one collection.

    metric: of its items; "mixed" where tasks have metrics of their own. seeds: how many of each run
    (of the task that has fewest); scored suites have one. macro: the levels that the headline
    averages over. flipped: items that moved, most credit and most margin first lost. notes: what
    the numbers must be read with.
    """

    suite: str
    method_a: str
    method_b: str
    metric: str
    seeds: tuple[int, int]
    headline: Difference
    groups: tuple[Difference, ...]
    flipped: tuple[Flip, ...]
    notes: tuple[str, ...]
    macro: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunComparison:
    """A run against the reference: their names (told apart by their folders where models are equal)
    and folders, what both answered, and what only one of them did, in words.
    """

    name_a: str
    name_b: str
    path_a: str
    path_b: str
    comparisons: tuple[Comparison, ...]
    unmatched: tuple[str, ...] = ()
