"""One row per item for R, and records with their intervals: every number against the run it came
from.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import leaderboard_runs
import pytest
from prediction_rows import from_rows

from antlm_bench import runs
from antlm_bench.cli.app import run as cli
from antlm_bench.commands.export import export
from antlm_bench.errors import DataError
from antlm_bench.exports import every_eval_ever, items_csv, leaderboard
from antlm_bench.metrics import summarize
from antlm_bench.types import Cell, Item, Option

NAME = 'a "quoted", name\nwith, a line\u2028break'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    items = [
        Item(
            f"wh_{i}", (Option("x"), Option("y"), Option("z")), 1, {"paradigm": "wh", "field": "s"}
        )
        for i in range(4)
    ]
    scores = [(-3.0, -1.0, -2.5), (-1.0, -1.0, -1.5), (-1.0, -2.0, -3.0), (-1.0, -1.0, -1.0)]
    flags: list[tuple[str, ...]] = [(), ("unk",), (), ("too-long",)]
    predictions = [
        leaderboard_runs.make_prediction(item, s.index(max(s)), scores=s, flags=f, tokens=(5, 6, 7))
        for item, s, f in zip(items, scores, flags, strict=True)
    ]
    summary = summarize(
        from_rows(predictions),
        suite="blimp",
        method="mlm",
        metric="accuracy",
        macro=("paradigm",),
        groups=("field", "paradigm"),
    )
    wug = [
        leaderboard_runs.make_prediction(item, scores=(-1.0, -2.0, -1.5))
        for item in leaderboard_runs.make_suite("wug-past", 5).items
    ]
    rated = summarize(
        from_rows(wug),
        suite="wug-past",
        method="mlm",
        metric="spearman",
        macro=(),
        groups=("paradigm",),
    )
    labels = leaderboard_runs.make_class_predictions("rte", 2)
    words = [leaderboard_runs.make_word_prediction(0), leaderboard_runs.make_word_prediction(1)]
    reading = leaderboard_runs.make_cell("reading-2025", words)
    times = type(reading.summary)(
        "reading-2025", "mlm", "delta-r2", (), leaderboard_runs.HALF, {}, ()
    )
    cells = [
        (Cell("blimp", "mlm", "k", {"ties": "half", "suite_version": "1"}, summary), predictions),
        (Cell("wug-past", "mlm", "k", {}, rated), wug),
        (leaderboard_runs.make_finetuned_cell("rte", 7), labels),
        (Cell("reading-2025", "mlm", "k", {}, times), words),
    ]
    return leaderboard_runs.write_run(tmp_path / "run", NAME, cells)


def rows(run: Path) -> list[dict[str, str]]:
    return list(
        csv.DictReader(
            io.StringIO(items_csv.format_items_csv([runs.open_run(run)]).decode(), newline="")
        )
    )


def test_every_item_of_every_cell_is_one_row(run: Path) -> None:
    found = rows(run)
    assert len(found) == 4 + 5 + 2 + 2
    assert list(found[0]) == [
        *items_csv.KEY_COLUMNS,
        "field",
        "paradigm",
        "sentence",
        "task",
        *items_csv.NUMBER_COLUMNS,
        "flags",
    ]
    assert {row["model"] for row in found} == {NAME}
    assert [row["seed"] for row in found if row["suite"] == "glue-2025.rte"] == ["7", "7"]


def test_margin_is_right_option_minus_best_other(run: Path) -> None:
    first, tie, wrong, lost = (row for row in rows(run) if row["suite"] == "blimp")
    assert [float(first[name]) for name in ("score", "score_other", "margin")] == [-1.0, -2.5, 1.5]
    assert (first["tokens"], first["tokens_other"], first["correct"]) == ("6", "7", "1.0")
    assert (float(tie["margin"]), float(tie["correct"]), tie["flags"]) == (0.0, 0.5, "unk")
    assert (float(wrong["margin"]), float(wrong["correct"])) == (-1.0, 0.0)
    assert (lost["margin"], lost["score"], lost["correct"], lost["flags"]) == (
        "",
        "",
        "0.0",
        "too-long",
    )


def test_a_rating_has_a_share_and_no_right_option(run: Path) -> None:
    row = next(row for row in rows(run) if row["id"] == "wug_past_3")
    e = 2.718281828459045
    assert float(row["share"]) == pytest.approx(e**-1 / (e**-1 + e**-2 + e**-1.5))
    assert (float(row["gold"]), row["correct"], row["margin"]) == (0.6, "", "")


def test_the_mean_of_correct_is_the_published_number(run: Path) -> None:
    correct = [float(row["correct"]) for row in rows(run) if row["suite"] == "blimp"]
    headline = next(cell for cell in runs.open_run(run) if cell.suite == "blimp").summary.headline
    assert sum(correct) / len(correct) == pytest.approx(headline.value)


def test_a_record_holds_every_number_with_its_interval(run: Path) -> None:
    opened = runs.open_run(run)
    record = every_eval_ever.build_record(opened)
    leaderboard.validate_document(record, "every-eval-ever")
    assert len(record["evaluation_results"]) == sum(1 + len(cell.summary.groups) for cell in opened)
    result = record["evaluation_results"][0]
    headline = opened.cells[0].summary.headline
    assert result["score_details"]["score"] == headline.value
    assert result["score_details"]["uncertainty"]["confidence_interval"]["lower"] == headline.low
    assert result["source_data"]["url"] == ["https://github.com/alexwarstadt/blimp"]
    rho = next(r for r in record["evaluation_results"] if r["evaluation_name"] == "wug-past (mlm)")
    assert rho["metric_config"]["min_score"] == -1.0
    descriptions = {
        r["evaluation_name"]: r["metric_config"]["evaluation_description"]
        for r in record["evaluation_results"]
    }
    assert descriptions["blimp (mlm)"] == "accuracy, average over paradigm"
    assert descriptions["wug-past (mlm)"] == "spearman, over all items"


def test_a_record_holds_the_notes_of_its_cell(run: Path) -> None:
    document = json.loads((run / "run.json").read_text())
    document["cells"][0]["summary"]["notes"] = ["limit: 4", "2 of 4 scored texts were trained on"]
    (run / "run.json").write_text(json.dumps(document))
    record = every_eval_ever.build_record(runs.open_run(run))
    details = record["evaluation_results"][0]["score_details"]["details"]
    assert details["notes"] == "limit: 4; 2 of 4 scored texts were trained on"
    leaderboard.validate_document(record, "every-eval-ever")


@pytest.mark.long
@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("eval_library"),
        lambda d: d.update(more=1),
        lambda d: d["evaluation_results"][0]["score_details"].update(score="0.5"),
        lambda d: d["evaluation_results"][0]["score_details"].pop("uncertainty"),
        lambda d: d["evaluation_results"][0]["score_details"].update(details={"ties": 1}),
        lambda d: d["evaluation_results"][0].update(
            source_data={"dataset_name": "x", "source_type": "url"}
        ),
        lambda d: d["source_metadata"].update(evaluator_relationship="friend"),
    ],
)
def test_a_broken_record_fails(spoil: Any, run: Path) -> None:
    record = deepcopy(every_eval_ever.build_record(runs.open_run(run)))
    spoil(record)
    with pytest.raises(DataError):
        leaderboard.validate_document(record, "every-eval-ever")


def test_the_same_run_is_the_same_file(run: Path, tmp_path: Path) -> None:
    first = export([run], "every-eval-ever", tmp_path / "a").files[0]
    second = export([run], "every-eval-ever", tmp_path / "b").files[0]
    assert first.name == second.name and first.read_bytes() == second.read_bytes()


@pytest.mark.long
def test_the_verb_writes_each_format(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form, name in (
        ("csv", "x.csv"),
        ("every-eval-ever", "x"),
        ("lm-eval", "y"),
        ("model-index", "card.md"),
    ):
        assert cli(["export", str(run), "--format", form, "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).exists()
    assert "model-index:" in (tmp_path / "card.md").read_text()
    assert cli(["export", str(run), "--format", "xml", "--out", str(tmp_path / "z")]) == 2
    capsys.readouterr()


@pytest.mark.long
def test_exporting_and_importing_load_no_torch(run: Path, tmp_path: Path) -> None:
    golden = Path(__file__).resolve().parent.parent / "golden" / "lm_eval" / "m0"
    lines = [
        ["export", str(run), "--format", form, "--out", str(tmp_path / form)]
        for form in ("csv", "lm-eval")
    ]
    lines += [["import", str(golden), "--out", str(tmp_path / "imported")]]
    script = "from antlm_bench.cli.app import run\nimport sys\n"
    script += f"assert not any([run(line) for line in {lines!r}])\n"
    script += "assert not {'torch', 'transformers', 'lm_eval'} & set(sys.modules), 'heavy'"
    subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, env={**os.environ}
    )
