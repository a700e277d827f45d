"""lm-eval in both directions: its own result folders come in with its own numbers, ours go out in
its shape.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import leaderboard_runs
import pytest
from prediction_rows import from_rows, read_rows
from report_runs import make_pairs, write_run

from antlm_bench import runs
from antlm_bench.cli.app import run as cli
from antlm_bench.commands.export import export, import_results
from antlm_bench.errors import DataError, UsageError
from antlm_bench.lm_eval_bridge.results_import import read_results
from antlm_bench.metrics import summarize
from antlm_bench.types import Cell

GOLDEN = (
    Path(__file__).resolve().parent.parent / "golden" / "lm_eval"
)  # of lm_eval 0.4.13: a group of two tasks, and a
# loglikelihood task, on two random models; made with invented sentences


def theirs(model: str = "m0") -> Any:
    return json.loads(next((GOLDEN / model).glob("results_*.json")).read_text())


@pytest.fixture
def results(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN / "m0", tmp_path / "m0")
    return tmp_path / "m0"


def samples(folder: Path, task: str) -> Path:
    return next(folder.glob(f"samples_{task}_*.jsonl"))


def results_file(folder: Path) -> Path:
    return next(folder.glob("results*"))


def spoil(file: Path, line: int, **changes: Any) -> None:
    lines = file.read_text().splitlines()
    row = json.loads(lines[line])
    lines[line] = json.dumps({**row, **changes})
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.long
@pytest.mark.parametrize("model", ["m0", "m1"])
def test_a_group_comes_in_as_one_suite_with_lm_eval_s_own_numbers(
    model: str, tmp_path: Path
) -> None:
    run, left_out = import_results(GOLDEN / model, tmp_path / "run")
    (cell,) = run.cells
    assert (cell.suite, cell.method, cell.summary.headline.n) == ("lm-eval.toy", "lm-eval", 21)
    predictions = read_rows(run.path, cell)
    # lm-eval's own conventions give lm-eval's own numbers: the first of a tie, and (acc_norm) by
    # characters
    first = summarize(
        from_rows(predictions),
        suite="x",
        method="x",
        metric="accuracy",
        macro=("task",),
        groups=("task",),
        ties="first",
    )
    said = theirs(model)["results"]
    assert first.headline.value == pytest.approx(said["toy"]["acc,none"])
    for group in first.groups:
        assert group.estimate.value == pytest.approx(said[group.name]["acc,none"])
    by_task = {"metric": "accuracy", "macro": ("task",), "groups": ("task",), "ties": "first"}
    norm = summarize(
        from_rows(predictions), suite="x", method="x", reduction="per-character", **by_task
    )
    assert {g.name: pytest.approx(g.estimate.value) for g in norm.groups} == {
        task: said[task]["acc_norm,none"] for task in ("toy_a", "toy_b")
    }
    assert "per-token" not in cell.summary.views
    assert left_out == ("toy_ll: its items have one continuation and no choice (loglikelihood)",)


def test_what_the_harness_says_of_the_model_is_kept(tmp_path: Path) -> None:
    run, _ = import_results(GOLDEN / "m0", tmp_path / "run")
    assert run.manifest.model["name"] == "m0" and run.manifest.model["parameters"] == 43168
    assert run.manifest.software == {"lm-eval": "0.4.13", "transformers": "5.23.0"}
    settings = run.cells[0].settings
    assert settings["suite_version"] == "2.0" and settings["model_args"]["dtype"] == "float32"
    assert settings["task_hashes"]["toy_a"] == theirs()["task_hashes"]["toy_a"]


@pytest.mark.long
def test_equal_questions_have_equal_digests(results: Path) -> None:
    def digest(folder: Path) -> Any:
        return read_results(folder).cells[0][0].settings["suite_digest"]

    before = digest(results)
    assert before == digest(GOLDEN / "m1")
    spoil(samples(results, "toy_a"), 0, doc_hash="another")
    assert digest(results) != before


def test_equal_documents_of_imported_tasks_are_one_cluster(results: Path) -> None:
    first = json.loads(samples(results, "toy_a").read_text().splitlines()[0])
    spoil(samples(results, "toy_b"), 3, doc=first["doc"])

    [(cell, predictions)] = read_results(results).cells
    assert predictions.clusters is not None
    clusters = dict(zip(predictions.ids, predictions.clusters.tolist(), strict=True))

    assert clusters["toy_a_0"] == clusters["toy_b_3"]
    assert cell.summary.num_clusters == len(set(clusters.values())) == 20
    assert read_results(GOLDEN / "m0").cells[0][1].clusters is None


@pytest.mark.long
def test_two_imported_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("m0", "m1"):
        assert cli(["import", str(GOLDEN / model), "--out", str(tmp_path / model)]) == 0
    assert "loglikelihood" in capsys.readouterr().out
    assert cli(["compare", str(tmp_path / "m0"), str(tmp_path / "m1")]) == 0
    assert "lm-eval.toy" in capsys.readouterr().out


def test_a_task_without_acc_is_left_out_with_its_group(results: Path) -> None:
    spoil(
        samples(results, "toy_a"),
        3,
        acc=1.0 - json.loads(samples(results, "toy_a").read_text().splitlines()[3])["acc"],
    )
    imported = read_results(results)
    assert [cell.suite for cell, _ in imported.cells] == ["lm-eval.toy_b"]
    assert any(
        "toy_a: item 3: its log-probabilities do not give" in line
        for line in imported.skipped_tasks
    )


@pytest.mark.long
def test_a_target_may_be_a_text(results: Path) -> None:
    file = samples(results, "toy_b")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for n, row in enumerate(rows[:-1]):  # the last has two options of one text
        spoil(file, n, target=row["doc"]["choices"][row["doc"]["gold"]])
    [(_, predictions), (_, expected)] = (read_results(f).cells[0] for f in (results, GOLDEN / "m0"))
    assert predictions.table.equals(expected.table)


@pytest.mark.long
def test_a_second_filter_is_no_second_answer(results: Path) -> None:
    file = samples(results, "toy_b")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text(
        "".join(json.dumps({**row, "filter": f}) + "\n" for f in ("none", "upper") for row in rows)
    )
    [(_, predictions), (_, expected)] = (read_results(f).cells[0] for f in (results, GOLDEN / "m0"))
    assert predictions.table.equals(expected.table)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda f: shutil.rmtree(f) or f.mkdir(), DataError, "no results file of lm-eval"),
        (lambda f: next(f.glob("results*")).write_text("{"), DataError, "not JSON"),
        (lambda f: results_file(f).write_text("[]"), DataError, "not a results file of lm-eval"),
        (
            lambda f: results_file(f).write_text('{"results": 1, "config": {}}'),
            DataError,
            "not a results file",
        ),
        (lambda f: samples(f, "toy_a").write_text("{}\n[1]\n"), DataError, "is not an object"),
        (lambda f: samples(f, "toy_a").write_text("{}\n{\n"), DataError, r"jsonl:2: not JSON"),
        (lambda f: samples(f, "toy_a").write_bytes(b"\xff\n"), DataError, "not UTF-8"),
        (lambda f: [p.unlink() for p in f.glob("samples*")], DataError, "run with --log_samples"),
    ],
)  # fmt: skip
def test_damage_is_named(damage: Any, error: type[Exception], words: str, results: Path) -> None:
    damage(results)
    with pytest.raises(error, match=words):
        read_results(results)


# ---- formats of older versions
# -----------------------------------------------------------------------------------


def as_0_4_2(folder: Path, results_name: str = "results.json", filters: bool = True) -> Path:
    """Rewrite results of 0.4.13 as 0.4.0 to 0.4.2 (and BabyLM's pipeline of 2024, a copy of 0.4.2)
    write them.

    Facts read in lm_eval 0.4.2, __main__.py and evaluator.py: samples are one JSON list per task in
    a file named after the model's arguments; requests are lists, numbers are numbers; there are no
    hashes, no filter's name and no date.
    """
    file = next(folder.glob("results_*.json"))
    results = json.loads(file.read_text())
    stamp = file.stem.removeprefix("results_")
    for key in (
        "date",
        "model_name",
        "model_name_sanitized",
        "task_hashes",
        "lm_eval_version",
        "n-samples",
    ):
        results.pop(key, None)
    results["config"]["model_args"] = "pretrained=out/m0,dtype=float32"
    (folder / results_name).write_text(json.dumps(results))
    file.unlink()
    for task in ("toy_a", "toy_b", "toy_ll"):
        old = folder / f"samples_{task}_{stamp}.jsonl"
        rows = [json.loads(line) for line in old.read_text().splitlines()]
        for row in rows:
            row["arguments"] = [
                [each["arg_0"], each["arg_1"]] for each in row["arguments"].values()
            ]
            row["resps"] = [
                [[float(score), greedy == "True"] for score, greedy in each]
                for each in row["resps"]
            ]
            row["filtered_resps"] = [each[0] for each in row["resps"]]
            row["target"] = int(row["target"]) if row["target"].isdecimal() else row["target"]
            for key in ("filter", "metrics", "doc_hash", "prompt_hash", "target_hash"):
                row.pop(key)
            if not filters:
                row.pop("filtered_resps")
        (folder / f"pretrained__out__m0,dtype__float32_{task}.jsonl").write_text(
            json.dumps(rows, indent=2)
        )
        old.unlink()
    return folder


def assert_same_scores(path: Path) -> None:
    """The imported accuracies are those that lm-eval reports of these very results."""
    [(cell, predictions)] = read_results(path).cells
    by_task = {"metric": "accuracy", "macro": ("task",), "groups": ("task",), "ties": "first"}
    first = summarize(predictions, suite="x", method="x", **by_task)
    said = theirs()["results"]
    assert cell.suite == "lm-eval.toy" and first.headline.value == pytest.approx(
        said["toy"]["acc,none"]
    )
    assert {g.name: pytest.approx(g.estimate.value) for g in first.groups} == {
        task: said[task]["acc,none"] for task in ("toy_a", "toy_b")
    }


@pytest.mark.long
@pytest.mark.parametrize("name", ["results.json", "blimp_results.json"])
@pytest.mark.parametrize("filters", [True, False])
def test_results_of_0_4_2_and_babylm_2024_come_in(results: Path, name: str, filters: bool) -> None:
    as_0_4_2(results, name, filters)
    assert_same_scores(results)
    assert_same_scores(results / name)  # a file by itself
    assert read_results(results).manifest.model["name"] == "out/m0"


@pytest.mark.long
def test_other_questions_of_old_results_have_another_digest(results: Path, tmp_path: Path) -> None:
    as_0_4_2(results)
    digest = read_results(results).cells[0][0].settings["suite_digest"]
    file = next(results.glob("*_toy_b.jsonl"))
    file.write_text(file.read_text().replace("sleeps", "dreams"))
    assert read_results(results).cells[0][0].settings["suite_digest"] != digest


@pytest.mark.long
def test_samples_inside_the_results_come_in(results: Path) -> None:
    """What `lm_eval.simple_evaluate` returns, dumped by its caller."""
    file = next(results.glob("results_*.json"))
    document = json.loads(file.read_text())
    document["samples"] = {
        task: [json.loads(line) for line in samples(results, task).read_text().splitlines()]
        for task in ("toy_a", "toy_b", "toy_ll")
    }
    for old in results.iterdir():
        old.unlink()
    (results / "mine.json").write_text(json.dumps(document))
    assert_same_scores(results)


@pytest.mark.long
def test_of_several_results_the_newest_of_a_suite_is_taken(results: Path, tmp_path: Path) -> None:
    file = next(results.glob("results_*.json"))
    newer = json.loads(file.read_text())
    stamp = "2030-01-01T00-00-00.000000"
    newer["date"] += 1000
    newer["results"] = {"toy_a": newer["results"]["toy_a"]}
    newer["groups"] = newer["group_subtasks"] = {}
    (results / f"results_{stamp}.json").write_text(json.dumps(newer))
    shutil.copy(samples(results, "toy_a"), results / f"samples_toy_a_{stamp}.jsonl")
    imported = read_results(results)
    assert [cell.suite for cell, _ in imported.cells] == ["lm-eval.toy_a", "lm-eval.toy"]
    again = (
        results.parent / "again" / f"results_{stamp}.json"
    )  # the same suite in a third file, the oldest
    again.parent.mkdir()
    again.write_text(json.dumps({**newer, "date": 0}))
    shutil.copy(samples(results, "toy_a"), again.parent / f"samples_toy_a_{stamp}.jsonl")
    left_out = read_results(results.parent).skipped_tasks
    assert [line for line in left_out if "older" in line] == [
        f"toy_a: an older result; to import it, give {again}"
    ]


def test_samples_given_for_results_are_named(results: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_results(samples(results, "toy_a"))
    assert "give the results file" in caught.value.hint


def test_results_of_two_models_are_two_runs() -> None:
    with pytest.raises(UsageError, match="several models: m0, m1"):
        read_results(GOLDEN)


# ---- the other way


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Two paradigms with a tie in one, a hybrid's second method, WUG, a finetuned task."""
    items = [
        i
        for i in leaderboard_runs.make_suite("blimp-fast", 3).items
        if i.id.startswith(("wh_island", "passive_1"))
    ]
    scores = [(-1.0, -2.0), (-1.5, -1.5), (-3.0, -2.0), (-1.0, -2.0), (-1.0, -4.0), (-2.0, -1.0)]
    predictions = [
        leaderboard_runs.make_prediction(item, s.index(max(s)), scores=s)
        for item, s in zip(items, scores, strict=True)
    ]
    cells = []
    for method in ("causal", "mntp"):
        summary = summarize(
            from_rows(predictions),
            suite="blimp-fast",
            method=method,
            metric="accuracy",
            macro=("paradigm",),
            groups=("paradigm",),
        )
        settings = {
            "ties": "half",
            "reduction": "sum",
            "suite_version": "2025",
            "suite_digest": "d",
            "limit": None,
        }
        cells.append((Cell("blimp-fast", method, "k", settings, summary), predictions))
    wug = [
        leaderboard_runs.make_prediction(item)
        for item in leaderboard_runs.make_suite("wug-past", 5).items
    ]
    summary = summarize(
        from_rows(wug),
        suite="wug-past",
        method="causal",
        metric="spearman",
        macro=(),
        groups=("paradigm",),
    )
    cells.append((Cell("wug-past", "causal", "k", {"reduction": "sum"}, summary), wug))
    cells.append(
        (
            leaderboard_runs.make_finetuned_cell("rte", 1),
            leaderboard_runs.make_class_predictions("rte", 4),
        )
    )
    return leaderboard_runs.write_run(tmp_path / "run", "lab/..\\<model>:1", cells)


def test_results_have_the_harness_s_shape_and_our_numbers(ours: Path, tmp_path: Path) -> None:
    done = export([ours], "lm-eval", tmp_path / "out")
    file = next(
        path for path in done.files if path.name.startswith("results_") and "causal" in str(path)
    )
    document = json.loads(file.read_text())
    missing = theirs().keys() - document.keys()
    assert missing <= {
        *("upper_git_hash", "tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token"),
        *("eot_token_id", "max_length", "system_instruction", "system_instruction_sha"),
        *("fewshot_as_multiturn", "chat_template", "chat_template_sha"),
        "total_evaluation_time_seconds",
    }
    results = document["results"]
    assert results["blimp-fast_passive_1"]["acc,none"] == pytest.approx(0.5)  # right, a tie, wrong
    assert results["blimp-fast_passive_1"]["acc_stderr,none"] == pytest.approx(math.sqrt(0.25 / 3))
    assert results["blimp-fast_wh_island"]["acc,none"] == pytest.approx(2 / 3)
    assert document["groups"]["blimp-fast"]["acc,none"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert document["group_subtasks"] == {
        "blimp-fast": ["blimp-fast_passive_1", "blimp-fast_wh_island"]
    }
    assert "spearman,none" in results["wug-past"] and "glue-2025.rte" not in results
    assert any("finetuned" in note for note in done.notes)


def test_names_of_models_do_not_leave_the_folder(ours: Path, tmp_path: Path) -> None:
    done = export([ours], "lm-eval", tmp_path / "out")
    assert {path.parent.parent for path in done.files} == {tmp_path / "out"}
    assert {path.parent.name for path in done.files} == {
        "lab__..__model__1__causal",
        "lab__..__model__1__mntp",
    }


@pytest.mark.long
def test_samples_hold_no_text_and_come_in_again(ours: Path, tmp_path: Path) -> None:
    export([ours], "lm-eval", tmp_path / "out")
    folder = next((tmp_path / "out").glob("*__mntp"))
    assert not any("wrong." in path.read_text() for path in folder.iterdir())
    run, left_out = import_results(folder, tmp_path / "again")
    assert not left_out
    (cell,) = run.cells
    before = next(cell for cell in runs.open_run(ours) if cell.method == "mntp")
    assert cell.summary.headline == before.summary.headline
    assert [p.scores for p in read_rows(run.path, cell)] == [
        p.scores for p in read_rows(ours, before)
    ]


def test_flags_survive_export_and_import(tmp_path: Path) -> None:
    """An item that did not fit is wrong although its placeholders are equal; equal texts tie."""
    rows = make_pairs(2, 4)
    rows[0] = replace(rows[0], scores=(-1.0, -1.0), flags=("too-long",))
    rows[1] = replace(rows[1], scores=(-2.0, -2.1), flags=("identical",))
    predictions = from_rows(rows)
    summary = summarize(
        predictions, suite="toy", method="causal", metric="accuracy", macro=(), groups=()
    )
    cell = Cell("toy", "causal", "k", {"ties": "half", "reduction": "sum"}, summary)
    ours = write_run(tmp_path / "ours", [(cell, rows)])
    export([ours], "lm-eval", tmp_path / "out")

    run, skipped = import_results(tmp_path / "out" / "ours", tmp_path / "again")

    assert not skipped
    (imported,) = run.cells
    assert imported.summary.headline.value == summary.headline.value == 0.125
    assert imported.summary.headline.flags == summary.headline.flags


@pytest.mark.long
def test_a_run_twice_is_no_two_runs(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "copy")
    with pytest.raises(UsageError, match="two runs would be written to"):
        export([ours, tmp_path / "copy"], "lm-eval", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_scored_is_nothing_to_export(tmp_path: Path) -> None:
    empty = leaderboard_runs.write_run(
        tmp_path / "run", "m", [(leaderboard_runs.make_cell("comps", []), [])]
    )
    document = json.loads((empty / "run.json").read_text())
    (empty / "run.json").write_text(json.dumps({**document, "cells": []}))
    with pytest.raises(UsageError, match="have no finished cell"):
        export([empty], "csv", tmp_path / "x.csv")


def write_older(results: Path, limit: int | None) -> Path:
    """Write the results again as older ones, of a run with this limit."""
    file = results_file(results)
    older = json.loads(file.read_text())
    older["date"] -= 1000
    older["config"]["limit"] = limit
    for counts in older["n-samples"].values():
        counts["original"] = counts["effective"] + (1 if limit else 0)
    path = results / "results_older.json"
    path.write_text(json.dumps(older))
    for sample in results.glob("samples_*"):
        task = sample.name.removeprefix("samples_").rpartition("_")[0]
        shutil.copy(sample, results / f"samples_{task}_older.jsonl")
    return path


def test_an_older_result_is_named_and_can_be_chosen(results: Path, tmp_path: Path) -> None:
    file = results_file(results)
    document = json.loads(file.read_text())
    for counts in document["n-samples"].values():
        counts["original"] = counts["effective"]
    file.write_text(json.dumps(document))
    older = write_older(results, limit=None)
    run, skipped = import_results(results, tmp_path / "run")
    assert any(line.endswith(f"an older result; to import it, give {older}") for line in skipped)
    chosen, _ = import_results(older, tmp_path / "older")
    assert [cell.suite for cell in chosen] == [cell.suite for cell in run]


def test_an_imported_limit_is_shown_beside_the_full_result(results: Path, tmp_path: Path) -> None:
    file = results_file(results)
    document = json.loads(file.read_text())
    document["config"]["limit"] = None
    file.write_text(json.dumps(document))
    limited, _ = import_results(write_older(results, limit=2), tmp_path / "limited")
    assert all("limit: the first 2 documents of each task" in c.summary.notes for c in limited)
    both, _ = import_results(results, tmp_path / "both")
    assert all(cell.settings["limit"] is None for cell in both)
    assert all("not shown: limit 2" in cell.summary.notes[-1] for cell in both)
