"""Tables as CSV, TSV or Parquet files, for R, pandas or a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from antlm_bench.errors import DataError, UsageError, first_line
from antlm_bench.runs.folder_io import make_folder, write_atomically

TableValue = str | int | float | None


def build_arrow_table(
    columns: Mapping[str, Sequence[object]], types: Mapping[str, str]
) -> pa.Table:
    """Return columns as an Arrow table. types: column -> name of its Arrow type, as "float64"."""
    schema = pa.schema([(name, pa.type_for_alias(types[name])) for name in columns])
    return pa.table(dict(columns), schema=schema)


def write_table(path: Path, rows: Sequence[Mapping[str, TableValue]]) -> None:
    """Write rows of the same columns. None is an empty field (CSV, TSV) or null (Parquet).

    Raises UsageError for a file name without an ending of TABLE_ENCODERS, and RunError where the
    file cannot be written.
    """
    data = TABLE_ENCODERS[check_table_suffix(path)](rows)
    make_folder(path.parent)
    write_atomically(path, data)


def check_table_suffix(path: Path) -> str:
    """Return the ending of a table's file name. Raises UsageError for an unknown one."""
    return check_suffix(path, TABLE_ENCODERS, "file", "--out")


def check_suffix(path: Path, suffixes: Collection[str], noun: str, location: str) -> str:
    """Return the ending of a file name in lower case. Raises UsageError if it is none of
    `suffixes`. noun, location: the file and its option, for the error message.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        hint = f"its name must end in one of {', '.join(suffixes)}"
        raise UsageError(f"{path.name!r}: what kind of {noun}?", location=location, hint=hint)
    return suffix


def _delimited_encoder(delimiter: str) -> Callable[[Sequence[Mapping[str, TableValue]]], bytes]:
    def encode(rows: Sequence[Mapping[str, TableValue]]) -> bytes:
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
        writer.writerow(rows[0] if rows else ())
        for row in rows:
            writer.writerow(
                [f"{value:.6f}" if isinstance(value, float) else value for value in row.values()]
            )
        return out.getvalue().encode()

    return encode


def rows_to_table(rows: Sequence[Mapping[str, TableValue]]) -> pa.Table:
    """Return rows of the same columns as an Arrow table."""
    return pa.Table.from_pylist([dict(row) for row in rows])


def read_parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a Parquet file. Raises DataError if it is none."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        message = f"not a Parquet file: {first_line(error)}"
        raise DataError(message, location=str(path)) from None
    return rows


def is_frame(value: object) -> bool:
    """Return whether a value is a table: a frame of pandas or polars, an Arrow table, or a result
    of this package."""
    return hasattr(value, "columns") and (
        hasattr(value, "__arrow_c_stream__") or hasattr(value, "to_dict")
    )


def frame_rows(frame: Any) -> list[dict[str, Any]]:
    """Return the rows of a table (is_frame) as Python objects. Missing values are None.

    Raises UsageError if two columns have the same name, or a name is not a string.
    """
    names = [str(name) for name in getattr(frame, "column_names", frame.columns)]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two columns are called {name!r}", location="table")
    if hasattr(frame, "__arrow_c_stream__"):
        rows: list[dict[str, Any]] = pa.table(frame).to_pylist()
        return [{str(name): row[name] for name in row if str(name) in names} for row in rows]
    records = frame.to_dict("records")  # pandas before 2.2
    return [
        {str(name): None if value != value else value for name, value in record.items()}
        for record in records
    ]


def _encode_parquet(rows: Sequence[Mapping[str, TableValue]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(rows_to_table(rows), sink, compression="zstd")
    return bytes(sink.getvalue())


TABLE_ENCODERS: dict[str, Callable[[Sequence[Mapping[str, TableValue]]], bytes]] = {
    ".csv": _delimited_encoder(","),
    ".tsv": _delimited_encoder("\t"),
    ".parquet": _encode_parquet,
}
