"""The leaderboard's file: complete, refused with holes, told what to do about them, and made
without torch.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import leaderboard_runs
import pytest
import typer.main
from prediction_rows import from_rows

from antlm_bench import runs
from antlm_bench.cli.app import build_app
from antlm_bench.cli.app import run as cli
from antlm_bench.commands.submit import submit
from antlm_bench.errors import DataError, IncompleteError, RunError, UsageError
from antlm_bench.exports import leaderboard
from antlm_bench.exports.leaderboard import build_model_arguments
from antlm_bench.suites import loader
from antlm_bench.types import Cell

STRICT_SMALL = [*range(1, 10), *range(10, 101, 10)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Three items per group instead of the official numbers, in schema, data and runs alike."""
    monkeypatch.setattr(
        leaderboard, "load_schema", lambda name: leaderboard_runs.shrink_schema(name, 3)
    )
    monkeypatch.setattr(
        loader, "load_suite", lambda name, **_: leaderboard_runs.make_suite(name, 3)
    )
    return 3


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders of a complete submission of 2025, three items per group; to be copied."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            leaderboard, "load_schema", lambda name: leaderboard_runs.shrink_schema(name, 3)
        )
        leaderboard_runs.write_final_run(root / "main", "2025", 3)
        milestones(root, "2025")
    return root


@pytest.fixture
def complete(small: int, made: Path, tmp_path: Path) -> list[Path]:
    """Copies of them."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return [tmp_path / "main", *(tmp_path / f"r{milestone}" for milestone in STRICT_SMALL)]


def milestones(folder: Path, year: str) -> list[Path]:
    return [leaderboard_runs.write_milestone_run(folder / f"r{m}", year, m) for m in STRICT_SMALL]


def send(folders: list[Path], tmp_path: Path, year: str = "2025", **options: Any) -> dict[str, Any]:
    options = {
        "parts": leaderboard_runs.write_acquisition_files(tmp_path / "parts", year),
        "track": "strict-small",
        **options,
    }
    done = submit(folders, year=year, out=tmp_path / "file.json", **options)
    return dict(json.loads(done.path.read_text()))


@pytest.mark.long
@pytest.mark.parametrize("year", ["2025", "2026"])
def test_complete_runs_become_the_official_collators_file(
    year: str, small: int, tmp_path: Path
) -> None:
    folders = [
        leaderboard_runs.write_final_run(tmp_path / "main", year, small),
        *milestones(tmp_path, year),
    ]
    document = send(folders, tmp_path, year)
    assert list(document) == [
        p.key for p in leaderboard.load_leaderboard(year).parts_of_track("strict-small")
    ] + ["fast_eval_results"]
    rows = document["blimp"]["wh_island"]["predictions"]
    assert [row["id"] for row in rows] == ["wh_island_0", "wh_island_1", "wh_island_2"]
    assert all(
        row["pred"] in (f"wh_island {n} right.", f"wh_island {n} wrong.")
        for n, row in enumerate(rows)
    )
    ewok = document["ewok"]["physical-dynamics"]["predictions"][0]["pred"]
    assert ewok.startswith(" physical" if year == "2025" else "Context. physical")
    assert document["comps"]["base"]["predictions"][0]["pred"].startswith("Context. base 0")
    assert document["glue"]["rte"]["predictions"][:2] == [
        {"id": "rte_0", "pred": 1},
        {"id": "rte_1", "pred": 0},
    ]
    reading = document["reading"]["reading"]["predictions"]
    assert reading[1] == {"id": 1, "pred": 3.5, "prev_pred": 1.25} and math.isnan(
        reading[0]["prev_pred"]
    )
    assert document["fast_eval_results"]["reading"] == [{"rt": 0.01, "spr": 0.01}] * 19
    fast = document["fast_eval_results"]
    assert [entry["wh_island"] for entry in fast["blimp"]] == [m / 1000 for m in STRICT_SMALL]
    if year == "2026":
        for kind, key in (
            ("parallel", "global_piqa_parallel"),
            ("nonparallel", "global_piqa_nonparallel"),
        ):
            assert list(document[key]) == ["example 0", "example 1", "example 2"], kind
            assert document[key]["example 1"] == {
                "predictions": [{"id": "example 1_0", "pred": " 1 of 1."}]
            }
            assert fast[key] == [{key: m / 1000} for m in STRICT_SMALL]


@pytest.mark.long
def test_global_piqa_has_one_answer_per_example_and_all_of_them(small: int, tmp_path: Path) -> None:
    final = leaderboard_runs.write_final_run(
        tmp_path / "main", "2026", small, without="global-piqa-parallel-2026"
    )
    suite = leaderboard_runs.make_suite("global-piqa-parallel-2026", 2)
    predictions = [leaderboard_runs.make_prediction(item) for item in suite.items]
    with runs.RunWriter(final, runs.open_run(final).manifest) as writer:
        writer.write_cell(
            leaderboard_runs.make_cell("global-piqa-parallel-2026", predictions),
            from_rows(predictions),
        )
    done = submit(
        [final], year="2026", track="strict-small", out=tmp_path / "f.json", allow_partial=True
    )
    (hole,) = [missing for missing in done.missing if missing.key == "global_piqa_parallel"]
    assert (
        hole.reason == "incomplete: 2 of 3" and "data fetch global-piqa-parallel-2026" in hole.hint
    )
    document = json.loads(done.path.read_text())
    assert (
        document["global_piqa_parallel"] is None and len(document["global_piqa_nonparallel"]) == 3
    )


def test_where_the_mean_per_token_decided_its_choice_is_written(small: int, tmp_path: Path) -> None:
    """Sums say the first solution, means the second: the file says what the run counted."""
    name = "global-piqa-nonparallel-2026"
    made = [
        leaderboard_runs.make_prediction(i, scores=(-2.0, -3.0), tokens=(1, 3))
        for i in leaderboard_runs.make_suite(name, 3).items
    ]
    for reduction, k in (("sum", 0), ("per-token", 1)):
        cell = leaderboard_runs.make_cell(name, made, reduction=reduction)
        final = leaderboard_runs.write_run(tmp_path / reduction, "m", [(cell, made)])
        done = submit(
            [final],
            year="2026",
            track="strict",
            out=tmp_path / f"{k}.json",
            allow_partial=True,
            allow_conventions=reduction == "sum",
        )
        document = json.loads(done.path.read_text())
        assert document["glue"] == {}, (
            "officially a file without labels has an empty table, not null"
        )
        answers = document["global_piqa_nonparallel"]
        assert [row["predictions"][0]["pred"] for row in answers.values()] == [
            f" {n} of {k}." for n in range(3)
        ]


@pytest.mark.long
def test_a_wug_answer_carries_the_softmax_share_of_the_first_form(
    complete: list[Path], tmp_path: Path
) -> None:
    (row, *_) = send(complete, tmp_path)["wug_adj"]["wug_adj"]["predictions"]
    e = 2.718281828459045
    assert row["prob"] == pytest.approx(e**-1 / (e**-1 + 2 * e**-2))
    assert row == {"id": "wug_adj_0", "pred": "wug_adj 0 right.", "prob": row["prob"]}


@pytest.mark.long
def test_2024_is_packed_and_holds_no_milestones(small: int, tmp_path: Path) -> None:
    final = leaderboard_runs.write_final_run(tmp_path / "main", "2024", small)
    milestone = leaderboard_runs.write_milestone_run(
        tmp_path / "r1", "2025", 1
    )  # of another year's: no word about it
    done = submit([final, milestone], year="2024", track="strict", out=tmp_path)
    assert done.path.name == "main_textonly_predictions.json.gz" and not done.missing
    assert not any("milestone" in note for note in done.notes)
    document = json.loads(gzip.decompress(done.path.read_bytes()))
    assert list(document) == ["glue", "blimp", "blimp_supplement", "ewok"]
    assert document["ewok"]["physical-dynamics"]["predictions"][0]["pred"].startswith(
        " physical-dynamics 0 "
    )
    assert document["blimp"]["wh_island"]["predictions"][0] == {
        "id": "wh_island_0",
        "pred": " wh_island 0 wrong.",
    }
    assert document["glue"]["mnli-mm"]["predictions"][0] == {"id": "mnli-mm_0", "pred": 1}


def test_a_suite_that_was_never_finetuned_is_one_hole(small: int, tmp_path: Path) -> None:
    final = leaderboard_runs.write_final_run(tmp_path / "main", "2025", small)
    options = {"allow_partial": True, "allow_conventions": True}  # the run is by those of 2025
    (missing,) = submit([final], year="2024", track="strict", out=tmp_path, **options).missing
    command = "antlm-bench finetune --model out/llama/main --suite glue-2024 --attention causal"
    command += " --compat babylm-2024 --seed 12 --out"
    assert missing.key == "glue" and missing.hint == f"{command} {final}"


@pytest.mark.long
def test_milestones_of_equal_weights_are_refused(complete: list[Path], tmp_path: Path) -> None:
    predictions = [
        leaderboard_runs.make_prediction(leaderboard_runs.make_suite("comps", 1).items[0])
    ]
    cells = [(leaderboard_runs.make_cell("comps", predictions), predictions)]
    twin = leaderboard_runs.write_run(
        tmp_path / "twin", "out/llama/chck_200M", cells, weights="out/llama/chck_7M"
    )
    with pytest.raises(UsageError, match="chck_7M and out/llama/chck_200M have the same weights"):
        send([*complete, twin], tmp_path)


@pytest.mark.long
def test_a_missing_part_is_named_with_the_command_that_makes_it(
    complete: list[Path], tmp_path: Path
) -> None:
    drop(complete[0], "comps")
    with pytest.raises(IncompleteError, match="1 parts") as caught:
        send(complete, tmp_path)
    assert caught.value.exit_code == 5
    command = "antlm-bench score --model out/llama/main --suite comps --method causal"
    assert f"{command} --compat babylm-2025 --out {complete[0]}" in str(caught.value)
    assert not (tmp_path / "file.json").exists()


@pytest.mark.long
def test_a_milestone_that_is_missing_is_named(complete: list[Path], tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match=r"chck_7M\)") as caught:
        send([folder for folder in complete if folder.name != "r7"], tmp_path)
    assert "--model 'out/llama/chck_*' --suite blimp-fast" in str(caught.value)


def test_every_milestone_has_its_own_reason_and_command(
    complete: list[Path], tmp_path: Path
) -> None:
    """No run, a few items only, a suite that is missing, and one that is cut short."""
    kept = [folder for folder in complete if folder.name != "r7"]
    by_name = {folder.name: folder for folder in kept}
    document = json.loads((by_name["r5"] / "run.json").read_text())
    next(cell for cell in document["cells"] if cell["suite"] == "blimp-fast")["settings"][
        "limit"
    ] = 3
    (by_name["r5"] / "run.json").write_text(json.dumps(document))
    drop(by_name["r3"], "blimp-fast")
    drop(by_name["r4"], "blimp-fast")
    with pytest.raises(IncompleteError, match="7 parts") as caught:
        send(kept, tmp_path)
    reasons = "no blimp-fast by causal (chck_3M, chck_4M); scored with --limit 3 (chck_5M)"
    reasons += "; no run folder (chck_7M)"
    assert f"fast_eval_results.blimp: {reasons}" in str(caught.value)
    for number in (3, 4, 5):
        folder = by_name[f"r{number}"]
        command = f"--model out/llama/chck_{number}M --suite blimp-fast --method causal"
        assert f"{command} --compat babylm-2025 --out {folder}" in str(caught.value)
    assert "--model 'out/llama/chck_*' --suite blimp-fast" in str(caught.value)


def test_milestones_of_one_folder_are_scored_by_one_command(
    complete: list[Path], tmp_path: Path
) -> None:
    """The run folders have the names that `score --model 'out/llama/chck_*'` gives them."""
    final, *milestone_runs = complete
    renamed = [folder.rename(tmp_path / f"chck_{folder.name[1:]}M-0") for folder in milestone_runs]
    drop(renamed[2], "blimp-fast")
    drop(renamed[3], "blimp-fast")
    with pytest.raises(IncompleteError, match=r"\(chck_3M, chck_4M\)") as caught:
        send([final, *renamed], tmp_path)
    command = "--model 'out/llama/chck_*' --suite blimp-fast --method causal"
    assert f"{command} --compat babylm-2025 --out {tmp_path}\n" in str(caught.value)
    assert "--model out/llama/chck_3M" not in str(caught.value)


def test_a_milestone_whose_predictions_are_damaged_is_a_hole(
    complete: list[Path], tmp_path: Path
) -> None:
    """Where there are ties, a fast score is made of the predictions."""
    run = next(folder for folder in complete if folder.name == "r2")
    document = json.loads((run / "run.json").read_text())
    cell = next(cell for cell in document["cells"] if cell["suite"] == "blimp-fast")
    cell["summary"]["headline"]["flags"] = {"tie": 1}
    (run / "run.json").write_text(json.dumps(document))
    (run / "predictions" / "blimp-fast.causal.parquet").write_bytes(b"PAR1")
    with pytest.raises(IncompleteError, match="1 parts") as caught:
        send(complete, tmp_path)
    assert "not the bytes that run.json describes: cut short or edited (chck_2M)" in str(
        caught.value
    )


@pytest.mark.long
def test_a_milestone_whose_summary_was_edited_is_a_hole(
    complete: list[Path], tmp_path: Path
) -> None:
    run = next(folder for folder in complete if folder.name == "r2")
    document = json.loads((run / "run.json").read_text())
    cell = next(cell for cell in document["cells"] if cell["suite"] == "blimp-fast")
    cell["summary"]["headline"]["value"] = 0.999
    (run / "run.json").write_text(json.dumps(document))
    with pytest.raises(IncompleteError, match="1 parts") as caught:
        send(complete, tmp_path)
    assert "does not match its predictions" in str(caught.value) and "(chck_2M)" in str(
        caught.value
    )


@pytest.mark.long
def test_holes_are_written_on_request_and_announced(complete: list[Path], tmp_path: Path) -> None:
    done = submit(
        complete, year="2025", track="strict-small", out=tmp_path / "f.json", allow_partial=True
    )
    assert [m.key for m in done.missing] == ["aoa"]
    assert "aoa" not in json.loads(done.path.read_text())


@pytest.mark.long
def test_2026_writes_null_where_its_collator_does(small: int, tmp_path: Path) -> None:
    final = leaderboard_runs.write_final_run(tmp_path / "main", "2026", small)
    document = send([final], tmp_path, "2026", parts={}, allow_partial=True)
    assert (
        document["aoa"] is None
        and document["fast_eval_results"]["global_piqa_parallel"] == [None] * 19
    )
    assert document["fast_eval_results"]["blimp"] == [None] * 19


def test_an_item_that_did_not_fit_is_written_as_wrong(small: int, tmp_path: Path) -> None:
    suite = leaderboard_runs.make_suite("supplement", 3)
    lost = [
        leaderboard_runs.make_prediction(item, 0, scores=(-1.0, -1.0), flags=("too-long",))
        for item in suite.items
    ]
    final = leaderboard_runs.write_run(
        tmp_path / "run", "m", [(leaderboard_runs.make_cell("supplement", lost), lost)]
    )
    document = send([final], tmp_path, parts={}, allow_partial=True)
    texts = [
        row["pred"] for part in document["blimp_supplement"].values() for row in part["predictions"]
    ]
    assert texts and not any(text.endswith("right.") for text in texts)


@pytest.mark.long
def test_other_data_than_were_scored_are_refused(complete: list[Path], tmp_path: Path) -> None:
    suite = leaderboard_runs.make_suite("comps", 3)
    predictions = [leaderboard_runs.make_prediction(item) for item in suite.items]
    with runs.RunWriter(complete[0], runs.open_run(complete[0]).manifest) as writer:
        writer.write_cell(
            leaderboard_runs.make_cell("comps", predictions, suite_digest="another"),
            from_rows(predictions),
        )
    with pytest.raises(IncompleteError, match=r"differ from the data that .* was scored on"):
        send(complete, tmp_path)


def test_a_suite_that_lacks_items_is_a_hole(
    complete: list[Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(
        leaderboard, "load_schema", lambda name: leaderboard_runs.shrink_schema(name, 4)
    )
    with pytest.raises(
        IncompleteError, match="adjunct_island 3 of 4, anaphor_gender_agreement 3 of 4"
    ):
        send(complete, tmp_path)


def test_a_run_of_a_few_items_is_a_hole(small: int, tmp_path: Path) -> None:
    final = leaderboard_runs.write_final_run(tmp_path / "main", "2025", small, limit=3)
    with pytest.raises(IncompleteError, match="scored with --limit 3"):
        submit([final], year="2025", track="strict-small", out=tmp_path / "f.json")


def test_the_official_seed_is_taken_and_said_and_others_must_be_chosen(
    small: int, tmp_path: Path
) -> None:
    def with_seeds(name: str, *seeds: int) -> Path:
        cells = [
            (
                leaderboard_runs.make_finetuned_cell("rte", seed),
                leaderboard_runs.make_class_predictions("rte", 3),
            )
            for seed in seeds
        ]
        scored = leaderboard_runs.make_suite("supplement", 3)
        predictions = [leaderboard_runs.make_prediction(item) for item in scored.items]
        return leaderboard_runs.write_run(
            tmp_path / name,
            "m",
            [*cells, (leaderboard_runs.make_cell("supplement", predictions), predictions)],
        )

    def ask(folder: Path, seed: int | None = None) -> Any:
        return submit(
            [folder],
            year="2026",
            track="strict-small",
            out=tmp_path / "f",
            seed=seed,
            allow_partial=True,
        )

    assert "glue: the labels of seed 42" in ask(with_seeds("a", 1, 42, 3)).notes
    assert "glue: the labels of seed 7" in ask(with_seeds("b", 7)).notes
    with pytest.raises(UsageError, match="rte has the seeds 1, 2"):
        ask(with_seeds("c", 1, 2))
    assert "glue: the labels of seed 2" in ask(tmp_path / "c", 2).notes
    lacking = {missing.key: missing for missing in ask(tmp_path / "c", 9).missing}
    assert "no glue-2025.rte of seed 9" in lacking["glue.rte"].reason
    options = {"allow_partial": True, "allow_conventions": True}
    never = submit(
        [tmp_path / "c"], year="2024", track="strict", out=tmp_path / "g", seed=0, **options
    )
    assert "--seed 0 " in next(missing.hint for missing in never.missing if missing.key == "glue")


def test_the_official_seed_of_2024_is_another(small: int, tmp_path: Path) -> None:
    cells = [
        (
            leaderboard_runs.make_finetuned_cell("rte", seed, suite="glue-2024"),
            leaderboard_runs.make_class_predictions("rte", 3),
        )
        for seed in (1, 12, 42)
    ]
    predictions = [
        leaderboard_runs.make_prediction(item)
        for item in leaderboard_runs.make_suite("supplement", 3).items
    ]
    scored = leaderboard_runs.make_cell(
        "supplement", predictions, **leaderboard_runs.CONVENTIONS["2024"]
    )
    final = leaderboard_runs.write_run(tmp_path / "run", "m", [*cells, (scored, predictions)])
    done = submit([final], year="2024", track="strict", out=tmp_path / "f", allow_partial=True)
    assert "glue: the labels of seed 12" in done.notes


def test_collapsed_labels_are_said(small: int, tmp_path: Path) -> None:
    cell = leaderboard_runs.make_finetuned_cell(
        "rte", 42, "finetune-full", {"collapsed": ["always 0"]}
    )
    predictions = [
        leaderboard_runs.make_prediction(item)
        for item in leaderboard_runs.make_suite("supplement", 3).items
    ]
    cells = [
        (cell, leaderboard_runs.make_class_predictions("rte", 3)),
        (leaderboard_runs.make_cell("supplement", predictions), predictions),
    ]
    final = leaderboard_runs.write_run(tmp_path / "run", "m", cells)
    done = submit(
        [final], year="2026", track="strict-small", out=tmp_path / "f", allow_partial=True
    )
    assert "glue.rte of seed 42 collapsed: always 0" in done.notes
    assert "glue: the labels of seed 42, finetune-full (there is no finetune-causal)" in done.notes


@pytest.mark.long
def test_a_hybrid_s_methods_are_submitted_one_by_one(complete: list[Path], tmp_path: Path) -> None:
    predictions = [
        leaderboard_runs.make_prediction(item)
        for item in leaderboard_runs.make_suite("comps", 3).items
    ]
    cell = leaderboard_runs.make_cell("comps", predictions)
    with runs.RunWriter(complete[0], runs.open_run(complete[0]).manifest) as writer:
        writer.write_cell(
            type(cell)("comps", "mntp", "k", cell.settings, cell.summary), from_rows(predictions)
        )
    with pytest.raises(UsageError, match="was scored by causal, mntp"):
        send(complete, tmp_path)
    assert send(complete, tmp_path, method="causal")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"year": "2022"}, UsageError, "known years: 2024, 2025, 2026"),
        ({"track": "strict-smal"}, UsageError, "did you mean 'strict-small'"),
        ({"parts": {"aoaa": "x"}}, DataError, "cannot be read"),
        ({"folders": ["nowhere"]}, RunError, "not a run folder"),
    ],
)
def test_a_wrong_option_is_named(
    change: dict[str, Any], error: type[Exception], words: str, complete: list[Path], tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "folders": complete,
        "year": "2025",
        "track": "strict-small",
        "out": tmp_path / "f.json",
    }
    given |= change
    with pytest.raises(error, match=words):
        submit(given.pop("folders"), **given)


@pytest.mark.long
def test_a_part_made_elsewhere_must_be_one_of_the_file_and_right(
    complete: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text('{"metadata": {}}')
    with pytest.raises(UsageError, match="no part 'vqa'"):
        send(complete, tmp_path, parts={"vqa": str(tmp_path / "x.json")})
    parts = leaderboard_runs.write_acquisition_files(tmp_path / "parts", "2025") | {
        "aoa": str(tmp_path / "x.json")
    }
    with pytest.raises(DataError, match="'results' is a required property"):
        send(complete, tmp_path, parts=parts)
    assert not (tmp_path / "file.json").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("vqa", None, "--part vqa: null, where an answer belongs"),
        ("devbench", {"things": {"predictions": None}}, "null at things.predictions, where"),
        (
            "fast_eval_results.blimp",
            [{"wh_island": 0.5}, None],
            r"--part fast_eval_results\.blimp: null at 1, where",
        ),
        (
            "fast_eval_results.blimp",
            [{"wh_island": 0.5}] * 19,
            "19 entries, the track has 28 milestones",
        ),
        (
            "aoa_surprisals",
            {"results": [{"step": "chck_1M"}] * 3},
            "not the 28 milestones of the track: chck_1000M, ",
        ),
    ],
)
@pytest.mark.parametrize("allow", [False, True])
def test_a_part_made_elsewhere_brings_no_hole_that_nobody_announced(
    key: str, value: Any, words: str, allow: bool, small: int, tmp_path: Path
) -> None:
    """2026's schema has null for what is missing: it fits, and is a hole all the same."""
    final = leaderboard_runs.write_final_run(tmp_path / "main", "2026", small)
    (tmp_path / "x.json").write_text(json.dumps(value))
    parts = {key: str(tmp_path / "x.json")}
    with pytest.raises(DataError, match=words):
        send([final], tmp_path, "2026", track="multimodal", parts=parts, allow_partial=allow)
    assert not (tmp_path / "file.json").exists()


@pytest.mark.long
def test_a_short_part_made_elsewhere_is_no_announced_hole(small: int, tmp_path: Path) -> None:
    final = leaderboard_runs.write_final_run(tmp_path / "main", "2025", small)
    (tmp_path / "x.json").write_text('{"wh_island": {"predictions": []}}')
    with pytest.raises(DataError, match=r"'adjunct_island' is a required property") as caught:
        send([final], tmp_path, parts={"blimp": str(tmp_path / "x.json")}, allow_partial=True)
    assert caught.value.location == "blimp"


def test_two_final_models_or_twice_a_milestone_are_refused(
    complete: list[Path], tmp_path: Path
) -> None:
    other = leaderboard_runs.write_milestone_run(tmp_path / "again", "2025", 5)
    with pytest.raises(UsageError, match="two runs of chck_5M"):
        send([*complete, other], tmp_path)
    final = leaderboard_runs.write_milestone_run(tmp_path / "second", "2025", 5, "other")
    with pytest.raises(UsageError, match="2 runs of final models"):
        send([*complete, final], tmp_path)


@pytest.mark.long
def test_milestones_that_a_track_does_not_have_are_left_out_and_said(
    complete: list[Path], tmp_path: Path
) -> None:
    extra = leaderboard_runs.write_milestone_run(tmp_path / "extra", "2025", 200)
    parts = leaderboard_runs.write_acquisition_files(tmp_path / "parts", "2025")
    done = submit(
        [*complete, extra], year="2025", track="strict-small", out=tmp_path / "f.json", parts=parts
    )
    assert "left out, because strict-small does not have these milestones: chck_200M" in done.notes


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["a b'; rm -rf $HOME", "models/émile\n\x1b[31m", "../../etc/passwd", "x" * 300, "/"]
)
def test_hostile_names_of_models_stay_names(name: str, small: int, tmp_path: Path) -> None:
    final = leaderboard_runs.write_final_run(tmp_path / "main", "2025", small, name=name)
    drop(final, "comps")
    with pytest.raises(IncompleteError) as caught:
        submit([final], year="2025", track="strict-small", out=tmp_path / "f.json")
    command = next(
        line for line in str(caught.value).split("antlm-bench ") if "--suite comps" in line
    )
    assert shlex.split(command)[:3] == ["score", "--model", name]


@pytest.mark.long
def test_a_folder_of_runs_stands_for_them(complete: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    for run in complete:
        run.rename(folder / run.name)
    assert send([folder], tmp_path)["blimp"]


@pytest.mark.long
def test_the_verb_says_what_it_wrote(complete: list[Path], tmp_path: Path, capsys: Any) -> None:
    flags = [
        f"--part={key}={file}"
        for key, file in leaderboard_runs.write_acquisition_files(
            tmp_path / "parts", "2025"
        ).items()
    ]
    argv = [
        "submit",
        *map(str, complete),
        "--year",
        "2025",
        "--track",
        "strict-small",
        "--out",
        str(tmp_path),
    ]
    assert cli([*argv, *flags]) == 0
    assert "all_full_preds_and_fast_scores_causal.json" in capsys.readouterr().out
    assert cli(argv) == 5
    assert cli([*argv, "--part", "aoa"]) == 2


@pytest.mark.long
def test_no_torch_is_loaded() -> None:
    script = "from antlm_bench.cli.app import run\nimport sys\n"
    script += "argv = ['submit', 'nowhere', '--year', '2025', '--track', 'strict', '--out', 'x']\n"
    script += "assert run(argv) == 3\n"
    script += "assert run(['preflight', 'nowhere', '--track', 'strict']) == 3\n"
    script += "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'"
    subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, env={**os.environ}
    )


def test_a_hub_model_s_command_names_its_revision() -> None:
    assert build_model_arguments("lab/model@chck_3M") == [
        "--model",
        "lab/model",
        "--revision",
        "chck_3M",
    ]
    assert build_model_arguments("out@home") == ["--model", "out@home"]


@pytest.mark.long
def test_no_milestone_at_all_is_one_line_per_suite(small: int, tmp_path: Path) -> None:
    final = leaderboard_runs.write_final_run(tmp_path / "main", "2025", small)
    done = submit([final], year="2025", track="strict", out=tmp_path / "f.json", allow_partial=True)
    why = {missing.key: missing.reason for missing in done.missing}
    assert why["fast_eval_results.blimp"] == "no run folder (all 28 milestones)"


DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "submit.md").read_text(
    encoding="utf-8"
)


@pytest.mark.long
@pytest.mark.parametrize("line", re.findall(r"^antlm-bench .*", DOCUMENT, re.MULTILINE))
def test_commands_of_the_document_are_understood(line: str) -> None:
    """Parsed with every type and choice checked, not run."""
    verb, *argv = shlex.split(line)[1:]
    typer.main.get_command(build_app()).commands[verb].make_context(verb, argv)  # type: ignore[attr-defined]


def test_the_document_names_the_parts_that_others_make() -> None:
    assert "parts from other tools" in DOCUMENT
    for year in ("2025", "2026"):
        for part in leaderboard.load_leaderboard(year).parts:
            assert part.suite or part.hint, f"{year} {part.key}: nobody knows who makes it"


def drop(folder: Path, suite: str) -> None:
    """Take a suite out of a run."""
    document = json.loads((folder / "run.json").read_text())
    document["cells"] = [cell for cell in document["cells"] if cell["suite"] != suite]
    (folder / "run.json").write_text(json.dumps(document))


def test_an_unknown_method_is_refused(complete: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown method 'mntpp'") as caught:
        send(complete, tmp_path, method="mntpp", allow_partial=True)
    assert caught.value.location == "--method" and "did you mean 'mntp'" in caught.value.hint


@pytest.mark.parametrize("year", ["2024", "2025", "2026"])
def test_a_file_without_any_part_is_not_written(year: str, small: int, tmp_path: Path) -> None:
    predictions = [
        leaderboard_runs.make_prediction(item)
        for item in leaderboard_runs.make_suite("blimp-fast", 3).items
    ]
    run = leaderboard_runs.write_run(
        tmp_path / "run",
        "m",
        [(leaderboard_runs.make_cell("blimp-fast", predictions), predictions)],
    )
    with pytest.raises(
        IncompleteError, match=f"all parts of the {year} file are missing; nothing was written"
    ) as caught:
        submit(
            [run],
            year=year,
            track="strict",
            out=tmp_path / "f.json",
            allow_partial=True,
            allow_conventions=True,
        )
    assert caught.value.exit_code == 5 and "--allow-partial" not in caught.value.hint
    assert not (tmp_path / "f.json").exists()


def test_a_run_with_only_a_frozen_backbone_is_not_submitted(tmp_path: Path) -> None:
    cell = leaderboard_runs.make_finetuned_cell("rte", 1, "frozen-causal")
    predictions = leaderboard_runs.make_class_predictions("rte", 3)
    run = leaderboard_runs.write_run(tmp_path / "run", "m", [(cell, predictions)])
    with pytest.raises(UsageError, match="no suite was scored in") as caught:
        submit([run], year="2026", track="strict", out=tmp_path / "f.json")
    assert caught.value.hint == "score the suites with antlm-bench score"


@pytest.mark.parametrize(("way", "name"), [("finetune-causal", "causal"), ("finetune-full", "mlm")])
def test_a_run_of_finetuned_tasks_alone_is_told_the_method(
    way: str, name: str, small: int, tmp_path: Path
) -> None:
    run = leaderboard_runs.write_run(
        tmp_path / "run",
        "m",
        [
            (
                leaderboard_runs.make_finetuned_cell("rte", 42, way),
                leaderboard_runs.make_class_predictions("rte", 3),
            )
        ],
    )
    with pytest.raises(UsageError, match="no suite was scored in") as caught:
        submit([run], year="2026", track="strict", out=tmp_path / "f.json")
    assert f"--method {name} --allow-partial" in caught.value.hint
    done = submit(
        [run], year="2026", track="strict", out=tmp_path / "f.json", method=name, allow_partial=True
    )
    assert json.loads(done.path.read_text())["glue"]["rte"]


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_of_the_user_is_not_counted_and_said(
    beside: bool, small: int, tmp_path: Path
) -> None:
    cells = []
    for name, origin in [("blimp-filtered", ("/data/own/blimp-filtered.csv",))] + [
        ("supplement", ())
    ] * beside:
        predictions = [
            leaderboard_runs.make_prediction(item)
            for item in leaderboard_runs.make_suite(name, 3).items
        ]
        cell = leaderboard_runs.make_cell(name, predictions)
        cells.append(
            (Cell(name, "causal", "k", cell.settings, cell.summary, origin=origin), predictions)
        )
    run = leaderboard_runs.write_run(tmp_path / "run", "m", cells)
    words = "is a file of the user and not the suite blimp-filtered: not counted"
    options: dict[str, Any] = {
        "year": "2025",
        "track": "strict",
        "out": tmp_path / "f.json",
        "allow_partial": True,
    }
    if beside:
        assert any(words in note for note in submit([run], **options).notes)
    else:
        with pytest.raises(IncompleteError, match=words):
            submit([run], **options)
