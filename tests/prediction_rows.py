"""Predictions of tests, written and compared as rows; the package holds them as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from antlm_bench import runs
from antlm_bench.prediction_schema import CHOICES
from antlm_bench.predictions import (
    GOLD_OPTION,
    GOLD_RATING,
    Predictions,
    arrow_type,
    check_predictions,
)
from antlm_bench.scoring import multiple_choice
from antlm_bench.suites.task_types import TASK_TYPES
from antlm_bench.types import Cell


@dataclass(frozen=True)
class PredictionRow:
    """One row of a table of predictions, see prediction_schema."""

    id: str
    gold: int | float
    pred: int
    scores: tuple[float, ...]
    tokens: tuple[int, ...]
    characters: tuple[int, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    judged: tuple[float, ...] = ()
    kept: tuple[str, ...] = ()
    cluster: str = ""


def from_rows(rows: Sequence[PredictionRow]) -> Predictions:
    """Return rows as the columns that a scorer returns."""
    columns = {
        column.name: pa.array([getattr(row, column.name) for row in rows], arrow_type(column.type))
        for column in CHOICES.columns
        if not column.is_optional or any(getattr(row, column.name) for row in rows)
    }
    if levels := sorted({level for row in rows for level in row.labels}):
        labels = [
            pa.array([row.labels.get(level) for row in rows], pa.string()) for level in levels
        ]
        columns["labels"] = pa.StructArray.from_arrays(labels, levels)
    is_index = all(isinstance(row.gold, int) for row in rows)
    gold = GOLD_OPTION if is_index else GOLD_RATING
    return Predictions(pa.table(columns).replace_schema_metadata({"gold": gold}))


def to_rows(predictions: Predictions) -> list[PredictionRow]:
    """Return the rows of columns."""
    to_gold = float if predictions.has_ratings else int
    return [
        PredictionRow(
            id=row["id"],
            gold=to_gold(row["gold"]),
            pred=row["pred"],
            scores=tuple(row["scores"]),
            tokens=tuple(row["tokens"]),
            characters=tuple(row["characters"]),
            labels={k: v for k, v in (row.get("labels") or {}).items() if v is not None},
            flags=tuple(row["flags"]),
            judged=tuple(row.get("judged", ())),
            kept=tuple(row.get("kept", ())),
            cluster=row.get("cluster", ""),
        )
        for row in predictions.table.to_pylist()
    ]


def read_rows(path: str | Path, cell: Cell) -> list[PredictionRow]:
    """Return the stored predictions of a cell as rows."""
    return to_rows(runs.read_predictions(path, cell))


def rows_per_method(predictions: Sequence[Predictions]) -> list[list[PredictionRow]]:
    """Return what `predict` returns for several methods as rows."""
    return [to_rows(each) for each in predictions]


def predict_rows(*arguments: Any, **options: Any) -> list[list[PredictionRow]]:
    """Return what `multiple_choice.predict` returns for several methods as rows."""
    return rows_per_method(multiple_choice.predict(*arguments, **options))


def assert_columns_declared(
    task_type: str, predictions: Predictions, without: Sequence[str] = ()
) -> None:
    """Check that predictions have exactly the columns that their task type declares, and labels.

    without: optional columns that they lack. `cluster` depends on the suite.
    """
    schema = TASK_TYPES[task_type].prediction_schema
    assert schema is not None
    check_predictions(predictions, schema, task_type)
    names = [column.name for column in schema.columns if column.name not in (*without, "cluster")]
    ignored = ("labels", "cluster")
    assert [name for name in predictions.table.column_names if name not in ignored] == names
