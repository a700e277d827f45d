"""What the task types predict has the columns that they declare."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from lookup_model import LookupModel
from prediction_rows import assert_columns_declared, to_rows

from antlm_bench.runs import predictions_parquet
from antlm_bench.scoring.conventions import ScoringConventions
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites.syntaxgym import PREDICTION_LEVEL
from antlm_bench.suites.task_types import TASK_TYPES, PredictRequest, Suite
from antlm_bench.types import Item, Option

MODEL = {"the": -1.0, "cat": -2.0, "dog": -4.0}
LABELS = {"paradigm": "nouns", "word": "cat", PREDICTION_LEVEL: "first is larger"}


def predict(task_type: str, items: Sequence[Item]) -> Any:
    formula = SimpleNamespace(regions=(1, 2), evaluate_gap=lambda bits: bits(1) - bits(2))
    suite = Suite(
        "toy", "1", "Toy", "CC0", "accuracy", (), (), tuple(items), "digest",
        formulas={"first is larger": formula},  # type: ignore[dict-item]
    )  # fmt: skip
    request = PredictRequest(
        LookupModel(MODEL), suite, items, [METHODS["causal"]], ScoringConventions()
    )
    [predictions] = TASK_TYPES[task_type].predict(request)
    return predictions


@pytest.mark.parametrize(
    ("task_type", "spans", "scores"),
    [
        ("suite", (None, None), (-3.0, -5.0)),
        ("surprisal", ((4, 7), (4, 7)), (-2.0, -4.0)),
        ("reading-times", ((4, 7), (0, 3)), (-2.0, -1.0)),
        ("syntaxgym", ((4, 7), (4, 7)), (-2.0, 0.0)),
    ],
)
def test_predictions_have_the_declared_columns_before_and_after_storing(
    task_type: str, spans: Sequence[Any], scores: tuple[float, ...]
) -> None:
    options = tuple(
        Option(text, span) for text, span in zip(("the cat", "the dog"), spans, strict=True)
    )
    predictions = predict(task_type, [Item("a", options, 0, LABELS)])
    assert to_rows(predictions)[0].scores == pytest.approx(scores)
    data = predictions_parquet.encode_predictions(predictions, {"suite": "toy"})
    for each in (predictions, predictions_parquet.decode_predictions(data, "here")):
        declared = TASK_TYPES[task_type].prediction_schema
        assert declared is not None
        optional = [column.name for column in declared.columns if column.is_optional]
        assert_columns_declared(task_type, each, without=optional)


def test_every_task_type_says_what_its_columns_hold() -> None:
    for task_type in TASK_TYPES:
        if task_type.command in ("score", "finetune"):
            assert task_type.prediction_schema is not None
            assert all(column.meaning for column in task_type.prediction_schema.columns)
