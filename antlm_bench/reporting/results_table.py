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
from antlm_bench.results.display_names import TIE_RULE_TEXTS, model_name, model_names
from antlm_bench.results.seeds import summarize_finetuned_tasks
from antlm_bench.types import FLAGS, Cell, Estimate, Group, Run, Summary

SUITE_LEVEL = "suite"
"""The level `by` that shows headlines only."""
FLAG_LABELS: dict[str, str] = {
    "tie": "ties",
    "unk": "unknown tokens",
    "lost": "characters lost by the tokenizer",
    "spans-words": "tokens that span words",
    "too-long": "too long",  # followed by the metric's `too_long_outcome`
    "blind": "differ in unscored tokens",
    "identical": "identical texts",
    "cut": "texts cut",
    "float32": "rescored in float32",
}
"""Flag of an estimate -> its label in tables."""


@dataclass(frozen=True, slots=True)
class ResultsColumn:
    """One checkpoint under one method: a column of numbers."""

    model: str
    method: str
    cells: Mapping[str, Cell]
    """Suite -> cell."""


@dataclass(frozen=True, slots=True)
class ResultsRow:
    """The headline of a suite, or one of its groups."""

    name: str
    depth: int
    """0: a headline, 1: a group, 2: a group within another group."""
    estimates: tuple[Estimate | None, ...]
    """One per column, None where the column lacks it."""


@dataclass(frozen=True, slots=True)
class SuiteBlock:
    """The rows of one suite."""

    suite: str
    metric: str
    average: str
    """What the headline is, in words: "mean of 12 phenomena"."""
    notes: tuple[str, ...]
    """Notes on the suite, from all columns."""
    rows: tuple[ResultsRow, ...]
    """The headline, then its groups."""
    clustered: tuple[Estimate | None, ...]
    """Per column, the headline with an interval that treats the groups as a sample."""


def build_columns(runs: Sequence[Run]) -> list[ResultsColumn]:
    """Build a column per checkpoint and method, in the order given.

    Seeds of finetuned tasks are left out: `build_finetune_table` shows them.
    """
    columns = []
    for run, name in zip(runs, model_names(runs), strict=True):
        scored = [cell for cell in run if cell.seed is None]
        for method in dict.fromkeys(cell.method for cell in scored):
            cells = {cell.suite: cell for cell in scored if cell.method == method}
            columns.append(ResultsColumn(name, method, cells))
    return columns


def build_blocks(columns: Sequence[ResultsColumn], by: str) -> list[SuiteBlock]:
    """Build the rows of every suite. by: "suite", or a level of labels (see `select_levels`)."""
    return [
        _build_block(suite, columns, by)
        for suite in dict.fromkeys(suite for column in columns for suite in column.cells)
    ]


def select_levels(summary: Summary, by: str) -> tuple[str, ...]:
    """Return the levels of labels to show for `by`, outer level first.

    A suite without the level `by` shows the level that its headline averages over. Paradigms are
    shown within the level above them.
    """
    levels = tuple(dict.fromkeys(group.level for group in summary.groups))
    if by == SUITE_LEVEL or not levels:
        return ()
    averaged = next((level for level in summary.macro if level in levels), levels[0])
    level = by if by in levels else averaged
    index = levels.index(level)
    return levels[index - 1 : index + 1] if by == "paradigm" and index else (level,)


def _build_block(suite: str, columns: Sequence[ResultsColumn], by: str) -> SuiteBlock:
    summaries = [
        column.cells[suite].summary if suite in column.cells else None for column in columns
    ]
    present = [summary for summary in summaries if summary]
    levels = select_levels(present[0], by)
    rows: list[tuple[int, Group]] = []
    for summary in present:
        rows += [(level, group) for level, group in _nested_groups(summary, levels)]
    result_rows = [
        ResultsRow(make_printable(suite), 0, tuple(s.headline if s else None for s in summaries))
    ]
    for level, name, within in dict.fromkeys(
        (level, group.name, group.within) for level, group in rows
    ):
        estimates = tuple(_group_estimate(s, levels[level], name) for s in summaries)
        result_rows.append(
            ResultsRow(make_printable(name), 2 if level and within else 1, estimates)
        )
    return SuiteBlock(
        suite=suite,
        metric=present[0].metric,
        average=describe_headline(present[0]),
        notes=tuple(
            dict.fromkeys(make_printable(note) for summary in present for note in summary.notes)
        ),
        rows=tuple(result_rows),
        clustered=tuple(s.views.get("clustered") if s else None for s in summaries),
    )


def _nested_groups(summary: Summary, levels: tuple[str, ...]) -> Iterator[tuple[int, Group]]:
    """Yield (index of the level, group): outer groups, each followed by the groups within it."""
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
    """Describe the headline in words. The metric is named, unless it is accuracy."""
    spec = get_metric_spec(summary.metric)
    parts = [spec.heading if spec.headline_name is None else spec.headline_name]
    if summary.macro:
        level = summary.macro[0]
        count = sum(group.level == level for group in summary.groups)
        parts.append(f"mean of {count} {pluralize(level)}" if count else f"mean by {level}")
    else:
        parts.append(spec.headline_basis)
    return ", ".join(filter(None, parts))


def pluralize(word: str) -> str:
    irregular = {"phenomenon": "phenomena"}
    return irregular.get(word, f"{word}s")


def format_estimate(estimate: Estimate | None, metric: str) -> str:
    """Return `63.4 ±0.4`: the value in its unit and half the width of the 95% interval."""
    if estimate is None:
        return MISSING
    format_number = get_metric_spec(metric).format
    return f"{format_number(estimate.value)} ±{format_number((estimate.high - estimate.low) / 2)}"


def raw_unit(metric: str) -> str:
    """Return the unit of a metric's unscaled values, as JSON names it."""
    spec = get_metric_spec(metric)
    return "fraction" if spec.scale == 100 else spec.heading


def estimate_cell(estimate: Estimate | None, metric: str) -> TableCell:
    """Build the cell of an estimate with its interval."""
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
    """Return what distinguishes a column from the others: its model, its method, or both.

    If nothing does, the label is the unit of its numbers.
    """
    label = [column.model] if len({c.model for c in columns}) > 1 else []
    label += [column.method] if len({c.method for c in columns}) > 1 else []
    units = {get_metric_spec(cell.summary.metric).heading for cell in column.cells.values()}
    return label or [units.pop() if len(units) == 1 else "value"]


def _block_rows(block: SuiteBlock) -> Iterator[TableRow]:
    """Yield the rows of a suite: its headline, annotations of the headline, then its groups."""
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
    """Return the annotations of a headline: (label, a cell per column).

    They are the counts of flags, and half the interval that treats the groups as a sample.
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
            labels = (model_name(run), cell.suite, cell.method, metric)
            for level, name, within, e in _iter_estimates(cell.summary, by):
                value = TableCell(e.value, format_estimate(e, metric), unit=raw_unit(metric))
                counts = [e.flags.get(flag, 0) for flag in flags]
                rows.append(
                    build_row(*labels, level, name, within, value, e.low, e.high, e.n, *counts)
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
        # with one run, the column would be the same in every row
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
    """Describe the numbers, their averages and their intervals."""
    cells = [cell for column in columns for cell in column.cells.values()]
    units = dict.fromkeys(get_metric_spec(cell.summary.metric) for cell in cells)
    numbers = " ".join(
        f"{u.label}{' ± half the 95% interval' * (i == 0)}: {u.interval}."
        for i, u in enumerate(units)
    )
    option_cells = [
        cell for cell in cells if get_metric_spec(cell.summary.metric).item_kind in OPTION_KINDS
    ]
    reductions = dict.fromkeys(str(cell.settings.get("reduction", "sum")) for cell in option_cells)
    reduction_note = "".join(
        f" Options are compared by log-probability {r.replace('-', ' ')}."
        for r in reductions
        if r != "sum"
    )
    tie_rules = dict.fromkeys(
        str(cell.settings.get("ties", "half"))
        for cell in cells
        if get_metric_spec(cell.summary.metric).tie_rule_matters
    )
    clustered_note = ""
    if explain_clustered and any("clustered" in cell.summary.views for cell in cells):
        clustered_note = " “Like these”: were the groups themselves a sample."
    ties = "".join(f" {TIE_RULE_TEXTS.get(rule, rule)}." for rule in tie_rules)
    return f"{numbers}{clustered_note}{reduction_note}{ties}"


def format_item_count(row: ResultsRow) -> str:
    """Return the number of items of a row, `a–b` if columns differ."""
    n = sorted({estimate.n for estimate in row.estimates if estimate})
    return f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,}–{n[-1]:,}" if n else ""


def count_flags(block: SuiteBlock) -> list[tuple[str, tuple[int, ...]]]:
    """Return each flag that was raised in some column of a headline, with its count per column."""
    estimates = block.rows[0].estimates
    raised = {flag for estimate in estimates if estimate for flag in estimate.flags}
    order = [flag for flag in FLAG_LABELS if flag in raised]
    order += sorted(raised - FLAG_LABELS.keys())
    counts = {flag: tuple(e.flags.get(flag, 0) if e else 0 for e in estimates) for flag in order}
    labels = {flag: FLAG_LABELS.get(flag, make_printable(flag)) for flag in order}
    if "too-long" in labels:
        labels["too-long"] += f", {get_metric_spec(block.metric).too_long_outcome}"
    if "tie" in counts and counts.get("identical") == counts["tie"]:
        labels["tie"] = "ties, all of identical texts"
        del labels["identical"]
    return [(label, counts[flag]) for flag, label in labels.items()]


def _iter_estimates(summary: Summary, by: str) -> Iterator[tuple[str, str, str, Estimate]]:
    """Yield (level, name, name of the outer group, estimate): headline, views, groups of `by`."""
    yield "headline", summary.suite, "", summary.headline
    yield from (("view", name, "", estimate) for name, estimate in summary.views.items())
    shown = select_levels(summary, by)
    yield from ((g.level, g.name, g.within, g.estimate) for g in summary.groups if g.level in shown)
