"""The report on the terminal: members down the side while the columns fit, else a line per
checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from antlm_bench.reporting import report_writers
from antlm_bench.reporting.report_writers import ReportCell, ReportRow, ReportTable
from antlm_bench.reporting.terminal import COLUMN_GAP, make_console, print_paragraph

if TYPE_CHECKING:
    from antlm_bench.commands.report import Report

MAX_NAME_WIDTH, MAX_HEADER_WIDTH, MAX_HEADER_LINES = (
    34,
    16,
    4,
)  # most characters of a name and of a column's head, and lines of a head
STYLES = {"member": "", "task": "dim", "aside": "dim italic", "macro": "bold"}


def show_report(report: Report, output_format: str = "terminal") -> None:
    """Print a report on stdout. form: terminal, or one of sheets.FORMS."""
    if output_format == "terminal":
        print_report_table(make_console(), report_writers.build_report_table(report))
    else:
        sys.stdout.write(report_writers.FORMATTERS[output_format](report))


def print_report_table(console: Console, table: ReportTable) -> None:
    if not table.rows or not table.heads:
        console.print(Text("nothing scored yet", style="dim"))
        return
    console.print()
    if table.title:
        print_paragraph(console, table.title, "bold")
        console.print()
    heads = [_column_header(console, model, cell) for model, cell in table.heads]
    names = [_indented_name(row) for row in table.rows]
    name = min(max(map(cell_len, names)), MAX_NAME_WIDTH)
    columns = [_align_cells([row.cells[at] for row in table.rows]) for at in range(len(heads))]
    widths = [
        max(map(cell_len, [*head, *cells])) for head, cells in zip(heads, columns, strict=True)
    ]
    if 1 + name + sum(width + COLUMN_GAP for width in widths) <= console.width:
        _print_members_as_rows(console, table, heads, columns, [name, *widths])
    else:
        _print_checkpoints_as_rows(console, table)
    console.print()
    for letter, sentence in table.remarks.items():
        print_paragraph(console, f"{letter}  {sentence}", "yellow")
    for text in (*table.sources, *table.notes):
        print_paragraph(console, text, "dim")
    print_paragraph(console, table.legend, "dim")


def _print_members_as_rows(
    console: Console,
    table: ReportTable,
    headers: Sequence[list[str]],
    columns: Sequence[list[str]],
    widths: Sequence[int],
) -> None:
    tallest = max(map(len, headers))
    for line in zip(*([""] * (tallest - len(head)) + head for head in headers), strict=True):
        console.print(_format_line("", line, widths, "dim"))
    console.print()
    for at, row in enumerate(table.rows):
        if row.kind == "macro":
            console.print()
        console.print(
            _format_line(
                _indented_name(row), [cells[at] for cells in columns], widths, STYLES[row.kind]
            )
        )


def _print_checkpoints_as_rows(console: Console, table: ReportTable) -> None:
    """A line per checkpoint, a column per member, folded into as many tables as the width asks for."""
    rows = [row for row in table.rows if row.kind in ("member", "macro")]
    labels = [f"{model} · {cell.text}".removesuffix(" · ") for model, cell in table.heads]
    labels = [
        f"{label} {cell.letters}".rstrip()
        for label, (_, cell) in zip(labels, table.heads, strict=True)
    ]
    name = min(max(map(cell_len, labels)), max(MAX_NAME_WIDTH, console.width // 2))
    columns = [_align_cells(row.cells) for row in rows]
    widths = [
        max(map(cell_len, [row.name, *cells])) for row, cells in zip(rows, columns, strict=True)
    ]
    start = 0
    while start < len(rows):
        end = start + 1
        while (
            end < len(rows)
            and 1 + name + sum(w + COLUMN_GAP for w in widths[start : end + 1]) <= console.width
        ):
            end += 1
        sizes = [name, *widths[start:end]]
        if start:
            console.print()
        console.print(_format_line("", [row.name for row in rows[start:end]], sizes, "dim"))
        for at, label in enumerate(labels):
            console.print(
                _format_line(label, [cells[at] for cells in columns[start:end]], sizes, "")
            )
        start = end
    if any(row.kind == "task" for row in table.rows):
        print_paragraph(
            console,
            "For tasks and seeds: --csv or --markdown, or fewer checkpoints at once.",
            "dim",
        )


def _column_header(console: Console, model: str, cell: ReportCell) -> list[str]:
    """A column's head, folded: the model, then how it was read."""
    lines = [
        str(line).rstrip() for line in Text(model).wrap(console, MAX_HEADER_WIDTH, overflow="fold")
    ]
    if len(lines) > MAX_HEADER_LINES:
        lines = [
            *lines[: MAX_HEADER_LINES - 1],
            f"{lines[MAX_HEADER_LINES - 1][: MAX_HEADER_WIDTH - 1]}…",
        ]
    return [*lines, _cell_text(cell)] if cell.text or cell.letters else lines


def _indented_name(row: ReportRow) -> str:
    return row.name if row.kind in ("member", "macro") else f"  {row.name}"


def _align_cells(cells: Sequence[ReportCell]) -> list[str]:
    """Cells of one column as texts of equal width: numbers under numbers, intervals under
    intervals, then letters.
    """
    parts = [cell.text.partition(" ±") for cell in cells]
    half = max(cell_len(right) for _, _, right in parts)
    room = max(cell_len(cell.letters) for cell in cells)
    texts = [f"{left} {'±' + right:>{half + 1}}" if right else left for left, _, right in parts]
    width = max(map(cell_len, texts))
    lettered = [f" {cell.letters:<{room}}" if room else "" for cell in cells]
    return [
        " " * (width - cell_len(text)) + text + after
        for text, after in zip(texts, lettered, strict=True)
    ]


def _cell_text(cell: ReportCell) -> str:
    return f"{cell.text} {cell.letters}".strip()


def _format_line(name: str, values: Sequence[str], widths: Sequence[int], style: str) -> Text:
    """One line: the name on the left, numbers on the right of their columns; too long a name ends
    in an ellipsis.
    """
    label = Text(name)
    label.truncate(widths[0], overflow="ellipsis", pad=True)
    line = Text(" ").append_text(label)
    for value, width in zip(values, widths[1:], strict=True):
        line.append(" " * (COLUMN_GAP + width - cell_len(value)) + value)
    line.stylize_before(style)
    line.rstrip()
    return line
