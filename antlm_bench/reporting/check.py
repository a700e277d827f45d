"""A gate's verdict in words: the line that names what got worse, the table on the terminal,
Markdown and JSON.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from antlm_bench.comparison import Difference
from antlm_bench.comparison.results import HEADLINE
from antlm_bench.comparison.verdict import FALLBACK_MARGINS, Judgement, Verdict
from antlm_bench.errors import (
    BenchError,
    IncompleteError,
    Inconclusive,
    PerformanceRegression,
)
from antlm_bench.reporting import results_table
from antlm_bench.reporting.comparison import (
    format_interval,
    format_number,
    format_title,
    print_aligned_table,
    unit_suffix,
)
from antlm_bench.reporting.terminal import make_console, print_paragraph
from antlm_bench.results.display_names import make_printable

if TYPE_CHECKING:
    from antlm_bench.comparison.verdict import CheckResult

STYLES = {"pass": "green", "regression": "bold red", "inconclusive": "yellow"}
HEADERS = ("base", "run", "diff", "95% CI", "margin", "verdict")
MAX_NAMED_GROUPS = 3  # groups that a sentence names
VERDICT_LEGEND = (
    "pass: the 95% interval of the difference holds no loss as large as the margin. regression: it holds losses only, "
    "and the difference is the margin or more. inconclusive: too few items to tell."
)


def summarize_verdict(verdict: Verdict) -> str:
    """One printable line: the suite, what happened to it, and the groups that explain a drop."""
    judged, metric = verdict.headline, verdict.comparison.metric
    head = judged.difference
    change = f"{format_number(head.a, metric)} -> {format_number(head.b, metric)}, {format_change(head, metric)}"
    line = f"{format_title(verdict.comparison)}: {verdict.status}: {change}, margin {format_number(judged.tolerance, metric)}"
    failed = [one.difference for one in verdict.groups if one.status == "regression"]
    if judged.status != "regression" and failed:
        line += f"; {len(failed)} with margins of their own failed"
    elif judged.status == "pass" and judged.is_significantly_worse:
        line += "; significantly worse, within the margin"
    failed = sorted(failed, key=lambda d: d.gain)
    named = [*failed, *(culprit for culprit in verdict.worse_groups if culprit not in failed)][
        :MAX_NAMED_GROUPS
    ]
    line += f"; {', '.join(f'{d.name} {format_change(d, metric)}' for d in named)}" if named else ""
    return make_printable(line)


def exit_error(result: CheckResult, strict: bool = False) -> BenchError | None:
    """Return the error that a command line ends with, or None if the check passed.

    A regression goes before missing cells, and those before too little data (only with `strict`).
    """
    lines = {
        status: [summarize_verdict(v) for v in result.verdicts if v.status == status]
        for status in ("regression", "inconclusive")
    }
    if lines["regression"]:
        hint = "antlm-bench compare BASELINE RUN --by paradigm --flips 20 shows where"
        return PerformanceRegression("\n".join(lines["regression"]), hint=hint)
    if result.missing_cells:
        message = f"the run lacks what its baseline has: {', '.join(result.missing_cells)}"
        hint = "score it, or choose suites with --suite"
        return IncompleteError(message, location=result.run_comparison.path_b, hint=hint)
    if lines["inconclusive"] and strict:
        hint = "a wider --margin, or suites with more items; without --strict this passes"
        return Inconclusive("\n".join(lines["inconclusive"]), hint=hint)
    return None


def format_change(difference: Difference, metric: str) -> str:
    """`-3.1 (95% CI -4.9..-1.3)`"""
    low, high = format_interval(difference, metric).split("..")
    return f"{format_number(difference.value, metric, '+')} (95% CI {low}..{high})"


def list_judgements(verdict: Verdict) -> list[Judgement]:
    """The headline and what else was judged."""
    return [verdict.headline, *verdict.groups]


def show_check(checked: CheckResult) -> None:
    """Print the verdict on stdout."""
    print_check(make_console(), checked)


def print_check(console: Console, checked: CheckResult) -> None:
    console.print()
    versus = checked.run_comparison
    print_paragraph(
        console,
        f"{make_printable(versus.name_b)} against baseline {make_printable(versus.name_a)}",
        "bold",
    )
    console.print()
    rows = []
    for verdict in checked.verdicts:
        for one in list_judgements(verdict):
            headline = one.difference.level == HEADLINE
            label = format_title(verdict.comparison) if headline else f"  {one.difference.name}"
            cells = [Text(value) for value in _format_values(one, verdict.comparison.metric)]
            rows.append((label, [*cells, Text(one.status, style=STYLES[one.status])], ""))
    if rows:
        print_aligned_table(console, "", HEADERS, rows)
    for line, style in collect_notes(checked):
        print_paragraph(console, make_printable(line), style, 3)
    console.print()
    print_paragraph(console, VERDICT_LEGEND, "dim")


def collect_notes(checked: CheckResult) -> list[tuple[str, str]]:
    """(a line, its style): what the verdicts must be read with."""
    found = []
    for verdict in checked.verdicts:
        suite, metric = verdict.comparison.suite, verdict.comparison.metric
        if verdict.worse_groups:
            named = ", ".join(
                f"{d.name} {format_change(d, metric)}"
                for d in verdict.worse_groups[:MAX_NAMED_GROUPS]
            )
            rest = (
                f" and {len(verdict.worse_groups) - MAX_NAMED_GROUPS} more"
                if len(verdict.worse_groups) > MAX_NAMED_GROUPS
                else ""
            )
            found.append((f"{suite}: significantly worse in {named}{rest}", "yellow"))
        if verdict.headline.status == "pass" and verdict.headline.is_significantly_worse:
            found.append((f"{suite}: significantly worse, within the margin", "yellow"))
        if verdict.status == "inconclusive" and (needed := verdict.headline.difference.detectable):
            least = f"{format_number(needed, metric)}{unit_suffix(metric)}"
            found.append((f"{suite}: so many items resolve differences from {least} on", "yellow"))
        found += [(f"{suite}: {note}", "dim") for note in verdict.comparison.notes]
    found += [(f"missing: {cell}", "red") for cell in checked.missing_cells]
    found += [
        (f"not judged, because single items contribute nothing to it: {cell}", "dim")
        for cell in checked.unpaired_cells
    ]
    sources: dict[str, dict[str, None]] = {}
    for verdict in checked.verdicts:
        sources.setdefault(verdict.headline.source, {})[verdict.comparison.suite] = None
    said = [
        f"{', '.join(suites)} by {source}"
        for source, suites in sources.items()
        if source != FALLBACK_MARGINS.source
    ]
    return found + [(f"margin of {'; of '.join(said)}", "dim")] * bool(said)


def overall_status(checked: CheckResult) -> str:
    """The gravest of it in a word; what is missing is graver than what is inconclusive."""
    return (
        "incomplete" if checked.missing_cells and checked.status != "regression" else checked.status
    )


def to_markdown(checked: CheckResult) -> str:
    """GitHub-flavoured Markdown: the verdict, a table of what was judged, and the remarks."""
    versus = checked.run_comparison
    parts = [
        f"### {overall_status(checked)}: {_escape_cell(versus.name_b)} against baseline {_escape_cell(versus.name_a)}"
    ]
    rows: list[Sequence[str]] = [("", *HEADERS)]
    rows.append(("---", *["---:"] * 5, "---"))
    for verdict in checked.verdicts:
        for one in list_judgements(verdict):
            headline = one.difference.level == HEADLINE
            name = (
                f"**{_escape_cell(format_title(verdict.comparison))}**"
                if headline
                else f"&emsp;{_escape_cell(one.difference.name)}"
            )
            rows.append((name, *_format_values(one, verdict.comparison.metric), one.status))
    parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows))
    parts.append("\n".join(f"- {_escape_cell(line)}" for line, _ in collect_notes(checked)))
    return "\n\n".join(part for part in [*parts, f"_{VERDICT_LEGEND}_"] if part) + "\n"


def to_json(checked: CheckResult, exit_code: int) -> str:
    """JSON: the verdict with all that was judged; fractions in full precision (correlations and
    nats as they are).
    """
    versus = checked.run_comparison
    suites = [
        {
            "suite": verdict.comparison.suite,
            "method": {"baseline": verdict.comparison.method_a, "run": verdict.comparison.method_b},
            "metric": verdict.comparison.metric,
            "lower_is_better": verdict.comparison.headline.lower_is_better,
            "status": verdict.status,
            "headline": _judgement_fields(verdict.headline),
            "groups": [_judgement_fields(one) for one in verdict.groups],
            "worse": [_difference_fields(culprit) for culprit in verdict.worse_groups],
            "notes": verdict.comparison.notes,
        }
        for verdict in checked.verdicts
    ]
    document = {
        "status": overall_status(checked),
        "exit_code": exit_code,
        "baseline": {"name": versus.name_a, "path": versus.path_a},
        "run": {"name": versus.name_b, "path": versus.path_b},
        "suites": suites,
        "missing": checked.missing_cells,
        "unjudged": checked.unpaired_cells,
    }
    return json_module.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _judgement_fields(judgement: Judgement) -> dict[str, Any]:
    return _difference_fields(judgement.difference) | {
        "margin": judgement.tolerance,
        "margin_by": judgement.source,
        "status": judgement.status,
    }


def _difference_fields(d: Difference) -> dict[str, Any]:
    about = {
        "level": d.level,
        "name": d.name,
        "n": d.n,
        "baseline": d.a,
        "run": d.b,
        "difference": d.value,
    }
    return about | {"low": d.low, "high": d.high, "p": d.p if d.adjusted is None else d.adjusted}


def _format_values(judgement: Judgement, metric: str) -> list[str]:
    d = judgement.difference
    values = [
        format_number(d.a, metric),
        format_number(d.b, metric),
        format_number(d.value, metric, "+"),
        format_interval(d, metric),
    ]
    return [*values, format_number(judgement.tolerance, metric)]


def _escape_cell(text: str) -> str:
    return results_table.escape_markdown(make_printable(text))
