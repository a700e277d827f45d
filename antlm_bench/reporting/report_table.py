"""The table of a report, a column per checkpoint and method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import make_printable
from antlm_bench.reporting.table import (
    MISSING,
    Table,
    TableCell,
    TableColumn,
    TableRow,
    build_row,
)
from antlm_bench.results.collections import MemberResult, ReportedScore, subtasks
from antlm_bench.results.reports import Report, ReportColumn
from antlm_bench.types import task_full_name

MACRO = "Macro-average"
LONG_KEYS: tuple[str, ...] = (
    "model",
    "reading",
    "run",
    "member",
    "suite",
    "task",
    "metric",
    "weight",
    "value",
)
LONG_KEYS += ("low", "high", "n", "seeds", "sd", "remarks", "source")


def build_report_table(report: Report) -> Table:
    """Build the table of a report: members down the side, a column per checkpoint and method.

    `narrow` has a row per checkpoint and method.
    """
    columns = report.columns
    if not report.members or not columns:
        return Table((TableColumn("member"),), empty="nothing scored yet")
    rows: list[TableRow] = []
    for index, member in enumerate(report.members):
        results = [column.results[index] for column in columns]
        rows.append(build_row(member.name, *(score_cell(result.score) for result in results)))
        rows += [
            build_row(task, *(_task_cell(result, task) for result in results), depth=1)
            for task in subtasks(member)
            if any(task in result.task_scores for result in results)
        ]
        rows += _seed_rows(results)
    rows[0] = replace(rows[0], space_above=True)
    if report.collection:
        averages = (score_cell(column.macro) for column in columns)
        rows.append(build_row(MACRO, *averages, emphasis="strong", space_above=True))
    sentences = (*_sources(columns), *(report.collection.notes if report.collection else ()))
    models = (
        TableColumn(
            f"{i}",
            "\n".join(map(make_printable, (c.model, c.method))),
            align="right",
            notes=c.caveats,
        )
        for i, c in enumerate(columns)
    )
    return Table(
        (TableColumn("member", ""), *models),
        tuple(rows),
        title=report.collection.title if report.collection else "",
        legend=(*sentences, build_legend(report)),
        long=_build_long_table(report),
        narrow=_build_narrow_table(report, sentences),
        document=report_to_dict(report),
    )


def _build_narrow_table(report: Report, sentences: Sequence[str]) -> Table:
    """Build the form for narrow terminals: a row per checkpoint and method, members only."""
    members = [TableColumn(f"{i}", m.name, align="right") for i, m in enumerate(report.members)]
    macro = [TableColumn(MACRO, align="right")] if report.collection else []
    rows = []
    for column in report.columns:
        name = " · ".join(filter(None, (column.model, column.method)))
        cells = [score_cell(result.score) for result in column.results]
        cells += [score_cell(column.macro)] if macro else []
        rows.append(build_row(TableCell(name, notes=column.caveats), *cells))
    hint = "For tasks and seeds: --format csv or --format markdown, or fewer checkpoints at once."
    tasks = any(result.task_scores for column in report.columns for result in column.results)
    return Table(
        (TableColumn("model", ""), *members, *macro),
        tuple(rows),
        title=report.collection.title if report.collection else "",
        legend=(*([hint] if tasks else []), *sentences, build_legend(report)),
    )


def score_cell(score: ReportedScore | None) -> TableCell:
    """Return a score with its interval and caveats as a cell."""
    if score is None:
        return TableCell()
    spec = get_metric_spec(score.metric)
    return TableCell(
        score.value,
        format_value(score),
        score.low,
        score.high,
        unit="fraction" if spec.is_bounded else spec.heading,
        notes=score.caveats,
    )


def _task_cell(result: MemberResult, task: str) -> TableCell:
    return score_cell(result.task_scores.get(task)) if result.task_scores else TableCell(text="")


def _sources(columns: Sequence[ReportColumn]) -> Iterator[str]:
    """One line per source, with the columns that are its."""
    for source in dict.fromkeys(column.source for column in columns if column.source):
        named = [column.model for column in columns if column.source == source]
        every = len(named) > 1 and len(named) == sum(bool(column.source) for column in columns)
        yield f"{'all published rows' if every else '; '.join(named)}: {source}"


def format_value(number: ReportedScore | None) -> str:
    """`63.4 ±0.4`: percent, a correlation times 100, nats, and half the width of the interval where
    it is known.
    """
    if number is None:
        return MISSING
    written = get_metric_spec(number.metric).format_beside_percent
    if number.low is None or number.high is None:
        return written(number.value)
    return f"{written(number.value)} ±{written((number.high - number.low) / 2)}"


def _seed_rows(results: Sequence[MemberResult]) -> Iterator[TableRow]:
    """Yield rows below what was finetuned: how many seeds, and how far they differ."""
    if not any(result.task_scores for result in results):
        return
    counts = [sorted({score.seeds for score in r.task_scores.values()}) for r in results]
    cells = [
        TableCell(text=f"{found[0]}–{found[-1]}")
        if len(found) > 1
        else TableCell(found[0] if found else None, f"{found[0]}" if found else "")
        for found in counts
    ]
    yield build_row("seeds", *cells, depth=1, emphasis="faint")
    spreads = [
        [score.sd for score in r.task_scores.values() if not math.isnan(score.sd)] for r in results
    ]
    if any(spreads):
        cells = [
            TableCell(max(sd), f"{100 * max(sd):.1f}") if sd else TableCell(text="")
            for sd in spreads
        ]
        yield build_row("sd of seeds, at most", *cells, depth=1, emphasis="faint")


def build_legend(report: Report) -> str:
    """What the numbers, their intervals and their average are, in a few words."""
    numbers = [entry.score for column in report.columns for entry in column.results if entry.score]
    tuned = any(entry.task_scores for column in report.columns for entry in column.results)
    over = "items, and over seeds where there are several" if tuned else "items"
    specs = [get_metric_spec(metric) for metric in dict.fromkeys(n.metric for n in numbers)]
    percent_names = [spec.percent_name for spec in specs if spec.percent_name]
    like = f"correlations and {', '.join(percent_names)}" if percent_names else "a correlation"
    units = [spec.label for spec in specs if not spec.is_bounded]
    others = "".join(f", {what[0].lower()}{what[1:]}" for what in units)
    said = [f"Percent ({like} times 100{others}) ± half the 95% interval over {over}."]
    if any(number.low is None for number in numbers):
        said.append("Published numbers have no interval.")
    if report.collection:
        weights = {member.weight for member in report.members}
        odd = [f"{m.name} {m.weight:g}" for m in report.members if m.weight != 1]
        kind = f"weighted ({', '.join(odd)}, else 1)" if len(weights) > 1 else "unweighted"
        said.append(
            f"{MACRO}: {kind} mean of the {len(report.members)} members, taken as independent."
        )
    return " ".join(said)


def _build_long_table(report: Report) -> Table:
    """Build the long form: a row per column and member, task and macro-average."""
    rows = []
    for record in _iter_rows(report):
        values = {**record, "remarks": "; ".join(record["remarks"])}
        rows.append(build_row(*(values[key] for key in LONG_KEYS)))
    return Table(tuple(map(TableColumn, LONG_KEYS)), tuple(rows))


def report_to_dict(report: Report) -> dict[str, Any]:
    """Return a report as JSON holds it."""
    spec = report.collection
    return {
        "collection": {"name": spec.name, "version": spec.version, "notes": spec.notes}
        if spec
        else None,
        "members": [
            {
                "name": m.name,
                "suite": m.suite,
                "made_by": m.made_by,
                "tasks": m.tasks,
                "weight": m.weight,
            }
            for m in report.members
        ],
        "columns": [
            {
                "model": c.model,
                "reading": c.method,
                "run": c.run,
                "source": c.source,
                "remarks": c.caveats,
            }
            | {
                "missing": c.missing_members,
                "commands": c.commands,
                "complete": not c.missing_members and not c.source,
            }
            for c in report.columns
        ],
        "numbers": list(_iter_rows(report)),
    }


def _iter_rows(report: Report) -> Iterator[dict[str, Any]]:
    for column in report.columns:
        for member, entry in zip(report.members, column.results, strict=True):
            weight = member.weight if report.collection else None
            about = {"member": member.name, "suite": member.suite, "weight": weight}
            if entry.score:
                yield _row_fields(column, entry.score, about)
            for task in subtasks(member):
                if number := entry.task_scores.get(task):
                    part = {
                        "suite": task_full_name(member.suite, task),
                        "task": task,
                        "weight": None,
                    }
                    yield _row_fields(column, number, about | part)
        if column.macro:
            suite = report.collection.name if report.collection else ""
            yield _row_fields(column, column.macro, {"member": MACRO, "suite": suite})


def _row_fields(
    column: ReportColumn, number: ReportedScore, about: dict[str, Any]
) -> dict[str, Any]:
    line = {
        "model": make_printable(column.model),
        "reading": make_printable(column.method),
        "run": make_printable(column.run),
    }
    line |= {
        key: make_printable(cell) if isinstance(cell, str) else cell for key, cell in about.items()
    }
    figures = {"value": number.value, "low": number.low, "high": number.high, "sd": number.sd}
    known = {
        name: figure
        for name, figure in figures.items()
        if figure is not None and not math.isnan(figure)
    }
    found: dict[str, Any] = {
        name: round(figure, 12) for name, figure in known.items()
    }  # as metrics round theirs
    found |= {"metric": number.metric, "n": number.n or None, "seeds": number.seeds or None}
    found |= {
        "remarks": [make_printable(mark) for mark in number.caveats],
        "source": make_printable(column.source),
    }
    return {key: {**line, **found}.get(key) for key in LONG_KEYS}
