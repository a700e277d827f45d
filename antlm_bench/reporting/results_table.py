"""Build the tables of scored and finetuned runs: a row per suite, a column per model and method."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from antlm_bench.metrics import ItemKind, get_metric_spec
from antlm_bench.metrics.records import ACCEPTABILITY_MEASURES, OPTION_KINDS, SEED_INTERVAL
from antlm_bench.printable import format_count, make_printable
from antlm_bench.reporting.table import (
    MISSING,
    Table,
    TableCell,
    TableColumn,
    TableRow,
    build_records_table,
    build_row,
)
from antlm_bench.results.display_names import TIE_RULE_TEXTS, full_model_names, model_names
from antlm_bench.results.seeds import summarize_finetuned_tasks
from antlm_bench.types import FLAGS, Cell, Estimate, Group, Run, Summary

if TYPE_CHECKING:
    from antlm_bench.results.collections import ReportedScore

SUITE_LEVEL = "suite"
"""Value of `by` for headlines without groups."""
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
    "int8": "scored in int8",
}
"""Flag of an estimate -> its label in tables."""


@dataclass(frozen=True, slots=True)
class ResultsColumn:
    """The results of one checkpoint by one method."""

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
    """One per column; None if the column has no result."""


@dataclass(frozen=True, slots=True)
class SuiteBlock:
    """The rows of one suite."""

    suite: str
    metric: str
    average: str
    """Description of the headline, e.g. "mean of 12 phenomena"."""
    notes: tuple[str, ...]
    """Notes on the suite in any column."""
    rows: tuple[ResultsRow, ...]
    """The headline, then its groups."""
    clustered: tuple[Estimate | None, ...]
    """Per column, the headline with the interval that treats the groups as a sample."""


def build_columns(runs: Sequence[Run]) -> list[ResultsColumn]:
    """Build a column per checkpoint and method, without finetuned tasks.

    For those see `build_finetune_table`.
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

    If the suite has no level `by`, this is the level over which its headline averages. Paradigms
    are shown with the level that contains them.
    """
    levels = tuple(dict.fromkeys(group.level for group in summary.groups))
    if by == SUITE_LEVEL or not levels:
        return ()
    macro_level = next((level for level in summary.macro if level in levels), levels[0])
    level = by if by in levels else macro_level
    index = levels.index(level)
    if by == "paradigm" and index > 0:
        return levels[index - 1 : index + 1]
    return (level,)


def _build_block(suite: str, columns: Sequence[ResultsColumn], by: str) -> SuiteBlock:
    summaries = [
        column.cells[suite].summary if suite in column.cells else None for column in columns
    ]
    present = [summary for summary in summaries if summary]
    levels = select_levels(present[0], by)
    headlines = tuple(summary.headline if summary else None for summary in summaries)
    result_rows = [ResultsRow(make_printable(suite), 0, headlines)]
    groups = {
        (level_index, group.name, group.within): None  # a dict as ordered set
        for summary in present
        for level_index, group in _nested_groups(summary, levels)
    }
    for level_index, name, within in groups:
        estimates = tuple(_group_estimate(s, levels[level_index], name) for s in summaries)
        depth = 2 if level_index == 1 and within else 1
        result_rows.append(ResultsRow(make_printable(name), depth, estimates))
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
    """Yield (index in levels, group): outer groups, each followed by the groups within it."""
    outer_groups = [group for group in summary.groups if group.level in levels[:1]]
    inner_groups = [group for group in summary.groups if group.level in levels[1:]]
    for group in outer_groups:
        yield 0, group
        yield from ((1, child) for child in inner_groups if child.within == group.name)
    yield from ((1, group) for group in inner_groups if not group.within)


def _group_estimate(summary: Summary | None, level: str, name: str) -> Estimate | None:
    for group in summary.groups if summary else ():
        if group.level == level and group.name == name:
            return group.estimate
    return None


def describe_headline(summary: Summary) -> str:
    """Describe the headline, e.g. "F1, mean of 3 tasks". Accuracy is not named."""
    spec = get_metric_spec(summary.metric)
    parts = [spec.heading if spec.headline_name is None else spec.headline_name]
    if summary.macro:
        level = summary.macro[0]
        count = sum(group.level == level for group in summary.groups)
        parts.append(f"mean of {format_count(count, level)}" if count else f"mean by {level}")
    else:
        parts.append(spec.headline_basis)
    return ", ".join(filter(None, parts))


def format_estimate(estimate: Estimate | ReportedScore | None, metric: str) -> str:
    """Return `63.4 [63.0, 63.8]`: the value in its unit and its 95% interval."""
    if estimate is None:
        return MISSING
    return get_metric_spec(metric).format_estimate(estimate.value, estimate.low, estimate.high)


def estimate_cell(
    estimate: Estimate | ReportedScore | None, metric: str, notes: tuple[str, ...] = ()
) -> TableCell:
    """Build the cell of an estimate with its interval."""
    if estimate is None:
        return TableCell()
    spec = get_metric_spec(metric)
    return TableCell(
        estimate.value,
        format_estimate(estimate, metric),
        *spec.known_interval(estimate.low, estimate.high),
        unit=spec.raw_unit,
        notes=notes,
    )


def build_results_table(runs: Sequence[Run], by: str = "phenomenon") -> Table:
    """Build the table of scored runs: a row per suite and group, a column per model and method.

    by: "suite", or a level of labels. The long form has a row per estimate, the narrow form a row
    per model and method.
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
    models = {column.model for column in columns}
    methods = {column.method for column in columns}
    common_names = [names.pop() for names in (models, methods) if len(names) == 1]
    return Table(
        columns=(
            TableColumn("suite", label=""),
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
        title=" · ".join(common_names),
        legend=(build_legend(columns),),
        build_long=partial(_build_long_table, runs, by),
        narrow=_build_overview(columns),
        document={"runs": documents},
    )


def _column_label(column: ResultsColumn, columns: Sequence[ResultsColumn]) -> list[str]:
    """Return the lines that distinguish a column from the others: its model, its method, or both.

    A single column is labelled with the unit of its values.
    """
    lines = [column.model] if len({c.model for c in columns}) > 1 else []
    lines += [column.method] if len({c.method for c in columns}) > 1 else []
    units = {get_metric_spec(cell.summary.metric).heading for cell in column.cells.values()}
    return lines or [units.pop() if len(units) == 1 else "value"]


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
    """Return (label, a cell per column) of the rows below a headline.

    They are the counts of flags, and the interval that treats the groups as a sample.
    """
    rows = [(label, list(map(TableCell, counts))) for label, counts in count_flags(block)]
    if any(block.clustered):
        groups = block.average.removeprefix("mean of ").lstrip("0123456789 ")
        intervals = [_interval_cell(estimate, block.metric) for estimate in block.clustered]
        rows.append((f"for {groups} like these", intervals))
    return rows


def _interval_cell(estimate: Estimate | None, metric: str) -> TableCell:
    """Build the cell of another interval of a value that stands in the row above."""
    if estimate is None:
        return TableCell()
    spec, (low, high) = get_metric_spec(metric), estimate.interval
    text = spec.format_interval(low, high)
    return TableCell(estimate.value, text, low, high, unit=spec.raw_unit)


def _item_count(row: ResultsRow) -> TableCell:
    counts = {estimate.n for estimate in row.estimates if estimate}
    return TableCell(counts.pop() if len(counts) == 1 else None, format_item_count(row))


def _build_overview(columns: Sequence[ResultsColumn]) -> Table:
    """Build the form for narrow terminals: headlines only, a row per model and method."""
    blocks = build_blocks(columns, SUITE_LEVEL)
    has_several_methods = len({column.method for column in columns}) > 1
    rows = []
    for index, column in enumerate(columns):
        name = f"{column.model} · {column.method}" if has_several_methods else column.model
        cells = [estimate_cell(block.rows[0].estimates[index], block.metric) for block in blocks]
        rows.append(build_row(name, *cells))
    suites = [
        TableColumn(block.suite, align="right", notes=(*block.notes, _describe_block(block)))
        for block in blocks
    ]
    hint = "For groups: --format csv or --format markdown, or fewer checkpoints at once."
    return Table(
        (TableColumn("", label=""), *suites),
        tuple(rows),
        legend=(hint, build_legend(columns, explain_clustered=False)),
    )


def _describe_block(block: SuiteBlock) -> str:
    """Return `mean of 3 paradigms · 3,000 items · ties: up to 7`."""
    flags = [f"{flag}: up to {max(counts):,}" for flag, counts in count_flags(block)]
    count = format_item_count(block.rows[0])
    return " · ".join([block.average, f"{count} item{'s' * (count != '1')}", *flags])


def _build_long_table(runs: Sequence[Run], by: str) -> Table:
    """Build the long form: a row per estimate of headlines, their views and groups."""
    flags = ["tie", *FLAGS]
    labels = ("model", "suite", "method", "metric", "level", "name", "within")
    rows = []
    for run, model in zip(runs, full_model_names(runs), strict=True):
        for cell in run:
            if cell.seed is not None:
                continue
            metric, spec = cell.summary.metric, get_metric_spec(cell.summary.metric)
            for level, name, within, estimate in _iter_estimates(cell.summary, by):
                text = format_estimate(estimate, metric)
                rows.append(
                    build_row(
                        *(model, cell.suite, cell.method, metric, level, name, within),
                        TableCell(estimate.value, text, unit=spec.raw_unit),
                        *spec.known_interval(estimate.low, estimate.high),
                        estimate.n,
                        *(estimate.flags.get(flag, 0) for flag in flags),
                    )
                )
    numbers = ("value", "low", "high", "n", *flags)
    return Table(tuple(map(TableColumn, (*labels, *numbers))), tuple(rows))


def build_finetune_table(runs: Sequence[Run]) -> Table:
    """Build the table of finetuned tasks: a row per checkpoint, task and attention.

    Raises RunError if predictions are damaged.
    """
    named_summaries = [
        (model, summary)
        for run, model in zip(runs, full_model_names(runs), strict=True)
        for summary in summarize_finetuned_tasks(run)
    ]
    records = []
    for model, summary in named_summaries:
        # The model of a single run would be the same in every row.
        record: dict[str, object] = {"model": model} if len(runs) > 1 else {}
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
    """Describe the values, their intervals, and how options were compared."""
    cells = [cell for column in columns for cell in column.cells.values()]
    sentences = describe_intervals(cells)
    if explain_clustered and any("clustered" in cell.summary.views for cell in cells):
        sentences.append("“Like these”: the interval if the groups themselves were a sample.")
    sentences += [
        f"Options are compared by log-probability {reduction.replace('-', ' ')}."
        for reduction in _list_reductions(cells, OPTION_KINDS)
        if reduction != "sum"
    ]
    if measures := _list_reductions(cells, (ItemKind.JUDGEMENT,)):
        names = [ACCEPTABILITY_MEASURES.get(reduction, reduction) for reduction in measures]
        sentences.append(f"Acceptability is measured by {', '.join(names)}.")
    tie_rules = dict.fromkeys(
        str(cell.settings.get("ties", "half"))
        for cell in cells
        if get_metric_spec(cell.summary.metric).tie_rule_matters
    )
    sentences += [f"{TIE_RULE_TEXTS.get(rule, rule)}." for rule in tie_rules]
    return " ".join(sentences)


def _list_reductions(cells: Iterable[Cell], kinds: Collection[ItemKind]) -> list[str]:
    """Return the reductions of the cells whose items are of one of these kinds, each once."""
    return list(
        dict.fromkeys(
            str(cell.settings.get("reduction", "sum"))
            for cell in cells
            if get_metric_spec(cell.summary.metric).item_kind in kinds
        )
    )


def describe_intervals(cells: Iterable[Cell]) -> list[str]:
    """Return sentences on the values of cells and the methods of their intervals."""
    methods = []
    for cell in cells:
        kind = ""
        if cell.is_finetuned:
            kind = " of finetuned tasks"
        elif cell.is_frozen:
            kind = " of classifiers on a frozen backbone"
        methods.append((get_metric_spec(cell.summary.metric).label, kind, name_interval(cell)))
    return join_interval_methods(methods)


def name_interval(cell: Cell) -> str:
    """Return the method of the intervals of a cell."""
    return SEED_INTERVAL if cell.is_finetuned else get_metric_spec(cell.summary.metric).interval


def join_interval_methods(methods: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return a sentence per kind of result and method of intervals.

    methods: (label of a metric, kind of result or "", method).
    """
    labels_by_method: dict[tuple[str, str], dict[str, None]] = {}
    for label, kind, method in methods:
        labels_by_method.setdefault((kind, method), {})[label] = None
    sentences: list[str] = []
    for (kind, method), labels in labels_by_method.items():
        brackets = "" if sentences else " [95% interval]"
        sentences.append(f"{', '.join(labels)}{kind}{brackets}: {method}.")
    return sentences


def format_item_count(row: ResultsRow) -> str:
    """Return the number of items of a row, `a–b` if columns differ."""
    counts = sorted({estimate.n for estimate in row.estimates if estimate})
    if not counts:
        return ""
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,}–{counts[-1]:,}"


def count_flags(block: SuiteBlock) -> list[tuple[str, tuple[int, ...]]]:
    """Return (label of a flag, its count per column) for the flags of a headline."""
    estimates = block.rows[0].estimates
    present = {flag for estimate in estimates if estimate for flag in estimate.flags}
    flags = [flag for flag in FLAG_LABELS if flag in present]
    flags += sorted(present - FLAG_LABELS.keys())
    counts = {flag: tuple(e.flags.get(flag, 0) if e else 0 for e in estimates) for flag in flags}
    labels = {flag: FLAG_LABELS.get(flag, make_printable(flag)) for flag in flags}
    if "too-long" in labels:
        labels["too-long"] += f", {get_metric_spec(block.metric).too_long_outcome}"
    if "tie" in counts and counts.get("identical") == counts["tie"]:
        labels["tie"] = "ties, all of identical texts"
        del labels["identical"]
    return [(label, counts[flag]) for flag, label in labels.items()]


def _iter_estimates(summary: Summary, by: str) -> Iterator[tuple[str, str, str, Estimate]]:
    """Yield (level, name, name of the outer group, estimate): headline, views, groups of `by`."""
    yield "headline", summary.suite, "", summary.headline
    for name, estimate in summary.views.items():
        yield "view", name, "", estimate
    levels = select_levels(summary, by)
    for group in summary.groups:
        if group.level in levels:
            yield group.level, group.name, group.within, group.estimate
