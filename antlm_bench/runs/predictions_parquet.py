"""Encode predictions as Parquet bytes and decode them. Damaged bytes raise a RunError.

One row per item, with the columns of the task type's schema (prediction_schema). Labels are a
struct of strings (`labels.paradigm` in DuckDB, dicts in pandas), with fields in alphabetical order,
and null where an item lacks one. No time, path or host is written: equal predictions give equal
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from antlm_bench.errors import RunError
from antlm_bench.prediction_schema import CHOICES
from antlm_bench.predictions import GOLD_OPTION, GOLD_RATING, Predictions, find_wrong_column
from antlm_bench.runs.folder_io import RESCORE_HINT

MAX_ROWS, MAX_VALUES = 5_000_000, 50_000_000
"""Largest table that is read: items, and options of items per group of rows."""


def encode_predictions(predictions: Predictions, file_metadata: Mapping[str, str]) -> bytes:
    """Return predictions as Parquet bytes, with `file_metadata` (suite, method, key, ...).

    Raises RunError for an id that occurs twice, and for a table that Parquet cannot hold.
    """
    table = predictions.table
    if len(table["id"].unique()) < table.num_rows:
        ids = predictions.ids
        twice = next(name for index, name in enumerate(ids) if name in ids[:index])
        raise RunError(
            "two predictions have this id",
            location=f"item {twice!r}",
            hint="ids must be unique within a suite",
        )
    metadata = {**file_metadata, "gold": table.schema.metadata[b"gold"]}
    # Lists that were read from a file have another name for their values, which is stored too.
    fields = [
        pa.field(f.name, pa.list_(f.type.value_type) if pa.types.is_list(f.type) else f.type)
        for f in table.schema
    ]
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(table.cast(pa.schema(fields, metadata)), sink, compression="zstd")
    except (UnicodeEncodeError, pa.ArrowException) as error:
        location = f"{file_metadata.get('suite')}.{file_metadata.get('method')}"
        hint = "names of suites and methods must be valid Unicode"
        raise RunError(f"cannot be stored: {error}", location=location, hint=hint) from error
    return bytes(sink.getvalue())


def decode_predictions(data: bytes, location: str) -> Predictions:
    """Read the predictions of bytes that `encode_predictions` wrote.

    Raises RunError, naming `location`, for any other bytes.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        _check_size(file.metadata, location)
        # A thread of pyarrow could release the last reference to `data` while Python shuts down,
        # and waiting for the GIL then aborts the process.
        table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(
            f"no readable Parquet file: {error}", location=location, hint=RESCORE_HINT
        ) from error
    if problem := find_wrong_column(table, CHOICES.columns):
        raise RunError(problem, location=location, hint=RESCORE_HINT)
    gold = (table.schema.metadata or {}).get(b"gold")
    if gold not in (GOLD_OPTION.encode(), GOLD_RATING.encode()):
        raise RunError("not written by antlm-bench", location=location, hint=RESCORE_HINT)
    return Predictions(table)


def _check_size(metadata: pq.FileMetaData, location: str) -> None:
    """Raise RunError for more values than memory holds: repeated values need hardly any bytes."""
    num_values = max(
        (
            metadata.row_group(group).column(column).num_values
            for group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        ),
        default=0,
    )
    for number, limit, noun in (
        (metadata.num_rows, MAX_ROWS, "rows"),
        (num_values, MAX_VALUES, "values in a column"),
    ):
        if number > limit:
            raise RunError(
                f"{number:,} {noun}, more than the {limit:,} that are read", location=location
            )


def read_metadata(data: bytes, location: str) -> dict[str, str]:
    """Read the file metadata from the footer. Raises RunError for other bytes."""
    try:
        stored = pq.ParquetFile(pa.BufferReader(data)).schema_arrow.metadata or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(
            f"no readable Parquet file: {error}", location=location, hint=RESCORE_HINT
        ) from error
    return {key.decode(): value.decode() for key, value in stored.items()}


def stored_metadata(predictions: Predictions) -> dict[str, str]:
    """Return the file metadata of decoded predictions."""
    metadata: Mapping[Any, Any] = predictions.table.schema.metadata
    return {k.decode(): v.decode() for k, v in metadata.items() if k != b"gold"}
