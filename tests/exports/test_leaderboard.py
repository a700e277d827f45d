"""The shipped schemas are the official files: counts against the suites, whole documents, and every
way to be wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import leaderboard_runs
import official_collators
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from prediction_rows import from_rows

from antlm_bench import runs
from antlm_bench.errors import DataError, UsageError
from antlm_bench.exports import leaderboard
from antlm_bench.exports.leaderboard_answers import build_text_answers
from antlm_bench.exports.leaderboard_file import LeaderboardFileBuilder
from antlm_bench.suites import loader
from antlm_bench.suites.task_types import Suite
from antlm_bench.types import Item, Option

YEARS = leaderboard.list_years()
PARTS = [
    pytest.param(board, part, id=f"{board.year}-{part.key}")
    for board in map(leaderboard.load_leaderboard, YEARS)
    for part in board.parts
    if part.suite in leaderboard_runs.TEXT_SUITE_SPECS
]


@pytest.mark.long
@pytest.mark.parametrize("year", YEARS)
def test_every_leaderboard_has_a_schema_that_is_one(year: str) -> None:
    board = leaderboard.load_leaderboard(year)
    Draft202012Validator.check_schema(leaderboard.load_schema(board.name))
    known = leaderboard.load_schema(board.name)["properties"]
    assert {part.key for part in board.parts} | (
        {board.milestones_key} if board.milestone_parts else set()
    ) == set(known)
    if board.milestone_parts:
        assert {part.key for part in board.milestone_parts} == set(
            known[board.milestones_key]["properties"]
        )


@pytest.mark.parametrize(("board", "part"), PARTS)
def test_official_counts_are_those_of_our_suites(board: Any, part: Any) -> None:
    assert leaderboard.count_expected_answers(board.name, part.key) == leaderboard_runs.group_sizes(
        part.suite
    )
    assert leaderboard.count_expected_subkeys(board.name, part.key) == (
        leaderboard_runs.TEXT_SUITE_SPECS[part.suite].expect.items if part.group_level else None
    )


@pytest.mark.parametrize("year", ["2025", "2026"])
def test_fast_keys_are_those_of_our_suites(year: str) -> None:
    board = leaderboard.load_leaderboard(year)
    known = leaderboard.load_schema(board.name)["properties"]["fast_eval_results"]["properties"]
    for part in board.milestone_parts:
        if part.suite in leaderboard_runs.TEXT_SUITE_SPECS:
            groups = set(leaderboard_runs.group_sizes(part.suite)) or {part.key}
            assert set(known[part.key]["items"]["properties"]) == groups


def test_official_counts_of_the_finetuned_tasks() -> (
    None
):  # evaluation-pipeline-2025, collate_preds.py
    official = {
        "boolq": 1635,
        "mnli": 4908,
        "mrpc": 204,
        "multirc": 2424,
        "qqp": 20215,
        "rte": 139,
        "wsc": 52,
    }
    assert (
        leaderboard.count_expected_answers("babylm-2025", "glue")
        == leaderboard.count_expected_answers("babylm-2026", "glue")
        == official
    )
    assert sum(leaderboard.count_expected_answers("babylm-2025", "blimp").values()) == 59_875


def test_milestones_are_the_nineteen_and_the_twenty_eight() -> None:
    for year in ("2025", "2026"):
        board = leaderboard.load_leaderboard(year)
        small, large = (
            board.milestones_of_track("strict-small"),
            board.milestones_of_track("strict"),
        )
        assert small == (*range(1, 10), *range(10, 101, 10)) and len(small) == 19
        assert (
            large == (*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100))
            and len(large) == 28
        )
    assert leaderboard.load_leaderboard("2024").milestones_of_track("strict") == ()
    with pytest.raises(UsageError, match="tracks of 2024: strict-small, strict"):
        leaderboard.load_leaderboard("2024").milestones_of_track("multimodal")


@pytest.mark.long
def test_a_file_of_official_size_validates(tmp_path: Path) -> None:
    """100,000 answers of 2025; COMPS, as many again, is of the same kind."""
    final = runs.open_run(
        leaderboard_runs.write_final_run(tmp_path / "main", "2025", without="comps")
    )
    board = leaderboard.load_leaderboard("2025")
    collation = LeaderboardFileBuilder(
        board, "strict-small", final, {}, leaderboard_runs.make_suite, "causal"
    ).build({})
    absent = {missing.key for missing in collation.missing_parts}
    assert absent == {
        "aoa",
        "comps",
        *(f"fast_eval_results.{part.key}" for part in board.milestone_parts),
    }
    leaderboard.validate_document(collation.document, board.name, missing_keys=absent)


def test_global_piqa_of_official_size_validates(tmp_path: Path) -> None:
    cells = []
    for kind in ("parallel", "nonparallel"):
        name = f"global-piqa-{kind}-2026"
        predictions = [
            leaderboard_runs.make_prediction(item)
            for item in leaderboard_runs.make_suite(name).items
        ]
        cells.append(
            (leaderboard_runs.make_cell(name, predictions, reduction="per-token"), predictions)
        )
    final = runs.open_run(leaderboard_runs.write_run(tmp_path / "main", "m", cells))
    board = leaderboard.load_leaderboard("2026")
    collation = LeaderboardFileBuilder(
        board, "strict-small", final, {}, leaderboard_runs.make_suite, "causal"
    ).build({})
    document, absent = collation.document, [missing.key for missing in collation.missing_parts]
    leaderboard.validate_document(document, board.name, missing_keys=absent)
    assert [len(document[f"global_piqa_{kind}"]) for kind in ("parallel", "nonparallel")] == [
        103,
        100,
    ]
    document["global_piqa_parallel"].popitem()
    with pytest.raises(DataError, match=r"does not match the schema babylm-2026\.json") as caught:
        leaderboard.validate_document(document, board.name, missing_keys=absent)
    assert caught.value.location == "global_piqa_parallel"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(document, schema) of 2025 with two items per group."""
    root = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            leaderboard, "load_schema", lambda name: leaderboard_runs.shrink_schema(name, 2)
        )
        final = runs.open_run(leaderboard_runs.write_final_run(root / "main", "2025", 2))
        milestone = runs.open_run(leaderboard_runs.write_milestone_run(root / "fast", "2025", 1))
        board = leaderboard.load_leaderboard("2025")
        runs_of = dict.fromkeys(board.milestones_of_track("strict-small"), milestone)
        given = {
            key: json.loads(Path(file).read_text())
            for key, file in leaderboard_runs.write_acquisition_files(root / "p", "2025").items()
        }
        texts = partial(leaderboard_runs.make_suite, most=2)
        collation = LeaderboardFileBuilder(
            board, "strict-small", final, runs_of, texts, "causal"
        ).build(given)
        assert not collation.missing_parts
        return collation.document, leaderboard.load_schema("babylm-2025")


WRONG: dict[str, Callable[[Any], Any]] = {
    "a part is gone": lambda d: d.pop("comps"),
    "a part too many": lambda d: d.update(cola={}),
    "a part is null": lambda d: d.update(blimp=None),
    "a group is gone": lambda d: d["blimp"].pop("wh_island"),
    "a group too many": lambda d: d["blimp"].update(wh_islands={"predictions": []}),
    "an answer is gone": lambda d: d["ewok"]["physical-dynamics"]["predictions"].pop(),
    "an answer too many": lambda d: d["comps"]["base"]["predictions"].append(
        {"id": "base_9", "pred": "x"}
    ),
    "an answer is an index": lambda d: d["blimp"]["wh_island"]["predictions"][0].update(pred=0),
    "an answer is null": lambda d: d["blimp"]["wh_island"]["predictions"][0].update(pred=None),
    "an answer says more": lambda d: d["blimp"]["wh_island"]["predictions"][0].update(gold=0),
    "a label is a word": lambda d: d["glue"]["rte"]["predictions"][0].update(pred="entailment"),
    "a task is gone": lambda d: d["glue"].pop("wsc"),
    "no probability": lambda d: d["wug_adj"]["wug_adj"]["predictions"][0].pop("prob"),
    "more than certain": lambda d: d["wug_adj"]["wug_adj"]["predictions"][0].update(prob=1.5),
    "a milestone is gone": lambda d: d["fast_eval_results"]["blimp"].pop(),
    "a milestone is null": lambda d: d["fast_eval_results"]["blimp"].__setitem__(3, None),
    "an accuracy in percent": lambda d: d["fast_eval_results"]["blimp"][0].update(wh_island=71.5),
    "a fast part is gone": lambda d: d["fast_eval_results"].pop("wug_past"),
    "a step by another name": lambda d: d["aoa"]["results"][0].update(step="step-100"),
}


@pytest.mark.long
def test_the_unbroken_document_is_right(small: Any) -> None:
    document, schema = small
    assert not list(Draft202012Validator(schema).iter_errors(document))


@pytest.mark.long
@pytest.mark.parametrize("wrong", WRONG)
def test_a_broken_document_fails(wrong: str, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    document, schema = deepcopy(small[0]), small[1]
    monkeypatch.setattr(leaderboard, "load_schema", lambda name: schema)
    WRONG[wrong](document)
    with pytest.raises(DataError, match=r"does not match the schema babylm-2025\.json"):
        leaderboard.validate_document(document, "babylm-2025")


@pytest.mark.long
@given(
    st.lists(
        st.lists(st.sampled_from([-1.0, -2.0, -2.5]), min_size=2, max_size=4),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from(["half", "strict", "random", "first"]),
    st.sampled_from(["random", "first"]),
)
@settings(max_examples=60, deadline=None)
def test_the_text_is_always_a_best_option(scores: Any, ties: str, rule: Any) -> None:
    made = [
        Item(f"g_{n}", tuple(Option(str(k)) for k in range(len(s))), 0, {"g": "g"})
        for n, s in enumerate(scores)
    ]
    suite = Suite("s", "1", "", "", "accuracy", ("g",), ("g",), tuple(made), "d")
    predictions = [
        leaderboard_runs.make_prediction(item, scores=tuple(s))
        for item, s in zip(made, scores, strict=True)
    ]
    part = leaderboard.PartSpec(key="s")
    answers, _ = build_text_answers(
        part, from_rows(predictions), suite, leaderboard_runs.make_cell("s", [], ties=ties), rule
    )
    again, _ = build_text_answers(
        part,
        from_rows(predictions[::-1]),
        suite,
        leaderboard_runs.make_cell("s", [], ties=ties),
        rule,
    )
    rows = answers["g"]["predictions"]
    assert (
        rows == again["g"]["predictions"][::-1]
    )  # an item's answer depends on nothing but the item
    for row, s in zip(rows, scores, strict=True):
        assert s[int(row["pred"])] == max(s)
        assert rule != "first" or int(row["pred"]) == s.index(max(s))


@pytest.mark.long
@pytest.mark.parametrize("name", ["entity-tracking-2025", "wug-adj", "wug-past", "supplement"])
def test_texts_are_those_of_the_official_files(
    name: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again from the files, line by line, the slow way: the n-th answer of a group is a text
    of its n-th line.
    """
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(data_root))
    suite = loader.load_suite(name)
    predictions = [
        leaderboard_runs.make_prediction(item, n % 2) for n, item in enumerate(suite.items)
    ]
    cell = leaderboard_runs.make_cell(name, predictions, suite_digest=suite.digest)
    final = runs.open_run(leaderboard_runs.write_run(tmp_path / "run", "m", [(cell, predictions)]))
    board = leaderboard.load_leaderboard("2025")
    document = (
        LeaderboardFileBuilder(board, "strict-small", final, {}, loader.load_suite, "causal")
        .build({})
        .document
    )
    ((key, groups),) = (
        (key, value) for key, value in document.items() if key != "fast_eval_results"
    )
    assert {
        group: len(rows["predictions"]) for group, rows in groups.items()
    } == leaderboard.count_expected_answers(board.name, key)
    answered = [row["pred"] for rows in groups.values() for row in rows["predictions"]]
    possible = [
        option.text[slice(*option.span)] if option.span else option.text
        for i in suite.items
        for option in i.options
    ]
    assert set(answered) <= set(possible)
    for group, rows in groups.items():
        assert [row["id"] for row in rows["predictions"]] == [
            f"{group}_{n}" for n in range(len(rows["predictions"]))
        ]


@pytest.mark.parametrize("year", YEARS)
def test_official_counts_are_those_of_the_official_collators(year: str) -> None:
    """Their tables against our schemas, which say nothing of each other."""
    for part, wanted in official_collators.expected_sizes(year).items():
        ours = leaderboard.count_expected_answers(f"babylm-{year}", part)
        assert {key.lower(): n for key, n in ours.items()} == wanted
    for part, n in official_collators.GLOBAL_PIQA.items() if year == "2026" else ():
        assert leaderboard.count_expected_subkeys(f"babylm-{year}", part) == n
