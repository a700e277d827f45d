"""Age of acquisition in the leaderboard's file: every word of every milestone, and the number made
of just these.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import leaderboard_runs
import pytest
from prediction_rows import PredictionRow

from antlm_bench import runs
from antlm_bench.exports import leaderboard
from antlm_bench.exports.leaderboard_file import LeaderboardFile, LeaderboardFileBuilder
from antlm_bench.suites.task_types import Suite
from antlm_bench.types import Cell, Estimate, Item, Option, Run, Summary

WORDS = "aoa-words-2026"
CONTEXTS = [("cat", 0, "the"), ("cat", 1, "some old "), ("ice cream", 0, "I like")]


def suite(name: str = WORDS) -> Suite:
    items = [
        Item(
            f"{word}_{n}",
            (Option(f"{context} {word}", (len(context) + 1, len(context) + 1 + len(word))),),
            0,
        )
        for word, n, context in CONTEXTS
    ]
    return Suite(name, "1", "", "", "surprisal", (), (), tuple(items), "the digest")


def words(milestone: int, **settings: Any) -> tuple[Cell, list[PredictionRow]]:
    """A milestone's surprisals: the third context did not fit at 3M."""
    made = [
        PredictionRow(
            item.id,
            0,
            0,
            (-float(milestone + n),),
            (1,),
            (3,),
            flags=("too-long",) * (n == 2 and milestone == 3),
        )
        for n, item in enumerate(suite().items)
    ]
    cell = leaderboard_runs.make_cell(WORDS, made, suite_digest="the digest", **settings)
    return replace(cell, summary=replace(cell.summary, metric="surprisal")), made


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[int, Run]:
    milestones = leaderboard.load_leaderboard("2026").milestones_of_track("strict-small")
    return {
        m: runs.open_run(leaderboard_runs.write_run(tmp_path / f"r{m}", f"chck_{m}M", [words(m)]))
        for m in milestones
    }


def number(checkpoints: dict[int, Run], value: float = -0.25) -> tuple[Cell, list[PredictionRow]]:
    """The cell that `acquisition` makes of these runs."""
    of = [
        {"words": m * 10**6, "cell": "k", "predictions": run.cells[0].digest}
        for m, run in checkpoints.items()
    ]
    summary = Summary(
        "aoa-2026", "causal", "acquisition", (), Estimate(value, 9, -0.5, 0.1), {}, ()
    )
    curve = PredictionRow("cat", 20.0, 0, (-1.0,) * len(of), (1,) * len(of), (3,) * len(of))
    return Cell("aoa-2026", "causal", "k", {"checkpoints": of}, summary), [curve]


def collated(final: Run, checkpoints: dict[int, Run], year: str = "2026") -> LeaderboardFile:
    board = leaderboard.load_leaderboard(year)
    return LeaderboardFileBuilder(board, "strict-small", final, checkpoints, suite, "causal").build(
        {}
    )


def final_of(path: Path, cells: list[tuple[Cell, list[PredictionRow]]]) -> Run:
    return runs.open_run(leaderboard_runs.write_run(path, "llama", cells))


def why(collation: LeaderboardFile, key: str) -> str:
    return next(str(missing) for missing in collation.missing_parts if missing.key == key)


def test_every_word_of_every_milestone_is_in_the_file(
    tmp_path: Path, checkpoints: dict[int, Run]
) -> None:
    final = final_of(tmp_path / "main", [number(checkpoints)])
    made = collated(final, checkpoints)
    assert made.document["aoa"] == {"aoa": -0.25}
    whole = made.document["aoa_surprisals"]
    assert whole["metadata"] == {
        "model_name": "llama",
        "use_bos_only": False,
        "total_steps": 19,
        "completed_steps": 19,
    }
    assert len(whole["results"]) == 19 * 3
    assert whole["results"][4] == {
        "step": "chck_2M",
        "word_count": 2_000_000,
        "target_word": "cat",
        "context_id": 1,
        "context": "some old ",
        "surprisal": 3.0,
    }
    last = whole["results"][-1]
    assert (last["step"], last["word_count"], last["target_word"]) == (
        "chck_100M",
        100_000_000,
        "ice cream",
    )
    lost = [row for row in whole["results"] if math.isnan(row["surprisal"])]
    assert [(row["step"], row["target_word"]) for row in lost] == [("chck_3M", "ice cream")]
    assert any(
        note.endswith("too long for the model with its context: 1 word") for note in made.notes
    )
    assert repr(collated(final, checkpoints, "2025").document["aoa"]) == repr(whole)  # NaN


def test_the_schema_requires_every_word_of_all_milestones() -> None:
    for year, key in (("2025", "aoa"), ("2026", "aoa_surprisals")):
        rows = leaderboard.load_schema(f"babylm-{year}")["properties"][key]["properties"]["results"]
        assert (rows["minItems"], rows["maxItems"]) == (19 * 8005, 28 * 8005)


def test_the_number_may_lie_beside_the_last_milestone(
    tmp_path: Path, checkpoints: dict[int, Run]
) -> None:
    kept = number(checkpoints, 0.125)
    last = runs.open_run(
        leaderboard_runs.write_run(tmp_path / "r100", "chck_100M", [words(100), kept])
    )
    made = collated(final_of(tmp_path / "main", [words(100)]), checkpoints | {100: last})
    assert made.document["aoa"] == {"aoa": 0.125}


def test_a_milestone_without_its_words_is_a_hole_in_both_parts(
    tmp_path: Path, checkpoints: dict[int, Run]
) -> None:
    final = final_of(tmp_path / "main", [number(checkpoints)])
    some = {m: run for m, run in checkpoints.items() if m != 7}
    made = collated(final, some)
    assert made.document["aoa_surprisals"] is None and made.document["aoa"] is None
    assert "no run folder (chck_7M)" in why(made, "aoa_surprisals")
    assert f"score --model 'chck_*' --suite {WORDS} --method causal" in why(made, "aoa_surprisals")
    assert f"antlm-bench acquisition {tmp_path} --suite aoa-2026" in why(made, "aoa")


def test_a_number_of_other_surprisals_is_not_sent(
    tmp_path: Path, checkpoints: dict[int, Run]
) -> None:
    kept, curves = number(checkpoints)
    changed, made = words(5)
    made[0] = replace(made[0], scores=(-0.5,))
    again = runs.open_run(leaderboard_runs.write_run(tmp_path / "r5", "chck_5M", [(changed, made)]))
    said = collated(final_of(tmp_path / "main", [(kept, curves)]), checkpoints | {5: again})
    assert "was computed from 19 checkpoints, not from the current surprisals of the 19" in why(
        said, "aoa"
    )
    some = {m: run for m, run in checkpoints.items() if m < 10}
    said = collated(final_of(tmp_path / "few", [number(some)]), checkpoints)
    assert "was computed from 9 checkpoints, not from the current surprisals of the 19" in why(
        said, "aoa"
    )
    said = collated(final_of(tmp_path / "none", [words(100)]), checkpoints)
    assert "no run has aoa-2026 by causal" in why(said, "aoa")


def test_other_texts_or_not_all_of_them_are_refused(
    tmp_path: Path, checkpoints: dict[int, Run]
) -> None:
    limited = runs.open_run(
        leaderboard_runs.write_run(tmp_path / "limited", "chck_1M", [words(1, limit=3)])
    )
    final = final_of(tmp_path / "main", [number(checkpoints)])
    assert "scored with --limit 3 (chck_1M)" in why(
        collated(final, checkpoints | {1: limited}), "aoa_surprisals"
    )
    old, made = words(2)
    settings = {**old.settings, "suite_digest": "another"}
    other = runs.open_run(
        leaderboard_runs.write_run(
            tmp_path / "r2", "chck_2M", [(replace(old, settings=settings), made)]
        )
    )
    assert "differ from the data that" in why(
        collated(final, checkpoints | {2: other}), "aoa_surprisals"
    )
