"""Parse data files (JSONL, CSV, TSV, JSON) into records with line numbers for error messages."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from antlm_bench.declarations import decode_utf8, suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.printable import format_count
from antlm_bench.safe_json import parse_json

MAX_RECORDS, MAX_COLUMNS = 1_000_000, 10_000  # of a file; an item takes about 1 kB of memory
MAX_NAMES_SHOWN = 20  # names of columns in an error message
Record = dict[str, Any]  # a row: name of a field -> value
Records = Iterator[tuple[int, Record]]  # (line, record)
RecordFiles = Iterable[tuple[str, str, Records]]  # (file name, location for errors, records)


def check_column_names(columns: Iterable[str], valid_names: Collection[str]) -> None:
    """Raise UsageError if a key of --columns is unknown."""
    for name in columns:
        if name not in valid_names:
            hint = suggest_name(name, valid_names) or f"use one of {', '.join(valid_names)}"
            raise UsageError(f"unknown column {name!r}", location="--columns", hint=hint)


def missing_column_error(column: str, record: Record, location: str, advice: str = "") -> DataError:
    """Return an error for a record without a column. The hint suggests a similar name, or lists the
    columns, followed by `advice`. It says so if the file has another separator than its name tells.
    """
    if len(record) == 1 and (separator := re.search("[;\t|]", next(iter(record)))):
        return DataError(
            f"the columns are separated by {separator[0]!r}",
            location=location,
            hint="separate them by commas in a .csv, by tabs in a .tsv",
        )
    names = ", ".join(map(repr, list(record)[:MAX_NAMES_SHOWN]))
    hint = suggest_name(column, record) or f"there are {names}{advice}"
    return DataError(f"the column {column!r} is missing", location=location, hint=hint)


def read_records(raw: bytes, name: str, location: str) -> Records:
    """Return (line, record) of each row of a .jsonl, .csv, .tsv or .json file.

    raw: the decompressed bytes. name: the file's name, whose extension decides the format (.json:
    parse_json_lists). location: the file, for error messages.

    A byte order mark and blank lines are skipped; otherwise, texts are not changed. The first row
    of a CSV or TSV has the column names. A CSV is quoted as in RFC 4180: a quoted field may contain
    the separator, line ends and doubled quotes. A TSV may be quoted or not (_is_quoted), because
    GLUE's files are not.
    """
    suffix = name.removesuffix(".gz").rpartition(".")[2].lower()
    if suffix not in (*PARSERS, "json"):
        extensions = ", ".join(f".{extension}" for extension in PARSERS)
        hint = f"use one of {extensions}, each also with .gz"
        raise DataError(f"unknown file format {name!r}", location=location, hint=hint)
    text = decode_text(raw, location)
    return limit_records((PARSERS.get(suffix) or parse_json_lists)(text, location), location)


def decode_text(raw: bytes, location: str) -> str:
    """Return the text of a file, without a byte order mark. Raises DataError for other bytes than
    UTF-8, and for a NUL.
    """
    text = decode_utf8(raw, location, DataError).removeprefix("\ufeff")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            "a NUL character",
            location=f"{location}:{line}",
            hint="is it a text file, saved as UTF-8?",
        )
    return text


def limit_records(rows: Records, location: str) -> Records:
    """Yield the records of a file. Raises DataError for more of them than memory holds as items."""
    for count, (line, record) in enumerate(rows, start=1):
        if count > MAX_RECORDS:
            message = f"more than {MAX_RECORDS:,} rows"
            raise DataError(message, location=f"{location}:{line}", hint="split the file")
        yield line, record


def _parse_jsonl(text: str, location: str) -> Records:
    for line_number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        line_location = f"{location}:{line_number}"
        try:
            record = parse_json(line, allow_nan=True)
        except ValueError as error:
            raise DataError(f"not a line of JSON: {error}", location=line_location) from None
        if not isinstance(record, dict):
            message = f"expected a JSON object, got {type(record).__name__}"
            raise DataError(message, location=line_location)
        yield line_number, record


def _parse_csv(text: str, location: str) -> Records:
    hint = "a field that contains the separator must be in double quotes"
    return _rows_to_records(_parse_quoted_rows(text, ",", location), location, hint)


def _parse_tsv(text: str, location: str) -> Records:
    """Parse a TSV. In GLUE's files, quotes are text; pandas and R quote fields as in a CSV."""
    lines = enumerate(re.split("\r\n|\r|\n", text), start=1)
    rows = [(number, line.split("\t")) for number, line in lines if line]
    if '"' in text and _is_quoted(text, [row for _, row in rows]):
        hint = "a field that contains a tab must be in double quotes"
        return _rows_to_records(_parse_quoted_rows(text, "\t", location), location, hint)
    hint = "the file was read without quoting, so that each tab or line end ends a field"
    return _rows_to_records(rows, location, hint)


def _is_quoted(text: str, rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a TSV is quoted as in RFC 4180.

    rows: the text split at every tab and line end.

    - If all names in the header are quoted, it is.
    - If the rows have different lengths, it is quoted if parsing quotes gives rows of one length.
    - Otherwise it is quoted only if every field with a quote is a quoted field with a doubled quote
      inside. So a quoted field with both a tab and a line end can be read as two rows in which
      quotes are text, which occur often in GLUE.
    """
    quoted = re.compile(r'"(?:[^"]|"")*"')
    if all(map(quoted.fullmatch, rows[0])):
        return True
    if len({len(row) for row in rows}) > 1:
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
            return len({len(row) for row in reader if row}) == 1
        except csv.Error:
            return False
    with_quotes = (field for row in rows for field in row if '"' in field)
    return all(quoted.fullmatch(field) and '""' in field[1:-1] for field in with_quotes)


def _parse_quoted_rows(text: str, delimiter: str, location: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, fields) of each row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            line_location = f"{location}:{reader.line_num}"
            raise DataError(f"not a table: {error}", location=line_location) from None
        if row is None:
            return
        if row:
            yield start, row
        start = reader.line_num + 1


def _rows_to_records(rows: Iterable[tuple[int, list[str]]], location: str, hint: str) -> Records:
    """Yield (line, record) of each row after the first, which has the names of the columns.

    hint: hint of the error for a row whose length differs from that of the first.
    """
    header: list[str] = []
    for line, row in rows:
        if not header:
            header = row
            if len(header) > MAX_COLUMNS:
                message = f"{len(header):,} columns, more than the {MAX_COLUMNS:,} that are read"
                raise DataError(message, location=f"{location}:{line}")
            for name, count in sorted(Counter(header).items()):
                if count > 1:
                    message = f"two columns are called {name!r}"
                    raise DataError(message, location=f"{location}:{line}")
            continue
        if len(row) != len(header):
            fields, columns = format_count(len(row), "field"), format_count(len(header), "column")
            message = f"{fields}, but the header has {columns}"
            raise DataError(message, location=f"{location}:{line}", hint=hint)
        yield line, dict(zip(header, row, strict=True))


def parse_json_lists(text: str, location: str) -> Records:
    """Parse a JSON object whose values are lists of objects, the format of one official file.

    Each inner object is a record. The fields `key` and `number` are added: the key of its list, and
    its index in it. Records are numbered from 1 instead of lines.
    """
    try:
        records = [
            {"key": key, "number": index, **entry}
            for key, entries in parse_json(text, allow_nan=True).items()
            for index, entry in enumerate(entries)
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"not an object of lists of objects: {error}", location=location) from None
    yield from enumerate(records, start=1)


PARSERS: dict[str, Callable[[str, str], Records]] = {
    "jsonl": _parse_jsonl,
    "csv": _parse_csv,
    "tsv": _parse_tsv,
}
