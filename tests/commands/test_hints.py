"""Commands in hints: quoted for the shell, and followed as they stand."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from pair_runs import make_cell, make_predictions
from prediction_rows import from_rows

from antlm_bench import runs
from antlm_bench.checkpoints import open_checkpoint
from antlm_bench.cli.app import run
from antlm_bench.commands import train as train_module
from antlm_bench.commands.report import build_report
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.suites.classification_loader import load_task
from antlm_bench.types import Manifest

Make = Callable[..., Path]


def test_the_command_after_training_names_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(train_module, "train", lambda *_: Path("my out/main"))
    assert run(["train", "babyllama", "--corpus", "nano", "--out", "my out"]) == 0
    line = next(line for line in capsys.readouterr().out.split("\n") if "score it" in line)
    argv = shlex.split(line.partition("score it")[2])
    assert argv == [
        *("antlm-bench", "score", "--model", "my out/main"),
        *("--suite", "nano", "--method", "all"),
    ]


@pytest.mark.long
def test_the_hint_without_a_scored_file_can_be_followed(
    make_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "\n".join(f"the cat sees {n},{'ab'[n % 2]}" for n in range(24))
    Path("my train.csv").write_text(f"text,label\n{rows}\n")
    with pytest.raises(UsageError) as caught:
        load_task("my train.csv", "my-train")
    words = shlex.split(caught.value.hint)
    values = {"CKPT": str(make_checkpoint()), "FILE": "my train.csv"}
    argv = [values.get(word, word) for word in words[1:]]
    assert run([*argv, "--seed", "1", "--set", "epochs=1", "--out", "run"]) == 0


def test_missing_members_come_with_commands_for_their_run(tmp_path: Path) -> None:
    folder = tmp_path / "my runs" / "a"
    cell, rows = make_cell(make_predictions({"adjunct": [1.0, -1.0]}))
    model = {"name": "main", "given": "my out/main", "weights": "w"}
    with runs.RunWriter(folder, Manifest(2, model, {}, "")) as writer:
        writer.write_cell(cell, from_rows(rows))
    report = build_report(folder, collection="babylm-2024", partial=True)
    commands = [c for c in report.columns[0].commands if c.startswith("antlm-bench ")]
    assert commands
    for command in commands:
        argv = shlex.split(command)
        assert argv[argv.index("--model") + 1] == "my out/main"
        assert argv[argv.index("--out") + 1] == str(folder)


@pytest.mark.long
def test_the_hint_of_an_adapter_names_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(folder))
    assert shlex.split(caught.value.hint) == ["--model", "BASE", "--peft", str(folder)]


def test_no_hint_leaves_a_path_unquoted() -> None:
    """A name in braces behind an option of a command is quoted, or a constant."""
    source = Path(runs.__file__).parents[1]
    constants = {
        *("scoring_method", "METHODS[scoring_method].main_attention", "suite", "tasks", "model"),
        *("runs_dir", "command", "name", "names"),
    }
    pattern = re.compile(
        r"antlm-bench [a-z]+[^\"]*?(?:--(?:model|suite|out|valid|peft)|data [a-z]+) \{([^}!:]+)"
    )
    added = re.compile(r'antlm-bench [^"\n]*" \+ (\w+)')
    for file in source.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not added.findall(text), file.name
        for value in pattern.findall(text):
            assert value.startswith(("shlex.quote(", "shlex.join(")) or value in constants, (
                file.name,
                value,
            )
