"""From checkpoints to a leaderboard's file by the commands of docs/submit.md, nothing made up but data and labels."""

from __future__ import annotations

import json
from pathlib import Path

import invented_suites
import pytest
import toy_leaderboard as toy
from tiny import model_for, tokenizer_for

from antlm_bench import runs
from antlm_bench.cli import run as cli
from antlm_bench.exports import leaderboard
from antlm_bench.exports.leaderboard import LeaderboardSpec, TrackSpec

ITEMS, MILESTONES = 2, (1, 2)  # items per group; millions of words
WORDS = 1726  # of the reading data, which stay whole


@pytest.fixture
def small_2026(monkeypatch: pytest.MonkeyPatch, data_root: Path) -> LeaderboardSpec:
    """The leaderboard of 2026 with two milestones and two items per group; reading times as they are."""
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(data_root))
    official = leaderboard.leaderboard("2026")
    track = TrackSpec(names=("strict-small",), milestones=MILESTONES)
    board = official.model_copy(update={"track": (track,)})
    schema = toy.small_schema(board.name, ITEMS)
    schema["properties"]["reading"] = leaderboard.schema(board.name)["properties"]["reading"]
    for part in schema["properties"][board.milestones_in]["properties"].values():
        part["anyOf"] = [{"minItems": len(MILESTONES), "maxItems": len(MILESTONES)}]
    monkeypatch.setattr(leaderboard, "leaderboard", lambda year: board)
    monkeypatch.setattr(leaderboard, "schema", lambda name: schema)
    invented_suites.serve(monkeypatch, ITEMS)
    return board


def make_checkpoints(folder: Path, milestones: tuple[int, ...]) -> None:
    tokenizer = tokenizer_for("causal", True)
    for seed, name in enumerate(["main", *(f"chck_{number}M" for number in milestones)]):
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 512}
        model_for("causal", seed, **shape).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def enter_labels(run: Path, board: str, part: str, suite: str) -> None:
    """Labels of finetuned tasks, which take too long to be real here."""
    with runs.Writer(run, runs.read(run).manifest) as writer:
        for task, n in leaderboard.sizes(board, part).items():
            writer.enter(toy.finetuned(task, 42, suite=suite), toy.labels(task, n))


def test_checkpoints_that_are_scored_become_a_whole_submission(small_2026: LeaderboardSpec, tmp_path: Path) -> None:
    make_checkpoints(tmp_path / "out", MILESTONES)
    final, reports = tmp_path / "reports" / "main", str(tmp_path / "reports")
    quiet = ["--device", "cpu", "--json"]
    main = ["score", "--model", str(tmp_path / "out" / "main"), "--suite", "zero-shot-2026,reading-2025"]
    assert cli([*main, "--out", str(final), *quiet]) == 0
    fast = ["score", "--model", str(tmp_path / "out" / "chck_*"), "--suite", "zero-shot-fast-2026,reading-2025"]
    assert cli([*fast, "--out", reports, *quiet]) == 0
    enter_labels(final, small_2026.name, "glue", "glue-2025")
    parts = [f"--part={key}={file}" for key, file in toy.elsewhere(tmp_path / "parts", "2026", ITEMS).items()]
    submit = ["submit", reports, "--year", "2026", "--track", "strict-small", "--out", str(tmp_path / "file.json")]
    assert cli([*submit, *parts]) == 0
    document = json.loads((tmp_path / "file.json").read_text())
    assert None not in document.values() and None not in document["fast_eval_results"].values()
    for kind, solutions in (("parallel", 4), ("nonparallel", 2)):
        cell = next(cell for cell in runs.read(final) if cell.suite == f"global-piqa-{kind}-2026")
        told = document[f"global_piqa_{kind}"]
        for prediction in runs.predictions(str(final), cell):
            [row] = told[prediction.labels["example"]]["predictions"]
            assert row["id"] == prediction.id and row["pred"].startswith(" ") and len(prediction.scores) == solutions
        fast_scores = document["fast_eval_results"][f"global_piqa_{kind}"]
        assert len(fast_scores) == len(MILESTONES) and all(0 <= s[f"global_piqa_{kind}"] <= 1 for s in fast_scores)
    assert len(document["reading"]["reading"]["predictions"]) == WORDS
