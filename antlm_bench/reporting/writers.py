"""Write a `Table` as Markdown, CSV, JSON or LaTeX, and register all output formats.

Each writer escapes text for its format, because names of models and suites come from outside.
Packages add formats through the entry point group `antlm_bench.formats`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from antlm_bench.printable import hide_workflow_commands, make_printable, to_csv_text
from antlm_bench.registry import RecordType, Registry
from antlm_bench.reporting.table import (
    NoteMarks,
    Table,
    TableColumn,
    TableRow,
    build_long_facts_table,
    to_json_value,
)
from antlm_bench.reporting.terminal_writer import write_terminal

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """An output format and its writer."""

    name: str
    """The value of `--format`."""
    write: Callable[[Table], str]
    """Function that returns a table as text."""


# Markdown


def write_markdown(table: Table) -> str:
    """Write GitHub-flavoured Markdown: title, table, notes, legend, then the table's parts."""
    return hide_workflow_commands("\n\n".join(_markdown_blocks(table)) + "\n")


def _markdown_blocks(table: Table) -> Iterator[str]:
    if table.title:
        yield f"**{markdown_text(table.title)}**"
    marks = NoteMarks()
    if table.rows:
        labels = [_markdown_label(column, marks, table.header) for column in table.columns]
        rule = ["---:" if column.align == "right" else "---" for column in table.columns]
        rows = [_markdown_row(row, marks) for row in table.rows]
        yield "\n".join(f"| {' | '.join(cells)} |" for cells in [labels, rule, *rows])
    elif not table.parts:
        yield markdown_text(table.empty)
    items = [f"- {mark}: {markdown_text(sentence)}" for mark, sentence in marks]
    items += [f"- {markdown_text(sentence)}" for sentence in table.legend[:-1]]
    if items:
        yield "\n".join(items)
    yield from map(markdown_text, table.legend[-1:])
    for part in table.parts:
        yield from _markdown_blocks(part)


def _markdown_label(column: TableColumn, marks: NoteMarks, header: bool) -> str:
    label = "<br>".join(map(markdown_text, filter(None, column.label_lines))) if header else ""
    return label + _superscript(marks.mark(column.notes))


def _markdown_row(row: TableRow, marks: NoteMarks) -> list[str]:
    texts = [markdown_text(cell.shown) for cell in row.cells]
    style = {"strong": "**", "faint": "_", "": ""}[row.emphasis] if texts[0] else ""
    texts[0] = "&emsp;" * row.depth + style + texts[0] + style
    details = [f" ({markdown_text(cell.detail)})" if cell.detail else "" for cell in row.cells]
    return [
        text + detail + _superscript(marks.mark(cell.notes))
        for text, detail, cell in zip(texts, details, row.cells, strict=True)
    ]


def _superscript(mark: str) -> str:
    return f"<sup>{mark}</sup>" if mark else ""


def markdown_text(text: str) -> str:
    """Escape text for GitHub-flavoured Markdown. Newlines become <br>.

    This includes markup that only GitHub has: $ for formulas, ~ for strikethrough.
    """
    lines = (make_printable(line).strip() for line in text.splitlines())
    escaped = "<br>".join(
        "".join(f"\\{c}" if c in "\\`*|[]<>$~&" else c for c in line) for line in lines
    )
    # An underscore inside a word is not markup.
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", escaped)


# CSV


def write_csv(table: Table) -> str:
    """Write the long form as CSV: one header, raw numbers, "" for missing values."""
    source = table.long
    keys = [key for key, _, _ in _flat_columns(source)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if keys:
        writer.writerow(map(csv_text, keys))
    writer.writerows(map(csv_text, record.values()) for record in _flatten(source))
    return buffer.getvalue()


def csv_text(value: Any) -> str:
    """Return a value as a CSV field: numbers in full precision, printable text as by
    `to_csv_text`.

    The csv module quotes it.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return to_csv_text(make_printable(value)) if isinstance(value, str) else repr(value)


def _flat_columns(table: Table) -> Iterator[tuple[str, int, str]]:
    """Yield (key, index of the column, attribute of TableCell) of each column of CSV and JSON.

    A column with intervals is followed by columns of their lower and upper ends.
    """
    for index, column in enumerate(table.columns):
        yield column.key, index, "value"
        if any(row.cells[index].low is not None for row in table.rows):
            yield f"{column.key}_low", index, "low"
            yield f"{column.key}_high", index, "high"


def _flatten(table: Table) -> Iterator[dict[str, Any]]:
    """Yield each row as key -> plain value."""
    columns = list(_flat_columns(table))
    for row in table.rows:
        yield {
            key: to_json_value(getattr(row.cells[index], attribute))
            for key, index, attribute in columns
        }


# JSON


def write_json(table: Table) -> str:
    """Write a JSON object: the facts of the command, and `table` with its columns and rows.

    In a row, `KEY_low` and `KEY_high` are the ends of an interval, `KEY_text` is the text for
    people, `KEY_unit` the unit if it differs from the column's, `KEY_notes` the notes on the value.
    """
    members = {**to_json_value(table.document), "table": _json_table(table)}
    document = {"schema_version": SCHEMA_VERSION, **members}
    return json_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)) + "\n"


def _json_table(table: Table) -> dict[str, Any]:
    source = table.long
    members: dict[str, Any] = {"title": table.title} if table.title else {}
    members["columns"] = [
        {"key": column.key, "label": " ".join(column.label_lines), "unit": column.unit or None}
        for column in source.columns
    ]
    members["rows"] = [
        record | _json_details(source, row)
        for record, row in zip(_flatten(source), source.rows, strict=True)
    ]
    notes = NoteMarks(_iter_notes(table))
    members["notes"] = [{"mark": mark, "text": sentence} for mark, sentence in notes]
    members["legend"] = list(table.legend)
    if table.parts:
        members["parts"] = [
            {**to_json_value(part.document), **_json_table(part)} for part in table.parts
        ]
    return members


def _json_details(table: Table, row: TableRow) -> dict[str, Any]:
    """Return the texts, units and notes of the values of a row."""
    details: dict[str, Any] = {}
    for column, cell in zip(table.columns, row.cells, strict=True):
        if cell.text is not None and cell.text != cell.value:
            details[f"{column.key}_text"] = cell.text
        if cell.unit and cell.unit != column.unit:
            details[f"{column.key}_unit"] = cell.unit
        if cell.notes:
            details[f"{column.key}_notes"] = list(cell.notes)
    return details


def _iter_notes(table: Table) -> Iterator[str]:
    """Yield the notes of a table in reading order."""
    for column in table.columns:
        yield from column.notes
    for row in table.rows:
        for cell in row.cells:
            yield from cell.notes


def json_text(document: str) -> str:
    """Escape control characters in a JSON document, without a change of its content."""
    return "".join(c if c == "\n" or c.isprintable() else _json_escape(c) for c in document)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


# LaTeX


def write_latex(table: Table) -> str:
    """Write a tabular with the rules of booktabs, notes below it, then the table's parts."""
    return hide_workflow_commands("% \\usepackage{booktabs}\n" + "\n".join(_latex_blocks(table)))


def _latex_blocks(table: Table) -> Iterator[str]:
    marks = NoteMarks()
    if table.rows:
        yield _latex_tabular(table, marks)
    sentences = [f"{_latex_superscript(mark)} {latex_text(sentence)}" for mark, sentence in marks]
    sentences += [latex_text(sentence) for sentence in table.legend]
    if not (table.rows or table.parts):
        sentences.insert(0, latex_text(table.empty))
    if sentences:
        yield "{\\footnotesize\n" + "\\\\\n".join(sentences) + "\n\\par}\n"
    for part in table.parts:
        if part.title:  # the title of the whole table belongs into the paper's caption
            yield f"\\paragraph{{{latex_text(part.title)}}}\n"
        yield from _latex_blocks(part)


def _latex_tabular(table: Table, marks: NoteMarks) -> str:
    alignment = "".join(column.align[0] for column in table.columns)
    lines = [f"\\begin{{tabular}}{{{alignment}}}", "\\toprule"]
    if table.header:
        superscripts = [_latex_superscript(marks.mark(column.notes)) for column in table.columns]
        height = max(len(column.label_lines) for column in table.columns)
        for number in range(height):
            labels = [(column.label_lines + [""] * height)[number] for column in table.columns]
            texts = map(latex_text, labels)
            if number == height - 1:
                texts = map("".join, zip(texts, superscripts, strict=True))
            lines.append(_latex_line(list(texts)))
        lines.append("\\midrule")
    for number, row in enumerate(table.rows):
        lines += ["\\midrule"] if row.space_above and number else []
        cells = [
            latex_text(cell.shown)
            + (f" ({latex_text(cell.detail)})" if cell.detail else "")
            + _latex_superscript(marks.mark(cell.notes))
            for cell in row.cells
        ]
        lines.append(_latex_line(["\\quad " * row.depth + cells[0], *cells[1:]]))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _latex_line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _latex_superscript(mark: str) -> str:
    return f"$^{{{mark}}}$" if mark else ""


# Commands for characters that LaTeX would read as markup or as a ligature, or cannot read.
_COMMANDS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater"}
_COMMANDS |= {"|": "bar", "–": "endash", "“": "quotedblleft", "”": "quotedblright"}
_COMMANDS |= {'"': "quotedblright", "’": "quoteright", "`": "quoteleft", "'": "quoteright"}
_LATEX = {c: f"\\text{word}{{}}" for c, word in _COMMANDS.items()} | {
    c: f"\\{c}" for c in "{}$&#_%"
}
# At the start of a row, [ or * would be read as an argument of the preceding \\.
_LATEX |= {"±": "$\\pm$", "[": "{[}", "]": "{]}", "*": "{*}"}
_LATEX |= {
    "\n": " ",
    "▲": "$\\bigtriangleup$",
    "▼": "$\\bigtriangledown$",
    "Δ": "$\\Delta$",
    "²": "$^{2}$",
}
# Latin letters that pdflatex cannot print in its default encoding (OT1).
_UNSUPPORTED = frozenset("«»ÐðÞþĄąĘęĮįŲųĐđĦħĲĳĸĿŀŉŊŋŦŧſ")


def latex_text(text: str) -> str:
    """Escape text for pdflatex. Characters other than Latin letters become their code points."""
    escaped = "".join(map(_latex_character, "\n".join(text.splitlines())))
    return re.sub("([-,])(?=\\1)", "\\1{}", escaped)  # no ligatures of -- and ,,


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    is_plain = character < "\u0180" and character.isprintable() and character not in _UNSUPPORTED
    return character if is_plain else f"U+{ord(character):04X}"


def _find_wrong_text(text: Any, _: Table) -> str:
    if not isinstance(text, str):
        return f"a {type(text).__name__}, not a str"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"text that is not valid Unicode: {error}"
    return ""


FORMATS: Registry[OutputFormat] = Registry(
    "output format",
    "antlm_bench.formats",
    {name: f"{__name__}:{name.upper()}" for name in ("table", "markdown", "csv", "json", "latex")},
    record_type=RecordType(OutputFormat, {"write": _find_wrong_text}),
)
TABLE = OutputFormat("table", write_terminal)
MARKDOWN = OutputFormat("markdown", write_markdown)
CSV = OutputFormat("csv", write_csv)
JSON = OutputFormat("json", write_json)
LATEX = OutputFormat("latex", write_latex)


def list_formats() -> list[dict[str, object]]:
    """Return a row per output format."""
    return [
        {
            "format": each.name,
            "what it is": (each.write.__doc__ or "").strip().partition("\n")[0],
            "package": FORMATS.package_of(each.name),
        }
        for each in FORMATS
    ]


def print_tables(tables: Iterable[Table], output_format: str = "table") -> None:
    """Print tables on stdout: for terminals one by one, in other formats as parts of one table.

    If the iterable raises an error, the tables that it yielded before are printed.
    """
    if output_format == "table":
        for table in tables:
            print_table(table)
            sys.stdout.flush()
        return
    parts: list[Table] = []
    try:
        parts.extend(tables)
    finally:
        table = parts[0] if parts else Table((TableColumn("name"),))
        if len(parts) > 1:
            build_long = partial(build_long_facts_table, parts)
            table = Table((TableColumn("name"),), parts=tuple(parts), build_long=build_long)
        print_table(table, output_format)


def print_table(table: Table, output_format: str = "table") -> None:
    """Print a table on stdout. output_format: a name of FORMATS. Raises UsageError."""
    sys.stdout.write(FORMATS[output_format].write(table))
