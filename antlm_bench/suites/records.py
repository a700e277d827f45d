"""Parse the bytes of a data file into records with line numbers; errors name file:line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from antlm_bench.declarations import decode_utf8, suggest_name
from antlm_bench.errors import DataError, UsageError

MAX_NAMES_SHOWN = 20  # column names in an error message
Record = dict[str, Any]
Records = Iterator[tuple[int, Record]]  # (line, record)
RecordFiles = Iterable[tuple[str, str, Records]]  # (file name, location for errors, records)


def check_column_names(columns: Iterable[str], ours: Collection[str]) -> None:
    """Raise UsageError for a key of --columns that is none of our columns."""
    for name in columns:
        if name not in ours:
            hint = suggest_name(name, ours) or f"ours are {', '.join(ours)}"
            raise UsageError(f"unknown column {name!r}", location="--columns", hint=hint)


def missing_column_error(column: str, record: Record, location: str, advice: str = "") -> DataError:
    """Return the error of a record without a column, with a suggestion or the columns there are."""
    names = ", ".join(map(repr, list(record)[:MAX_NAMES_SHOWN]))
    hint = suggest_name(column, record) or f"there are {names}{advice}"
    return DataError(f"the column {column!r} is missing", location=location, hint=hint)


def read_records(raw: bytes, name: str, location: str) -> Records:
    """Return (line, record) of each row of a .jsonl, .csv, .tsv or .json file.

    name: its ending tells the format (.json: parse_json_lists). location: the file in errors.

    Text is taken as it is, except that a byte order mark and blank lines are skipped. The first row
    of a CSV or TSV holds the column names. A CSV is quoted as in RFC 4180: a quoted field may hold
    the separator, line ends and doubled quotes. Whether a TSV is quoted depends on its quotes
    (_is_quoted), for GLUE's files are not.
    """
    suffix = name.removesuffix(".gz").rpartition(".")[2].lower()
    if suffix not in (*PARSERS, "json"):
        endings = ", ".join(f".{ending}" for ending in PARSERS)
        hint = f"known endings: {endings}, each also with .gz"
        raise DataError(f"cannot tell the format of {name!r}", location=location, hint=hint)
    text = decode_utf8(raw, location, DataError).removeprefix("\ufeff")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            "a NUL character",
            location=f"{location}:{line}",
            hint="is it a text file, saved as UTF-8?",
        )
    return (PARSERS.get(suffix) or parse_json_lists)(text, location)


def _parse_jsonl(text: str, location: str) -> Records:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        line_location = f"{location}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not a line of JSON: {error}", location=line_location) from None
        if not isinstance(record, dict):
            message = f"a JSON object is expected, here is {type(record).__name__}"
            raise DataError(message, location=line_location)
        yield number, record


def _parse_csv(text: str, location: str) -> Records:
    hint = "a field with the separator in it must stand in double quotes"
    return _rows_to_records(_parse_quoted_rows(text, ",", location), location, hint)


def _parse_tsv(text: str, location: str) -> Records:
    """Parse a TSV. GLUE's files hold stray quotes and no quoting; pandas and R quote as in CSV."""
    lines = enumerate(re.split("\r\n|\r|\n", text), start=1)
    rows = [(number, line.split("\t")) for number, line in lines if line]
    if '"' in text and _is_quoted(text, [row for _, row in rows]):
        hint = "a field with a tab in it must stand in double quotes"
        return _rows_to_records(_parse_quoted_rows(text, "\t", location), location, hint)
    hint = "its fields are not all quoted, so that a tab or a line end in a field ends it"
    return _rows_to_records(rows, location, hint)


def _is_quoted(text: str, rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a TSV is quoted as in RFC 4180.

    rows: the text split at every tab and line end. A TSV is quoted if its header is, or if rows
    differ in length and become equal when quotes are honoured. Otherwise quotes are text, unless
    every field that holds one is a quoted field with a doubled quote inside. A quoted field that
    holds both a tab and a line end can look like two rows with stray quotes; it is taken for these,
    for GLUE has many.
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
    """Yield (first line, fields) of each row that is not empty."""
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
    """Yield records of rows; the first row names the columns.

    hint: what to do about a row of another length.
    """
    header: list[str] = []
    for line, row in rows:
        if not header:
            header = row
            if duplicates := sorted({name for name in header if header.count(name) > 1}):
                message = f"two columns are called {duplicates[0]!r}"
                raise DataError(message, location=f"{location}:{line}")
            continue
        if len(row) != len(header):
            message = f"{len(row)} fields, but the header has {len(header)} columns"
            raise DataError(message, location=f"{location}:{line}", hint=hint)
        yield line, dict(zip(header, row, strict=True))


def parse_json_lists(text: str, location: str) -> Records:
    """Parse a JSON object of lists of objects, the format of one official file.

    A record has its list's `key` and its `number` in the list; its line is its running number.
    """
    try:
        records = [
            {"key": key, "number": number, **entry}
            for key, entries in json.loads(text).items()
            for number, entry in enumerate(entries)
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"not an object of lists of objects: {error}", location=location) from None
    yield from enumerate(records, start=1)


PARSERS: dict[str, Callable[[str, str], Records]] = {
    "jsonl": _parse_jsonl,
    "csv": _parse_csv,
    "tsv": _parse_tsv,
}
