"""Verdicts of `check`: whether a checkpoint is worse than another by more than a declared margin.

This is a test of non-inferiority (as in clinical trials: Piaggio et al. 2012). It uses the
two-sided 95% interval of the paired drop: baseline - new, or new - baseline if lower is better. For
a margin m > 0:

    the interval lies below m    pass: the drop is within the margin, even if it is significant
    the interval lies above m    regression: the drop is larger than the margin
    the interval contains m      undecided: too few items for this margin

Therefore a true drop of the margin or less is called a regression in at most 2.5% of cases, and a
true drop of the margin or more passes in at most 2.5%. For several suites, see
`adjust_for_multiple_suites`.

`mark_drops` also marks significant drops that are not regressions: a suite whose interval lies
above 0 gets the status `drop`, as if m were 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from antlm_bench.comparison.results import (
    HEADLINE,
    Comparison,
    Difference,
    RunComparison,
)
from antlm_bench.notebook import to_html_table
from antlm_bench.printable import make_printable
from antlm_bench.statistics import (
    CONFIDENCE_LEVEL,
    Z,
    equivalent_items,
    holm,
    items_factor,
    one_sided_p,
    planned_flip_rates,
)
from antlm_bench.types import shorten_list

Status = Literal["pass", "regression", "drop", "undecided"]
FailOn = Literal["regression", "drop"]
PHENOMENON = "phenomenon"
"""The level whose groups explain a drop, in suites that have this level."""
STATUS_SEVERITY: tuple[Status, ...] = ("regression", "drop", "undecided", "pass")
HALF_WIDTHS_TO_DECIDE = 1 + 0.8416 / Z
"""Distance from the margin, in half widths of a normal interval, at which a true drop is decided
with a probability of 80%."""
FAILURES: tuple[Status, ...] = ("regression", "drop")
"""Statuses that fail a check."""
STATUS_RULES: dict[Status, str] = {
    "pass": "the two-sided 95% interval of the drop lies below the margin",
    "regression": "the interval lies above the margin",
    "undecided": "the interval holds the margin, so there are too few items to decide",
    "drop": "no regression, but the interval lies above 0 (only with --fail-on drop)",
}
"""Status -> its condition. The drop is baseline - run, or run - baseline if lower is better."""
EXIT_CODES = "Exit codes: 0 pass or undecided, 1 regression or drop, 4 undecided with --strict."
GATE_RULE = (
    "; ".join(f"{status}: {rule}" for status, rule in STATUS_RULES.items())
    + ". With several suites, a regression or drop must also hold after Holm's correction. "
    + EXIT_CODES
)
"""The rule of `check`, as every output and page states it (tests/reporting/test_gate_rule.py)."""
DEFAULT_MARGIN = 0.01
"""One point. It is larger than the numerical noise of any dtype (`antlm-bench noise`), and BLiMP
has enough items to detect such a drop.
"""


@dataclass(frozen=True, slots=True)
class Margins:
    """The margins that one source declares, in the unit of the metric (accuracies: fractions)."""

    default: float | None = None
    """Margin of the headline of every suite. None = not declared."""
    suites: Mapping[str, float] = field(default_factory=dict)
    """Suite -> margin."""
    groups: Mapping[str, float] = field(default_factory=dict)
    """Field, phenomenon, paradigm or task -> margin."""
    every_group: float | None = None
    """Margin of every other group of the level that explains a drop. None = not declared; groups
    without a margin are not judged."""
    source: str = ""
    """Name of the option, policy file or TOML that declares them."""

    def for_suite(self, suite: str) -> float | None:
        """Return the margin of a suite's headline; None if this source declares none."""
        return self.suites.get(suite, self.default)

    def for_group(self, group: Difference, level: str) -> float | None:
        """Return the margin of a group; None if this source declares none.

        level: the level whose groups explain a drop.
        """
        return self.groups.get(group.name, self.every_group if group.level == level else None)


FALLBACK_MARGINS = Margins(DEFAULT_MARGIN, source="default")


@dataclass(frozen=True, slots=True)
class Judgement:
    """A difference, its margin, and the status that follows."""

    difference: Difference
    tolerance: float
    """The margin: the largest tolerated drop, in the unit of the metric."""
    status: Status
    source: str = ""
    """Source of the margin: an option, a file or "default"."""
    correction: str = ""
    """Correction for several suites, if it changed the status from regression or drop."""

    @property
    def p(self) -> float:
        """One-sided p-value that the drop is at most the margin.

        It is below 2.5% exactly where the interval lies above the margin: the statistic is the
        distance of the difference from the margin, divided by a standard error, which is the half
        of the interval on the side of the margin, divided by the 97.5% quantile of the same t (or
        normal) distribution.
        """
        highest_gain = self.difference.gain_interval[1]
        half_width = highest_gain - self.difference.gain
        distance = -self.tolerance - self.difference.gain
        if not half_width:
            return float(distance <= 0)
        return one_sided_p(distance / half_width, self.difference.df or np.inf)

    @property
    def is_significantly_worse(self) -> bool:
        """Whether there is a significant drop, of any size."""
        return is_significant(self.difference) and self.difference.gain < 0

    @property
    def items_to_decide(self) -> int | None:
        """Number of items, to two digits, that decide the verdict with a probability of 80%.

        It assumes that the observed drop is the true one. For credits, it also assumes the same
        share of flips. For other values, the width of an interval is assumed to fall with the root
        of the number of items. None if the drop equals the margin, or
        if no interval is known.
        """
        d = self.difference
        distance = abs(d.gain + self.tolerance)
        if not distance or d.p is None:
            return None
        if d.flip_rate is None or d.detectable is None:
            factor = (HALF_WIDTHS_TO_DECIDE * (d.high - d.low) / 2 / distance) ** 2
        else:
            num_items = equivalent_items(d.detectable, d.flip_rate, d.n)
            rates = planned_flip_rates(np.full(1, num_items), np.ones(1), d.flip_rate)
            factor = max(items_factor(rates, self.tolerance, -d.gain), 1.0)
        return int(float(f"{d.n * factor:.2g}")) if np.isfinite(factor) else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one suite."""

    comparison: Comparison
    status: Status
    """The most severe status of the headline and of groups that regressed."""
    headline: Judgement
    groups: tuple[Judgement, ...]
    """The groups that have margins."""
    worse_groups: tuple[Difference, ...]
    """Significantly worse groups of the level that explains a drop, worst first."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The verdicts on a run compared with a baseline, one per suite."""

    run_comparison: RunComparison
    verdicts: tuple[Verdict, ...]
    missing_cells: tuple[str, ...]
    """Cells of the baseline that the run lacks, as "suite · method"."""
    unpaired_cells: tuple[str, ...] = ()
    """Cells whose metric has no values per item, so that two runs cannot be paired."""

    @property
    def status(self) -> Status:
        """The most severe status of all verdicts."""
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

    margins: for each suite or group, the first source that declares a margin applies. Default: 1
    point per suite, none per group.

    A group is a regression only if its drop is also significant within its family of tests. An
    undecided group does not make the suite undecided, because groups have few items.
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
        for declared_margins in margins:
            tolerance = declared_margins.for_group(group, level)
            if tolerance is not None:
                groups.append(_judge_difference(group, tolerance, declared_margins.source))
                break
    group_failures: list[Status] = [
        group.status for group in groups if group.status == "regression"
    ]
    worse_groups = [
        group
        for group in comparison.groups
        if group.level == level and group.gain < 0 and is_significant(group)
    ]
    return Verdict(
        comparison=comparison,
        status=worst_status([headline.status, *group_failures]),
        headline=headline,
        groups=tuple(groups),
        worse_groups=tuple(sorted(worse_groups, key=lambda group: group.gain)),
    )


def adjust_for_multiple_suites(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """Return the verdicts after Holm's correction for the number of suites.

    With the correction, the probability that any suite whose true drop is within its margin becomes
    a regression is at most 2.5% (simulated for five suites: docs/explanation/statistics.md). A pass
    of all suites needs no correction (an intersection-union test). The judgements of groups stay
    unchanged.
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

    Regressions stay regressions. A drop is a regression with a margin of 0, with the same
    correction for several suites. Groups are not marked.
    """
    drops = adjust_for_multiple_suites(
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
    """Return the most severe status; "pass" if there is none."""
    return next((status for status in STATUS_SEVERITY if status in statuses), "pass")


def explanatory_level(comparison: Comparison) -> str:
    """Return the level whose groups explain a drop.

    It is "phenomenon" if the suite has at least two; else the coarsest level with at least two
    groups; else HEADLINE.
    """
    counts = Counter(group.level for group in comparison.groups)
    levels = [level for level, count in counts.items() if count > 1]
    if PHENOMENON in levels:
        return PHENOMENON
    return levels[0] if levels else HEADLINE


def is_significant(difference: Difference) -> bool:
    """Return whether a difference is significant.

    It is if its adjusted p-value is below 5% or, without a test, if its interval excludes 0.
    """
    if difference.adjusted is not None:
        return difference.adjusted < 1 - CONFIDENCE_LEVEL
    return difference.low > 0 or difference.high < 0


def _judge_difference(difference: Difference, margin: float, source: str) -> Judgement:
    return Judgement(difference, margin, _decide_status(difference, margin), source)


def _decide_status(difference: Difference, margin: float) -> Status:
    lowest_gain, highest_gain = difference.gain_interval
    if lowest_gain > -margin:
        return "pass"
    # A group is one of many tests, so its drop must also be significant within its family.
    can_fail = difference.level == HEADLINE or is_significant(difference)
    return "regression" if highest_gain < -margin and can_fail else "undecided"
