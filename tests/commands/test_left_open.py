"""Commands run with every warning as an error, and leave no file and no thread open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from report_runs import make_zero_shot_cells, write_run
from train_helpers import write_recipe

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")

LEFT_OPEN = """
import json, os, sys, threading
from pathlib import Path
from antlm_bench.cli.app import run

for command in json.loads(sys.argv[1]):
    try:
        assert run(command) in (0, 1, 5), command
    except BaseException as error:
        sys.exit(f"{command}: {error!r}")
files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
files = [name for name in files if name.startswith(sys.argv[2])]
names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
num_threads = names.count(Path("/proc/self/comm").read_text())
print(json.dumps([files, [t.name for t in threading.enumerate()], num_threads]))
"""


def run_strictly(commands: list[list[str]], folder: Path) -> tuple[list[str], list[str], int]:
    """Run commands in one process in which every warning is an error.

    Return what is open at its end: files in the folder, threads of Python, all threads that have
    the name of the process (those of pyarrow do).
    """
    python = [sys.executable, "-X", "dev", "-W", "error", "-c", LEFT_OPEN]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [*python, json.dumps(commands), str(folder)],
        env={**os.environ, **threads},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    files, names, num_threads = json.loads(done.stdout.splitlines()[-1])
    return files, names, num_threads


@pytest.mark.long
def test_commands_without_a_model_leave_nothing_open(
    tmp_path: Path,
) -> None:
    """A thread of pyarrow that lives when Python shuts down can abort the process."""
    better = str(write_run(tmp_path / "better", make_zero_shot_cells("causal", more=20)))
    worse = str(write_run(tmp_path / "worse", make_zero_shot_cells("causal", more=-40)))
    milestones = [
        str(write_run(tmp_path / f"chck_{n}M", make_zero_shot_cells("causal", more=n)))
        for n in (1, 2)
    ]
    commands = [
        ["report", better, "--collection", "babylm-2024", "--model-index"],
        ["compare", better, worse],
        ["check", worse, "--against", better, "--junit", "junit.xml"],
        ["baseline", "save", better, "--to", "baselines", "--name", "main"],
        ["baseline", "save", worse, "--to", "baselines", "--name", "main", "--overwrite"],
        ["export", better, "--format", "csv", "--out", "items.csv"],
        ["export", better, "--format", "lm-eval", "--out", "lm-eval"],
        ["export", better, "--format", "model-index", "--out", "card.md"],
        ["export", better, "--format", "every-eval-ever", "--out", "records"],
        ["import", "lm-eval", "--out", "imported"],
        ["submit", better, "--year", "2024", "--track", "strict", "--out", "file.json"],
        ["curve", *milestones],
        ["power", "--suite", "blimp", "--flips", "2%"],
        ["baseline", "list", "--in", "baselines"],
        ["data", "list", "blimp"],
        ["list", "suites"],
        ["show", "blimp"],
        ["data", "where"],
    ]
    assert run_strictly(commands, tmp_path) == ([], ["MainThread"], 1)


@pytest.mark.long
def test_commands_with_a_model_leave_nothing_open(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = ["--model", str(make_checkpoint("causal")), "--device", "cpu"]
    pairs = tmp_path / "pairs.csv"
    rows = [f"the {noun} sleeps,the {noun} sleep" for noun in ("cat", "dog", "boy", "girl")]
    pairs.write_text("\n".join(["good,bad", *rows]), encoding="utf-8")
    texts = tmp_path / "texts.csv"
    labelled = [f"the {noun} {i} sleeps,{i % 2}" for i in range(20) for noun in ("cat", "dog")]
    texts.write_text("\n".join(["text,label", *labelled]), encoding="utf-8")
    corpus = tmp_path / "text"
    corpus.mkdir()
    lines = [f"the cat {i} sees the old dog that never sleeps" for i in range(120)]
    (corpus / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = str(write_recipe(tmp_path))
    commands = [
        ["doctor", *model[:2]],
        ["score", *model, "--suite", str(pairs), "--out", "run"],
        ["surprisal", *model, "--in", str(pairs), "--columns", "sentence=good",
         "--out", "surprisal.csv"],
        ["finetune", *model, "--suite", str(texts), "--valid", str(texts), "--out", "finetuned",
         "--set", "epochs=1", "--seeds", "1"],
        ["noise", *model, "--suite", str(pairs)],
        ["verify", *model[:2], "--suite", str(pairs)],
        ["report", "run", "--html", "page.html"],
        ["preflight", str(tmp_path), "--track", "strict-small"],
        ["train", recipe, "--corpus", str(corpus), "--out", "trained", "--device", "cpu"],
    ]  # fmt: skip
    files, threads, _ = run_strictly(commands, tmp_path)
    assert (files, threads) == ([], ["MainThread"])
