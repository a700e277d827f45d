"""Flags that say how a file of pairs is read, in score, verify, sweeps and sessions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from antlm_bench import runs, score
from antlm_bench.cli.app import run
from antlm_bench.commands.requested_suites import SuiteCache
from antlm_bench.commands.score_options import ScoreOptions
from antlm_bench.suites.task_types import SuiteRequest
from antlm_bench.sweeps import sweep_texts

Make = Callable[..., Path]
LINES = "the cat sleep\nthe cat sleeps\nthe dogs sees who\nthe dogs see who\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files of lines in twos, the wrong one first."""
    for name in ("x", "y"):
        path = tmp_path / "pairs" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(LINES)
    return tmp_path / "pairs"


def test_each_layout_of_a_file_has_its_cell(
    folder: Path, tmp_path: Path, make_checkpoint: Make
) -> None:
    model, lines = str(make_checkpoint("causal")), str(folder / "x.txt")
    table = tmp_path / "x.csv"
    table.write_text("good,bad\nthe cat sleeps,the cat sleep\nthe dogs see who,the dogs sees who\n")
    (by_lines,) = score(model, lines, good="second", out=tmp_path / "lines")
    (swapped,) = score(model, lines, good="first", out=tmp_path / "swapped")
    (by_table,) = score(model, str(table), out=tmp_path / "table")
    cells = [each.cells[0] for each in (by_lines, swapped, by_table)]
    assert len({cell.key for cell in cells}) == 3
    scores = [
        [*runs.read_predictions(each.path, each.cells[0]).iter_options("scores")]
        for each in (by_lines, swapped, by_table)
    ]
    assert [list(pair) for pair in scores[0]] == [list(pair) for pair in scores[2]]
    assert [list(pair)[::-1] for pair in scores[1]] == [list(pair) for pair in scores[2]]
    assert [note for note in cells[0].summary.notes if "layout" in note] == [
        "read with the layout alternating; 'second' is right"
    ]


def test_a_folder_has_a_result_per_file(
    folder: Path,
    tmp_path: Path,
    make_checkpoint: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["score", "--model", str(make_checkpoint("causal")), "--suite", str(folder)]
    words += ["--bad-first", "--by", "paradigm", "--out", str(tmp_path / "run"), "--json"]
    assert run(words) == 0
    rows = json.loads(capsys.readouterr().out)["table"]["rows"]
    assert {"x", "y"} <= {str(value) for row in rows for value in row.values()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--good-first --bad-first", "--good-first and --bad-first exclude each other"),
        ("--bad-first --good plus", "--bad-first and --good exclude each other"),
        ("--layout alternating", "--good: which of two lines is right?"),
        ("--layout twos", "unknown layout 'twos'"),
        ("--layout columns", "a .txt has no columns for the layout 'columns'"),
    ],
)
@pytest.mark.parametrize("command", ["score", "verify"])
def test_flags_that_contradict_are_refused(
    folder: Path,
    make_checkpoint: Make,
    command: str,
    flags: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [command, "--model", str(make_checkpoint("causal")), "--suite", str(folder / "x.txt")]
    assert run([*words, *flags.split()]) in (2, 3)
    assert message in capsys.readouterr().err


def test_the_command_of_a_shard_repeats_the_flags() -> None:
    options = ScoreOptions(layout="long", good="plus", columns={"key": "item"})
    assert options.command_words() == [
        *("--columns", "key=item", "--layout", "long", "--good", "plus")
    ]


def test_sweeps_read_files_as_score_does(folder: Path) -> None:
    options = {"good": "second", "limit": 1}
    suite = sweep_texts.load_suite_texts(str(folder), options)
    assert [item.options[0].text for item in suite.items] == ["the cat sleeps"] * 2
    assert sweep_texts.list_missing_files(str(folder)) == ""
    assert sweep_texts.list_missing_files(str(folder / "z.txt")) == "there is no such file"
    before = sweep_texts.fingerprint_suite(str(folder))
    (folder / "y.txt").write_text(LINES * 2)
    sweep_texts.fingerprint_suite.cache_clear()
    assert sweep_texts.fingerprint_suite(str(folder)) != before


def test_a_session_reads_a_folder_again_when_a_file_changes(folder: Path) -> None:
    cache, request = SuiteCache(), SuiteRequest(str(folder), good="first")
    assert cache.load(request) is cache.load(request)
    assert len(cache.load(request).items) == 4
    (folder / "y.txt").write_text(LINES * 2)
    assert len(cache.load(request).items) == 6


def test_flags_apply_to_the_files_among_several_suites(
    folder: Path, tmp_path: Path, make_checkpoint: Make
) -> None:
    model = str(make_checkpoint("causal"))
    suites = [str(folder), "nano"]
    (result,) = score(model, suites, good="second", limit=1, out=tmp_path / "run")
    assert [cell.suite for cell in result] == ["pairs", "nano"]


def test_show_names_a_folder_of_pairs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", str(folder)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "a folder of files of pairs" in printed
    assert f"--suite {folder}; " in printed and f"antlm-bench suggest {folder}" in printed


def test_commands_for_a_file_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my pairs.csv").write_text("good,bad\nthe cats,the cat\n")
    assert run(["show", "my pairs.csv"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "antlm-bench suggest 'my pairs.csv'" in printed
    assert "score --model CKPT --suite 'my pairs.csv'; " in printed
    assert "finetune --model CKPT --suite 'my pairs.csv' --valid FILE" in printed
