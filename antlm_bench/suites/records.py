"""The bytes of a data file -> records with line numbers; every way a file can be odd is an error
with file:line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from antlm_bench.declarations import decode_utf8
from antlm_bench.errors import DataError

Record = dict[str, Any]
Records = Iterator[tuple[int, Record]]  # (line, record)
RecordFiles = Iterable[
    tuple[str, str, Records]
]  # (file name, the file as errors name it, its records)


def read_records(raw: bytes, name: str, location: str) -> Records:
    """(line, record) of each row of a .jsonl, .csv, .tsv or .json (`lists`) file, by `name`;
    `place` is for errors.

    Text is taken as it is; a byte order mark at the start and blank lines are passed over. CSV and
    TSV: first row = column names. CSV is quoted as in RFC 4180 (a quoted field may hold the
    separator, line ends and doubled quotes); of a TSV its quotes decide (see _is_quoted): GLUE's
    files are not quoted.
    """
    suffix = name.removesuffix(".gz").rpartition(".")[2].lower()
    if suffix not in (*PARSERS, "json"):
        known = ", ".join(f".{ending}" for ending in PARSERS)
        hint = f"known endings: {known}, each also with .gz"
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
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"not a line of JSON: {error}", location=f"{location}:{number}"
            ) from None
        if not isinstance(record, dict):
            raise DataError(
                f"a JSON object is expected, here is {type(record).__name__}",
                location=f"{location}:{number}",
            )
        yield number, record


def _parse_csv(text: str, location: str) -> Records:
    hint = "a field with the separator in it must stand in double quotes"
    return _rows_to_records(_parse_quoted_rows(text, ",", location), location, hint)


def _parse_tsv(text: str, location: str) -> Records:
    """Read a TSV. GLUE's files hold stray quotes and no quoting; pandas and R quote as in CSV."""
    lines = enumerate(re.split("\r\n|\r|\n", text), start=1)
    rows = [(number, line.split("\t")) for number, line in lines if line]
    if '"' in text and _is_quoted(text, [row for _, row in rows]):
        return _rows_to_records(
            _parse_quoted_rows(text, "\t", location),
            location,
            "a field with a tab in it must stand in double quotes",
        )
    return _rows_to_records(
        rows,
        location,
        "its fields are not all quoted, so that a tab or a line end in a field ends it",
    )


def _is_quoted(text: str, rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a TSV is quoted as in RFC 4180. rows: the text split at every tab and line
    end.

    It is where its header is, and where rows differ in length but reading it with quotes makes them
    equal. Else quotes are text, unless each field that holds one is a quoted field with a doubled
    quote inside. A quoted field that holds both a tab and a line end can look like two rows with
    stray quotes; it is taken for these, as GLUE has many.
    """
    quoted = re.compile(r'"(?:[^"]|"")*"')
    if all(map(quoted.fullmatch, rows[0])):
        return True
    if len({len(row) for row in rows}) > 1:
        try:
            found = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
            return len({len(row) for row in found if row}) == 1
        except csv.Error:
            return False
    held = [field for row in rows for field in row if '"' in field]
    return all(quoted.fullmatch(field) and '""' in field[1:-1] for field in held)


def _parse_quoted_rows(text: str, delimiter: str, location: str) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, fields) of each row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    start = 1
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"not a table: {error}", location=f"{location}:{reader.line_num}"
            ) from None
        if row is None:
            return
        if row:
            yield start, row
        start = reader.line_num + 1


def _rows_to_records(rows: Iterable[tuple[int, list[str]]], location: str, hint: str) -> Records:
    """Records of rows; the first row names the columns. hint: of a row of another length."""
    header: list[str] = []
    for line, row in rows:
        if not header:
            header = _check_header(row, f"{location}:{line}")
            continue
        if len(row) != len(header):
            message = f"{len(row)} fields, but the header has {len(header)} columns"
            raise DataError(message, location=f"{location}:{line}", hint=hint)
        yield line, dict(zip(header, row, strict=True))


def _check_header(header: list[str], location: str) -> list[str]:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"two columns are called {twice[0]!r}", location=location)
    return header


def parse_json_lists(text: str, location: str) -> Records:
    """A JSON object of lists of objects: a record per entry, with its `key` and its `number` in its
    list; line = which entry it is. It is the form of one official file, and no form for files of
    pairs.
    """
    try:
        whole = json.loads(text)
        flat = [
            (key, number, entry)
            for key, entries in whole.items()
            for number, entry in enumerate(entries)
        ]
        records = [{"key": key, "number": number, **entry} for key, number, entry in flat]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"not an object of lists of objects: {error}", location=location) from None
    yield from enumerate(records, start=1)


PARSERS: dict[str, Callable[[str, str], Records]] = {
    "jsonl": _parse_jsonl,
    "csv": _parse_csv,
    "tsv": _parse_tsv,
}
