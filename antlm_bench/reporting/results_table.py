"""The rows of a result, once for every output: the terminal draws them, Markdown, CSV and JSON are
written here.
"""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath

from antlm_bench.metrics import get_metric_spec
from antlm_bench.metrics.records import OPTION_KINDS
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
TIE_RULE_TEXTS: dict[str, str] = {
    "half": "A tie of k options counts 1/k",
    "strict": "A tie counts as wrong",
    "first": "A tie goes to the first option",
    "random": "Ties are drawn, seeded by item",
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


def model_name(run: Run) -> str:
    """The model as the manifest names it, printable; the folder's name where it does not."""
    return make_printable(str(run.manifest.model.get("name") or PurePath(run.path).name))


def model_names(runs: Sequence[Run]) -> list[str]:
    """Each run's model, without the folders that all of them share; what is still equal gets its
    run folder's name.
    """
    paths = [PurePath(model_name(run)).parts or ("",) for run in runs]
    shortest = min(map(len, paths), default=1)
    shared = next(
        (i for i in range(shortest - 1) if len({path[i] for path in paths}) > 1), shortest - 1
    )
    shared = 0 if len(paths) == 1 and not PurePath(*paths[0]).is_absolute() else shared
    names = ["/".join(path[shared:]) for path in paths]
    again = {name for name in names if names.count(name) > 1}
    return [
        f"{n} ({PurePath(run.path).name})" if n in again else n
        for n, run in zip(names, runs, strict=True)
    ]


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
    """`63.4  ±0.4`: the value in its unit, and half the width of the 95% interval; aligned on the
    right.
    """
    if estimate is None:
        return "–"
    written = get_metric_spec(metric).format
    return f"{written(estimate.value)} {'±' + written((estimate.high - estimate.low) / 2):>5}"


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
    return f"{numbers}{like}{decides}{''.join(f' {TIE_RULE_TEXTS.get(rule, rule)}.' for rule in rules)}"


def make_printable(text: str) -> str:
    """The text without control characters: names come from outside and must not steer a terminal or
    break a row.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def to_markdown(runs: Sequence[Run], by: str) -> str:
    """GitHub-flavoured Markdown: one table, a row per suite and group, notes and the legend below."""
    found = build_columns(runs)
    heads = [f"{escape_markdown(c.model)}<br>{escape_markdown(c.method)}" for c in found]
    rows = [["", *heads, "n"], ["---", *["---:"] * (len(heads) + 1)]]
    notes: list[str] = []
    for block in build_blocks(found, by):
        for line in block.rows:
            headline = f"**{escape_markdown(line.name)}** ({block.average})"
            name = "&emsp;" * line.depth + escape_markdown(line.name) if line.depth else headline
            rows.append(
                [
                    name,
                    *(" ".join(format_estimate(e, block.metric).split()) for e in line.estimates),
                    format_item_count(line),
                ]
            )
        counted = [f"{label}: {', '.join(values)}" for label, values in headline_annotations(block)]
        notes += [
            f"- {escape_markdown(block.suite)}: {escape_markdown(text)}"
            for text in (*block.notes, *counted)
        ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return (
        "\n\n".join(part for part in (table, "\n".join(notes), f"_{build_legend(found)}_") if part)
        + "\n"
    )


def escape_markdown(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\`*|[]<>" else c for c in text)


def format_item_count(row: ResultsRow) -> str:
    """The number of items behind a row; `a–b` where columns differ."""
    n = sorted({estimate.n for estimate in row.estimates if estimate})
    return f"{n[0]:,}" if len(n) == 1 else f"{n[0]:,}–{n[-1]:,}" if n else ""


def count_flags(block: SuiteBlock) -> list[tuple[str, tuple[int, ...]]]:
    """Of a headline, each flag that was raised in some column, in words, with its count per column."""
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


def headline_annotations(block: SuiteBlock) -> list[tuple[str, list[str]]]:
    """What a headline must be read with: flags that were raised, and its interval if the groups
    were a sample too.
    """
    found = [(flag, [f"{count:,}" for count in counts]) for flag, counts in count_flags(block)]
    if any(block.clustered):
        written = get_metric_spec(block.metric).format
        half = [f"±{written((e.high - e.low) / 2)}" if e else "–" for e in block.clustered]
        found.append(
            (f"for {block.average.removeprefix('mean of ').lstrip('0123456789 ')} like these", half)
        )
    return found


def to_csv(runs: Sequence[Run], by: str) -> str:
    """Tidy CSV: one row per estimate, values as fractions in full precision, headline and its views
    included.
    """
    counted = ["tie", *FLAGS]
    header = [
        "model",
        "suite",
        "method",
        "metric",
        "level",
        "name",
        "within",
        "value",
        "low",
        "high",
        "n",
        *counted,
    ]
    sink = io.StringIO()
    writer = csv_module.writer(sink, lineterminator="\n")
    writer.writerow(header)
    for run in runs:
        for cell in (cell for cell in run if cell.seed is None):
            for level, label, within, e in _iter_estimates(cell.summary, by):
                about = [
                    model_name(run),
                    cell.suite,
                    cell.method,
                    cell.summary.metric,
                    level,
                    label,
                    within,
                ]
                counts = [e.flags.get(flag, 0) for flag in counted]
                writer.writerow([*about, repr(e.value), repr(e.low), repr(e.high), e.n, *counts])
    return sink.getvalue()


def _iter_estimates(summary: Summary, by: str) -> Iterator[tuple[str, str, str, Estimate]]:
    yield "headline", summary.suite, "", summary.headline
    yield from (("view", name, "", estimate) for name, estimate in summary.views.items())
    shown = select_levels(summary, by)
    yield from ((g.level, g.name, g.within, g.estimate) for g in summary.groups if g.level in shown)


def to_json(runs: Sequence[Run], by: str) -> str:
    """JSON: per run its folder, manifest and cells, in full precision; it holds every group,
    whatever `by`.
    """
    from antlm_bench.runs import cell_to_dict  # pyarrow is slow to import

    del by
    documents = [
        {"run": run.path, "manifest": asdict(run.manifest), "cells": [cell_to_dict(c) for c in run]}
        for run in runs
    ]
    return (
        json_module.dumps({"runs": documents}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


FORMATTERS: dict[str, Callable[[Sequence[Run], str], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "json": to_json,
}
