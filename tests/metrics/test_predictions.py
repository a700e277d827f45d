"""Predictions as columns: joined, selected, checked against a schema, read without a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prediction_rows import PredictionRow, from_rows, to_rows

from antlm_bench.errors import DataError
from antlm_bench.metrics import summarize
from antlm_bench.prediction_schema import CHOICES, PredictionColumn, PredictionSchema
from antlm_bench.predictions import (
    IdColumn,
    OptionColumns,
    Predictions,
    check_predictions,
    concat_predictions,
)
from antlm_bench.types import Item

PAIR = PredictionRow("a", 0, 0, (-1.0, -2.5), (3, 4), (9, 11), {"paradigm": "p"})


def test_joined_batches_keep_rows_labels_and_values() -> None:
    rows = [
        PAIR,
        PredictionRow("b", 1, 1, (-2.0, -1.0, -9.0), (1, 1, 1), (2, 2, 2), {"field": "f"}),
        PredictionRow("c", 0, 0, (-1.0,), (1,), (1,), {}, ("unk", "lost"), kept=("[1]",)),
    ]
    joined = concat_predictions([from_rows([row]) for row in rows])
    assert to_rows(joined) == rows
    assert joined.label_levels == ("field", "paradigm")
    assert not joined.has_ratings
    rated = PredictionRow("d", 0.5, 0, (-1.0,), (1,), (1,))
    assert concat_predictions([joined, from_rows([rated])]).has_ratings


def test_selected_rows_stand_in_the_requested_order() -> None:
    rows = [
        PredictionRow(name, 0, 0, (-1.0,) * n, (1,) * n, (1,) * n) for n, name in enumerate("abc")
    ]
    assert to_rows(from_rows(rows).take([2, 0])) == [rows[2], rows[0]]


def test_a_flag_is_added_after_the_others() -> None:
    rows = [PAIR, PredictionRow("b", 0, 0, (-1.0,), (1,), (1,), flags=("unk",))]
    flagged = from_rows(rows).with_flag("float32", np.array([False, True]))
    assert flagged.flag_lists() == [[], ["unk", "float32"]]


def replace_column(
    name: str, values: list[Any], kind: pa.DataType
) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values, kind))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop_columns(["scores"]),
            "column scores should hold .*double.*, holds nothing",
        ),
        (replace_column("scores", [[1, 2]], pa.list_(pa.int64())), "scores should .*double.*int64"),
        (
            replace_column("pred", [0.5], pa.float64()),
            "column pred should hold int32, holds double",
        ),
        (replace_column("gold", [None], pa.float64()), "column gold should hold double, has empty"),
        (lambda t: t.append_column("rank", pa.array([1])), "column rank is not in the schema"),
        (replace_column("labels", ["p"], pa.string()), "labels should be a struct of texts"),
    ],
)
def test_a_batch_of_another_schema_is_refused(
    change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    batch = Predictions(change(from_rows([PAIR]).table))
    with pytest.raises(DataError, match=message) as caught:
        check_predictions(batch, CHOICES, "toy.causal")
    assert caught.value.location == "toy.causal"
    check_predictions(from_rows([PAIR]), CHOICES, "toy.causal")


def test_a_task_type_may_declare_further_columns() -> None:
    rank = PredictionColumn("rank", "int32", "rank of the word, from 0")
    schema = PredictionSchema((*CHOICES.columns, rank))
    batch = from_rows([PAIR]).with_column(rank, [7])
    check_predictions(batch, schema, "toy.causal")
    other = from_rows([replace(PAIR, id="b")]).with_column(rank, [9])
    assert concat_predictions([batch, other]).table["rank"].to_pylist() == [7, 9]


def test_a_list_of_rows_is_refused_as_predictions() -> None:
    with pytest.raises(DataError, match="should be a Predictions, are a list"):
        check_predictions([PAIR], CHOICES, "toy.causal")  # type: ignore[arg-type]


@pytest.mark.long
def test_100_000_predictions_reach_the_mean_as_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    n, rng = 100_000, np.random.default_rng(0)
    scores = rng.normal(-20, 2, (n, 2))
    options = OptionColumns(
        np.full(n, 2, np.int32), scores.reshape(-1), np.full(2 * n, 7), np.full(2 * n, 30)
    )
    labels = [{"paradigm": f"p{code}"} for code in range(67)]
    items = [Item(f"item{i}", (), 0, labels[i % 67]) for i in range(n)]
    predictions = Predictions.build(items, scores.argmax(axis=1), options)
    # All that makes a Python object per item fails.
    for name in ("ids", "flag_lists", "iter_options", "labels", "raw_values"):
        monkeypatch.setattr(Predictions, name, None)
    monkeypatch.setattr(IdColumn, "__iter__", None)
    summary = summarize(
        predictions,
        suite="toy",
        method="causal",
        metric="accuracy",
        macro=("paradigm",),
        groups=("paradigm",),
    )

    right = scores[:, 0] > scores[:, 1]
    expected = np.mean([right[code::67].mean() for code in range(67)])
    assert summary.headline.value == pytest.approx(expected)
