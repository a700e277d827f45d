"""Tables of any shape, at any width: no number is cut, every mark has its note, columns align."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from antlm_bench.printable import make_printable
from antlm_bench.reporting.table import Table, TableCell, TableColumn, TableRow, build_row
from antlm_bench.reporting.terminal_writer import write_terminal
from antlm_bench.reporting.writers import write_markdown

SCIENTIST = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{MICROSCOPE}"
# Upper case only: a lone lower-case letter in the output is the mark of a note.
NAMES = st.one_of(
    st.text("ABCXYZ_", min_size=1, max_size=70),
    st.sampled_from(["模型比较", f"{SCIENTIST} LAB", "E\u0301COLE", "RÉSUMÉ CAFÉ " * 4, "模" * 40]),
)
MARKS = re.compile(r"[a-z]{1,2}(?:[,-][a-z]{1,2})*")


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Draw a table whose numbers are unique and whose notes are `Note N.`."""
    num_columns, num_rows = draw(st.integers(1, 24)), draw(st.integers(1, 8))
    notes = st.lists(st.integers(1, 30), max_size=3, unique=True).map(
        lambda numbers: tuple(f"Note {number}." for number in numbers)
    )
    columns = [TableColumn("name", label="")]
    for index in range(num_columns):
        align = draw(st.sampled_from(["left", "right"]))
        columns.append(TableColumn(f"{index}", draw(NAMES), align=align, notes=draw(notes)))
    rows = []
    for row in range(num_rows):
        cells = [TableCell(draw(NAMES), notes=draw(notes))]
        for column in range(num_columns):
            number = 1000 + 100 * row + column
            kind = draw(st.sampled_from(["value", "interval", "missing"]))
            if kind == "missing":
                cells.append(TableCell())
            else:
                interval = f" [{number}.1, {number}.9]" if kind == "interval" else ""
                cells.append(TableCell(float(number), f"{number}.5{interval}", notes=draw(notes)))
        rows.append(TableRow(tuple(cells), depth=draw(st.integers(0, 2))))
    return Table(tuple(columns), tuple(rows))


def expand_marks(text: str) -> set[str]:
    """Return the marks in `a,c-e`: a, c, d, e."""
    marks = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        ends = [to_index(first), to_index(last or first)]
        marks |= set(range(ends[0], ends[1] + 1))
    return set(map(str, marks))


def to_index(mark: str) -> int:
    index = 0
    for letter in mark:
        index = 26 * index + ord(letter) - ord("a") + 1
    return index


def numbers_of(table: Table) -> list[str]:
    """Return the values and the intervals of a table, as they must stand in the output."""
    texts = [cell.shown for row in table.rows for cell in row.cells if cell.is_number]
    return [part for text in texts for part in re.findall(r"\[[^]]*\]|\d+\.5", text)]


@given(table=tables(), width=st.integers(40, 220))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_number_is_cut_and_each_mark_has_its_note(
    table: Table, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = write_terminal(table).splitlines()
    assert max(map(cell_len, lines)) <= width
    for number in numbers_of(table):
        assert any(number in line for line in lines), number
    is_note = [re.match(r" ([a-z]{1,2})  Note \d+\.$", line) for line in lines]
    explained = {str(to_index(match[1])) for match in is_note if match}
    words = [w for line, note in zip(lines, is_note, strict=True) if not note for w in line.split()]
    marks = [expand_marks(w.rstrip(":")) for w in words if MARKS.fullmatch(w.rstrip(":"))]
    assert set().union(*marks) == explained


@given(table=tables())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_mark_in_markdown_has_its_note(table: Table) -> None:
    text = write_markdown(table)
    marks = [expand_marks(marks) for marks in re.findall(r"<sup>([^<]*)</sup>", text)]
    explained = {str(to_index(mark)) for mark in re.findall(r"(?m)^- ([a-z]+): Note", text)}
    assert set().union(*marks) == explained


def write_values(*texts: str, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...] = ()) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    columns = (TableColumn("name", label=""), TableColumn("value", align="right"))
    labels = names or tuple(f"r{index}" for index in range(len(texts)))
    rows = [build_row(name, TableCell(1.0, text)) for name, text in zip(labels, texts, strict=True)]
    return write_terminal(Table(columns, tuple(rows)))


def test_values_stand_below_values_with_or_without_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = write_values("100.0 [99.6, 100.0]", "7.5", "12", "–", monkeypatch=monkeypatch)
    assert text.splitlines()[1:] == [
        " r0  100.0 [99.6, 100.0]",
        " r1    7.5",
        " r2     12",
        " r3      –",
    ]


def test_wide_joined_and_combined_characters_are_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("模型", f"{SCIENTIST} lab", "e\u0301te\u0301", "\N{THUMBS UP SIGN}\U0001f3fd", "plain")
    text = write_values(*["50.0"] * 5, names=names, monkeypatch=monkeypatch)
    assert "\N{REPLACEMENT CHARACTER}" not in text
    assert len({cell_len(line) for line in text.splitlines()}) == 1


def test_a_mark_is_not_wrapped_away_from_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    columns = (TableColumn("name", label=""), TableColumn("value", align="right"))
    name = TableCell("seventeen letters and twelve", notes=("A note.",))
    table = Table(columns, (build_row(name, TableCell(1.0, "1234567890")),))
    lines = write_terminal(table).splitlines()
    assert [line.split()[:2] for line in lines if "twelve" in line] == [["twelve", "a"]]


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        (SCIENTIST, SCIENTIST),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("gp\u200ct", "gp\ufffdt"),
        ("\u200d模", "\ufffd模"),
        ("模\u200d", "模\ufffd"),
        ("模\u200d\u200d模", "模\ufffd\ufffd模"),
        ("a\u202eb", "a\ufffdb"),
        ("\x1b[2J", "\ufffd[2J"),
    ],
)
def test_only_joiners_between_visible_characters_stay(text: str, printed: str) -> None:
    assert make_printable(text) == printed
