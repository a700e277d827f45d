"""Predictions as Parquet bytes and back: equal predictions give equal bytes, and damage gives a
RunError.

One row per item. Labels are a struct of strings (`labels.paradigm` in DuckDB, dicts in pandas),
fields in alphabetical order, null where an item lacks one. Columns `judged` and `kept` are there
only where the suite has a judge that says such things. No time, path or host is written, so the
bytes depend on the content alone.
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
# Of suites with a judge only: all other files keep their bytes.
OPTIONAL_COLUMNS = (
    pa.field("judged", pa.list_(pa.float64())),
    pa.field("kept", pa.list_(pa.string())),
)
GOLD_OPTION, GOLD_RATING = (
    "option",
    "rating",
)  # what `gold` is: the index of an option, or a number of its own
RESCORE_HINT = "repeat the score command: it recomputes what is damaged"


def encode_predictions(
    predictions: Sequence[Prediction], file_metadata: Mapping[str, str]
) -> bytes:
    """Parquet bytes of the predictions; `about` (suite, method, key, ...) goes into the file's
    metadata.

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
    gold = GOLD_OPTION if all(isinstance(p.gold, Integral) for p in predictions) else GOLD_RATING
    levels = sorted({level for p in predictions for level in p.labels})
    try:
        fields = [
            *SCHEMA,
            *(
                field
                for field in OPTIONAL_COLUMNS
                if any(getattr(p, field.name) for p in predictions)
            ),
        ]
        values = {
            field.name: pa.array([getattr(p, field.name) for p in predictions], field.type)
            for field in fields
        }
        if levels:
            labels = [
                pa.array([p.labels.get(level) for p in predictions], pa.string())
                for level in levels
            ]
            values["labels"] = pa.StructArray.from_arrays(labels, levels)
        table = pa.table(values).replace_schema_metadata({**file_metadata, "gold": gold})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
    except (UnicodeEncodeError, pa.ArrowException, OverflowError) as error:
        place = f"{file_metadata.get('suite')}.{file_metadata.get('method')}"
        hint = "ids and labels must be valid Unicode, numbers must fit their column"
        raise RunError(f"cannot be stored: {error}", location=place, hint=hint) from error
    return bytes(sink.getvalue())


def decode_table(data: bytes, location: str) -> pa.Table:
    """The table in Parquet bytes that `encode` wrote; RunError naming `place` for anything else."""
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(
            f"no readable Parquet file: {error}", location=location, hint=RESCORE_HINT
        ) from error
    for field in [
        *SCHEMA,
        *(field for field in OPTIONAL_COLUMNS if field.name in table.column_names),
    ]:
        found = (
            table.schema.field(field.name).type if field.name in table.column_names else "nothing"
        )
        if found != field.type:
            raise RunError(
                f"column {field.name} should hold {field.type}, holds {found}",
                location=location,
                hint=RESCORE_HINT,
            )
    if (table.schema.metadata or {}).get(b"gold") not in (
        GOLD_OPTION.encode(),
        GOLD_RATING.encode(),
    ):
        raise RunError("not written by antlm-bench", location=location, hint=RESCORE_HINT)
    return table


def read_metadata(data: bytes, location: str) -> dict[str, str]:
    """What `encode` was told about the file, from its footer alone; RunError naming `place` for
    other bytes.
    """
    try:
        stored = pq.ParquetFile(pa.BufferReader(data)).schema_arrow.metadata or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(
            f"no readable Parquet file: {error}", location=location, hint=RESCORE_HINT
        ) from error
    return {key.decode(): value.decode() for key, value in stored.items()}


def table_metadata(table: pa.Table) -> dict[str, str]:
    """What `encode` was told about the file."""
    return {k.decode(): v.decode() for k, v in table.schema.metadata.items() if k != b"gold"}


def table_to_predictions(table: pa.Table) -> list[Prediction]:
    """The rows of a decoded table."""
    get = {name: table[name].to_pylist() for name in table.column_names}
    number = int if table.schema.metadata[b"gold"] == GOLD_OPTION.encode() else float
    labels = get.get("labels", [{}] * table.num_rows)
    judged, kept = (get.get(field.name, [()] * table.num_rows) for field in OPTIONAL_COLUMNS)
    return [
        Prediction(
            id=get["id"][i],
            gold=number(get["gold"][i]),
            pred=get["pred"][i],
            scores=tuple(get["scores"][i]),
            tokens=tuple(get["tokens"][i]),
            characters=tuple(get["characters"][i]),
            labels={level: value for level, value in labels[i].items() if value is not None},
            flags=tuple(get["flags"][i]),
            judged=tuple(judged[i]),
            kept=tuple(kept[i]),
        )
        for i in range(table.num_rows)
    ]
