"""Build the table of `report`: a row per member, a column per checkpoint and method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from antlm_bench.metrics import get_metric_spec
from antlm_bench.metrics.records import SEED_INTERVAL
from antlm_bench.printable import format_count, make_printable
from antlm_bench.reporting.results_table import estimate_cell, join_interval_methods
from antlm_bench.reporting.table import (
    Table,
    TableCell,
    TableColumn,
    TableRow,
    build_row,
)
from antlm_bench.results.collections import (
    PUBLISHED,
    MemberResult,
    ReportedScore,
    subtasks,
)
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
    "low",
    "high",
    "n",
    "seeds",
    "sd",
    "remarks",
    "source",
)
"""Columns of the long form. "reading" is the scoring method, "remarks" are the caveats."""


def build_report_table(report: Report) -> Table:
    """Build the table of a report. Its narrow form has a row per checkpoint and method."""
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
        averages = (score_cell(column.macro_average) for column in columns)
        rows.append(build_row(MACRO, *averages, emphasis="strong", space_above=True))
    sentences = (
        *_describe_sources(columns),
        *(report.collection.notes if report.collection else ()),
    )
    model_columns = (
        TableColumn(
            f"{index}",
            f"{make_printable(column.model)}\n{make_printable(column.method)}",
            align="right",
            notes=column.caveats,
        )
        for index, column in enumerate(columns)
    )
    return Table(
        (TableColumn("member", label=""), *model_columns),
        tuple(rows),
        title=report.collection.title if report.collection else "",
        legend=(*sentences, build_legend(report)),
        build_long=partial(_build_long_table, report),
        narrow=_build_narrow_table(report, sentences),
        document=report_to_dict(report),
    )


def _build_narrow_table(report: Report, sentences: Sequence[str]) -> Table:
    """Build the form for narrow terminals: a row per checkpoint and method, members only."""
    value_columns = [
        TableColumn(f"{index}", member.name, align="right")
        for index, member in enumerate(report.members)
    ]
    if report.collection:
        value_columns.append(TableColumn(MACRO, align="right"))
    rows = []
    for column in report.columns:
        name = " · ".join(filter(None, (column.model, column.method)))
        cells = [score_cell(result.score) for result in column.results]
        cells += [score_cell(column.macro_average)] if report.collection else []
        rows.append(build_row(TableCell(name, notes=column.caveats), *cells))
    hint = "For tasks and seeds: --format csv or --format markdown, or fewer checkpoints at once."
    has_tasks = any(result.task_scores for column in report.columns for result in column.results)
    return Table(
        (TableColumn("model", label=""), *value_columns),
        tuple(rows),
        title=report.collection.title if report.collection else "",
        legend=(*([hint] if has_tasks else []), *sentences, build_legend(report)),
    )


def score_cell(score: ReportedScore | None) -> TableCell:
    """Build the cell of a score with its interval and caveats."""
    return estimate_cell(score, score.metric, score.caveats) if score else TableCell()


def _task_cell(result: MemberResult, task: str) -> TableCell:
    return score_cell(result.task_scores.get(task)) if result.task_scores else TableCell(text="")


def _describe_sources(columns: Sequence[ReportColumn]) -> Iterator[str]:
    """Yield one line per source of published scores, with the models that it covers."""
    models_by_source: dict[str, list[str]] = {}
    for column in columns:
        if column.source:
            models_by_source.setdefault(column.source, []).append(column.model)
    for source, models in models_by_source.items():
        covers_all = len(models_by_source) == 1 and len(models) > 1
        yield f"{'all published rows' if covers_all else '; '.join(models)}: {source}"


def _seed_rows(results: Sequence[MemberResult]) -> Iterator[TableRow]:
    """Yield the rows below finetuned tasks: number of seeds, largest standard deviation."""
    if not any(result.task_scores for result in results):
        return
    cells = [_seed_count_cell(result) for result in results]
    yield build_row("seeds", *cells, depth=1, emphasis="faint")
    sds_by_result = [
        [score.sd for score in result.task_scores.values() if not math.isnan(score.sd)]
        for result in results
    ]
    if any(sds_by_result):
        cells = [
            TableCell(max(sds), f"{100 * max(sds):.1f}") if sds else TableCell(text="")
            for sds in sds_by_result
        ]
        yield build_row("sd of seeds, at most", *cells, depth=1, emphasis="faint")


def _seed_count_cell(result: MemberResult) -> TableCell:
    """Build the cell of the number of seeds, `1–3` if tasks differ in it."""
    counts = sorted({score.seeds for score in result.task_scores.values()})
    if not counts:
        return TableCell(text="")
    if len(counts) == 1:
        return TableCell(counts[0], f"{counts[0]}")
    return TableCell(text=f"{counts[0]}–{counts[-1]}")


def build_legend(report: Report) -> str:
    """Describe the values, their intervals and the macro-average."""
    results = [result for column in report.columns for result in column.results]
    methods = []
    for score in _iter_measured_scores(results):
        spec = get_metric_spec(score.metric)
        if score.seeds:
            methods.append((spec.label, " of tasks with seeds", SEED_INTERVAL))
        else:
            methods.append((spec.label, "", spec.interval))
    sentences = join_interval_methods(methods)
    if any(result.score and result.score.is_mean for result in results):
        sentences.append("Means of several tasks, suites or groups: their variances are added.")
    if names := _list_shared_trainings(results):
        sentences.append(
            f"Tasks scored with the same finetuned models ({names}) vary together over seeds: "
            "there, standard deviations are added."
        )
    if any(column.source for column in report.columns):
        sentences.append("Published numbers have no interval, and their own macro-average.")
    values_per_row = [
        sum(column.results[index].score is not None for column in report.columns if column.run)
        for index in range(len(report.members))
    ]
    if report.collection:
        values_per_row.append(sum(bool(c.macro_average) for c in report.columns if c.run))
    if comparisons := describe_comparisons(values_per_row):
        sentences.append(comparisons)
    if report.collection:
        sentences.append(_describe_macro_average(report))
    return " ".join(sentences)


def _list_shared_trainings(results: Sequence[MemberResult]) -> str:
    """Return the tasks of several seeds whose models are those of another task: `mnli, mnli-mm`."""
    shared: dict[str, None] = {}
    for result in results:
        tasks_by_training: dict[str, list[str]] = {}
        for task, score in result.task_scores.items():
            if score.seeds > 1:
                tasks_by_training.setdefault(score.training, []).append(task)
        for tasks in tasks_by_training.values():
            shared |= dict.fromkeys(tasks if len(tasks) > 1 else ())
    return ", ".join(map(make_printable, shared))


def describe_comparisons(values_per_row: Sequence[int]) -> str:
    """Return a warning against picking the best value of each row, which compares many pairs.

    values_per_row: number of measured values of each row. Returns "" if no row has two.
    """
    counts = [count for count in values_per_row if count > 1]
    if not counts:
        return ""
    num_pairs = sum(count * (count - 1) // 2 for count in counts)
    largest = max(counts)
    values = f"{largest}" if min(counts) == largest else f"{min(counts)} to {largest}"
    rows = f"each of {len(counts)} rows" if len(counts) > 1 else "the row"
    pairs = format_count(num_pairs, "pair")
    by_chance = "; without true differences, 1 in 20 is significant by chance" * (num_pairs > 1)
    return (
        f"No value is marked as the best: picking the best of {values} in {rows} compares {pairs} "
        f"of values{by_chance}. The command compare tests two runs item "
        "by item."
    )


def _iter_measured_scores(results: Sequence[MemberResult]) -> Iterator[ReportedScore]:
    """Yield the scores of single suites and tasks, whose interval is that of their metric."""
    for result in results:
        yield from result.task_scores.values()
        score = result.score
        if score and not score.is_mean and score.metric != PUBLISHED:
            yield score


def _describe_macro_average(report: Report) -> str:
    weights = {member.weight for member in report.members}
    exceptions = [f"{m.name} {m.weight:g}" for m in report.members if m.weight != 1]
    kind = f"weighted ({', '.join(exceptions)}, else 1)" if len(weights) > 1 else "unweighted"
    count = f"the {len(report.members)} members"
    if any(column.missing_members and column.macro_average for column in report.columns):
        count = f"the members that a column has, of {len(report.members)}"
    return f"{MACRO}: {kind} mean of {count}; their variances are added, as if independent."


def _build_long_table(report: Report) -> Table:
    """Build the long form: a row per column and member, task and macro-average."""
    rows = []
    for record in _iter_rows(report):
        values = {**record, "remarks": "; ".join(record["remarks"])}
        rows.append(build_row(*(values[key] for key in LONG_KEYS)))
    return Table(tuple(map(TableColumn, LONG_KEYS)), tuple(rows))


def report_to_dict(report: Report) -> dict[str, Any]:
    """Return a report as a JSON object."""
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
    """Yield a record with LONG_KEYS per column and member, per task and per macro-average."""
    for column in report.columns:
        for member, result in zip(report.members, column.results, strict=True):
            weight = member.weight if report.collection else None
            labels = {"member": member.name, "suite": member.suite, "weight": weight}
            if result.score:
                yield _row_fields(column, result.score, labels)
            for task in subtasks(member):
                if task_score := result.task_scores.get(task):
                    suite = task_full_name(member.suite, task)
                    task_labels = {**labels, "suite": suite, "task": task, "weight": None}
                    yield _row_fields(column, task_score, task_labels)
        if column.macro_average:
            suite = report.collection.name if report.collection else ""
            yield _row_fields(column, column.macro_average, {"member": MACRO, "suite": suite})


def _row_fields(
    column: ReportColumn, score: ReportedScore, labels: dict[str, Any]
) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": column.model, "reading": column.method, "run": column.run}
    fields |= {**labels, "source": column.source}
    fields = {
        key: make_printable(value) if isinstance(value, str) else value
        for key, value in fields.items()
    }
    low, high = get_metric_spec(score.metric).known_interval(score.low, score.high)
    numbers = {"value": score.value, "low": low, "high": high, "sd": score.sd}
    fields |= {
        key: round(number, 12)  # metrics round their values alike
        for key, number in numbers.items()
        if number is not None and not math.isnan(number)
    }
    fields |= {"metric": score.metric, "n": score.n or None, "seeds": score.seeds or None}
    fields["remarks"] = list(map(make_printable, score.caveats))
    return {key: fields.get(key) for key in LONG_KEYS}
