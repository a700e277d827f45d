"""Encode predictions as Parquet bytes and decode them. Damaged bytes raise a RunError.

One row per item. Labels are a struct of strings (`labels.paradigm` in DuckDB, dicts in pandas),
with fields in alphabetical order, and null where an item lacks one. The columns `judged` and `kept`
exist only for suites whose task computes metrics of its own. No time, path or host is written:
equal predictions give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import pyarrow as pa
import pyarrow.parquet as pq

from antlm_bench.errors import RunError
from antlm_bench.types import Prediction

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("gold", pa.float64()),
        ("pred", pa.int32()),
        ("scores", pa.list_(pa.float64())),
        ("tokens", pa.list_(pa.int32())),
        ("characters", pa.list_(pa.int32())),
        ("flags", pa.list_(pa.string())),
    ]
)
# Files of suites that do not need these keep their bytes.
OPTIONAL_COLUMNS = (
    pa.field("judged", pa.list_(pa.float64())),
    pa.field("kept", pa.list_(pa.string())),
)
# What `gold` is: the index of an option, or a human rating.
GOLD_OPTION, GOLD_RATING = "option", "rating"
RESCORE_HINT = "repeat the score command: it recomputes what is damaged"


def encode_predictions(
    predictions: Sequence[Prediction], file_metadata: Mapping[str, str]
) -> bytes:
    """Return predictions as Parquet bytes, with `file_metadata` (suite, method, key, ...).

    Raises RunError for an id or label that is no valid Unicode, or an id that occurs twice.
    """
    ids = [p.id for p in predictions]
    if len(set(ids)) < len(ids):
        twice = next(i for n, i in enumerate(ids) if i in ids[:n])
        raise RunError(
            "two predictions have this id",
            location=f"item {twice!r}",
            hint="ids must be unique within a suite",
        )
    try:
        table = predictions_to_table(predictions, file_metadata)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
    except (UnicodeEncodeError, pa.ArrowException, OverflowError) as error:
        location = f"{file_metadata.get('suite')}.{file_metadata.get('method')}"
        hint = "ids and labels must be valid Unicode, numbers must fit their column"
        raise RunError(f"cannot be stored: {error}", location=location, hint=hint) from error
    return bytes(sink.getvalue())


def predictions_to_table(
    predictions: Sequence[Prediction], file_metadata: Mapping[str, str] | None = None
) -> pa.Table:
    """Return predictions as an Arrow table of SCHEMA, with labels and optional columns if any."""
    gold = GOLD_OPTION if all(isinstance(p.gold, Integral) for p in predictions) else GOLD_RATING
    levels = sorted({level for p in predictions for level in p.labels})
    optional = [
        field for field in OPTIONAL_COLUMNS if any(getattr(p, field.name) for p in predictions)
    ]
    values = {
        field.name: pa.array([getattr(p, field.name) for p in predictions], field.type)
        for field in [*SCHEMA, *optional]
    }
    if levels:
        labels = [
            pa.array([p.labels.get(level) for p in predictions], pa.string()) for level in levels
        ]
        values["labels"] = pa.StructArray.from_arrays(labels, levels)
    return pa.table(values).replace_schema_metadata({**(file_metadata or {}), "gold": gold})


def decode_table(data: bytes, location: str) -> pa.Table:
    """Read the Arrow table of bytes that `encode_predictions` wrote.

    Raises RunError, naming `location`, for any other bytes.
    """
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(
            f"no readable Parquet file: {error}", location=location, hint=RESCORE_HINT
        ) from error
    types = {field.name: field.type for field in table.schema}
    optional = [field for field in OPTIONAL_COLUMNS if field.name in types]
    for field in [*SCHEMA, *optional]:
        actual = types.get(field.name, "nothing")
        if actual != field.type:
            raise RunError(
                f"column {field.name} should hold {field.type}, holds {actual}",
                location=location,
                hint=RESCORE_HINT,
            )
    gold = (table.schema.metadata or {}).get(b"gold")
    if gold not in (GOLD_OPTION.encode(), GOLD_RATING.encode()):
        raise RunError("not written by antlm-bench", location=location, hint=RESCORE_HINT)
    return table


def read_metadata(data: bytes, location: str) -> dict[str, str]:
    """Read the file metadata from the footer. Raises RunError for other bytes."""
    try:
        stored = pq.ParquetFile(pa.BufferReader(data)).schema_arrow.metadata or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(
            f"no readable Parquet file: {error}", location=location, hint=RESCORE_HINT
        ) from error
    return {key.decode(): value.decode() for key, value in stored.items()}


def table_metadata(table: pa.Table) -> dict[str, str]:
    """Return the file metadata of a decoded table."""
    return {k.decode(): v.decode() for k, v in table.schema.metadata.items() if k != b"gold"}


def table_to_predictions(table: pa.Table) -> list[Prediction]:
    """Return the rows of a decoded table."""
    columns = {name: table[name].to_pylist() for name in table.column_names}
    to_gold = int if table.schema.metadata[b"gold"] == GOLD_OPTION.encode() else float
    labels = columns.get("labels", [{}] * table.num_rows)
    judged, kept = (columns.get(field.name, [()] * table.num_rows) for field in OPTIONAL_COLUMNS)
    return [
        Prediction(
            id=columns["id"][i],
            gold=to_gold(columns["gold"][i]),
            pred=columns["pred"][i],
            scores=tuple(columns["scores"][i]),
            tokens=tuple(columns["tokens"][i]),
            characters=tuple(columns["characters"][i]),
            labels={level: value for level, value in labels[i].items() if value is not None},
            flags=tuple(columns["flags"][i]),
            judged=tuple(judged[i]),
            kept=tuple(kept[i]),
        )
        for i in range(table.num_rows)
    ]
