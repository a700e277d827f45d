"""Completion: what each completer offers, what the shells make of it, and that nothing else is
printed.
"""

from __future__ import annotations

import inspect
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from antlm_bench.cli import completion
from antlm_bench.cli.app import COMMAND_GROUPS, COMMANDS, run
from antlm_bench.scoring.methods import SHIPPED

DEADLINE = 60.0
"""Seconds that a shell gets."""


def complete(*words: str, folder: Path, code: str = "", **variables: str) -> list[str]:
    """Ask as bash does. Return the candidates for the last word; nothing may be on stderr."""
    environment = {
        "COMP_WORDS": "\n".join(["antlm-bench", *words]),
        "COMP_CWORD": str(len(words)),
        completion.COMPLETE_VARIABLE: "complete_bash",
        **variables,
    }
    program = ["-c", code] if code else ["-m", "antlm_bench"]
    finished = subprocess.run(
        [sys.executable, *program],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stderr == ""
    return finished.stdout.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with checkpoints, runs, a baseline and a cache of the hub."""
    folder = tmp_path_factory.mktemp("work")
    for file in (
        "models/a/main/config.json",
        "models/b.gguf",
        "models/.hidden/config.json",
        "runs/first/run.json",
        "reports/baselines/main/run.json",
        "deep/1/2/3/run.json",
        "hub/models--babylm--tiny/refs",
    ):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


class Context:
    """Stands for click's context: the values of earlier options."""

    def __init__(self, **params: list[str]) -> None:
        self.params = params


def test_suites_fit_their_command() -> None:
    score, finetune = completion.COMPLETERS["score suite"], completion.COMPLETERS["finetune suite"]
    assert {"blimp", "zero-shot-2025", "nano"} <= {*score(Context(), "")}
    assert not {"glue-2025", "sap-classicgp"} & {*score(Context(), "")}
    assert finetune(Context(), "") == ["glue", "glue-2024", "glue-2025", "superglue"]
    assert "babylm-2025" in completion.COMPLETERS["collection"](Context(), "")
    assert completion.COMPLETERS["surprisal source"](Context(), "")[0] == "natural-stories"


def test_second_name_after_a_comma_completes_without_the_first() -> None:
    names = completion.complete_suites(Context(), "nano,bl")
    assert "nano,blimp" in names and "nano,nano" not in names


def test_methods_are_those_of_the_code() -> None:
    assert completion.complete_methods(Context(), "")[: len(SHIPPED)] == list(SHIPPED)
    assert completion.COMPLETERS["score method"](Context(), "")[-1] == "all"


def test_tasks_and_presets_are_those_of_the_suite() -> None:
    tasks = completion.COMPLETERS["finetune task"]
    seven = {"boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc"}
    assert {*tasks(Context(suite=["glue-2025"]), "")} == seven
    assert "sst2" in tasks(Context(suite=["glue-2024"]), "")
    assert "sst2" in tasks(Context(), "")
    assert "gpt-bert" in completion.complete_presets(Context(suite=["glue-2025"]), "")


def test_folders_are_found_below_the_typed_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    checkpoints = completion.complete_checkpoints(Context(), "")
    assert checkpoints == ["models/b.gguf", "models/a/main", "babylm/tiny"]
    assert "models/a/main" in completion.complete_checkpoints(Context(), "models/a")
    assert completion.complete_runs(Context(), "") == ["runs/first", "reports/baselines/main"]
    assert completion.complete_runs(Context(), "deep/1/") == ["deep/1/2/3"]
    assert completion.complete_runs(Context(), f"{folder}/ru") == [f"{folder}/runs/first"]
    assert completion.complete_baselines(Context(), "")[0] == "main"
    assert completion.complete_runs(Context(), "absent/") == []


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        (["complet"], ["completion"]),
        (["score", "--suite", "=", "blimp-fi"], ["blimp-filtered"]),
        (["baseline", "save", "ru"], ["runs/first"]),
        (["score", "--ties", "s"], ["strict"]),
        (["report", "no-such"], []),
        (["nonsense", "--suite", "blimp"], []),
    ],
)
def test_command_line_completes(words: list[str], candidates: list[str], folder: Path) -> None:
    assert complete(*words, folder=folder) == candidates


def test_every_table_entry_names_a_parameter() -> None:
    commands = [(name, command) for name, (command, _) in COMMANDS.items()]
    commands += [pair for _, group in COMMAND_GROUPS.values() for pair in group.items()]
    names = {
        key
        for name, command in commands
        for parameter in inspect.signature(command).parameters
        for key in (parameter, f"{name} {parameter}")
    }
    assert not completion.COMPLETERS.keys() - names


def test_completion_loads_nothing_heavy(folder: Path) -> None:
    code = (
        "import os, sys; from antlm_bench.cli import app\n"
        "os._exit = lambda code: sys.exit('numpy' in sys.modules or 'torch' in sys.modules)\n"
        "try: app.main()\n"
        "except SystemExit as end: print('heavy' if end.code else 'light')"
    )
    # `show` completes names of every kind.
    *candidates, weight = complete("show", "gpt-bert-100", folder=folder, code=code)
    assert (candidates, weight) == (["gpt-bert-100m"], "light")


HOSTILE_NAMES = (
    "\\$(touch executed)",
    "$(touch executed)",
    "`touch executed`",
    'x\\"; touch executed; "',
    "'; touch executed; '",
    "x;touch executed",
    "x --trust-remote-code",
    "-x",
    "=ls",
    "two\nlines",
    "star*",
)


@pytest.fixture
def hostile_folder(tmp_path: Path) -> Path:
    """A working directory with checkpoints of hostile names, and one of a plain name."""
    for name in (*HOSTILE_NAMES, "plain-ä"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    return tmp_path


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_names_that_a_shell_interprets_are_not_offered(hostile_folder: Path, shell: str) -> None:
    variables = {
        completion.COMPLETE_VARIABLE: f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": "antlm-bench score --model ",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "HF_HUB_CACHE": str(hostile_folder / "absent"),
    }
    offered = complete("score", "--model", "", folder=hostile_folder, **variables)
    expected = {"zsh": ["_arguments", "'*:", ':(("plain-ä"))\'']}.get(shell, ["plain-ä"])
    assert offered == expected


def test_faults_print_nothing(folder: Path) -> None:
    code = (
        "from antlm_bench.cli import app, completion\n"
        "def fail(): raise ValueError('x')\n"
        "completion.complete_words(fail)"
    )
    assert complete("score", folder=folder, code=code) == []
    variables = {completion.COMPLETE_VARIABLE: "rubbish"}
    assert complete("score", folder=folder, **variables) == []


# ---- the shells themselves


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an `antlm-bench` that runs this source."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "antlm-bench"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m antlm_bench "$@"\n')
    script.chmod(0o755)
    return folder


def find_shell(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def shell_environment(program: Path) -> dict[str, str]:
    path = f"{program}{os.pathsep}{os.environ['PATH']}"
    source = str(Path(completion.__file__).resolve().parents[2])
    return {**os.environ, "PATH": path, "TERM": "xterm", "PYTHONPATH": source, "PS1": "$ "}


def type_into(argv: Sequence[str], lines: Sequence[str], expected: str, env: dict[str, str]) -> str:
    """Type lines into an interactive shell, and return what it shows up to `expected`."""
    pty = pytest.importorskip("pty", reason="terminals of Unix")
    ours, theirs = pty.openpty()
    child = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown, deadline = "", time.monotonic() + DEADLINE
    try:
        for number, line in enumerate(lines):
            os.write(ours, line.encode())
            awaited = expected if number == len(lines) - 1 else f"ready-{number}"
            while awaited not in shown and time.monotonic() < deadline:
                if select.select([ours], [], [], 1.0)[0]:
                    shown += os.read(ours, 65536).decode(errors="replace")
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    return shown


SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], 'eval "$(antlm-bench completion bash)"'),
    "zsh": (
        ["-f", "-i"],
        'autoload -Uz compinit; compinit -u -D; eval "$(antlm-bench completion zsh)"',
    ),
}


def type_in_folder(name: str, program: Path, folder: Path, lines: list[str], last_text: str) -> str:
    """Type lines into a shell with completion, in a folder; return what is shown."""
    options, setup = SHELLS[name]
    lines = [f"cd {folder}; {setup}; echo ready-$((0))\n", *lines]
    return type_into([find_shell(name), *options], lines, last_text, shell_environment(program))


@pytest.mark.long
@pytest.mark.parametrize("name", SHELLS)
def test_tab_key_completes_in_a_shell(name: str, program: Path, folder: Path) -> None:
    lines = [
        "antlm-bench report ru\t\x01echo \x05; echo ready-$((1))\n",
        "antlm-bench score --suite blimp-fi\t",
    ]
    shown = type_in_folder(name, program, folder, lines, "blimp-filtered")
    assert "antlm-bench report runs/first" in shown and "blimp-filtered" in shown
    assert "Traceback" not in shown and "error" not in shown


@pytest.mark.long
@pytest.mark.parametrize("name", SHELLS)
def test_tab_key_executes_no_name(name: str, program: Path, hostile_folder: Path) -> None:
    lines = [
        "antlm-bench score --model \t\x01echo \x05; echo ready-$((1))\n",
        "echo ready-$((2))\n",
    ]
    shown = type_in_folder(name, program, hostile_folder, lines, "ready-2")
    assert "score --model plain" in shown and "ready-2" in shown
    assert not (hostile_folder / "executed").exists()


@pytest.mark.long
def test_fish_completes(program: Path, folder: Path) -> None:
    shell = find_shell("fish")
    script = (
        "antlm-bench completion fish | source\n"
        'complete -C "antlm-bench score --suite blimp-fi"; complete -C "antlm-bench report ru"'
    )
    finished = subprocess.run(
        [shell, "--no-config", "-c", script],
        cwd=folder,
        env=shell_environment(program),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stdout.split() == ["blimp-filtered", "runs/first"]
    assert finished.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_install_writes_the_script(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["completion", shell, "--install"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[0])
    assert path.is_relative_to(tmp_path) and f"complete_{shell}" in path.read_text()


def test_unknown_shell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", "csh"]) == 2
    assert "csh" in capsys.readouterr().err
