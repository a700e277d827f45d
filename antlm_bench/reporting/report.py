"""The report on the terminal: members down the side while the columns fit, else a line per checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from antlm_bench.reporting import report_writers
from antlm_bench.reporting.report_writers import Cell, Row, Sheet
from antlm_bench.reporting.terminal import GAP, console, paragraph

if TYPE_CHECKING:
    from antlm_bench.commands.report import Report

NAME, HEAD, HEAD_LINES = 34, 16, 4  # most characters of a name and of a column's head, and lines of a head
STYLES = {"member": "", "task": "dim", "aside": "dim italic", "macro": "bold"}


def show_report(report: Report, form: str = "terminal") -> None:
    """Print a report on stdout. form: terminal, or one of sheets.FORMS."""
    if form == "terminal":
        draw(console(), report_writers.sheet(report))
    else:
        sys.stdout.write(report_writers.FORMS[form](report))


def draw(out: Console, made: Sheet) -> None:
    if not made.rows or not made.heads:
        out.print(Text("nothing scored yet", style="dim"))
        return
    out.print()
    if made.title:
        paragraph(out, made.title, "bold")
        out.print()
    heads = [_head(out, model, cell) for model, cell in made.heads]
    names = [_indented(row) for row in made.rows]
    name = min(max(map(cell_len, names)), NAME)
    columns = [_aligned([row.cells[at] for row in made.rows]) for at in range(len(heads))]
    widths = [max(map(cell_len, [*head, *cells])) for head, cells in zip(heads, columns, strict=True)]
    if 1 + name + sum(width + GAP for width in widths) <= out.width:
        _down(out, made, heads, columns, [name, *widths])
    else:
        _across(out, made)
    out.print()
    for letter, sentence in made.remarks.items():
        paragraph(out, f"{letter}  {sentence}", "yellow")
    for text in (*made.sources, *made.notes):
        paragraph(out, text, "dim")
    paragraph(out, made.legend, "dim")


def _down(
    out: Console, made: Sheet, heads: Sequence[list[str]], columns: Sequence[list[str]], widths: Sequence[int]
) -> None:
    tallest = max(map(len, heads))
    for line in zip(*([""] * (tallest - len(head)) + head for head in heads), strict=True):
        out.print(_line("", line, widths, "dim"))
    out.print()
    for at, row in enumerate(made.rows):
        if row.kind == "macro":
            out.print()
        out.print(_line(_indented(row), [cells[at] for cells in columns], widths, STYLES[row.kind]))


def _across(out: Console, made: Sheet) -> None:
    """A line per checkpoint, a column per member, folded into as many tables as the width asks for."""
    rows = [row for row in made.rows if row.kind in ("member", "macro")]
    labels = [f"{model} · {cell.text}".removesuffix(" · ") for model, cell in made.heads]
    labels = [f"{label} {cell.letters}".rstrip() for label, (_, cell) in zip(labels, made.heads, strict=True)]
    name = min(max(map(cell_len, labels)), max(NAME, out.width // 2))
    columns = [_aligned(row.cells) for row in rows]
    widths = [max(map(cell_len, [row.name, *cells])) for row, cells in zip(rows, columns, strict=True)]
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and 1 + name + sum(w + GAP for w in widths[start : end + 1]) <= out.width:
            end += 1
        sizes = [name, *widths[start:end]]
        if start:
            out.print()
        out.print(_line("", [row.name for row in rows[start:end]], sizes, "dim"))
        for at, label in enumerate(labels):
            out.print(_line(label, [cells[at] for cells in columns[start:end]], sizes, ""))
        start = end
    if any(row.kind == "task" for row in made.rows):
        paragraph(out, "For tasks and seeds: --csv or --markdown, or fewer checkpoints at once.", "dim")


def _head(out: Console, model: str, cell: Cell) -> list[str]:
    """A column's head, folded: the model, then how it was read."""
    lines = [str(line).rstrip() for line in Text(model).wrap(out, HEAD, overflow="fold")]
    if len(lines) > HEAD_LINES:
        lines = [*lines[: HEAD_LINES - 1], f"{lines[HEAD_LINES - 1][: HEAD - 1]}…"]
    return [*lines, _shown(cell)] if cell.text or cell.letters else lines


def _indented(row: Row) -> str:
    return row.name if row.kind in ("member", "macro") else f"  {row.name}"


def _aligned(cells: Sequence[Cell]) -> list[str]:
    """Cells of one column as texts of equal width: numbers under numbers, intervals under intervals, then letters."""
    parts = [cell.text.partition(" ±") for cell in cells]
    half = max(cell_len(right) for _, _, right in parts)
    room = max(cell_len(cell.letters) for cell in cells)
    texts = [f"{left} {'±' + right:>{half + 1}}" if right else left for left, _, right in parts]
    width = max(map(cell_len, texts))
    lettered = [f" {cell.letters:<{room}}" if room else "" for cell in cells]
    return [" " * (width - cell_len(text)) + text + after for text, after in zip(texts, lettered, strict=True)]


def _shown(cell: Cell) -> str:
    return f"{cell.text} {cell.letters}".strip()


def _line(name: str, values: Sequence[str], widths: Sequence[int], style: str) -> Text:
    """One line: the name on the left, numbers on the right of their columns; too long a name ends in an ellipsis."""
    label = Text(name)
    label.truncate(widths[0], overflow="ellipsis", pad=True)
    line = Text(" ").append_text(label)
    for value, width in zip(values, widths[1:], strict=True):
        line.append(" " * (GAP + width - cell_len(value)) + value)
    line.stylize_before(style)
    line.rstrip()
    return line
