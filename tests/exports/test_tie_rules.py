"""Ties in a leaderboard's file: answered as the year's official code answers, and told, whatever
the run's own rule.
"""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import leaderboard_runs
import pytest
from official_collators import argmax_first, compute_subtask_accuracies
from prediction_rows import PredictionRow, from_rows

from antlm_bench import runs
from antlm_bench.commands.submit import Submission, submit
from antlm_bench.exports import leaderboard
from antlm_bench.exports.leaderboard_file import LeaderboardFileBuilder
from antlm_bench.metrics import summarize
from antlm_bench.suites import loader
from antlm_bench.types import Cell, Item, Run

MOST = 8  # items per group
PARTS = [
    pytest.param(year, part, id=f"{year}-{part.key}")
    for year in ("2024", "2025")
    for part in leaderboard.load_leaderboard(year).parts
    if part.suite in leaderboard_runs.TEXT_SUITE_SPECS
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        leaderboard, "load_schema", lambda name: leaderboard_runs.shrink_schema(name, MOST)
    )
    monkeypatch.setattr(
        loader, "load_suite", lambda name, **_: leaderboard_runs.make_suite(name, MOST)
    )


def planted(suite: str, share: float = 0.5) -> list[PredictionRow]:
    """A model with ties, half of them between options of which the right one is none where there
    are more than two.
    """
    rng = random.Random(f"{suite} {share}")
    made = []
    for item in leaderboard_runs.make_suite(suite, MOST).items:
        k, tied = len(item.options), rng.random() < share
        scores = [-1.0] * k if tied else [-rng.random() for _ in range(k)]
        if tied and k > 2 and rng.random() < 0.5:
            scores[0] = -2.0
        made.append(leaderboard_runs.make_prediction(item, scores=tuple(scores)))
    return made


def cell_of(
    suite: str, predictions: list[PredictionRow], ties: str = "half", year: str = "2025"
) -> Cell:
    """As `score` leaves it, with a summary by a rule of the run's own."""
    spec = leaderboard_runs.TEXT_SUITE_SPECS[suite]
    known = {"macro": spec.macro, "groups": spec.groups[-1:], "ties": ties}
    summary = summarize(
        from_rows(predictions), suite=suite, method="causal", metric=spec.metric, **known
    )
    known = {"ties": ties, "reduction": "sum", "suite_digest": f"digest of {suite}", "limit": None}
    return Cell(suite, "causal", "k", known | leaderboard_runs.CONVENTIONS[year], summary)


def sent(
    folder: Path, year: str, suite: str, predictions: list[PredictionRow], **options: Any
) -> tuple[Any, Submission]:
    final = leaderboard_runs.write_run(
        folder, "m", [(cell_of(suite, predictions, options.pop("run", "half"), year), predictions)]
    )
    out = folder / "file.json"
    done = submit([final], year=year, track="strict-small", out=out, allow_partial=True, **options)
    raw = done.path.read_bytes()
    return json.loads(gzip.decompress(raw) if year == "2024" else raw), done


def texts_of(answers: Any) -> dict[str, list[str]]:
    return {key: [row["pred"] for row in value["predictions"]] for key, value in answers.items()}


def text(year: str, part: leaderboard.PartSpec, item: Item, option: int) -> str:
    """The option's text, as the part has it (2024: behind lm-eval's delimiter)."""
    chosen = item.options[option]
    if chosen.span and part.answer_format != "sentence":
        return chosen.text[slice(*chosen.span)]
    return chosen.text if year != "2024" else f" {chosen.text}"


@pytest.mark.long
@pytest.mark.parametrize(("year", "part"), PARTS)
@pytest.mark.parametrize("run", ["half", "random"])
def test_a_tie_is_answered_as_the_official_code_answers_it(
    run: str, year: str, part: leaderboard.PartSpec, tmp_path: Path
) -> None:
    predictions = planted(part.suite)
    document, done = sent(tmp_path, year, part.suite, predictions, run=run)
    wanted: dict[str, list[str]] = {}
    for item, prediction in zip(
        leaderboard_runs.make_suite(part.suite, MOST).items, predictions, strict=True
    ):
        key = item.labels[leaderboard_runs.TEXT_SUITE_SPECS[part.suite].groups[-1]]
        wanted.setdefault(key, []).append(text(year, part, item, argmax_first(prediction.scores)))
    assert texts_of(document[part.key]) == wanted
    tied = sum(Counter(p.scores)[max(p.scores)] > 1 for p in predictions)
    assert any(
        note.startswith(f"{part.suite}: {tied} ties, given to the first option")
        for note in done.notes
    )


@pytest.mark.long
@pytest.mark.parametrize("suite", ["blimp-filtered", "entity-tracking-2025"])
def test_a_note_gives_the_score_under_the_other_rule(suite: str, tmp_path: Path) -> None:
    """Against files of both rules, marked by the official scorer."""
    predictions, marks = planted(suite), {}
    part = next(part for part in leaderboard.load_leaderboard("2025").parts if part.suite == suite)
    toys = leaderboard_runs.make_suite(suite, MOST).items
    ties = {p.id for p in predictions if Counter(p.scores)[max(p.scores)] > 1}
    targets: dict[str, list[str]] = {}
    for item in toys:
        key = item.labels[leaderboard_runs.TEXT_SUITE_SPECS[suite].groups[-1]]
        targets.setdefault(key, []).append(text("2025", part, item, 0))
    notes = {}
    for rule in ("first", "random"):
        document, done = sent(tmp_path / rule, "2025", suite, predictions, ties=rule)
        shares = compute_subtask_accuracies(texts_of(document[part.key]), targets)
        right = {
            row["id"]: "right" in row["pred"]
            for value in document[part.key].values()
            for row in value["predictions"]
        }
        marks[rule] = (
            f"{sum(right[one] for one in ties)} right, "
            f"{100 * sum(shares.values()) / len(shares):.2f} in all"
        )
        (notes[rule],) = [note for note in done.notes if note.startswith(suite)]
    first, drawn = (
        f"given to the first option: {marks['first']}",
        f"drawn by the item's id: {marks['random']}",
    )
    assert notes["first"] == f"{suite}: {len(ties)} ties, {first}; {drawn}"
    assert notes["random"] == f"{suite}: {len(ties)} ties, {drawn}; {first}"


@pytest.mark.long
@pytest.mark.parametrize(
    "part", leaderboard.load_leaderboard("2025").milestone_parts[:4], ids=lambda part: part.key
)
def test_fast_scores_are_the_official_collators(part: leaderboard.PartSpec, tmp_path: Path) -> None:
    checkpoints, wanted = {}, []
    toys = leaderboard_runs.make_suite(part.suite, MOST).items
    level = leaderboard_runs.TEXT_SUITE_SPECS[part.suite].groups[-1]
    for number, share in zip((1, 2, 3), (0.0, 0.4, 1.0), strict=True):
        predictions = planted(part.suite, share)
        cells = [(cell_of(part.suite, predictions), predictions)]
        checkpoints[number] = runs.open_run(
            leaderboard_runs.write_run(tmp_path / f"r{number}", f"chck_{number}M", cells)
        )
        answers: dict[str, list[str]] = {}
        targets: dict[str, list[str]] = {}
        for item, prediction in zip(toys, predictions, strict=True):
            answers.setdefault(item.labels[level], []).append(
                item.options[argmax_first(prediction.scores)].text
            )
            targets.setdefault(item.labels[level], []).append(item.options[0].text)
        wanted.append(compute_subtask_accuracies(answers, targets))
    made = fast_entries(part, checkpoints)
    assert [list(entry) for entry in made] == [list(entry) for entry in wanted]
    assert made == [pytest.approx(entry) for entry in wanted]


def fast_entries(part: leaderboard.PartSpec, checkpoints: Mapping[int, Run]) -> list[Any]:
    """What stands in the file of a track with three milestones."""
    track = leaderboard.TrackSpec(names=("strict-small",), milestones=(1, 2, 3))
    board = leaderboard.load_leaderboard("2025").model_copy(update={"track_specs": (track,)})
    collation = LeaderboardFileBuilder(
        board, "strict-small", checkpoints[3], checkpoints, leaderboard_runs.make_suite, "causal"
    )
    made = collation.build({})
    assert any(
        note.startswith(f"fast_eval_results.{part.key}: ") and "first option" in note
        for note in made.notes
    )
    return list(made.document["fast_eval_results"][part.key])


@pytest.mark.long
def test_of_two_equal_texts_either_counts_as_right(tmp_path: Path) -> None:
    """The official scorer compares texts: no rule moves the score of such a pair."""
    predictions = [
        leaderboard_runs.make_prediction(i, scores=(-1.0, -1.0), flags=("identical",))
        for i in leaderboard_runs.make_suite("supplement", MOST).items
    ]
    for rule in ("first", "random"):
        _, done = sent(tmp_path / rule, "2025", "supplement", predictions, ties=rule)
        (note,) = [note for note in done.notes if note.startswith("supplement")]
        assert note.count("40 right, 100.00 in all") == 2


@pytest.mark.long
def test_2026_draws_reproducibly_and_not_only_right_options(tmp_path: Path) -> None:
    predictions = planted("blimp-filtered", 1.0)
    once, done = sent(tmp_path / "a", "2026", "blimp-filtered", predictions)
    again, _ = sent(tmp_path / "b", "2026", "blimp-filtered", predictions, run="first")
    assert once == again and any("drawn by the item's id" in note for note in done.notes)
    answers = [one for texts in texts_of(once["blimp"]).values() for one in texts]
    assert 0.4 < sum("right" in one for one in answers) / len(answers) < 0.6


def test_a_rating_that_cannot_be_had_is_a_hole_and_not_a_nan(tmp_path: Path) -> None:
    predictions = planted("wug-adj")
    lost = predictions[0]
    predictions[0] = PredictionRow(lost.id, lost.gold, 0, (), (), (), lost.labels, ("too-long",))
    whole = planted("wug-past")
    cells = [
        (cell_of(name, some, "half", "2025"), some)
        for name, some in (("wug-adj", predictions), ("wug-past", whole))
    ]
    final = leaderboard_runs.write_run(tmp_path, "m", cells)
    done = submit(
        [final], year="2025", track="strict-small", out=tmp_path / "file.json", allow_partial=True
    )
    document = json.loads(done.path.read_text())
    (hole,) = [missing for missing in done.missing if missing.key == "wug_adj"]
    assert (
        "wug_adj" not in document
        and hole.reason == "too long for the model, without a probability: 1 item"
    )
