"""The table of `check`: per suite the difference, the margin and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from antlm_bench.comparison import Difference
from antlm_bench.comparison.results import HEADLINE
from antlm_bench.comparison.verdict import FALLBACK_MARGINS, CheckResult, Judgement, Verdict
from antlm_bench.errors import (
    BenchError,
    IncompleteError,
    Inconclusive,
    PerformanceRegression,
)
from antlm_bench.printable import make_printable
from antlm_bench.reporting.comparison_table import (
    format_interval,
    format_number,
    format_title,
    unit_suffix,
)
from antlm_bench.reporting.results_table import raw_unit
from antlm_bench.reporting.table import Table, TableCell, TableColumn, TableRow, Tone, build_row

TONES: dict[str, Tone] = {"pass": "good", "regression": "bad", "inconclusive": "doubtful"}
UNPAIRED_NOTE = "single items contribute nothing to it that could be compared"
HEADERS = ("base", "run", "diff", "95% CI", "margin", "verdict")
MAX_NAMED_GROUPS = 3
"""Most groups that a sentence names."""
VERDICT_LEGEND = (
    "pass: the two-sided 95% interval of the difference holds no loss as large as the margin. "
    "regression: it holds only losses larger than the margin. "
    "inconclusive: it holds the margin, so there are too few items to tell."
)


def summarize_verdict(verdict: Verdict) -> str:
    """Describe a verdict in one printable line, with the groups that explain a drop."""
    judged, metric = verdict.headline, verdict.comparison.metric
    head = judged.difference
    before, after, margin = (format_number(x, metric) for x in (head.a, head.b, judged.tolerance))
    line = f"{format_title(verdict.comparison)}: {verdict.status}: {before} -> {after}, "
    line += f"{format_change(head, metric)}, margin {margin}"
    failed = [group.difference for group in verdict.groups if group.status == "regression"]
    if judged.status != "regression" and failed:
        line += f"; {len(failed)} with margins of their own failed"
    elif judged.status == "pass" and judged.is_significantly_worse:
        line += "; significantly worse, within the margin"
    failed = sorted(failed, key=lambda d: d.gain)
    groups = [*failed, *(group for group in verdict.worse_groups if group not in failed)]
    changes = [f"{d.name} {format_change(d, metric)}" for d in groups[:MAX_NAMED_GROUPS]]
    line += f"; {', '.join(changes)}" if changes else ""
    return make_printable(line)


def exit_error(result: CheckResult, strict: bool = False) -> BenchError | None:
    """Return the error that the command ends with, or None if the check passed.

    A regression precedes missing cells, which precede too little data (an error only if `strict`).
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
    """Return a difference with its interval: `-3.1 (95% CI -4.9..-1.3)`."""
    low, high = format_interval(difference, metric).split("..")
    return f"{format_number(difference.value, metric, '+')} (95% CI {low}..{high})"


def list_judgements(verdict: Verdict) -> list[Judgement]:
    """Return the judgements of the headline and of the groups with margins."""
    return [verdict.headline, *verdict.groups]


def build_check_table(checked: CheckResult, exit_code: int) -> Table:
    """Build the table of a check. exit_code: exit code of the command, for JSON."""
    versus = checked.run_comparison
    rows = [
        _build_judgement_row(verdict, judgement)
        for verdict in checked.verdicts
        for judgement in list_judgements(verdict)
    ]
    blanks = [TableCell(text="")] * 5
    rows += [
        build_row(cell, *blanks, TableCell("missing", tone="bad")) for cell in checked.missing_cells
    ]
    unpaired = TableCell("not judged", notes=(UNPAIRED_NOTE,))
    rows += [build_row(cell, *blanks, unpaired) for cell in checked.unpaired_cells]
    return Table(
        (
            TableColumn("suite", ""),
            *(TableColumn(key, align="right") for key in HEADERS[:-1]),
            TableColumn(HEADERS[-1]),
        ),
        tuple(rows),
        title=f"{overall_status(checked)}: {versus.name_b} against baseline {versus.name_a}",
        legend=(*_describe_margin_sources(checked), VERDICT_LEGEND),
        long=_build_long_table(checked),
        document=_build_document(checked, exit_code),
    )


def _build_judgement_row(verdict: Verdict, judgement: Judgement) -> TableRow:
    d, metric = judgement.difference, verdict.comparison.metric
    unit = raw_unit(metric)
    is_headline = d.level == HEADLINE
    suite, title = verdict.comparison.suite, format_title(verdict.comparison)
    name = TableCell(suite, title, notes=tuple(_verdict_notes(verdict)))
    return build_row(
        name if is_headline else d.name,
        TableCell(d.a, format_number(d.a, metric), unit=unit),
        TableCell(d.b, format_number(d.b, metric), unit=unit),
        TableCell(d.value, format_number(d.value, metric, "+"), d.low, d.high, unit=unit),
        TableCell(text=format_interval(d, metric)),
        TableCell(judgement.tolerance, format_number(judgement.tolerance, metric), unit=unit),
        TableCell(judgement.status, tone=TONES[judgement.status]),
        depth=0 if is_headline else 1,
    )


def _verdict_notes(verdict: Verdict) -> Iterator[str]:
    """Yield the notes of a verdict."""
    metric, judged = verdict.comparison.metric, verdict.headline
    if worse := verdict.worse_groups:
        groups = ", ".join(f"{d.name} {format_change(d, metric)}" for d in worse[:MAX_NAMED_GROUPS])
        more = len(worse) - MAX_NAMED_GROUPS
        yield f"significantly worse in {groups}" + (f" and {more} more" if more > 0 else "")
    if judged.status == "pass" and judged.is_significantly_worse:
        yield "significantly worse, within the margin"
    if verdict.status == "inconclusive" and (needed := judged.difference.detectable):
        least = f"{format_number(needed, metric)}{unit_suffix(metric)}"
        yield f"so many items resolve differences from {least} on"
    if judged.status == "inconclusive":
        if judged.correction:
            yield f"a regression if it were the only suite; not by {judged.correction}"
        what = "a significant drop" if judged.is_significantly_worse else "no significant drop"
        if judged.items_to_decide:
            what += f"; about {judged.items_to_decide:,} items like these would decide"
        yield what
    yield from verdict.comparison.notes


def _describe_margin_sources(checked: CheckResult) -> list[str]:
    sources: dict[str, dict[str, None]] = {}
    for verdict in checked.verdicts:
        sources.setdefault(verdict.headline.source, {})[verdict.comparison.suite] = None
    margins = [
        f"{', '.join(suites)} by {source}"
        for source, suites in sources.items()
        if source != FALLBACK_MARGINS.source
    ]
    return [f"margin of {'; of '.join(margins)}"] if margins else []


def _build_long_table(checked: CheckResult) -> Table:
    """Build the long form: a row per difference that was judged."""
    rows = []
    for verdict in checked.verdicts:
        c = verdict.comparison
        for judgement in list_judgements(verdict):
            values = _judgement_fields(judgement).values()
            rows.append(build_row(c.suite, c.method_a, c.method_b, c.metric, *values))
    keys: tuple[str, ...] = (
        "suite",
        "method_baseline",
        "method_run",
        "metric",
        "level",
        "name",
        "n",
        "baseline",
    )
    keys += ("run", "difference", "low", "high", "p", "margin", "margin_by", "status")
    return Table(tuple(map(TableColumn, keys)), tuple(rows))


def overall_status(checked: CheckResult) -> str:
    """Return the most serious status. "incomplete" lies between "regression" and "inconclusive"."""
    if checked.missing_cells and checked.status != "regression":
        return "incomplete"
    return checked.status


def _build_document(checked: CheckResult, exit_code: int) -> dict[str, Any]:
    """Return all verdicts as a JSON object, in full precision."""
    versus = checked.run_comparison
    suites = [
        {
            "suite": verdict.comparison.suite,
            "method": {"baseline": verdict.comparison.method_a, "run": verdict.comparison.method_b},
            "metric": verdict.comparison.metric,
            "lower_is_better": verdict.comparison.headline.lower_is_better,
            "status": verdict.status,
            "headline": _judgement_fields(verdict.headline),
            "groups": [_judgement_fields(group) for group in verdict.groups],
            "worse": [_difference_fields(group) for group in verdict.worse_groups],
            "notes": verdict.comparison.notes,
        }
        for verdict in checked.verdicts
    ]
    return {
        "status": overall_status(checked),
        "exit_code": exit_code,
        "baseline": {"name": versus.name_a, "path": versus.path_a},
        "run": {"name": versus.name_b, "path": versus.path_b},
        "suites": suites,
        "missing": checked.missing_cells,
        "unjudged": checked.unpaired_cells,
    }


def _judgement_fields(judgement: Judgement) -> dict[str, Any]:
    return _difference_fields(judgement.difference) | {
        "margin": judgement.tolerance,
        "margin_by": judgement.source,
        "status": judgement.status,
    }


def _difference_fields(d: Difference) -> dict[str, Any]:
    return {
        "level": d.level,
        "name": d.name,
        "n": d.n,
        "baseline": d.a,
        "run": d.b,
        "difference": d.value,
        "low": d.low,
        "high": d.high,
        "p": d.p if d.adjusted is None else d.adjusted,
    }
