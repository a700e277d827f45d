"""The table of what `score` and `finetune` computed: suites down the side, a column per model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from antlm_bench.metrics import get_metric_spec
from antlm_bench.metrics.records import OPTION_KINDS
from antlm_bench.printable import make_printable
from antlm_bench.reporting.table import (
    MISSING,
    Table,
    TableCell,
    TableColumn,
    TableRow,
    build_records_table,
    build_row,
)
from antlm_bench.results.display_names import (
    TIE_RULE_TEXTS,
    model_name,
    model_names,
)
from antlm_bench.results.seeds import summarize_finetuned_tasks
from antlm_bench.types import FLAGS, Cell, Estimate, Group, Run, Summary

SUITE_LEVEL = "suite"  # the depth that shows headlines only
FLAG_LABELS: dict[str, str] = {
    "tie": "ties",
    "unk": "unknown tokens",
    "lost": "characters lost by the tokenizer",
    "spans-words": "tokens that span words",
    "too-long": "too long",  # and what became of them: Unit.lost
    "blind": "differ in unscored tokens",
    "identical": "identical texts",
    "cut": "texts cut",
    "float32": "rescored in float32",
}


@dataclass(frozen=True, slots=True)
class ResultsColumn:
    """One checkpoint under one method: a column of numbers."""

    model: str
    method: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class ResultsRow:
    """One row: a name and, per column, an estimate or None. depth 0 is the headline of a suite."""

    name: str
    depth: int
    estimates: tuple[Estimate | None, ...]


@dataclass(frozen=True, slots=True)
class SuiteBlock:
    """What one suite says: its headline first, then its groups. `average` says in words what the
    headline is.
    """

    suite: str
    metric: str
    average: str
    notes: tuple[str, ...]
    rows: tuple[ResultsRow, ...]
    clustered: tuple[Estimate | None, ...]


def build_columns(runs: Sequence[Run]) -> list[ResultsColumn]:
    """One column per checkpoint and method, in the order given. Seeds of finetuned tasks have a
    table of their own.
    """
    names = model_names(runs)
    found = []
    for run, name in zip(runs, names, strict=True):
        scored = [cell for cell in run if cell.seed is None]
        for method in dict.fromkeys(cell.method for cell in scored):
            found.append(
                ResultsColumn(
                    name, method, {cell.suite: cell for cell in scored if cell.method == method}
                )
            )
    return found


def build_blocks(columns: Sequence[ResultsColumn], by: str) -> list[SuiteBlock]:
    """The rows of every suite at depth `by` (suite, or a label level; see `depth`)."""
    return [
        _build_block(suite, columns, by)
        for suite in dict.fromkeys(suite for column in columns for suite in column.cells)
    ]


def select_levels(summary: Summary, by: str) -> tuple[str, ...]:
    """The label levels to show for `by`: that level, or, in a suite without it, the one its
    headline averages over.

    At the depth of paradigms the level above them stands over them.
    """
    levels = tuple(dict.fromkeys(group.level for group in summary.groups))
    if by == SUITE_LEVEL or not levels:
        return ()
    level = (
        by
        if by in levels
        else next((level for level in summary.macro if level in levels), levels[0])
    )
    at = levels.index(level)
    return levels[at - 1 : at + 1] if by == "paradigm" and at else (level,)


def _build_block(suite: str, columns: Sequence[ResultsColumn], by: str) -> SuiteBlock:
    summaries = [
        column.cells[suite].summary if suite in column.cells else None for column in columns
    ]
    known = [summary for summary in summaries if summary]
    levels = select_levels(known[0], by)
    rows: list[tuple[int, Group]] = []
    for summary in known:
        rows += [(level, group) for level, group in _nested_groups(summary, levels)]
    lines = [
        ResultsRow(make_printable(suite), 0, tuple(s.headline if s else None for s in summaries))
    ]
    for level, name, within in dict.fromkeys(
        (level, group.name, group.within) for level, group in rows
    ):
        estimates = tuple(_group_estimate(s, levels[level], name) for s in summaries)
        lines.append(ResultsRow(make_printable(name), 2 if level and within else 1, estimates))
    return SuiteBlock(
        suite=suite,
        metric=known[0].metric,
        average=describe_headline(known[0]),
        notes=tuple(
            dict.fromkeys(make_printable(note) for summary in known for note in summary.notes)
        ),
        rows=tuple(lines),
        clustered=tuple(s.views.get("clustered") if s else None for s in summaries),
    )


def _nested_groups(summary: Summary, levels: tuple[str, ...]) -> Iterator[tuple[int, Group]]:
    """Groups of the outer level, each followed by the inner ones that lie within it."""
    outer = [group for group in summary.groups if levels and group.level == levels[0]]
    inner = [group for group in summary.groups if len(levels) > 1 and group.level == levels[1]]
    for group in outer:
        yield 0, group
        yield from ((1, child) for child in inner if child.within == group.name)
    yield from ((1, orphan) for orphan in inner if not orphan.within)


def _group_estimate(summary: Summary | None, level: str, name: str) -> Estimate | None:
    groups = summary.groups if summary else ()
    return next(
        (group.estimate for group in groups if (group.level, group.name) == (level, name)), None
    )


def describe_headline(summary: Summary) -> str:
    """In words, what the headline is; its metric is named, unless that is accuracy."""
    spec = get_metric_spec(summary.metric)
    named = [spec.heading if spec.headline_name is None else spec.headline_name]
    if summary.macro:
        level = summary.macro[0]
        count = sum(group.level == level for group in summary.groups)
        named.append(f"mean of {count} {pluralize(level)}" if count else f"mean by {level}")
    else:
        named.append(spec.headline_basis)
    return ", ".join(filter(None, named))


def pluralize(word: str) -> str:
    irregular = {"phenomenon": "phenomena"}
    return irregular.get(word, f"{word}s")


def format_estimate(estimate: Estimate | None, metric: str) -> str:
    """Return `63.4 ±0.4`: the value in its unit and half the width of the 95% interval."""
    if estimate is None:
        return MISSING
    written = get_metric_spec(metric).format
    return f"{written(estimate.value)} ±{written((estimate.high - estimate.low) / 2)}"


def raw_unit(metric: str) -> str:
    """Return the unit of a metric's unscaled values, as JSON names it."""
    unit = get_metric_spec(metric)
    return "fraction" if unit.scale == 100 else unit.heading


def estimate_cell(estimate: Estimate | None, metric: str) -> TableCell:
    """Return an estimate with its interval as a cell."""
    if estimate is None:
        return TableCell()
    return TableCell(
        estimate.value,
        format_estimate(estimate, metric),
        estimate.low,
        estimate.high,
        unit=raw_unit(metric),
    )


def build_results_table(runs: Sequence[Run], by: str = "phenomenon") -> Table:
    """Build the table of scored runs: a row per suite and group, a column per model and method.

    by: "suite", or a level of labels. The long form has a row per estimate, `narrow` a row per
    model and method.
    """
    from antlm_bench.runs import cell_to_dict  # pyarrow is slow to import

    documents = [
        {"run": run.path, "manifest": asdict(run.manifest), "cells": [cell_to_dict(c) for c in run]}
        for run in runs
    ]
    columns = build_columns(runs)
    if not columns:
        document = {"runs": documents}
        return Table((TableColumn("suite"),), empty="nothing scored yet", document=document)
    blocks = build_blocks(columns, by)
    shared = [
        names.pop()
        for names in ({c.model for c in columns}, {c.method for c in columns})
        if len(names) == 1
    ]
    return Table(
        columns=(
            TableColumn("suite", ""),
            *(
                TableColumn(
                    f"{index}",
                    "\n".join(map(make_printable, _column_label(column, columns))),
                    align="right",
                )
                for index, column in enumerate(columns)
            ),
            TableColumn("items", align="right"),
        ),
        rows=tuple(row for block in blocks for row in _block_rows(block)),
        title=" · ".join(shared),
        legend=(build_legend(columns),),
        long=_build_long_table(runs, by),
        narrow=_build_overview(columns),
        document={"runs": documents},
    )


def _column_label(column: ResultsColumn, columns: Sequence[ResultsColumn]) -> list[str]:
    """Return what tells a column from the others: its model, its method, or both.

    A single column is labelled by what its numbers are.
    """
    models, methods = {c.model for c in columns}, {c.method for c in columns}
    units = {get_metric_spec(cell.summary.metric).heading for cell in column.cells.values()}
    named = ([column.model] if len(models) > 1 else []) + (
        [column.method] if len(methods) > 1 else []
    )
    return named or [units.pop() if len(units) == 1 else "value"]


def _block_rows(block: SuiteBlock) -> Iterator[TableRow]:
    """Yield the headline of a suite, what it must be read with, then its groups."""
    head, *groups = block.rows
    name = TableCell(head.name, detail=block.average, notes=block.notes)
    cells = [estimate_cell(estimate, block.metric) for estimate in head.estimates]
    yield build_row(name, *cells, _item_count(head), emphasis="strong", space_above=True)
    for label, counts in headline_annotations(block):
        yield build_row(label, *counts, TableCell(text=""), depth=1, emphasis="faint")
    for group in groups:
        cells = [estimate_cell(estimate, block.metric) for estimate in group.estimates]
        yield build_row(group.name, *cells, _item_count(group), depth=group.depth)


def headline_annotations(block: SuiteBlock) -> list[tuple[str, list[TableCell]]]:
    """Return what a headline must be read with, per column.

    These are the flags that were raised, and the interval if the groups were a sample too.
    """
    rows = [(label, list(map(TableCell, counts))) for label, counts in count_flags(block)]
    if any(block.clustered):
        members = block.average.removeprefix("mean of ").lstrip("0123456789 ")
        halves = [_half_width_cell(estimate, block.metric) for estimate in block.clustered]
        rows.append((f"for {members} like these", halves))
    return rows


def _half_width_cell(estimate: Estimate | None, metric: str) -> TableCell:
    if estimate is None:
        return TableCell()
    half = (estimate.high - estimate.low) / 2
    return TableCell(half, f"±{get_metric_spec(metric).format(half)}", unit=raw_unit(metric))


def _item_count(row: ResultsRow) -> TableCell:
    counts = {estimate.n for estimate in row.estimates if estimate}
    return TableCell(counts.pop() if len(counts) == 1 else None, format_item_count(row))


def _build_overview(columns: Sequence[ResultsColumn]) -> Table:
    """Build the form for narrow terminals: headlines only, a row per model and method."""
    blocks = build_blocks(columns, SUITE_LEVEL)
    several_methods = len({column.method for column in columns}) > 1
    rows = []
    for index, column in enumerate(columns):
        name = f"{column.model} · {column.method}" if several_methods else column.model
        cells = [estimate_cell(block.rows[0].estimates[index], block.metric) for block in blocks]
        rows.append(build_row(name, *cells))
    suites = [
        TableColumn(block.suite, align="right", notes=(*block.notes, _describe_block(block)))
        for block in blocks
    ]
    hint = "For groups: --format csv or --format markdown, or fewer checkpoints at once."
    return Table(
        (TableColumn("", ""), *suites),
        tuple(rows),
        legend=(hint, build_legend(columns, explain_clustered=False)),
    )


def _describe_block(block: SuiteBlock) -> str:
    """Return `mean of 3 paradigms · 3,000 items · up to 7 ties`."""
    flags = [f"up to {max(counts):,} {flag}" for flag, counts in count_flags(block)]
    return " · ".join([block.average, f"{format_item_count(block.rows[0])} items", *flags])


def _build_long_table(runs: Sequence[Run], by: str) -> Table:
    """Build the long form: a row per estimate, headlines and their views included."""
    flags = ["tie", *FLAGS]
    keys = ("model", "suite", "method", "metric", "level", "name", "within")
    rows = []
    for run in runs:
        for cell in (cell for cell in run if cell.seed is None):
            metric = cell.summary.metric
            about = (model_name(run), cell.suite, cell.method, metric)
            for level, label, within, e in _iter_estimates(cell.summary, by):
                value = TableCell(e.value, format_estimate(e, metric), unit=raw_unit(metric))
                counts = [e.flags.get(flag, 0) for flag in flags]
                rows.append(
                    build_row(*about, level, label, within, value, e.low, e.high, e.n, *counts)
                )
    numbers = ("value", "low", "high", "n", *flags)
    return Table(tuple(map(TableColumn, (*keys, *numbers))), tuple(rows))


def build_finetune_table(runs: Sequence[Run]) -> Table:
    """Build the table of finetuned tasks: a row per checkpoint, task and attention.

    Raises RunError where predictions are damaged.
    """
    summaries = [summary for run in runs for summary in summarize_finetuned_tasks(run)]
    records = []
    for summary in summaries:
        # a column that is the same in every row says nothing
        record: dict[str, object] = {"model": summary.model} if len(runs) > 1 else {}
        record |= {
            "task": summary.task,
            "attention": summary.attention,
            "n": summary.mean.n,
            "metric": summary.metric,
            "score": estimate_cell(summary.mean, summary.metric),
            "sd": _fraction_cell(summary.sd, summary.metric),
            "worst": _fraction_cell(summary.worst, summary.metric),
            "majority": _fraction_cell(summary.majority, summary.metric),
            "seeds": summary.num_seeds,
            "flags": "; ".join(summary.flags),
        }
        records.append(record)
    units = dict.fromkeys(("score", "sd", "worst", "majority"), "fraction")
    return build_records_table(records, units=units, empty="nothing finetuned yet")


def _fraction_cell(value: float | None, metric: str) -> TableCell:
    return TableCell() if value is None else TableCell(value, get_metric_spec(metric).format(value))


def build_legend(columns: Sequence[ResultsColumn], *, explain_clustered: bool = True) -> str:
    """What the numbers, their averages and their intervals are, in a few words."""
    cells = [cell for column in columns for cell in column.cells.values()]
    units = dict.fromkeys(get_metric_spec(cell.summary.metric) for cell in cells)
    numbers = " ".join(
        f"{u.label}{' ± half the 95% interval' * (i == 0)}: {u.interval}."
        for i, u in enumerate(units)
    )
    compared = [
        cell for cell in cells if get_metric_spec(cell.summary.metric).item_kind in OPTION_KINDS
    ]
    means = dict.fromkeys(str(cell.settings.get("reduction", "sum")) for cell in compared)
    decides = "".join(
        f" Options are compared by log-probability {r.replace('-', ' ')}."
        for r in means
        if r != "sum"
    )
    rules = dict.fromkeys(
        str(cell.settings.get("ties", "half"))
        for cell in cells
        if get_metric_spec(cell.summary.metric).tie_rule_matters
    )
    explain_clustered = explain_clustered and any(
        "clustered" in cell.summary.views for cell in cells
    )
    like = " “Like these”: were the groups themselves a sample." if explain_clustered else ""
    ties = "".join(f" {TIE_RULE_TEXTS.get(rule, rule)}." for rule in rules)
    return f"{numbers}{like}{decides}{ties}"


def format_item_count(row: ResultsRow) -> str:
    """The number of items behind a row; `a–b` where columns differ."""
    n = sorted({estimate.n for estimate in row.estimates if estimate})
    return f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,}–{n[-1]:,}" if n else ""


def count_flags(block: SuiteBlock) -> list[tuple[str, tuple[int, ...]]]:
    """Return each flag that was raised in some column of a headline, with its count per column."""
    estimates = block.rows[0].estimates
    raised = {flag for estimate in estimates if estimate for flag in estimate.flags}
    order = [
        *(flag for flag in FLAG_LABELS if flag in raised),
        *sorted(raised - FLAG_LABELS.keys()),
    ]
    counts = {flag: tuple(e.flags.get(flag, 0) if e else 0 for e in estimates) for flag in order}
    words = {flag: FLAG_LABELS.get(flag, make_printable(flag)) for flag in order}
    if "too-long" in words:
        words["too-long"] += f", {get_metric_spec(block.metric).too_long_outcome}"
    if "tie" in counts and counts.get("identical") == counts["tie"]:
        words["tie"] = "ties, all of identical texts"
        del words["identical"]
    return [(words[flag], counts[flag]) for flag in words]


def _iter_estimates(summary: Summary, by: str) -> Iterator[tuple[str, str, str, Estimate]]:
    yield "headline", summary.suite, "", summary.headline
    yield from (("view", name, "", estimate) for name, estimate in summary.views.items())
    shown = select_levels(summary, by)
    yield from ((g.level, g.name, g.within, g.estimate) for g in summary.groups if g.level in shown)
