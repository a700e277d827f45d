"""What starting a command imports: nothing heavy for help, wrong names and what is finished.

`benchmarks/start.py` measures the seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from score_helpers import make_agreement_rows, write_pairs

from antlm_bench import score
from antlm_bench.cli.app import COMMAND_GROUPS, COMMANDS

MODEL_PACKAGES = {"accelerate", "datasets", "lm_eval", "minicons", "peft"}
MODEL_PACKAGES |= {"safetensors", "tokenizers", "torch", "transformers"}
"""Packages that open or run models."""
STATISTICS_PACKAGES = {"pandas", "scipy", "sklearn", "statsmodels"}
DATA_PACKAGES = {"huggingface_hub", "numpy", "pyarrow"}
HELP_PAGES = [
    [],
    *([name] for name in COMMANDS),
    *([group, name] for group, (_, commands) in COMMAND_GROUPS.items() for name in commands),
]
WRONG_NAMES: dict[str, tuple[list[str], int]] = {
    "suite of score": (["score", "--model", "CKPT", "--suite", "blimb"], 2),
    "model of score": (["score", "--model", "./nope", "--suite", "nano"], 3),
    "hub id of score": (["score", "--model", "a/b/c", "--suite", "nano"], 3),
    "folder of score": (["score", "--model", "EMPTY", "--suite", "nano"], 3),
    "method of score": (["score", "--model", "CKPT", "--suite", "nano", "--method", "mlmm"], 2),
    "device of score": (["score", "--model", "CKPT", "--suite", "nano", "--device", "gpu"], 2),
    "option of score": (["score", "--model", "CKPT", "--suite", "nano", "--limits", "3"], 2),
    "tokenizer of score": (
        ["score", "--model", "CKPT", "--suite", "nano", "--tokenizer", "./n"],
        3,
    ),
    "suite of finetune": (["finetune", "--model", "CKPT", "--suite", "gleu-2025"], 2),
    "model of finetune": (["finetune", "--model", "./nope", "--suite", "glue-2025"], 3),
    "task of finetune": (["finetune", "--model", "CKPT", "--suite", "glue-2025", "--task", "x"], 2),
    "recipe of train": (["train", "nanoo", "--corpus", "nano", "--out", "OUT"], 2),
    "setting of train": (
        ["train", "antlm-babyllama", "--corpus", "nano", "--out", "OUT", "--set", "lrr=1"],
        2,
    ),
    "model of surprisal": (["surprisal", "--model", "./nope", "--in", "TXT", "--out", "t.csv"], 3),
    "method of surprisal": (
        ["surprisal", "--model", "CKPT", "--in", "TXT", "--out", "t.csv", "--method", "mlmm"],
        2,
    ),
    "suite of verify": (["verify", "--model", "CKPT", "--suite", "nanoo"], 2),
    "model of verify": (["verify", "--model", "./nope", "--suite", "nano"], 3),
    "suite of plan": (["plan", "--model", "CKPT", "--suite", "nanoo"], 2),
    "model of plan": (["plan", "--model", "./nope", "--suite", "nano"], 3),
    "model of doctor": (["doctor", "--model", "./nope"], 3),
    "suite of noise": (["noise", "--model", "CKPT", "--suite", "nanoo"], 2),
    "model of noise": (["noise", "--model", "./nope", "--suite", "nano"], 3),
    "run of compare": (["compare", "./nope", "./nope"], 3),
    "metric of power": (["power", "--metric", "accuracyy"], 2),
    "run of check": (["check", "./nope", "--against", "./nope"], 2),
    "run of report": (["report", "./nope"], 3),
}
"""Wrong name -> (command line, exit code). CKPT, EMPTY, TXT and OUT are replaced by paths."""

RUN_ALL = """
import json, sys
from antlm_bench.cli.app import run
names, watched = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))
results = {}
for name, argv in names.items():
    code = run(argv)
    loaded = sorted(watched & {module.split(".")[0] for module in sys.modules})
    results[name] = [code, loaded]
print("\\n@" + json.dumps(results))
"""


def run_commands(
    command_lines: dict[str, list[str]], watched: set[str]
) -> dict[str, tuple[int, list[str]]]:
    """Run command lines one after the other in a fresh process.

    Return name -> (exit code, those of the watched packages that are loaded after it).
    """
    process = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps(command_lines), json.dumps(sorted(watched))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    results = json.loads(process.stdout.rpartition("@")[2])
    return {name: (code, loaded) for name, (code, loaded) in results.items()}


@pytest.fixture
def replacements(make_checkpoint: Callable[..., Path], tmp_path: Path) -> dict[str, str]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts.txt").write_text("the cat sleeps.\n")
    return {
        "CKPT": str(make_checkpoint("causal")),
        "EMPTY": str(tmp_path / "empty"),
        "TXT": str(tmp_path / "texts.txt"),
        "OUT": str(tmp_path / "out"),
    }


def test_wrong_names_import_nothing_heavy(replacements: dict[str, str]) -> None:
    command_lines = {
        name: [replacements.get(word, word) for word in argv]
        for name, (argv, _) in WRONG_NAMES.items()
    }
    results = run_commands(command_lines, MODEL_PACKAGES | STATISTICS_PACKAGES)
    assert results == {name: (code, []) for name, (_, code) in WRONG_NAMES.items()}


def test_help_pages_import_nothing_heavy() -> None:
    command_lines = {" ".join(words): [*words, "--help"] for words in HELP_PAGES}
    watched = MODEL_PACKAGES | STATISTICS_PACKAGES | DATA_PACKAGES
    results = run_commands(command_lines, watched)
    assert results == dict.fromkeys(command_lines, (0, []))


def test_finished_runs_are_shown_without_a_model(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", make_agreement_rows(14))
    model, run = str(make_checkpoint("causal")), str(tmp_path / "run")
    score(model, str(pairs), out=run)
    command_lines = {
        "score": ["score", "--model", model, "--suite", str(pairs), "--out", run],
        "report": ["report", run],
        "compare": ["compare", run, run],
        "check": ["check", run, "--against", run],
    }
    results = run_commands(command_lines, MODEL_PACKAGES | {"pandas", "sklearn"})
    assert results == dict.fromkeys(command_lines, (0, []))
