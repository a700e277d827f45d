"""Build the table of `check`: the difference, the margin and the verdict of each suite."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from antlm_bench.comparison import Difference
from antlm_bench.comparison.results import HEADLINE
from antlm_bench.comparison.verdict import (
    FAILURES,
    FALLBACK_MARGINS,
    GATE_RULE,
    CheckResult,
    Judgement,
    Verdict,
)
from antlm_bench.errors import (
    BenchError,
    IncompleteError,
    PerformanceRegression,
    Undecided,
)
from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import format_count, make_printable
from antlm_bench.reporting.comparison_table import (
    describe_detectable,
    difference_cells,
    format_interval,
    format_number,
    format_title,
)
from antlm_bench.reporting.table import (
    Table,
    TableCell,
    TableColumn,
    TableRow,
    Tone,
    build_records_table,
    build_row,
)

TONES: dict[str, Tone] = {
    "pass": "good",
    "regression": "bad",
    "drop": "bad",
    "undecided": "doubtful",
}
UNPAIRED_NOTE = "its metric has no values of single items that could be paired"
NUMERIC_HEADERS = ("base", "run", "diff", "95% CI", "margin")
MAX_NAMED_GROUPS = 3
"""Largest number of groups that a sentence names."""
LONG_KEYS = (
    "suite",
    "method_baseline",
    "method_run",
    "metric",
    "level",
    "name",
    "n",
    "baseline",
    "run",
    "difference",
    "low",
    "high",
    "p",
    "margin",
    "margin_by",
    "status",
)
"""Columns of the long form."""


def summarize_verdict(verdict: Verdict) -> str:
    """Describe a verdict in one printable line, with the groups that explain a drop."""
    headline, metric = verdict.headline, verdict.comparison.metric
    difference = headline.difference
    before, after = format_number(difference.a, metric), format_number(difference.b, metric)
    parts = [
        f"{format_title(verdict.comparison)}: {verdict.status}: {before} -> {after}, "
        f"{format_change(difference, metric, tested_values(headline))}, "
        f"margin {format_number(headline.tolerance, metric)}"
    ]
    failed_groups = [group.difference for group in verdict.groups if group.status == "regression"]
    if headline.status != "regression" and failed_groups:
        parts.append(f"groups beyond their own margins: {len(failed_groups)}")
    elif headline.is_significantly_worse and headline.status != "regression":
        parts.append(_describe_drop(headline))
    failed_groups.sort(key=lambda group: group.gain)
    other_groups = [group for group in verdict.worse_groups if group not in failed_groups]
    shown_groups = [*failed_groups, *other_groups][:MAX_NAMED_GROUPS]
    if shown_groups:
        parts.append(_list_changes(shown_groups, metric))
    return make_printable("; ".join(parts))


def _describe_drop(headline: Judgement) -> str:
    """Describe a significant drop that is not shown to be larger than the margin."""
    is_tolerable = headline.difference.gain_interval[0] > -headline.tolerance
    within = "within the margin" if is_tolerable else "perhaps within the margin"
    return f"significantly worse, {within}"


def _list_changes(groups: Sequence[Difference], metric: str) -> str:
    return ", ".join(f"{group.name} {format_change(group, metric)}" for group in groups)


def build_exit_error(result: CheckResult, strict: bool = False) -> BenchError | None:
    """Return the error that sets the exit code of the command; None if the check passed.

    A regression or drop takes precedence over missing cells, and these over undecided verdicts,
    which are errors only if `strict`.
    """
    failures = [summarize_verdict(v) for v in result.verdicts if v.status in FAILURES]
    undecided = [summarize_verdict(v) for v in result.verdicts if v.status == "undecided"]
    if failures:
        paths = shlex.join([result.run_comparison.path_a, result.run_comparison.path_b])
        hint = f"antlm-bench compare {paths} --by paradigm --flips 20 shows where"
        return PerformanceRegression("\n".join(failures), hint=hint)
    if result.missing_cells:
        message = f"the run lacks results of its baseline: {', '.join(result.missing_cells)}"
        hint = "score these suites, or choose others with --suite"
        return IncompleteError(message, location=result.run_comparison.path_b, hint=hint)
    if undecided and strict:
        hint = "use a wider --margin, or suites with more items; without --strict this passes"
        return Undecided("\n".join(undecided), hint=hint)
    return None


def format_change(difference: Difference, metric: str, tested: Collection[float] = (0.0,)) -> str:
    """Return a difference with its interval: `-3.1 (95% CI [-4.9, -1.3])`.

    tested: see MetricSpec.format_interval.
    """
    value = format_number(difference.value, metric, "+")
    return f"{value} (95% CI {format_interval(difference, metric, tested)})"


def tested_values(judgement: Judgement) -> tuple[float, float]:
    """Return the differences that the interval is compared with: none, and a drop of the margin."""
    is_rise = judgement.difference.lower_is_better
    return 0.0, judgement.tolerance if is_rise else -judgement.tolerance


def list_judgements(verdict: Verdict) -> list[Judgement]:
    """Return the judgements of the headline and of the groups with margins."""
    return [verdict.headline, *verdict.groups]


def build_check_table(checked: CheckResult, exit_code: int) -> Table:
    """Build the table of a check. exit_code: of the command; JSON contains it."""
    run_names = checked.run_comparison
    rows = [
        _build_judgement_row(verdict, judgement)
        for verdict in checked.verdicts
        for judgement in list_judgements(verdict)
    ]
    blanks = [TableCell(text="")] * len(NUMERIC_HEADERS)
    rows += [
        build_row(cell, *blanks, TableCell("missing", tone="bad")) for cell in checked.missing_cells
    ]
    legend = [*_describe_margin_sources(checked), GATE_RULE]
    unpaired = TableCell("not compared", notes=(UNPAIRED_NOTE,))
    rows += [build_row(cell, *blanks, unpaired) for cell in checked.unpaired_cells]
    return Table(
        (
            TableColumn("suite", label=""),
            *(TableColumn(key, align="right") for key in NUMERIC_HEADERS),
            TableColumn("verdict"),
        ),
        tuple(rows),
        title=f"{overall_status(checked)}: {run_names.name_b} against baseline {run_names.name_a}",
        legend=tuple(legend),
        build_long=partial(_build_long_table, checked),
        document=_build_document(checked, exit_code),
    )


def _build_judgement_row(verdict: Verdict, judgement: Judgement) -> TableRow:
    d, metric = judgement.difference, verdict.comparison.metric
    spec = get_metric_spec(metric)
    is_headline = d.level == HEADLINE
    suite, title = verdict.comparison.suite, format_title(verdict.comparison)
    name = TableCell(suite, title, notes=tuple(_verdict_notes(verdict)))
    return build_row(
        name if is_headline else d.name,
        *difference_cells(d, metric),
        TableCell(text=format_interval(d, metric, tested_values(judgement))),
        TableCell(judgement.tolerance, spec.format(judgement.tolerance), unit=spec.raw_unit),
        TableCell(judgement.status, tone=TONES[judgement.status]),
        depth=0 if is_headline else 1,
    )


def _verdict_notes(verdict: Verdict) -> Iterator[str]:
    metric, headline = verdict.comparison.metric, verdict.headline
    if verdict.worse_groups:
        changes = _list_changes(verdict.worse_groups[:MAX_NAMED_GROUPS], metric)
        num_more = len(verdict.worse_groups) - MAX_NAMED_GROUPS
        yield f"significantly worse in {changes}" + (
            f" and {num_more} more" if num_more > 0 else ""
        )
    if headline.status in ("pass", "drop") and headline.is_significantly_worse:
        yield _describe_drop(headline)
    if headline.correction:
        is_beyond = headline.difference.gain_interval[1] < -headline.tolerance
        status = "a regression" if is_beyond else "a drop"
        yield f"{status} if it were the only suite, but not after {headline.correction}"
    detectable = headline.difference.detectable
    if verdict.status == "undecided" and detectable:
        yield describe_detectable(detectable, metric)
    if headline.status == "undecided":
        note = "a significant drop" if headline.is_significantly_worse else "no significant drop"
        if headline.items_to_decide:
            items = format_count(headline.items_to_decide, "item")
            note += f"; about {items} of this kind would decide"
        yield note
    yield from verdict.comparison.notes


def _describe_margin_sources(checked: CheckResult) -> list[str]:
    """Return a line that names the sources of margins, without the default margin."""
    suites_by_source: dict[str, dict[str, None]] = {}
    for verdict in checked.verdicts:
        suites_by_source.setdefault(verdict.headline.source, {})[verdict.comparison.suite] = None
    margins = [
        f"{', '.join(suites)} by {source}"
        for source, suites in suites_by_source.items()
        if source != FALLBACK_MARGINS.source
    ]
    return [f"margin of {'; of '.join(margins)}"] if margins else []


def _build_long_table(checked: CheckResult) -> Table:
    """Build the long form: a row per headline and per group with a margin."""
    records = [
        {
            "suite": verdict.comparison.suite,
            "method_baseline": verdict.comparison.method_a,
            "method_run": verdict.comparison.method_b,
            "metric": verdict.comparison.metric,
        }
        | _judgement_fields(judgement, verdict.comparison.metric)
        for verdict in checked.verdicts
        for judgement in list_judgements(verdict)
    ]
    return build_records_table(records, keys=LONG_KEYS)


def overall_status(checked: CheckResult) -> str:
    """Return the most serious status. "incomplete" lies between failures and "undecided"."""
    if checked.missing_cells and checked.status not in FAILURES:
        return "incomplete"
    return checked.status


def _build_document(checked: CheckResult, exit_code: int) -> dict[str, Any]:
    """Return all verdicts as a JSON object, in full precision."""
    runs = checked.run_comparison
    suites = [
        {
            "suite": verdict.comparison.suite,
            "method": {"baseline": verdict.comparison.method_a, "run": verdict.comparison.method_b},
            "metric": metric,
            "lower_is_better": verdict.comparison.headline.lower_is_better,
            "status": verdict.status,
            "headline": _judgement_fields(verdict.headline, metric),
            "groups": [_judgement_fields(group, metric) for group in verdict.groups],
            "worse": [_difference_fields(group, metric) for group in verdict.worse_groups],
            "notes": verdict.comparison.notes,
        }
        for verdict in checked.verdicts
        for metric in [verdict.comparison.metric]
    ]
    return {
        "status": overall_status(checked),
        "exit_code": exit_code,
        "baseline": {"name": runs.name_a, "path": runs.path_a},
        "run": {"name": runs.name_b, "path": runs.path_b},
        "suites": suites,
        "missing": checked.missing_cells,
        "unjudged": checked.unpaired_cells,
    }


def _judgement_fields(judgement: Judgement, metric: str) -> dict[str, Any]:
    return _difference_fields(judgement.difference, metric) | {
        "margin": judgement.tolerance,
        "margin_by": judgement.source,
        "status": judgement.status,
    }


def _difference_fields(d: Difference, metric: str) -> dict[str, Any]:
    low, high = get_metric_spec(metric).known_interval_of_difference(d.low, d.high)
    return {
        "level": d.level,
        "name": d.name,
        "n": d.n,
        "baseline": d.a,
        "run": d.b,
        "difference": d.value,
        "low": low,
        "high": high,
        "p": d.p if d.adjusted is None else d.adjusted,
    }
