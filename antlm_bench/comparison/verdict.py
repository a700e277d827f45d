"""Verdicts of a gate: did the checkpoint get worse by more than a margin declared beforehand?

A test of non-inferiority (as in clinical trials: Piaggio et al. 2012) by the two-sided 95% interval
of the paired drop, baseline - new, with its sign turned where lower is better. For a margin m > 0:

    the interval lies below m    pass (a drop may be significant and tolerable)
    the interval lies above m    regression: the drop is larger than the margin
    the interval contains m      undecided: too few items for this margin

So a true drop of the margin or less is called a regression in at most 2.5% of cases, and a true
drop of the margin or more passes in at most 2.5%. Of several suites, see `correct_for_suites`.

With `mark_drops`, a suite without a regression whose interval lies above 0 is a `drop`: a
significant drop of any size, as if m were 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from antlm_bench.comparison.results import (
    HEADLINE,
    POWER_FACTOR,
    Comparison,
    Difference,
    RunComparison,
)
from antlm_bench.notebook import to_html_table
from antlm_bench.printable import make_printable
from antlm_bench.statistics import CONFIDENCE_LEVEL, Z, holm, one_sided_p
from antlm_bench.types import shorten_list

Status = Literal["pass", "regression", "drop", "undecided"]
FailOn = Literal["regression", "drop"]
PHENOMENON = "phenomenon"
"""The level at which a drop is explained, in suites that have it."""
STATUS_SEVERITY: tuple[Status, ...] = ("regression", "drop", "undecided", "pass")
FAILURES: tuple[Status, ...] = ("regression", "drop")
"""Statuses that fail a check."""
DEFAULT_MARGIN = 0.01
"""One point: above the numeric noise of any dtype (`antlm-bench noise`), and what BLiMP can
resolve."""


@dataclass(frozen=True, slots=True)
class Margins:
    """The margins that one source declares, as fractions (correlations and nats: as they are)."""

    default: float | None = None
    """For every suite's headline. None = not declared."""
    suites: Mapping[str, float] = field(default_factory=dict)
    """Suite -> margin."""
    groups: Mapping[str, float] = field(default_factory=dict)
    """Field, phenomenon, paradigm or task -> margin. Other groups are not judged."""
    every_group: float | None = None
    """For every group of the level that explains a drop."""
    source: str = ""
    """An option, a policy file, a suite's TOML."""

    def for_suite(self, suite: str) -> float | None:
        """Return the margin of a suite's headline, if this source declares one."""
        return self.suites.get(suite, self.default)

    def for_group(self, group: Difference, level: str) -> float | None:
        """Return the margin of a group, if this source declares one. level: the one that
        explains."""
        return self.groups.get(group.name, self.every_group if group.level == level else None)


FALLBACK_MARGINS = Margins(DEFAULT_MARGIN, source="default")


@dataclass(frozen=True, slots=True)
class Judgement:
    """One difference, judged against its margin."""

    difference: Difference
    tolerance: float
    """The margin."""
    status: Status
    source: str = ""
    """Source of the margin: an option, a file or "default"."""
    correction: str = ""
    """Correction over several suites without which it would be a regression, or a drop."""

    @property
    def p(self) -> float:
        """One-sided p-value of a drop of the margin or less, below 2.5% where the interval says
        regression.

        The distance between difference and margin is taken in units of the interval's half on that
        side, which is 1.96 standard errors.
        """
        best = self.difference.gain_interval[1]
        half, distance = best - self.difference.gain, -self.tolerance - self.difference.gain
        return one_sided_p(Z * distance / half) if half else float(distance <= 0)

    @property
    def is_significantly_worse(self) -> bool:
        """Whether it dropped significantly, tolerable or not."""
        return is_significant(self.difference) and self.difference.gain < 0

    @property
    def items_to_decide(self) -> int | None:
        """Items like these that decide with 80% power if the drop is as observed, to two digits.

        An interval shrinks with the root of the number of items. None where the drop equals the
        margin.
        """
        worst, best = self.difference.gain_interval
        distance = abs(self.difference.gain + self.tolerance)
        if not distance:
            return None
        ratio = POWER_FACTOR * (best - worst) / 2 / distance
        return int(float(f"{self.difference.n * ratio**2:.2g}"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One suite, judged."""

    comparison: Comparison
    status: Status
    """The worst of the headline's and of the judged groups'."""
    headline: Judgement
    groups: tuple[Judgement, ...]
    """The groups that have margins of their own."""
    worse_groups: tuple[Difference, ...]
    """Groups of the level that explains, significantly worse, worst first."""


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

    def __repr__(self) -> str:
        """Return one line: the status, both models and the suites with their verdicts."""
        runs = self.run_comparison
        names = make_printable(f"{runs.name_b} against {runs.name_a}")
        suites = shorten_list([f"{v.comparison.suite} {v.status}" for v in self.verdicts])
        return f"<CheckResult {self.status}: {names}; {suites or 'no suite'}>"

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
    """Return the verdict on one suite.

    margins: the first source that declares a margin wins. Default: 1 point per suite.

    A group fails only where its drop is significant within its family of tests. An undecided
    group does not make the suite undecided, because nothing says that it is large enough for its
    margin.
    """
    level = explanatory_level(comparison)
    declared = [(m.for_suite(comparison.suite), m.source) for m in (*margins, FALLBACK_MARGINS)]
    headline = next(
        _judge_difference(comparison.headline, tolerance, source)
        for tolerance, source in declared
        if tolerance is not None
    )
    groups = []
    for group in comparison.groups:
        declared = [(m.for_group(group, level), m.source) for m in margins]
        known = [(tolerance, source) for tolerance, source in declared if tolerance is not None]
        groups += [_judge_difference(group, *margin) for margin in known[:1]]
    failed: list[Status] = [group.status for group in groups if group.status == "regression"]
    worse_groups = [
        group
        for group in comparison.groups
        if group.level == level and group.gain < 0 and is_significant(group)
    ]
    return Verdict(
        comparison=comparison,
        status=worst_status([headline.status, *failed]),
        headline=headline,
        groups=tuple(groups),
        worse_groups=tuple(sorted(worse_groups, key=lambda group: group.gain)),
    )


def correct_for_suites(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Return the verdicts of suites that are judged together.

    Any suite without a drop beyond its margin is called a regression in at most 2.5% of checks:
    p-values of the headlines are adjusted by Holm. A pass of all needs no correction
    (intersection-union). Groups with margins of their own stay as they are.
    """
    correction = f"Holm over {len(verdicts)} suites"
    adjusted = holm([verdict.headline.p for verdict in verdicts])
    corrected = []
    for verdict, p in zip(verdicts, adjusted, strict=True):
        if verdict.headline.status == "regression" and p >= (1 - CONFIDENCE_LEVEL) / 2:
            headline = replace(verdict.headline, status="undecided", correction=correction)
            statuses = [headline.status, *(g.status for g in verdict.groups)]
            status: Status = "regression" if "regression" in statuses else "undecided"
            corrected.append(replace(verdict, headline=headline, status=status))
        else:
            corrected.append(verdict)
    return tuple(corrected)


def mark_drops(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Return the verdicts with the status "drop" for suites that dropped significantly.

    Regressions stay regressions. The drops of several suites are corrected as regressions are:
    the rule is that of a regression with a margin of 0. Groups are not marked.
    """
    drops = correct_for_suites(
        [
            replace(
                verdict,
                headline=_judge_difference(verdict.headline.difference, 0.0, ""),
                groups=(),
            )
            for verdict in verdicts
        ]
    )
    marked = []
    for verdict, drop in zip(verdicts, drops, strict=True):
        headline = verdict.headline
        if headline.status == "regression":
            marked.append(verdict)
        elif drop.headline.status == "regression":
            headline = replace(headline, status="drop")
            status = worst_status([verdict.status, "drop"])
            marked.append(replace(verdict, headline=headline, status=status))
        else:
            correction = headline.correction or drop.headline.correction
            marked.append(replace(verdict, headline=replace(headline, correction=correction)))
    return tuple(marked)


def worst_status(statuses: Sequence[Status]) -> Status:
    """Return the most severe status; without any, pass."""
    return next((status for status in STATUS_SEVERITY if status in statuses), "pass")


def explanatory_level(comparison: Comparison) -> str:
    """Return the level of groups that explains a drop: phenomena, else the coarsest that has two
    groups or more."""
    counts: dict[str, int] = {}
    for group in comparison.groups:
        counts[group.level] = counts.get(group.level, 0) + 1
    several = [level for level, count in counts.items() if count > 1]
    return PHENOMENON if PHENOMENON in several else several[0] if several else HEADLINE


def is_significant(difference: Difference) -> bool:
    """Return whether a difference is not 0: by its test within its family or, without a test, by
    its interval."""
    if difference.adjusted is not None:
        return difference.adjusted < 1 - CONFIDENCE_LEVEL
    return difference.low > 0 or difference.high < 0


def _judge_difference(difference: Difference, margin: float, source: str) -> Judgement:
    return Judgement(difference, margin, _decide_status(difference, margin), source)


def _decide_status(difference: Difference, margin: float) -> Status:
    worst, best = difference.gain_interval
    if worst > -margin:
        return "pass"
    # A group is one of many: its drop has to be significant within its family.
    is_certain = difference.level == HEADLINE or is_significant(difference)
    return "regression" if best < -margin and is_certain else "undecided"
