"""Results of a comparison, from which tables, verdicts and plots are made.

A difference is run b minus run a. If `lower_is_better`, a negative difference is an improvement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from antlm_bench.notebook import to_html_table
from antlm_bench.printable import make_printable
from antlm_bench.types import Estimate, Labels, shorten_list

HEADLINE = "headline"


@dataclass(frozen=True, slots=True)
class Difference:
    """The headline or a group of a comparison: run b minus run a on the same n items.

    Accuracies are fractions, not percent. Other values have the unit of their metric.
    """

    level: str
    """"headline", a label level (field, phenomenon, paradigm) or "task"."""
    name: str
    """Name of the group, or of the suite for a headline."""
    within: str
    """Name of the group one level up that contains this group; "" = none."""
    n: int
    a: float
    """Value of run a."""
    b: float
    """Value of run b."""
    value: float
    """b - a."""
    low: float
    """Lower end of the 95% interval of `value`."""
    high: float
    """Upper end of that interval."""
    p: float | None = None
    """Two-sided p-value that there is no difference. None = there is no test."""
    adjusted: float | None = None
    """p-value after correction for multiple testing (`multiple_testing`)."""
    family: str = ""
    """Correction and number of tests, e.g. "Holm over 12 phenomena"."""
    views: Mapping[str, Estimate] = field(default_factory=dict)
    """The same difference with other intervals. "clustered": as if the strata (e.g. paradigms) were
    a sample. "closed-form": the normal interval.
    """
    gained: int = 0
    """Items (words) that got better."""
    lost: int = 0
    """Items (words) that got worse."""
    detectable: float | None = None
    """Smallest true difference that would be significant in 80% of repetitions with other items, if
    as many of them flip, or vary as much (`statistics.power`). None = not computed, or too few
    items for any difference.
    """
    flip_rate: float | None = None
    """Share of items whose credit changed, as a mean over strata. None = no credits."""
    df: float | None = None
    """Degrees of freedom of the t distribution of p-values of a margin; None = normal. Those of the
    interval or, with several seeds, fewer (`UncertainValue.tail_df`)."""
    design_effect: float | None = None
    """Factor by which clusters change the variance of the headline, if the test counts clusters of
    items. None = it does not."""
    margin: Estimate | None = None
    """Mean change of log P(right option) - log P(best other), in nats."""
    lower_is_better: bool = False

    @property
    def gain(self) -> float:
        """How much better run b is; negative = worse."""
        return -self.value if self.lower_is_better else self.value

    @property
    def gain_interval(self) -> tuple[float, float]:
        """The interval of `gain` as (worst, best)."""
        return (-self.high, -self.low) if self.lower_is_better else (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Flip:
    """An item that the two runs answered differently."""

    id: str
    labels: Labels
    a: float
    """Credit in run a."""
    b: float
    """Credit in run b."""
    margin: float | None
    """Change of log P(right option) - log P(best other), in nats."""


class PairedResult(NamedTuple):
    """The comparison of two runs on one suite under one metric."""

    headline: Difference
    groups: tuple[Difference, ...]
    flipped: tuple[Flip, ...] = ()
    """Items whose credit changed, from the largest loss to the largest gain of credit, then of
    `margin`.
    """
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
    """Smallest number of seeds per task in run a and in run b; 1 for scored suites."""
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
    """All comparisons of a run (b) with a reference run (a)."""

    name_a: str
    """Model name of the reference run, with its folder if both models have the same name."""
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
            headline = comparison.headline
            numbers = (
                headline.a,
                headline.b,
                headline.value,
                headline.low,
                headline.high,
                headline.p,
            )
            methods = dict.fromkeys((comparison.method_a, comparison.method_b))
            values = [None if number is None else float(number) for number in numbers]
            rows.append((comparison.suite, " / ".join(methods), *values, headline.n))
        return to_html_table(columns, rows, notes=self.unmatched)
