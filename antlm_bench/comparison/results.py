"""Results of a comparison: the typed values that tables, gates and plots use.

A difference is run b minus run a; `lower_is_better` says which sign is good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from antlm_bench.notebook import to_html_table
from antlm_bench.printable import make_printable
from antlm_bench.statistics import Z
from antlm_bench.types import Estimate, Labels, shorten_list

HEADLINE = "headline"
POWER_FACTOR = 1 + 0.8416 / Z
"""Half a 95% interval, times this, is a true difference that is shown with 80% power."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One line of a comparison: run b minus run a on the same n items.

    Values are fractions; correlations, nats and the like are as they are.
    """

    level: str
    """"headline", a label level (field, phenomenon, paradigm) or "task"."""
    name: str
    """The group's name; of a headline the suite's."""
    within: str
    """The group one level up that holds it, or ""."""
    n: int
    a: float
    b: float
    value: float
    """b - a."""
    low: float
    """Lower end of the 95% interval of `value`."""
    high: float
    """Upper end."""
    p: float | None = None
    """Two-sided p of "no difference". None = there is no test."""
    adjusted: float | None = None
    """p within its family (`multiple_testing`)."""
    family: str = ""
    """The tests that p was adjusted for, in words."""
    views: Mapping[str, Estimate] = field(default_factory=dict)
    """The same difference with other intervals: "clustered" (were the groups a sample: paradigms
    like these), "closed-form"."""
    gained: int = 0
    """Items (words) that got better."""
    lost: int = 0
    """Items (words) that got worse."""
    detectable: float | None = None
    """The smallest true difference that so many items that vary so much show with 80% power."""
    margin: Estimate | None = None
    """Mean change of log P(right option) - log P(best other), in nats."""
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
    """An item that the two runs answered differently."""

    id: str
    labels: Labels
    a: float
    """Its credit under the first run."""
    b: float
    margin: float | None
    """Change of log P(right option) - log P(best other), in nats."""


class PairedResult(NamedTuple):
    """The comparison of two runs on one suite under one metric."""

    headline: Difference
    groups: tuple[Difference, ...]
    flipped: tuple[Flip, ...] = ()
    """Items that moved, most credit and most margin first lost."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two runs on one suite, or on the finetuned tasks of one collection."""

    suite: str
    method_a: str
    method_b: str
    metric: str
    """Metric of the items; "mixed" if the tasks of a collection have different metrics."""
    seeds: tuple[int, int]
    """Number of seeds of each run, for the task with the fewest; 1 for scored suites."""
    headline: Difference
    groups: tuple[Difference, ...]
    flipped: tuple[Flip, ...]
    notes: tuple[str, ...]
    """Sentences that qualify the numbers."""
    macro: tuple[str, ...] = ()
    """The levels that the headline averages over."""

    def __repr__(self) -> str:
        """Return one line: suite, methods and the difference."""
        methods = " / ".join(dict.fromkeys((self.method_a, self.method_b)))
        name = make_printable(f"{self.suite} ({methods})")
        return f"<Comparison {name}: {self.headline.value:+.4f}>"


@dataclass(frozen=True, slots=True)
class RunComparison:
    """A run against the reference."""

    name_a: str
    """Name of the reference's model; models of one name are told apart by their folders."""
    name_b: str
    path_a: str
    path_b: str
    comparisons: tuple[Comparison, ...]
    unmatched: tuple[str, ...] = ()
    """Sentences on results that only one of the runs has."""

    def __repr__(self) -> str:
        """Return one line: both models and the suites."""
        names = make_printable(f"{self.name_b} against {self.name_a}")
        suites = [f"{c.suite} ({c.method_b})" for c in self.comparisons]
        return f"<RunComparison {names}: {shorten_list(suites) or 'no suite'}>"

    def _repr_html_(self) -> str:
        columns = (
            "suite",
            "method",
            self.name_a,
            self.name_b,
            "difference",
            "low",
            "high",
            "p",
            "n",
        )
        rows = []
        for comparison in self.comparisons:
            head = comparison.headline
            numbers = (head.a, head.b, head.value, head.low, head.high, head.p)
            methods = dict.fromkeys((comparison.method_a, comparison.method_b))
            values = [None if number is None else float(number) for number in numbers]
            rows.append((comparison.suite, " / ".join(methods), *values, head.n))
        return to_html_table(columns, rows, notes=self.unmatched)
