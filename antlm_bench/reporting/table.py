"""Define `Table`, the typed form of what a command prints: columns, rows and notes.

Commands build a `Table`; `antlm_bench.reporting.writers` writes it in a format.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import PurePath
from typing import Any, Literal

Value = str | int | float | bool | None
Alignment = Literal["left", "right"]
Emphasis = Literal["", "strong", "faint"]
Tone = Literal["", "good", "bad", "doubtful"]
MISSING = "–"


@dataclass(frozen=True, slots=True)
class TableCell:
    """A value for CSV and JSON, and its text in formats for people."""

    value: Value = None
    """The unrounded value, in `unit`."""
    text: str | None = None
    """The text. None = `value` as text, "" = nothing."""
    low: float | None = None
    """Lower end of the 95% interval, in the unit of `value`."""
    high: float | None = None
    """Upper end of the 95% interval, in the unit of `value`."""
    unit: str = ""
    """Unit of `value`. "" = the column's unit."""
    detail: str = ""
    """A few words that explain the text; printed after it in a lighter style."""
    notes: tuple[str, ...] = ()
    """Sentences about the value. Writers mark them with letters and print them below the table."""
    tone: Tone = ""
    """Colour on a terminal. Other formats ignore it."""

    @property
    def shown(self) -> str:
        """The text in formats for people."""
        return describe_value(self.value) if self.text is None else self.text

    @property
    def is_number(self) -> bool:
        """Whether the value is a number. The text of a number is never cut or wrapped."""
        return isinstance(self.value, int | float) and not isinstance(self.value, bool)


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column: its key in CSV and JSON, and its label in formats for people."""

    key: str
    """Header in CSV and key in JSON, unique in the table."""
    label: str | None = None
    """Header of the column; may have several lines. None = `key`."""
    unit: str = ""
    """Unit of the values, e.g. "fraction", "nats". "" = none, or each cell has its own."""
    align: Alignment = "left"
    notes: tuple[str, ...] = ()
    """Sentences about all values of the column."""

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
    """"strong" for a headline or total, "faint" for a remark about the rows above."""
    space_above: bool = False
    """Whether a gap (in LaTeX a rule) separates the row from the row above."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a command prints, in any format."""

    columns: tuple[TableColumn, ...]
    """The first column names the rows."""
    rows: tuple[TableRow, ...] = ()
    title: str = ""
    legend: tuple[str, ...] = ()
    """Sentences about the whole table."""
    empty: str = "nothing"
    """Text that replaces a table without rows in formats for people."""
    header: bool = True
    """Whether formats for people show the labels of the columns."""
    build_long: Callable[[], Table] | None = None
    """Function that builds the table with one estimate per row, for CSV and JSON. None = this table
    has that form."""
    narrow: Table | None = None
    """The table for terminals on which this one is too wide. None = this one is broken into
    blocks of columns."""
    parts: tuple[Table, ...] = ()
    """Tables that follow this one. CSV omits them, because it has one header."""
    document: Mapping[str, Any] = field(default_factory=dict)
    """Further top-level members of the JSON document, as `to_json_value` converts them."""

    @property
    def long(self) -> Table:
        """The form for CSV and JSON."""
        return self.build_long() if self.build_long else self

    def __post_init__(self) -> None:
        keys = [column.key for column in self.columns]
        if len(set(keys)) < len(keys):
            raise ValueError(f"two columns have the same key: {keys}")
        for row in self.rows:
            if len(row.cells) != len(keys):
                raise ValueError(f"a row has {len(row.cells)} cells in {len(keys)} columns")


def describe_value(value: object) -> str:
    """Return a value as text: `58,000,000`, `yes`, `a, b`; "–" for None and empty values."""
    is_empty = isinstance(value, Sequence | Mapping | set | frozenset) and not value
    if value is None or is_empty:
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
    """Wrap a value in a cell. Values other than strings and numbers become strings."""
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
    """Build a table with a row per record. Columns of numbers are aligned on the right.

    keys: columns; () = the keys of the first record. units: key -> unit of the values.
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
    title: str,
    facts: Mapping[str, object],
    parts: Sequence[Table] = (),
    labels: Mapping[str, str] | None = None,
) -> Table:
    """Build a table of names and values, without a header.

    A nested mapping is indented below its name. JSON also has the facts as an object. labels: name
    -> its text in formats for people; a name in a nested mapping is `OUTER.NAME`.
    """
    columns = (TableColumn("name"), TableColumn("value"))
    document = {"facts": to_json_value(facts)}
    rows = tuple(_fact_rows(facts, (), labels or {}))
    return Table(columns, rows, title=title, header=False, parts=tuple(parts), document=document)


def _fact_rows(
    facts: Mapping[str, object], outer: tuple[str, ...], labels: Mapping[str, str]
) -> Iterator[TableRow]:
    depth = len(outer)
    for name, value in facts.items():
        name_cell = TableCell(name, labels.get(".".join((*outer, name))))
        if isinstance(value, Mapping) and value:
            yield build_row(name_cell, TableCell(text=""), depth=depth)
            yield from _fact_rows(value, (*outer, name), labels)
        else:
            yield build_row(name_cell, value, depth=depth)


def build_long_facts_table(tables: Sequence[Table]) -> Table:
    """Combine tables of facts into one table with the columns title, name and value."""
    columns = (TableColumn("title"), TableColumn("name"), TableColumn("value"))
    rows = [
        TableRow((TableCell(table.title), *row.cells)) for table in tables for row in table.rows
    ]
    return Table(columns, tuple(rows))


def to_json_value(value: object) -> Any:
    """Convert a value to JSON types: sets to sorted lists, cells to their values, NaN to None, and
    other dataclasses to objects with their fields.
    """
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
    if is_dataclass(value):
        return {each.name: to_json_value(getattr(value, each.name)) for each in fields(value)}
    return str(value) if isinstance(value, PurePath) else repr(value)


class NoteMarks:
    """Assign the marks a, b, ..., z, aa, ... to notes, in reading order."""

    def __init__(self, sentences: Iterable[str] = ()) -> None:
        self._numbers: dict[str, int] = {}
        for sentence in sentences:
            self.mark([sentence])

    def mark(self, notes: Iterable[str]) -> str:
        """Return the marks of these notes, e.g. `a,c-e`. Three consecutive marks form a range."""
        numbers = {self._numbers.setdefault(note, len(self._numbers)) for note in notes}
        ranges: list[list[int]] = []
        for index in sorted(numbers):
            if ranges and index == ranges[-1][-1] + 1:
                ranges[-1].append(index)
            else:
                ranges.append([index])
        texts = []
        for indices in ranges:
            marks = list(map(index_to_letters, indices))
            texts.append(f"{marks[0]}-{marks[-1]}" if len(marks) > 2 else ",".join(marks))
        return ",".join(texts)

    @property
    def sentences(self) -> list[str]:
        """The marked sentences, in the order of their marks."""
        return list(self._numbers)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield (mark, sentence)."""
        return ((index_to_letters(index), note) for note, index in self._numbers.items())


def index_to_letters(index: int) -> str:
    """Return `a` for 0, `z` for 25, `aa` for 26."""
    rest, letter = divmod(index, 26)
    prefix = index_to_letters(rest - 1) if rest else ""
    return prefix + string.ascii_lowercase[letter]
