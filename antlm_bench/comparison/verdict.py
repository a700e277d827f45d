"""Did the checkpoint get worse? A comparison and a margin declared before -> pass, regression, or
not enough data.

Non-inferiority by the interval of the paired difference d = new - baseline, its sign turned where
lower is better (users know it from clinical trials: Piaggio et al. 2012), decided in this order for
a margin m > 0: the interval lies above -m                      pass (a drop may be significant and
still tolerable: it is said) the interval lies below 0, and d <= -m          regression else
inconclusive: too few items for this margin
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from antlm_bench.comparison.results import HEADLINE, Comparison, Difference, RunComparison
from antlm_bench.notebook import to_html_table
from antlm_bench.statistics import CONFIDENCE_LEVEL

Status = Literal["pass", "regression", "inconclusive"]
PHENOMENON = "phenomenon"  # the level at which a drop is explained, in suites that have it
STATUS_SEVERITY: tuple[Status, ...] = ("regression", "inconclusive", "pass")
# one point: above the numeric noise of any dtype (`antlm-bench noise`), and what BLiMP can resolve
DEFAULT_MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class Margins:
    """How much worse is tolerated, as a fraction (correlations and nats: as they are), as far as
    one place says it.

    default: of every suite's headline, None: not said. suites: name -> its own. groups: name of a
    field, phenomenon, paradigm or task -> margin; a group is judged only if it has one, or if
    `every_group` holds for all of the level that explains. source: the place: an option, a policy
    file, a suite's TOML.
    """

    default: float | None = None
    suites: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, float] = field(default_factory=dict)
    every_group: float | None = None
    source: str = ""

    def for_suite(self, suite: str) -> float | None:
        return self.suites.get(suite, self.default)

    def for_group(self, group: Difference, level: str) -> float | None:
        return self.groups.get(group.name, self.every_group if group.level == level else None)


FALLBACK_MARGINS = Margins(DEFAULT_MARGIN, source="default")


@dataclass(frozen=True, slots=True)
class Judgement:
    """One difference, judged against its margin. source: who says the margin. dropped: is it
    significantly worse, tolerable or not?
    """

    difference: Difference
    tolerance: float
    status: Status
    source: str = ""

    @property
    def is_significantly_worse(self) -> bool:
        return is_significant(self.difference) and self.difference.gain < 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One suite, judged. status: the worst of its headline and of the groups that have margins of
    their own.

    groups: the groups that were judged. culprits: groups of the level that explains, significantly
    worse, worst first.
    """

    comparison: Comparison
    status: Status
    headline: Judgement
    groups: tuple[Judgement, ...]
    worse_groups: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A run against its baseline: a verdict per suite."""

    run_comparison: RunComparison
    verdicts: tuple[Verdict, ...]
    missing_cells: tuple[str, ...]
    """Cells of the baseline that the run lacks, as "suite · method"."""
    unpaired_cells: tuple[str, ...] = ()
    """Cells of a metric to which single items contribute nothing that could be compared."""

    @property
    def status(self) -> Status:
        """The worst status of all verdicts."""
        return worst_status([verdict.status for verdict in self.verdicts])

    def _repr_html_(self) -> str:
        columns = ("suite", "verdict", "difference", "low", "high", "margin", "n")
        rows = []
        for verdict in self.verdicts:
            difference = verdict.headline.difference
            numbers = (difference.value, difference.low, difference.high)
            values = [float(number) for number in numbers]
            margin = float(verdict.headline.tolerance)
            rows.append((verdict.comparison.suite, verdict.status, *values, margin, difference.n))
        notes = [f"missing: {cell}" for cell in self.missing_cells]
        return to_html_table(columns, rows, title=self.status, notes=notes)


def judge(comparison: Comparison, *margins: Margins) -> Verdict:
    """The verdict on one suite. margins: who says a margin first is believed; of a suite one point,
    if nobody does.

    A group fails only where its drop is significant within its family of tests; one that is
    inconclusive does not make the suite so, because no group was promised to be large enough for
    its margin.
    """
    level = explanatory_level(comparison)
    said = [(one.for_suite(comparison.suite), one.source) for one in (*margins, FALLBACK_MARGINS)]
    headline = next(
        _judge_difference(comparison.headline, m, source) for m, source in said if m is not None
    )
    groups = []
    for group in comparison.groups:
        asked = [(one.for_group(group, level), one.source) for one in margins]
        groups += [_judge_difference(group, m, source) for m, source in asked if m is not None][:1]
    failed: list[Status] = [one.status for one in groups if one.status == "regression"]
    culprits = [
        g for g in comparison.groups if g.level == level and g.gain < 0 and is_significant(g)
    ]
    return Verdict(
        comparison=comparison,
        status=worst_status([headline.status, *failed]),
        headline=headline,
        groups=tuple(groups),
        worse_groups=tuple(sorted(culprits, key=lambda g: g.gain)),
    )


def worst_status(statuses: Sequence[Status]) -> Status:
    return next((status for status in STATUS_SEVERITY if status in statuses), "pass")


def explanatory_level(comparison: Comparison) -> str:
    """The level of groups that names what went wrong: phenomena, else the coarsest that has two
    groups or more.
    """
    counts: dict[str, int] = {}
    for group in comparison.groups:
        counts[group.level] = counts.get(group.level, 0) + 1
    several = [level for level, count in counts.items() if count > 1]
    return PHENOMENON if PHENOMENON in several else several[0] if several else HEADLINE


def is_significant(difference: Difference) -> bool:
    """Is it another than zero: by its test within its family, or, where there is none, by its
    interval?
    """
    if difference.adjusted is not None:
        return difference.adjusted < 1 - CONFIDENCE_LEVEL
    return difference.low > 0 or difference.high < 0


def _judge_difference(difference: Difference, margin: float, source: str) -> Judgement:
    return Judgement(difference, margin, _decide_status(difference, margin), source)


def _decide_status(difference: Difference, margin: float) -> Status:
    worst, best = difference.gain_interval
    if worst > -margin:
        return "pass"
    sure = difference.level == HEADLINE or is_significant(
        difference
    )  # one group of many: sure among its family
    return "regression" if best < 0 and difference.gain <= -margin and sure else "inconclusive"
