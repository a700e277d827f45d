"""noise: what other batches and dtypes do to the same weights, against decisions planted and
computed anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prediction_rows import PredictionRow, from_rows, to_rows
from score_helpers import make_agreement_rows, write_pairs

from antlm_bench.cli.app import run
from antlm_bench.commands import noise as noises
from antlm_bench.commands.noise import measure_noise
from antlm_bench.errors import UsageError
from antlm_bench.predictions import Predictions

Make = Callable[..., Path]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.csv", make_agreement_rows())


@pytest.mark.long
def test_batches_of_other_sizes_flip_nothing(make_checkpoint: Make, suite: Path) -> None:
    rows = measure_noise(
        str(make_checkpoint()),
        str(suite),
        conditions=["float32, small batches", "float32, large batches"],
    )
    assert [(row["flips"], row["points"], row["items"]) for row in rows] == [(0, 0.0, 40)] * 2
    assert all(float(str(row["largest move (nats)"])) < 1e-4 for row in rows)
    assert [row["at most"] for row in rows] == pytest.approx([1 - 0.05 ** (1 / 40)] * 2)


@pytest.mark.long
def test_bfloat16_moves_scores_and_says_how_far(make_checkpoint: Make, suite: Path) -> None:
    [row] = measure_noise(str(make_checkpoint("masked")), str(suite), conditions=["bfloat16"])
    assert 1e-4 < float(str(row["largest move (nats)"])) < 5 and row["method"] == "mlm"


@pytest.mark.long
def test_flips_and_points_are_those_of_the_decisions(
    make_checkpoint: Make, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted condition that reverses the first three items: 3 flips, and the headline moves by
    their balance.
    """
    predict = noises._predict
    before: list[PredictionRow] = []

    def predict_reversed(*arguments: Any, **options: Any) -> Predictions:
        predictions = predict(*arguments, **options)
        rows = to_rows(predictions)
        if not before:
            before.extend(rows)
            return predictions
        swapped = [replace(p, pred=1 - p.pred, scores=p.scores[::-1]) for p in rows[:3]]
        return from_rows([*swapped, *rows[3:]])

    monkeypatch.setattr(noises, "_predict", predict_reversed)
    monkeypatch.setattr(noises, "_headline", lambda suite, p: (p.pred == p.gold).mean())
    [row] = measure_noise(str(make_checkpoint()), str(suite), conditions=["float32, small batches"])
    balance = sum((1 - p.pred == p.gold) - (p.pred == p.gold) for p in before[:3])
    assert (
        row["flips"] == 3
        and row["rate"] == 3 / 40
        and row["points"] == pytest.approx(100 * balance / 40)
        and row["at most"] > 3 / 40
    )


def test_a_tie_that_breaks_is_a_flip() -> None:
    def find_best(*scores: float) -> list[list[bool]]:
        predictions = from_rows([PredictionRow("x", 0, 0, scores, (1, 2), (1, 1))])
        return noises._find_best_options(predictions, "sum").tolist()

    assert find_best(-1.0, -1.0) == [[True, True]]
    assert find_best(-1.0, -1.0000001) == [[True, False]]


def test_where_the_mean_decides_the_mean_is_what_flips() -> None:
    longer = from_rows([PredictionRow("x", 0, 0, (-1.0, -1.5), (1, 2), (1, 1))])
    assert noises._find_best_options(longer, "sum").tolist() == [[True, False]]
    assert noises._find_best_options(longer, "per-token").tolist() == [[False, True]]


def test_an_unknown_condition_is_refused(make_checkpoint: Make, suite: Path) -> None:
    with pytest.raises(UsageError, match="float8"):
        measure_noise(str(make_checkpoint()), str(suite), conditions=["float8"])


@pytest.mark.long
def test_a_suite_without_choices_is_refused(make_checkpoint: Make, data_root: Path) -> None:
    with pytest.raises(UsageError, match="items of reading are no choices"):
        measure_noise(str(make_checkpoint()), "reading")


@pytest.mark.long
def test_the_verb_prints_one_row_per_condition(
    make_checkpoint: Make, suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "noise",
        "--model",
        str(make_checkpoint()),
        "--suite",
        str(suite),
        "--condition",
        "adaptive",
        "--json",
    ]
    assert run(line) == 0
    [row] = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert row["condition"] == "adaptive" and row["items"] == 40
    assert row["rate_text"] == f"{100 * row['rate']:.2f}%"
    assert row["at most"] > row["rate"]
