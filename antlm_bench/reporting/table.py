"""Describe any output as a table of typed cells: columns, rows and notes.

Commands build a `Table`, `antlm_bench.reporting.writers` turns it into a format.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

Value = str | int | float | bool | None
Alignment = Literal["left", "right"]
Emphasis = Literal["", "strong", "faint"]
Tone = Literal["", "good", "bad", "doubtful"]
MISSING = "–"


@dataclass(frozen=True, slots=True)
class TableCell:
    """A typed value with the text that people read."""

    value: Value = None
    """The value in CSV and JSON: unrounded, in the unit of the column."""
    text: str | None = None
    """The text shown. None = `value` as text, "" = nothing."""
    low: float | None = None
    """Lower end of the 95% interval, in the unit of `value`."""
    high: float | None = None
    """Upper end of the 95% interval, in the unit of `value`."""
    unit: str = ""
    """Unit of `value`. "" = the column's unit."""
    detail: str = ""
    """A few words that explain the text, in a lighter style behind it."""
    notes: tuple[str, ...] = ()
    """Caveats of the value. Writers mark them with letters and print them below the table."""
    tone: Tone = ""
    """Colour on a terminal. No other format shows it."""

    @property
    def shown(self) -> str:
        """The text that people read."""
        return describe_value(self.value) if self.text is None else self.text

    @property
    def is_number(self) -> bool:
        """Whether the value is a number. Writers never cut or wrap the text of a number."""
        return isinstance(self.value, int | float) and not isinstance(self.value, bool)


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: its name for machines, its label for people."""

    key: str
    """Header in CSV and key in JSON, unique in the table."""
    label: str | None = None
    """Header shown above the column, lines separated by newlines. None = `key`."""
    unit: str = ""
    """Unit of the values, e.g. "fraction", "nats". "" = none, or a unit per cell."""
    align: Alignment = "left"
    notes: tuple[str, ...] = ()
    """Sentences that hold for every cell of the column."""

    @property
    def label_lines(self) -> list[str]:
        return (self.key if self.label is None else self.label).split("\n")


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row. The first cell names it."""

    cells: tuple[TableCell, ...]
    depth: int = 0
    """Indentation of the first cell, in steps."""
    emphasis: Emphasis = ""
    """"strong": a headline or total, "faint": a remark about the rows above."""
    space_above: bool = False
    """Whether a gap (in LaTeX a rule) separates the row from the one above."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a command prints, in whatever format."""

    columns: tuple[TableColumn, ...]
    """The first column names the rows."""
    rows: tuple[TableRow, ...] = ()
    title: str = ""
    legend: tuple[str, ...] = ()
    """Sentences about the whole table. No cell refers to them."""
    empty: str = "nothing"
    """What people read instead of a table without rows."""
    header: bool = True
    """Whether people see the labels of the columns."""
    long: Table | None = None
    """The same numbers with one estimate per row, for CSV and JSON. None = this table."""
    narrow: Table | None = None
    """The whole that a terminal shows if this table is too wide. None = columns are folded."""
    parts: tuple[Table, ...] = ()
    """Tables that follow. CSV, which has one header, leaves them out."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """Further top-level members of the JSON document."""

    def __post_init__(self) -> None:
        keys = [column.key for column in self.columns]
        if len(set(keys)) < len(keys):
            raise ValueError(f"two columns have the same key: {keys}")
        if wrong := [row for row in self.rows if len(row.cells) != len(keys)]:
            raise ValueError(f"a row has {len(wrong[0].cells)} cells in {len(keys)} columns")


def describe_value(value: object) -> str:
    """Return a value in plain words: `58,000,000`, `yes`, `a, b`; "–" for nothing."""
    if (
        value is None
        or value == ""
        or (isinstance(value, Sequence | Mapping | set | frozenset) and not value)
    ):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, set | frozenset):
        return ", ".join(sorted(map(describe_value, value)))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(describe_value, value))
    return str(value)


def to_cell(value: object) -> TableCell:
    """Wrap a value in a cell. What is neither text nor a number is held as text."""
    if isinstance(value, TableCell):
        return value
    if value is None or isinstance(value, str | int | float):
        return TableCell(value)
    return TableCell(describe_value(value))


def build_row(
    *values: object, depth: int = 0, emphasis: Emphasis = "", space_above: bool = False
) -> TableRow:
    """Build a row from cells or plain values."""
    return TableRow(tuple(map(to_cell, values)), depth, emphasis, space_above)


def build_records_table(
    records: Sequence[Mapping[str, object]],
    *,
    keys: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
    title: str = "",
    empty: str = "nothing",
    legend: Sequence[str] = (),
) -> Table:
    """Build a table with a row per record.

    Columns are `keys`, or the keys of the first record, and headed by them. A column of numbers is
    aligned on the right. units: key -> unit of the values.
    """
    names = list(keys or (records[0] if records else ()))
    rows = tuple(build_row(*(record.get(name) for name in names)) for record in records)
    columns = tuple(
        TableColumn(
            name,
            unit=(units or {}).get(name, ""),
            align="right" if _is_numeric([row.cells[index] for row in rows]) else "left",
        )
        for index, name in enumerate(names)
    )
    return Table(columns, rows, title=title, empty=empty, legend=tuple(legend))


def _is_numeric(cells: Sequence[TableCell]) -> bool:
    present = [cell for cell in cells if cell.value not in (None, "")]
    return bool(present) and all(cell.is_number for cell in present)


def build_facts_table(
    title: str, facts: Mapping[str, object], parts: Sequence[Table] = ()
) -> Table:
    """Build a table of names and values, without a header.

    A nested mapping is indented below its name. JSON holds the facts as one object besides.
    """
    columns = (TableColumn("name"), TableColumn("value"))
    document = {"facts": to_json_value(facts)}
    rows = tuple(_fact_rows(facts, 0))
    return Table(columns, rows, title=title, header=False, parts=tuple(parts), document=document)


def _fact_rows(facts: Mapping[str, object], depth: int) -> Iterator[TableRow]:
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield build_row(name, TableCell(text=""), depth=depth)
            yield from _fact_rows(value, depth + 1)
        else:
            yield build_row(name, value, depth=depth)


def build_long_facts_table(tables: Sequence[Table]) -> Table:
    """Build one table of all names and values of several tables of facts, with their titles."""
    columns = (TableColumn("title"), TableColumn("name"), TableColumn("value"))
    rows = [
        TableRow((TableCell(table.title), *row.cells)) for table in tables for row in table.rows
    ]
    return Table(columns, tuple(rows))


def to_json_value(value: object) -> Any:
    """Return a value in JSON's types. Sets are sorted, cells are their values, NaN is None."""
    if isinstance(value, TableCell):
        return to_json_value(value.value)
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(to_json_value, value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(map(to_json_value, value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value) if isinstance(value, PurePath) else repr(value)


class NoteMarks:
    """Assign the marks a, b, ..., z, aa, ... to notes, in reading order."""

    def __init__(self, sentences: Iterable[str] = ()) -> None:
        self.sentences: list[str] = []
        for sentence in sentences:
            self.mark([sentence])

    def mark(self, notes: Iterable[str]) -> str:
        """Return the marks of these notes: `a,c-e`. Three neighbours or more become a range."""
        unique = list(dict.fromkeys(notes))
        self.sentences += [note for note in unique if note not in self.sentences]
        runs: list[list[int]] = []
        for index in sorted(self.sentences.index(note) for note in unique):
            if runs and index == runs[-1][-1] + 1:
                runs[-1].append(index)
            else:
                runs.append([index])
        return ",".join(
            f"{letters(run[0])}-{letters(run[-1])}" if len(run) > 2 else ",".join(map(letters, run))
            for run in runs
        )

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (mark, sentence)."""
        return ((letters(index), note) for index, note in enumerate(self.sentences))


def letters(index: int) -> str:
    """Return `a` for 0, `z` for 25, `aa` for 26."""
    for size in range(1, 10):
        if index < 26**size:
            break
        index -= 26**size
    name = ""
    for _ in range(size):
        index, letter = divmod(index, 26)
        name = string.ascii_lowercase[letter] + name
    return name
