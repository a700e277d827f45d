"""A table of numbers and texts as a file that R, pandas or a spreadsheet opens: CSV, TSV or
Parquet, written whole.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from antlm_bench.errors import UsageError
from antlm_bench.runs.store import make_folder, write_atomically

TableValue = str | int | float | None


def write_table(path: Path, rows: Sequence[Mapping[str, TableValue]]) -> None:
    """Write rows of the same columns; a missing value is empty (CSV, TSV) or null (Parquet).

    Raises UsageError for an ending that is none of ENDINGS, RunError where the file cannot be
    written.
    """
    data = TABLE_ENCODERS[check_table_suffix(path)](rows)
    make_folder(path.parent)
    write_atomically(path, data)


def check_table_suffix(path: Path) -> str:
    """The ending of a file that can be written. UsageError."""
    ending = path.suffix.lower()
    if ending not in TABLE_ENCODERS:
        hint = f"its name must end in one of {', '.join(TABLE_ENCODERS)}"
        raise UsageError(f"{path.name!r}: what kind of file?", location="--out", hint=hint)
    return ending


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


def _encode_parquet(rows: Sequence[Mapping[str, TableValue]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), sink, compression="zstd")
    return bytes(sink.getvalue())


TABLE_ENCODERS: dict[str, Callable[[Sequence[Mapping[str, TableValue]]], bytes]] = {
    ".csv": _delimited_encoder(","),
    ".tsv": _delimited_encoder("\t"),
    ".parquet": _encode_parquet,
}
