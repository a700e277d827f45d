"""The table people like to read: calm, aligned, nothing cut off without a sign, and the same without colours."""

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
from antlm_bench.reporting import results_table
from antlm_bench.reporting.metric_units import unit
from antlm_bench.reporting.results_table import Block, Column, Line
from antlm_bench.types import Run

GAP, NAME, VALUE = 2, (26, 46), (11, 20)  # between columns; least and most characters of a name and of a value column
LINES = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")  # a rule under the heads, nothing else
PIPED = 120  # characters a line may have where nobody says how wide the output is


def console(*, stderr: bool = False) -> Console:
    """A console that leaves words as they are; plain text when not a terminal or under NO_COLOR (rich sees to both)."""
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # an ASCII terminal shows "?" for "±", never a traceback
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPED
    return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width)


def show_runs(runs: Sequence[Run], form: str = "terminal", by: str = "phenomenon") -> None:
    """Print the results of runs on stdout. form: terminal, markdown, csv, json. by: suite, or a level of labels."""
    out = console()
    if form == "terminal":
        draw(out, runs, by)
    else:
        sys.stdout.write(results_table.FORMS[form](runs, by))


def draw(out: Console, runs: Sequence[Run], by: str) -> None:
    """Checkpoints side by side while the width allows; else one row per checkpoint and one column per suite."""
    found = results_table.columns(runs)
    if not found:
        out.print(Text("nothing scored yet", style="dim"))
        return
    blocks = results_table.blocks(found, by)
    widths = _widths(found, blocks, out.width)
    fits = widths is not None
    if widths is None:
        _overview(out, found, results_table.blocks(found, results_table.SUITE))
    else:
        _heading(out, found, widths)
        for block in blocks:
            _draw_block(out, block, widths)
    out.print()
    paragraph(out, results_table.legend(found, like_these=fits), "dim")


def _widths(found: Sequence[Column], blocks: Sequence[Block], total: int) -> list[int] | None:
    """Widths of the name, of each value column and of n; None where the columns do not fit side by side."""
    lines = [line for block in blocks for line in block.lines]
    items = max([cell_len(results_table.items(line)) for line in lines] + [5])
    wanted = max(_name_width(block, line) for block in blocks for line in block.lines)
    wanted = max([wanted, *(2 + cell_len(label) for block in blocks for label, _ in results_table.asides(block))])
    heads = [max(map(cell_len, _head(column, found))) for column in found]
    for cap in range(VALUE[1], VALUE[0] - 1, -1):
        values = [min(max(head, VALUE[0]), cap) for head in heads]
        left = total - 2 - sum(values) - GAP * (len(found) + 1) - items
        if left >= min(wanted, NAME[0] if cap == VALUE[0] else NAME[1]):
            return [min(wanted, NAME[1], left), *values, items]
    return None


def _name_width(block: Block, line: Line) -> int:
    return 2 * line.depth + cell_len(line.name) + (0 if line.depth else 2 + len(block.average))


def _head(column: Column, found: Sequence[Column]) -> list[str]:
    """What tells this column from the others: its model, its method, or both; of a single one, what its numbers are."""
    models, methods = {c.model for c in found}, {c.method for c in found}
    units = {unit(cell.summary.metric).head for cell in column.cells.values()}
    named = ([column.model] if len(models) > 1 else []) + ([column.method] if len(methods) > 1 else [])
    return named or [units.pop() if len(units) == 1 else "value"]


def _heading(out: Console, found: Sequence[Column], widths: Sequence[int]) -> None:
    same = [names.pop() for names in ({c.model for c in found}, {c.method for c in found}) if len(names) == 1]
    out.print()
    if same:
        paragraph(out, " · ".join(same), "bold")
        out.print()
    heads = [_head(column, found) for column in found]
    for row in range(max(map(len, heads))):
        cells = [head[row] if row < len(head) else "" for head in heads]
        last = row == max(map(len, heads)) - 1
        out.print(_row(Text(""), [Text(cell) for cell in cells], "items" if last else "", widths, "dim"))


def _draw_block(out: Console, block: Block, widths: Sequence[int]) -> None:
    for line in block.lines:
        values = [
            Text(results_table.number(e, block.metric), style="" if line.depth else "bold") for e in line.estimates
        ]
        name = Text("  " * line.depth + line.name, style="" if line.depth else "bold")
        if line.depth:
            out.print(_row(name, values, results_table.items(line), widths, ""))
            continue
        out.print()
        name.append("  " + block.average, style="not bold dim")
        out.print(_row(name, values, results_table.items(line), widths, ""))
        for note in block.notes:
            paragraph(out, note, "yellow", 3)
        for label, cells in results_table.asides(block):
            out.print(_row(Text("  " + label), [Text(cell) for cell in cells], "", widths, "dim"))


def _row(name: Text, values: Sequence[Text], items: str, widths: Sequence[int], style: str) -> Text:
    """One line: the name on the left, numbers on the right of their columns; too long a name ends in an ellipsis."""
    name.truncate(widths[0], overflow="ellipsis", pad=True)
    line = Text(" ").append_text(name)
    for value, width in zip([*values, Text(items, style="dim")], widths[1:], strict=True):
        value.truncate(width, overflow="ellipsis")
        line.append(" " * (GAP + width - value.cell_len)).append_text(value)
    line.stylize_before(style)
    line.rstrip()
    return line


def _overview(out: Console, found: Sequence[Column], blocks: Sequence[Block]) -> None:
    """A row per checkpoint and method, a column per suite, folded into as many tables as the width asks for."""
    several = len({column.method for column in found}) > 1
    names = [f"{c.model} · {c.method}" if several else c.model for c in found]
    name = min(max(map(cell_len, names)), NAME[1], out.width // 2)
    widths = [min(max(cell_len(block.suite), VALUE[0]), VALUE[1]) for block in blocks]
    start = 0
    while start < len(blocks):
        end = start + 1
        while end < len(blocks) and name + 2 + sum(w + GAP for w in widths[start : end + 1]) <= out.width:
            end += 1
        shown, sizes = blocks[start:end], [name, *widths[start:end], 0]
        out.print()
        out.print(_row(Text(""), [Text(block.suite) for block in shown], "", sizes, "bold"))
        for i, label in enumerate(names):
            values = [Text(results_table.number(block.lines[0].estimates[i], block.metric)) for block in shown]
            out.print(_row(Text(label), values, "", sizes, ""))
        start = end
    out.print()
    for block in blocks:
        for note in block.notes:
            paragraph(out, f"{block.suite}: {note}", "yellow")
        raised = [f"up to {max(counts):,} {flag}" for flag, counts in results_table.flags(block)]
        about = " · ".join([block.average, f"{results_table.items(block.lines[0])} items", *raised])
        paragraph(out, f"{block.suite}: {about}", "dim")
    paragraph(out, "For groups: --csv or --markdown, or fewer checkpoints at once.", "dim")


def paragraph(out: Console, text: str, style: str, indent: int = 1) -> None:
    for line in Text(text, style=style).wrap(out, min(out.width, 100) - indent - 1):
        line.rstrip()
        out.print(Text(" " * indent) + line)


def facts(title: str, mapping: Mapping[str, object]) -> None:
    """Print names and values, one under the other; a mapping inside becomes an indented part of its own."""
    out = console()
    out.print(Text(f" {results_table.printable(title)}", style="bold"))
    _facts(out, mapping, 1)
    out.print()


def _facts(out: Console, mapping: Mapping[str, object], depth: int) -> None:
    plain = [cell_len(name) for name, value in mapping.items() if not (isinstance(value, Mapping) and value)]
    width = min(max(plain, default=0), 32)
    for name, value in mapping.items():
        label = Text("  " * depth + results_table.printable(name), style="dim")
        if isinstance(value, Mapping) and value:
            out.print(label)
            _facts(out, value, depth + 1)
            continue
        label.append(" " * max(0, 2 * depth + width - label.cell_len) + "  ")
        indent = label.cell_len
        wrapped = Text(words(value)).wrap(out, max(out.width - indent - 1, 20))
        for i, part in enumerate(wrapped):
            part.rstrip()
            out.print((label if i == 0 else Text(" " * indent)) + part)


def words(value: object) -> str:
    if value is None or value == "" or (isinstance(value, Sequence | Mapping | set | frozenset) and not value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        return ", ".join(sorted(map(words, value)) if isinstance(value, set | frozenset) else map(words, value))
    return "\n".join(results_table.printable(line) for line in str(value).splitlines())


def catalog(rows: Sequence[Mapping[str, object]], form: str = "terminal", empty: str = "nothing") -> None:
    """Print rows (all with the keys of the first, which head the columns). form: terminal, markdown, csv, json."""
    heads = list(rows[0]) if rows else []
    out = console()
    if form == "json":
        sys.stdout.write(json.dumps([dict(row) for row in rows], indent=1, ensure_ascii=False) + "\n")
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([heads, *([row.get(head) for head in heads] for row in rows)] if rows else [])
    elif form == "markdown":
        cells = [
            heads,
            ["---"] * len(heads),
            *([results_table.escape(" ".join(words(row.get(head)).splitlines())) for head in heads] for row in rows),
        ]
        sys.stdout.write("".join("| " + " | ".join(row) + " |\n" for row in cells))
    else:
        _listed(out, rows, heads, empty)


def _listed(out: Console, rows: Sequence[Mapping[str, object]], heads: Sequence[str], empty: str) -> None:
    if not rows:
        out.print(Text(f" {empty}", style="dim"))
        return
    table = Table(box=LINES, show_edge=False, pad_edge=False, padding=(0, 1), header_style="dim")
    for head in heads:
        numeric = all(not words(row.get(head)).strip("–0123456789,.%") for row in rows)
        table.add_column(
            Text(results_table.printable(head)),
            justify="right" if numeric else "left",
            no_wrap=head == heads[0],
            overflow="fold",
            style="bold" if head == heads[0] else "",
        )
    for row in rows:
        table.add_row(*(Text(words(row.get(head))) for head in heads))
    out.print(Padding(table, (0, 0, 0, 1)), soft_wrap=False)


def problem(error: BenchError) -> None:
    """Print an error on stderr: what is wrong, where, and what to do."""
    out = console(stderr=True)
    place = Text(f"{results_table.printable(error.place)}: ") if error.place else Text("")
    out.print(Text("error: ", style="bold red") + place + Text(words(error.message)))
    if error.hint:
        out.print(Text(" hint: ", style="cyan") + Text(words(error.hint)))
