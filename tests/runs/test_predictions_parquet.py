"""Predictions survive the round trip whatever they hold, and equal predictions give equal bytes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_rows import PredictionRow, from_rows, to_rows

from antlm_bench.errors import RunError
from antlm_bench.prediction_schema import CHOICES
from antlm_bench.predictions import OptionColumns, Predictions
from antlm_bench.runs import predictions_parquet
from antlm_bench.types import FLAGS, Item

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 2**31 - 1)
ABOUT = {"suite": "s", "method": "m", "key": "k"}


def predictions(gold: st.SearchStrategy[int | float]) -> st.SearchStrategy[list[PredictionRow]]:
    def options(n: int) -> st.SearchStrategy[PredictionRow]:
        return st.builds(
            PredictionRow,
            id=TEXT,
            gold=gold,
            pred=st.integers(-1, 9),
            scores=st.tuples(*[FLOATS] * n),
            tokens=st.tuples(*[COUNTS] * n),
            characters=st.tuples(*[COUNTS] * n),
            labels=st.dictionaries(TEXT, TEXT, max_size=3),
            flags=st.lists(st.sampled_from(sorted(FLAGS)), unique=True).map(tuple),
        )

    return st.lists(st.integers(0, 5).flatmap(options), max_size=8, unique_by=lambda p: p.id)


def store_and_read(rows: list[PredictionRow]) -> Predictions:
    data = predictions_parquet.encode_predictions(from_rows(rows), ABOUT)
    return predictions_parquet.decode_predictions(data, "here")


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(st.one_of(predictions(st.integers(0, 9)), predictions(FLOATS)))
def test_round_trip(given: list[PredictionRow]) -> None:
    data = predictions_parquet.encode_predictions(from_rows(given), ABOUT)
    stored = predictions_parquet.decode_predictions(data, "here")
    back = to_rows(stored)
    assert back == given
    assert [type(p.gold) for p in back] == [type(p.gold) for p in given]
    assert predictions_parquet.stored_metadata(stored) == ABOUT
    assert predictions_parquet.encode_predictions(stored, ABOUT) == data


def test_the_order_of_labels_does_not_show() -> None:
    one = PredictionRow("a", 0, 0, (-1.0,), (1,), (1,), {"x": "1", "y": "2"})
    two = PredictionRow("a", 0, 0, (-1.0,), (1,), (1,), {"y": "2", "x": "1"})
    assert predictions_parquet.encode_predictions(
        from_rows([one]), ABOUT
    ) == predictions_parquet.encode_predictions(from_rows([two]), ABOUT)


def test_scores_of_items_that_were_not_scored_survive() -> None:
    given = [PredictionRow("a", 0, -1, (math.nan, -math.inf), (0, 0), (3, 3), {}, ("too-long",))]
    [back] = to_rows(store_and_read(given))
    assert math.isnan(back.scores[0]) and back.scores[1] == -math.inf


def test_an_id_twice_is_refused() -> None:
    twice = [PredictionRow("a", 0, 0, (-1.0,), (1,), (1,))] * 2
    with pytest.raises(RunError, match="item 'a'"):
        predictions_parquet.encode_predictions(from_rows(twice), ABOUT)


def test_text_that_is_no_unicode_is_refused() -> None:
    one = np.ones(1, np.int32)
    options = OptionColumns(one, np.zeros(1), one, one)
    with pytest.raises(RunError, match="valid Unicode"):
        Predictions.build([Item("\ud800", (), 0)], one, options)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_parquet_are_a_typed_error(data: bytes) -> None:
    with pytest.raises(RunError, match="here"):
        predictions_parquet.decode_predictions(data, "here")


def test_optional_columns_exist_only_where_they_are_needed() -> None:
    plain = PredictionRow("a", 0, 0, (-1.0,), (1,), (1,))
    given = [
        replace(plain, judged=(0.25, math.nan)),
        replace(plain, id="b", judged=(math.inf, 1.0)),
    ]
    back = to_rows(store_and_read(given))
    assert back[1] == given[1] and back[0].judged[0] == 0.25 and math.isnan(back[0].judged[1])
    required = [column.name for column in CHOICES.columns if not column.is_optional]
    assert store_and_read([plain]).table.column_names == required


def test_task_values_of_another_type_are_damage() -> None:
    table = store_and_read([PredictionRow("a", 0, 0, (-1.0,), (1,), (1,))]).table
    sink = pa.BufferOutputStream()
    pq.write_table(table.append_column("judged", pa.array([["much"]])), sink)
    with pytest.raises(RunError, match="column judged should hold"):
        predictions_parquet.decode_predictions(bytes(sink.getvalue()), "here")
