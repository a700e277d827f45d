"""Every kind of input through every command that takes it: a result, or one sentence on what is
wrong and how to mend it; never a traceback.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from prediction_rows import read_rows
from score_helpers import make_agreement_rows, write_pairs
from test_finetuned_readers import write_texts

from antlm_bench import runs
from antlm_bench.cli.app import run
from antlm_bench.commands.finetune import finetune
from antlm_bench.commands.score import score

Make = Callable[..., Path]
FORMATS = ("", "--json", "--csv", "--markdown", "--latex")
TOML = """
kind = "suite"
name = "mine"
version = "1"
title = "mine"
licence = "mine"
citation = "mine"
item.options = [{ scored = "{good}" }, { scored = "{bad}" }]
data = { where = ["{file}"], files = { "pairs.csv" = {} } }
"""
SYNTAXGYM = {
    "meta": {"name": "agreement", "metric": "sum"},
    "region_meta": {"1": "subject", "2": "verb"},
    "predictions": [{"type": "formula", "formula": "(2;%good%) < (2;%bad%)"}],
    "items": [
        {
            "item_number": number,
            "conditions": [
                {
                    "condition_name": name,
                    "regions": [
                        {"region_number": 1, "content": subject},
                        {"region_number": 2, "content": "sleeps"},
                    ],
                }
                for name, subject in (("good", "the cat"), ("bad", "the cats"))
            ],
        }
        for number in (1, 2, 3)
    ],
}
SUITES = ("pairs.csv", "pairs.tsv", "pairs.jsonl", "own.toml", "syntaxgym.json", "nano")
NOT_SUITES = (
    *("folder", "sentences.txt", "pairs.xlsx", "pairs.parquet", "rows.json", "semicolons.csv"),
    *("sentences.csv", "texts.csv", "absent.csv", "nanno", "lm_eval:blimp"),
)
RUNS = ("pairs", "limited", "own", "syntaxgym", "nano", "methods", "one", "three", "imported")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Make) -> Path:
    """Checkpoints causal, other, masked and unmasked (a masked one without a mask token); files of
    every kind; a run folder of each kind in runs/.
    """
    root = tmp_path_factory.mktemp("matrix")
    models = {
        "causal": make_checkpoint(),
        "other": make_checkpoint(seed=7),
        "masked": make_checkpoint("masked"),
        "unmasked": make_checkpoint("masked", mask=False),
    }
    for name, path in models.items():
        (root / name).symlink_to(path)
    _write_files(root)
    for suite in SUITES:
        ref = suite if suite == "nano" else str(root / suite)
        limit = 2 if suite == "nano" else None
        score(str(root / "causal"), ref, out=root / "runs" / suite.partition(".")[0], limit=limit)
    score(str(root / "causal"), str(root / "pairs.csv"), out=root / "runs/limited", limit=2)
    score(str(root / "masked"), str(root / "pairs.csv"), out=root / "runs/methods", methods="all")
    for name, seeds in (("one", [1]), ("three", [1, 2, 3])):
        finetune(
            str(root / "causal"),
            str(root / "texts.csv"),
            valid=str(root / "valid.csv"),
            seeds=seeds,
            changes=["epochs=1", "batch=16", "max_length=32"],
            out=root / "runs" / name,
            device="cpu",
        )
    for command in (
        f"export {root}/runs/nano --format lm-eval --out {root}/lm-eval",
        f"import {root}/lm-eval --out {root}/runs/imported",
    ):
        assert run(shlex.split(command)) == 0
    return root


def _write_files(root: Path) -> None:
    rows = make_agreement_rows(12)
    write_pairs(root / "pairs.csv", rows)
    for name, delimiter in (("pairs.tsv", "\t"), ("semicolons.csv", ";")):
        with (root / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    sentences = "".join(f"{row['good']}\n" for row in rows)
    for name, text in {
        "pairs.jsonl": lines,
        "rows.json": json.dumps(rows),
        "own.toml": TOML,
        "syntaxgym.json": json.dumps(SYNTAXGYM),
        "sentences.txt": sentences,
        "sentences.csv": f"text\n{sentences}",
        "pairs.xlsx": "PK",
        "pairs.parquet": "PAR1",
    }.items():
        (root / name).write_text(text, encoding="utf-8")
    (root / "folder").mkdir()
    write_texts(root / "texts.csv", 32)
    write_texts(root / "valid.csv", 12, 1000)


def list_suite_commands(ref: str) -> list[str]:
    """Every command that takes a suite or a file of texts."""
    return [
        f"score --model causal --suite {ref} --limit 2 --out out",
        f"score --model unmasked --suite {ref} --limit 2 --out out",
        f"verify --model causal --suite {ref} --limit 2",
        f"noise --model causal --suite {ref} --limit 2",
        f"finetune --model causal --suite {ref} --valid valid.csv --set epochs=1 --out out",
        f"surprisal --model causal --in {ref} --out out/surprisal.csv",
        f"acquisition runs/pairs --suite {ref}",
        f"show {ref}",
        f"data list {ref}",
        f"data verify {ref}",
    ]


def list_run_commands(name: str) -> list[str]:
    """Every command that reads a run folder, in each format."""
    path = f"runs/{name}"
    exports = ("csv", "model-index", "every-eval-ever", "lm-eval")
    return [
        *(f"report {path} {form}" for form in FORMATS),
        *(f"compare {path} {path} {form}" for form in FORMATS),
        *(f"compare {path} {path} --by {level}" for level in ("suite", "field", "paradigm")),
        f"compare {path} {path} --flips --show-texts",
        f"compare {path} runs/pairs",
        *(f"check {path} --against {path} --margin 5 {form}" for form in ("", "--json", "--csv")),
        f"check {path} --against {path} --margin 5 --junit out/junit.xml --markdown out/c.md",
        *(f"export {path} --format {form} --out out/{name}-{form}" for form in exports),
        f"report {path} --html out/{name}.html --svg out/{name}.svg",
        f"report {path} --collection babylm-2025 --partial",
        f"report {path} --collection babylm-2025 --published",
        f"report {path} --model-index",
        f"curve {path}",
        f"acquisition {path}",
        f"submit {path} --year 2025 --track strict-small --out out/{name}.json --allow-partial",
        f"preflight {path} --track strict-small",
        f"import {path} --out out/import",
        f"show {path}",
        f"score --model {path} --suite pairs.csv --out out",
        f"score --model causal --suite {path} --out out",
        f"doctor --model {path}",
    ]


def check_outcome(command: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Run a command. Return its exit code, after the checks that hold for all commands."""
    code = run(shlex.split(command))
    printed = capsys.readouterr()
    assert code in (0, 2, 3, 5, 6), printed.err
    assert printed.err.count("error:") == (code != 0), printed.err
    assert "bug in antlm-bench" not in printed.err
    if code == 0 and "--json" in command:
        json.loads(printed.out)
    return code


@pytest.mark.long
@pytest.mark.parametrize("ref", [*SUITES, *NOT_SUITES])
def test_each_file_goes_through_each_command(
    ref: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    codes = {command: check_outcome(command, capsys) for command in list_suite_commands(ref)}
    assert codes[f"score --model causal --suite {ref} --limit 2 --out out"] == 0 or (
        ref in NOT_SUITES
    )
    assert codes[f"score --model unmasked --suite {ref} --limit 2 --out out"] != 0


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_each_run_goes_through_each_reader(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    codes = {command: check_outcome(command, capsys) for command in list_run_commands(name)}
    readable = [c for c in codes if c.startswith(("report", "compare")) and "babylm" not in c]
    refused = {command for command in readable if codes[command]}
    same_file = f"compare runs/{name} runs/pairs"
    texts = f"compare runs/{name} runs/{name} --flips --show-texts"
    assert refused <= {same_file, texts}


@pytest.mark.long
def test_an_imported_run_is_not_submitted_and_keeps_its_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run in runs/imported comes from an export of two items per paradigm."""
    monkeypatch.chdir(folder)
    submit = "submit runs/imported --year 2025 --track strict-small --out out/imported.json"
    for argv in (submit, f"{submit} --allow-partial"):
        assert run(shlex.split(argv)) == 2
        assert "runs/imported: its results are by lm-eval" in capsys.readouterr().err
    assert run(shlex.split("report runs/imported")) == 0
    assert "limit: the first 2 documents of each task" in capsys.readouterr().out


@pytest.mark.long
def test_runs_are_read_without_their_data(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in RUNS:
        (moved / name).symlink_to(folder / "runs" / name)
    monkeypatch.chdir(moved)
    for name in RUNS:
        for command in (
            f"report {name}",
            f"compare {name} {name}",
            f"check {name} --against {name}",
        ):
            assert check_outcome(command, capsys) == 0, command


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("folder", "a folder is not a suite"),
        ("sentences.txt", "a right sentence without a wrong one after it"),
        ("pairs.xlsx", "a file '.xlsx' is not a suite"),
        ("./pairs.parquet", "a file '.parquet' is not a suite"),
        ("rows.json", "a JSON list is not a SyntaxGym suite"),
        ("semicolons.csv", "the columns are separated by ';'"),
    ],
)
def test_a_file_that_is_no_suite_is_named_as_such(
    ref: str,
    words: str,
    tmp_path: Path,
    make_checkpoint: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(["score", "--model", str(make_checkpoint()), "--suite", ref]) in (2, 3)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "reports").exists()


def test_available_suites_are_scored_without_the_others(
    tmp_path: Path,
    make_checkpoint: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_pairs(tmp_path / "pairs.csv", make_agreement_rows(4))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-data").mkdir()
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path / "no-data"))
    command = ["score", "--model", str(make_checkpoint()), "--suite", "supplement,pairs.csv"]

    assert run([*command, "--out", "all", "--require-all"]) == 3
    assert not Path("all").exists()
    capsys.readouterr()

    assert run([*command, "--out", "some"]) == 5
    printed = capsys.readouterr()
    assert "1 of 2 suites were not scored" in printed.err
    assert "antlm-bench data fetch supplement" in printed.err
    assert "pairs" in printed.out
    [cell] = runs.open_run(Path("some"))
    assert len(read_rows(Path("some"), cell)) == 4


def test_a_suite_of_which_nothing_fits_is_an_error(
    tmp_path: Path, make_checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    long = " ".join(["the cat sees the dog"] * 20)
    write_pairs(tmp_path / "long.csv", [{"good": f"{long}.", "bad": f"{long}"}])
    write_pairs(tmp_path / "short.csv", [{"good": "the cats see.", "bad": "the cats sees."}])
    command = ["score", "--model", str(make_checkpoint()), "--out", str(tmp_path / "out")]

    assert run([*command, "--suite", str(tmp_path / "long.csv")]) == 3
    assert "none of 1 item fits the model, which reads 64 tokens" in capsys.readouterr().err

    files = f"{tmp_path}/long.csv,{tmp_path}/short.csv"
    assert run([*command, "--suite", files]) == 5
    assert [cell.suite for cell in runs.open_run(tmp_path / "out")] == ["short"]
