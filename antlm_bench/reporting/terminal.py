"""The table people like to read: calm, aligned, nothing cut off without a sign, and the same
without colours.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from antlm_bench.errors import BenchError
from antlm_bench.metrics import get_metric_spec
from antlm_bench.reporting import results_table
from antlm_bench.reporting.results_table import ResultsColumn, ResultsRow, SuiteBlock
from antlm_bench.types import Run

COLUMN_GAP, NAME_WIDTHS, VALUE_WIDTHS = (
    2,
    (26, 46),
    (11, 20),
)  # between columns; least and most characters of a name and of a value column
HEADER_RULE_BOX = Box(
    "    \n    \n ── \n    \n    \n    \n    \n    \n"
)  # a rule under the heads, nothing else
PIPED_WIDTH = 120  # characters a line may have where nobody says how wide the output is


def make_console(*, stderr: bool = False) -> Console:
    """A console that leaves words as they are; plain text when not a terminal or under NO_COLOR
    (rich sees to both).
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(
            errors="replace"
        )  # an ASCII terminal shows "?" for "±", never a traceback
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPED_WIDTH
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width
    )


def show_runs(runs: Sequence[Run], output_format: str = "terminal", by: str = "phenomenon") -> None:
    """Print the results of runs on stdout. form: terminal, markdown, csv, json. by: suite, or a
    level of labels.
    """
    out = make_console()
    if output_format == "terminal":
        print_runs(out, runs, by)
    else:
        sys.stdout.write(results_table.FORMATTERS[output_format](runs, by))


def print_runs(console: Console, runs: Sequence[Run], by: str) -> None:
    """Checkpoints side by side while the width allows; else one row per checkpoint and one column
    per suite.
    """
    found = results_table.build_columns(runs)
    if not found:
        console.print(Text("nothing scored yet", style="dim"))
        return
    blocks = results_table.build_blocks(found, by)
    widths = _column_widths(found, blocks, console.width)
    fits = widths is not None
    if widths is None:
        _print_overview(
            console, found, results_table.build_blocks(found, results_table.SUITE_LEVEL)
        )
    else:
        _print_header(console, found, widths)
        for block in blocks:
            _print_block(console, block, widths)
    console.print()
    print_paragraph(console, results_table.build_legend(found, explain_clustered=fits), "dim")


def _column_widths(
    columns: Sequence[ResultsColumn], blocks: Sequence[SuiteBlock], total: int
) -> list[int] | None:
    """Widths of the name, of each value column and of n; None where the columns do not fit side by
    side.
    """
    lines = [line for block in blocks for line in block.rows]
    items = max([cell_len(results_table.format_item_count(line)) for line in lines] + [5])
    wanted = max(_name_width(block, line) for block in blocks for line in block.rows)
    wanted = max(
        [
            wanted,
            *(
                2 + cell_len(label)
                for block in blocks
                for label, _ in results_table.headline_annotations(block)
            ),
        ]
    )
    heads = [max(map(cell_len, _column_header(column, columns))) for column in columns]
    for cap in range(VALUE_WIDTHS[1], VALUE_WIDTHS[0] - 1, -1):
        values = [min(max(head, VALUE_WIDTHS[0]), cap) for head in heads]
        left = total - 2 - sum(values) - COLUMN_GAP * (len(columns) + 1) - items
        if left >= min(wanted, NAME_WIDTHS[0] if cap == VALUE_WIDTHS[0] else NAME_WIDTHS[1]):
            return [min(wanted, NAME_WIDTHS[1], left), *values, items]
    return None


def _name_width(block: SuiteBlock, row: ResultsRow) -> int:
    return 2 * row.depth + cell_len(row.name) + (0 if row.depth else 2 + len(block.average))


def _column_header(column: ResultsColumn, columns: Sequence[ResultsColumn]) -> list[str]:
    """What tells this column from the others: its model, its method, or both; of a single one, what
    its numbers are.
    """
    models, methods = {c.model for c in columns}, {c.method for c in columns}
    units = {get_metric_spec(cell.summary.metric).heading for cell in column.cells.values()}
    named = ([column.model] if len(models) > 1 else []) + (
        [column.method] if len(methods) > 1 else []
    )
    return named or [units.pop() if len(units) == 1 else "value"]


def _print_header(
    console: Console, columns: Sequence[ResultsColumn], widths: Sequence[int]
) -> None:
    same = [
        names.pop()
        for names in ({c.model for c in columns}, {c.method for c in columns})
        if len(names) == 1
    ]
    console.print()
    if same:
        print_paragraph(console, " · ".join(same), "bold")
        console.print()
    heads = [_column_header(column, columns) for column in columns]
    for row in range(max(map(len, heads))):
        cells = [head[row] if row < len(head) else "" for head in heads]
        last = row == max(map(len, heads)) - 1
        console.print(
            _format_row(
                Text(""), [Text(cell) for cell in cells], "items" if last else "", widths, "dim"
            )
        )


def _print_block(console: Console, block: SuiteBlock, widths: Sequence[int]) -> None:
    for line in block.rows:
        values = [
            Text(results_table.format_estimate(e, block.metric), style="" if line.depth else "bold")
            for e in line.estimates
        ]
        name = Text("  " * line.depth + line.name, style="" if line.depth else "bold")
        if line.depth:
            console.print(
                _format_row(name, values, results_table.format_item_count(line), widths, "")
            )
            continue
        console.print()
        name.append("  " + block.average, style="not bold dim")
        console.print(_format_row(name, values, results_table.format_item_count(line), widths, ""))
        for note in block.notes:
            print_paragraph(console, note, "yellow", 3)
        for label, cells in results_table.headline_annotations(block):
            console.print(
                _format_row(Text("  " + label), [Text(cell) for cell in cells], "", widths, "dim")
            )


def _format_row(
    name: Text, values: Sequence[Text], items: str, widths: Sequence[int], style: str
) -> Text:
    """One line: the name on the left, numbers on the right of their columns; too long a name ends
    in an ellipsis.
    """
    name.truncate(widths[0], overflow="ellipsis", pad=True)
    line = Text(" ").append_text(name)
    for value, width in zip([*values, Text(items, style="dim")], widths[1:], strict=True):
        value.truncate(width, overflow="ellipsis")
        line.append(" " * (COLUMN_GAP + width - value.cell_len)).append_text(value)
    line.stylize_before(style)
    line.rstrip()
    return line


def _print_overview(
    console: Console, columns: Sequence[ResultsColumn], blocks: Sequence[SuiteBlock]
) -> None:
    """A row per checkpoint and method, a column per suite, folded into as many tables as the width
    asks for.
    """
    several = len({column.method for column in columns}) > 1
    names = [f"{c.model} · {c.method}" if several else c.model for c in columns]
    name = min(max(map(cell_len, names)), NAME_WIDTHS[1], console.width // 2)
    widths = [min(max(cell_len(block.suite), VALUE_WIDTHS[0]), VALUE_WIDTHS[1]) for block in blocks]
    start = 0
    while start < len(blocks):
        end = start + 1
        while (
            end < len(blocks)
            and name + 2 + sum(w + COLUMN_GAP for w in widths[start : end + 1]) <= console.width
        ):
            end += 1
        shown, sizes = blocks[start:end], [name, *widths[start:end], 0]
        console.print()
        console.print(
            _format_row(Text(""), [Text(block.suite) for block in shown], "", sizes, "bold")
        )
        for i, label in enumerate(names):
            values = [
                Text(results_table.format_estimate(block.rows[0].estimates[i], block.metric))
                for block in shown
            ]
            console.print(_format_row(Text(label), values, "", sizes, ""))
        start = end
    console.print()
    for block in blocks:
        for note in block.notes:
            print_paragraph(console, f"{block.suite}: {note}", "yellow")
        raised = [
            f"up to {max(counts):,} {flag}" for flag, counts in results_table.count_flags(block)
        ]
        about = " · ".join(
            [block.average, f"{results_table.format_item_count(block.rows[0])} items", *raised]
        )
        print_paragraph(console, f"{block.suite}: {about}", "dim")
    print_paragraph(
        console, "For groups: --csv or --markdown, or fewer checkpoints at once.", "dim"
    )


def print_paragraph(console: Console, text: str, style: str, indent: int = 1) -> None:
    for line in Text(text, style=style).wrap(console, min(console.width, 100) - indent - 1):
        line.rstrip()
        console.print(Text(" " * indent) + line)


def print_fields(title: str, mapping: Mapping[str, object]) -> None:
    """Print names and values, one under the other; a mapping inside becomes an indented part of its
    own.
    """
    out = make_console()
    out.print(Text(f" {results_table.make_printable(title)}", style="bold"))
    _print_fields(out, mapping, 1)
    out.print()


def _print_fields(console: Console, mapping: Mapping[str, object], depth: int) -> None:
    plain = [
        cell_len(name)
        for name, value in mapping.items()
        if not (isinstance(value, Mapping) and value)
    ]
    width = min(max(plain, default=0), 32)
    for name, value in mapping.items():
        label = Text("  " * depth + results_table.make_printable(name), style="dim")
        if isinstance(value, Mapping) and value:
            console.print(label)
            _print_fields(console, value, depth + 1)
            continue
        label.append(" " * max(0, 2 * depth + width - label.cell_len) + "  ")
        indent = label.cell_len
        wrapped = Text(format_value(value)).wrap(console, max(console.width - indent - 1, 20))
        for i, part in enumerate(wrapped):
            part.rstrip()
            console.print((label if i == 0 else Text(" " * indent)) + part)


def format_value(value: object) -> str:
    if (
        value is None
        or value == ""
        or (isinstance(value, Sequence | Mapping | set | frozenset) and not value)
    ):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return ", ".join(
            sorted(map(format_value, value))
            if isinstance(value, set | frozenset)
            else map(format_value, value)
        )
    return "\n".join(results_table.make_printable(line) for line in str(value).splitlines())


def print_rows(
    rows: Sequence[Mapping[str, object]], output_format: str = "terminal", empty: str = "nothing"
) -> None:
    """Print rows (all with the keys of the first, which head the columns). form: terminal,
    markdown, csv, json.
    """
    heads = list(rows[0]) if rows else []
    out = make_console()
    if output_format == "json":
        sys.stdout.write(
            json.dumps([dict(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
        )
    elif output_format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows(
            [heads, *([row.get(head) for head in heads] for row in rows)] if rows else []
        )
    elif output_format == "markdown":
        cells = [
            heads,
            ["---"] * len(heads),
            *(
                [
                    results_table.escape_markdown(
                        " ".join(format_value(row.get(head)).splitlines())
                    )
                    for head in heads
                ]
                for row in rows
            ),
        ]
        sys.stdout.write("".join("| " + " | ".join(row) + " |\n" for row in cells))
    else:
        _print_listing(out, rows, heads, empty)


def _print_listing(
    console: Console, rows: Sequence[Mapping[str, object]], headers: Sequence[str], empty: str
) -> None:
    if not rows:
        console.print(Text(f" {empty}", style="dim"))
        return
    table = Table(
        box=HEADER_RULE_BOX, show_edge=False, pad_edge=False, padding=(0, 1), header_style="dim"
    )
    for head in headers:
        numeric = all(not format_value(row.get(head)).strip("–0123456789,.%") for row in rows)
        table.add_column(
            Text(results_table.make_printable(head)),
            justify="right" if numeric else "left",
            no_wrap=head == headers[0],
            overflow="fold",
            style="bold" if head == headers[0] else "",
        )
    for row in rows:
        table.add_row(*(Text(format_value(row.get(head))) for head in headers))
    console.print(Padding(table, (0, 0, 0, 1)), soft_wrap=False)


def print_error(error: BenchError) -> None:
    """Print an error on stderr: what is wrong, where, and what to do."""
    out = make_console(stderr=True)
    place = (
        Text(f"{results_table.make_printable(error.location)}: ") if error.location else Text("")
    )
    out.print(Text("error: ", style="bold red") + place + Text(format_value(error.message)))
    if error.hint:
        out.print(Text(" hint: ", style="cyan") + Text(format_value(error.hint)))
