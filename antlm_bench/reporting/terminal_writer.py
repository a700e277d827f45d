"""Print a `Table` on a terminal of any width, without cutting numbers.

All text passes through `printable.clean_lines`, because names could contain control characters.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from antlm_bench.console import open_console, print_paragraph
from antlm_bench.printable import clean_lines, has_right_to_left, hide_workflow_commands
from antlm_bench.reporting.table import MISSING, NoteMarks, Table, TableCell, TableColumn

GAP = 2
"""Spaces between two columns."""
LABEL_WIDTH = 16
"""Width in characters to which column labels are wrapped, unless the cells are wider."""
NAME_WIDTH, TEXT_WIDTH = 24, 12
"""Least width in characters of a wrapped first column, and of other wrapped columns."""
BELOW_INDENT = 4
"""Indentation of a last column that stands below its rows."""
STYLES = {"": "", "strong": "bold", "faint": "dim"}
TONES = {"": "", "good": "green", "bad": "red", "doubtful": "magenta"}
"""Neither yellow nor cyan, which cannot be read on a white terminal."""
FIRST_STRONG_ISOLATE, POP_DIRECTIONAL_ISOLATE = "\u2068", "\u2069"
BREAKING_SIGNS = "-_/@.:"
"""Signs after which a word that is wider than its column is broken."""
GLUE = "\ue000"
"""Stands for the space before a note mark while text is wrapped, so that no line begins with a
mark. A private-use character, which `clean_lines` replaces in names."""


def write_terminal(table: Table) -> str:
    """Write a table in the width of stdout's terminal, with colours if the terminal has them.

    If the table is too wide, columns of text are wrapped, and a last column of text that would be
    wrapped to several lines stands below each row. If that is not enough, its narrow form is
    used; then the columns are split into blocks, one below the other; finally, the cells of each
    row are printed below each other.
    """
    out = open_console()
    with out.capture() as capture:
        _print_table(out, table)
    return hide_workflow_commands(capture.get())


def _print_table(out: Console, table: Table) -> None:
    if table.narrow and not _Block(table, range(1, len(table.columns)), ()).fit(out.width):
        table = table.narrow
    if table.title or table.legend:
        out.print()
    if table.title and table.header:
        print_paragraph(out, table.title, "bold")
        out.print()
    elif table.title:  # often a path to copy, so it is not wrapped
        out.print(Text(f" {clean_lines(table.title)}", style="bold"))
    marks = NoteMarks()
    if table.rows:
        marks = _print_blocks(out, table)
    elif not (table.title or table.parts):
        print_paragraph(out, table.empty, "dim")
    if (marks.sentences or table.legend) and (table.rows or table.title):
        out.print()
    for mark, sentence in marks:
        print_paragraph(out, f"{mark}  {sentence}", "")
    for sentence in table.legend:
        print_paragraph(out, sentence, "dim")
    for part in table.parts:
        if not (part.title or part.legend):
            out.print()
        _print_table(out, part)


def _print_blocks(out: Console, table: Table) -> NoteMarks:
    """Print the rows in as many blocks of columns as the width needs; return the note marks."""
    marks, start, count = NoteMarks(), 1, len(table.columns)
    while True:
        end = count
        block = _Block(table, range(start, end), marks.sentences)
        while not block.fit(out.width):
            end -= 1
            if end <= start:
                return _print_stacked(out, table)
            block = _Block(table, range(start, end), marks.sentences)
        block.print(out)
        if end == count:
            return block.marks
        out.print()
        marks, start = block.marks, end


class _Block:
    """The first column and some others as text with note marks, to be printed side by side."""

    def __init__(self, table: Table, indices: Iterable[int], sentences: Iterable[str]) -> None:
        """indices: the other columns. sentences: notes that earlier blocks have marked."""
        self.table = table
        self.marks = NoteMarks(sentences)
        column_indices = [0, *indices]
        self.columns = [table.columns[index] for index in column_indices]
        self.cells = [[row.cells[index] for index in column_indices] for row in table.rows]
        label_marks = [self.marks.mark(column.notes) for column in self.columns]
        cell_marks = [[self.marks.mark(cell.notes) for cell in cells] for cells in self.cells]
        self.mark_widths = [
            max([cell_len(row[index]) for row in cell_marks], default=0)
            for index in range(len(self.columns))
        ]
        self.texts = [
            _align_texts(
                column, [row[index] for row in self.cells], [row[index] for row in cell_marks]
            )
            for index, column in enumerate(self.columns)
        ]
        self.texts[0] = [
            "  " * row.depth + text for row, text in zip(table.rows, self.texts[0], strict=True)
        ]
        self.labels = [
            _fold_label(column, mark, max(map(_width, texts), default=0)) if table.header else []
            for column, mark, texts in zip(self.columns, label_marks, self.texts, strict=True)
        ]
        self.widths: list[int] = []
        self.has_last_below = False
        """Whether the last column is printed below each row, in the whole width."""

    def is_right_aligned(self, index: int) -> bool:
        return index > 0 and self.columns[index].align == "right"

    def fit(self, width: int) -> bool:
        """Choose the widths of the columns for a terminal. Return whether they fit."""
        full_widths = [
            max([_width(text) for text in texts] + [cell_len(line) for line in labels], default=0)
            for texts, labels in zip(self.texts, self.labels, strict=True)
        ]
        if not self._distribute_width(full_widths, width):
            return False
        is_text = len(full_widths) > 2 and not self.is_right_aligned(len(full_widths) - 1)
        if is_text and full_widths[-1] > 2 * self.widths[-1]:
            self.has_last_below = True
            self._distribute_width(full_widths[:-1], width)
        return True

    def _distribute_width(self, full_widths: Sequence[int], width: int) -> bool:
        """Choose the widths of the first columns. Return whether they fit into `width`.

        full_widths: the width of each column if nothing is wrapped.
        """
        self.widths = [self._least_width(index, size) for index, size in enumerate(full_widths)]
        room = width - 1 - GAP * (len(full_widths) - 1) - sum(self.widths)
        if room < 0:
            return False
        # Distribute the room evenly; columns that need least come first and leave the rest.
        missing = [size - least for size, least in zip(full_widths, self.widths, strict=True)]
        wrapped = [index for index, size in enumerate(missing) if size > 0]
        wrapped.sort(key=lambda index: missing[index])
        for position, index in enumerate(wrapped):
            extra = min(missing[index], room // (len(wrapped) - position))
            self.widths[index] += extra
            room -= extra
        return True

    def _least_width(self, index: int, full_width: int) -> int:
        """Return the width below which a column is not wrapped. Numbers are never wrapped."""
        if self.is_right_aligned(index):
            return full_width
        pairs = zip(self.texts[index], self.cells, strict=True)
        numbers = [_width(text) for text, cells in pairs if cells[index].is_number]
        words = [cell_len(line) for line in self.labels[index]] + [self.mark_widths[index]]
        return min(full_width, max([NAME_WIDTH if index == 0 else TEXT_WIDTH, *numbers, *words]))

    def print(self, out: Console) -> None:
        height = max(map(len, self.labels))
        labels = [[""] * (height - len(label)) + label for label in self.labels]
        for number in range(height):
            parts = [Text(label[number]) for label in labels[: len(self.widths)]]
            self._print_line(out, parts, "dim")
        if height and self.has_last_below:
            self._print_below(out, Text(" ".join(self.labels[-1])), "dim")
        for number, row in enumerate(self.table.rows):
            if row.space_above and (number or height):
                out.print()
            cells = [self._wrap_cell(out, index, number) for index in range(len(self.widths))]
            for line in range(max(map(len, cells))):
                parts = [lines[line] if line < len(lines) else Text("") for lines in cells]
                self._print_line(out, parts, "dim" if row.emphasis == "faint" else "")
            if self.has_last_below and self.texts[-1][number] != MISSING:
                self._print_below(out, Text(self.texts[-1][number]), "dim")

    def _print_below(self, out: Console, text: Text, style: str) -> None:
        for line in _wrap_text(out, text, out.width - BELOW_INDENT - 1):
            out.print(Text(" " * BELOW_INDENT) + line, style=style)

    def _wrap_cell(self, out: Console, index: int, row_number: int) -> list[Text]:
        """Return a cell as lines that fit its column `index`. Numbers stay on one line."""
        row = self.table.rows[row_number]
        cell = self.cells[row_number][index]
        text = self.texts[index][row_number]
        styled = Text(text, style=TONES[cell.tone] or STYLES[row.emphasis])
        if cell.detail:
            styled.stylize("not bold dim", len(text) - len(clean_lines(cell.detail)))
        if cell.is_number or self.is_right_aligned(index):
            styled.plain = styled.plain.replace(GLUE, " ")
            return [styled]
        indent = 0 if index else 2 * row.depth
        lines = _wrap_text(out, styled[indent:], self.widths[index] - indent)
        return [Text(" " * indent) + line for line in lines]

    def _print_line(self, out: Console, parts: Sequence[Text], style: str) -> None:
        line = Text("")
        for index, (part, width) in enumerate(zip(parts, self.widths, strict=True)):
            line.append(" " * GAP if index else " ")
            padding = Text(" " * (width - part.cell_len))
            part = _isolate_right_to_left(part)
            line.append_text(padding + part if self.is_right_aligned(index) else part + padding)
        line.stylize_before(style)
        line.rstrip()
        out.print(line)


def _align_texts(
    column: TableColumn, cells: Sequence[TableCell], marks: Sequence[str]
) -> list[str]:
    """Return the cells of a column as text.

    In a right-aligned column, the values, their intervals and the marks of notes are each aligned.
    """
    if column.align == "left":
        return [_with_detail(cell, mark) for cell, mark in zip(cells, marks, strict=True)]
    parts = [clean_lines(cell.shown).partition(" [") for cell in cells]
    interval_width = max((cell_len(interval) for _, _, interval in parts), default=0)
    value_width = max((cell_len(value) for value, _, interval in parts if interval), default=0)
    texts = []
    for value, _, interval in parts:
        if interval:
            texts.append(f"{value} {'[' + interval:>{interval_width + 1}}")
        elif cell_len(value) <= value_width:  # below the other values, not below their intervals
            texts.append(value + " " * (interval_width + 2))
        else:
            texts.append(value)
    text_width = max(map(cell_len, texts), default=0)
    mark_width = max(map(cell_len, marks), default=0)
    padded_marks = [f" {mark:<{mark_width}}" if mark_width else "" for mark in marks]
    return [
        " " * (text_width - cell_len(text)) + text + padded_mark
        for text, padded_mark in zip(texts, padded_marks, strict=True)
    ]


def _with_detail(cell: TableCell, mark: str) -> str:
    text = GLUE.join(filter(None, (clean_lines(cell.shown), mark)))
    return text + (f"  {clean_lines(cell.detail)}" if cell.detail else "")


def _wrap_text(out: Console, text: Text, width: int) -> list[Text]:
    text.plain = _unglue_long_words(text.plain, width)
    pieces = text.divide(_find_breaks(text.plain, max(width, 1)))
    lines = [line for piece in pieces for line in piece.wrap(out, max(width, 1), overflow="fold")]
    for line in lines:
        line.plain = line.plain.replace(GLUE, " ")
        line.rstrip()
    return lines or [Text("")]


def _find_breaks(text: str, width: int) -> list[int]:
    """Return where words that are wider than a line can break: after a sign such as - or /."""
    offsets = []
    for word in re.finditer(r"\S+", text):
        start = word.start()
        while cell_len(text[start : word.end()]) > width:
            fitting = text[start : start + width]
            while cell_len(fitting) > width:
                fitting = fitting[:-1]
            end = max(fitting.rfind(sign) for sign in BREAKING_SIGNS) + 1
            if 2 * end < len(fitting):
                break  # no sign near the end of the line
            start += end
            offsets.append(start)
    return offsets


def _unglue_long_words(text: str, width: int) -> str:
    """Allow a line break before a mark whose word does not fit on the same line."""
    return re.sub(
        rf"\S*{GLUE}\S*",
        lambda word: word[0] if cell_len(word[0]) <= width else word[0].replace(GLUE, " "),
        text,
    )


def _isolate_right_to_left(text: Text) -> Text:
    """Return text between isolates (Unicode Standard Annex 9) if it has right-to-left letters, so
    that a terminal does not move the numbers beside it. Isolates have no width.
    """
    if has_right_to_left(text.plain):
        return Text(FIRST_STRONG_ISOLATE) + text + Text(POP_DIRECTIONAL_ISOLATE)
    return text


def _width(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _fold_label(column: TableColumn, mark: str, width: int) -> list[str]:
    """Return the label of a column as lines of at most `width` or LABEL_WIDTH characters."""
    labels = [clean_lines(label) for label in column.label_lines]
    labels[-1] = GLUE.join(filter(None, (labels[-1], mark)))
    lines: list[str] = []
    width = max(LABEL_WIDTH, width, cell_len(mark))
    for label in filter(None, labels):
        wrapped = _wrap_text(WRAPPING_CONSOLE, Text(label), width)
        lines += [line.plain for line in wrapped]
    return lines


WRAPPING_CONSOLE = Console(file=io.StringIO(), width=80)


def _print_stacked(out: Console, table: Table) -> NoteMarks:
    """Print the cells of each row below each other: its name, then the labelled other cells."""
    marks = NoteMarks()
    label_marks = [marks.mark(column.notes) for column in table.columns]
    for row in table.rows:
        if row.space_above:
            out.print()
        row_name = _with_detail(row.cells[0], marks.mark(row.cells[0].notes)).replace(GLUE, " ")
        print_paragraph(out, row_name, STYLES[row.emphasis] or "bold")
        for index, column in enumerate(table.columns[1:], 1):
            cell = row.cells[index]
            text = " ".join(filter(None, (clean_lines(cell.shown), marks.mark(cell.notes))))
            label = ""
            if table.header:
                name = " · ".join(map(clean_lines, filter(None, column.label_lines)))
                label = " ".join(filter(None, (name, label_marks[index]))) + ":"
            line = " ".join(filter(None, (label, text)))
            if line and 3 + cell_len(line) <= out.width:
                out.print(Text(f"   {line}", style=TONES[cell.tone]))
            elif text:
                if label:
                    print_paragraph(out, label, "dim", 3)
                if cell.is_number:
                    out.print(Text(f"   {text}"))
                else:
                    print_paragraph(out, text, "", 3)
    return marks
