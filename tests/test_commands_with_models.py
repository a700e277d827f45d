"""The command line with tiny checkpoints: doctor, and a score that resumes after SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from antlm_bench.cli.app import run

Make = Callable[..., Path]


@pytest.mark.long
def test_doctor_prints_models_and_methods(
    make_checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    causal, masked = (str(make_checkpoint(kind)) for kind in ("causal", "masked"))
    assert run(["doctor", "--model", causal, "--model", masked]) == 0
    out = capsys.readouterr().out
    for line in (
        "LlamaForCausalLM",
        "BertForMaskedLM",
        "<s> ...",
        "<s> ... </s>",
        "default: causal",
        "default: mlm",
    ):
        assert line in out


def test_doctor_continues_after_a_failure(
    make_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert run(["doctor", "--model", str(tmp_path)]) == 3
    assert run(["doctor", "--model", str(tmp_path), "--model", str(make_checkpoint("causal"))]) == 5
    captured = capsys.readouterr()
    assert "LlamaForCausalLM" in captured.out
    assert "1 of 2 failed" in captured.err and str(tmp_path) in captured.err


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A file with more pairs than one chunk of a masked method."""
    words = ["the", "cat", "dog", "boy", "girl", "house", "old", "small", "near", "that"]
    lines = [f"{a} {b} {c} sleeps,{a} {b} {c} sleep" for a, b, c in product(words, repeat=3)]
    file = tmp_path / "pairs.csv"
    file.write_text("\n".join(["good,bad", *lines]), encoding="utf-8")
    return file


def score_command(checkpoint: Path, pairs: Path, out: Path) -> list[str]:
    script = [sys.executable, "-m", "antlm_bench", "score", "--device", "cpu", "--method", "mlm"]
    return [*script, "--model", str(checkpoint), "--suite", str(pairs), "--out", str(out)]


def read_prediction_files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.rglob("predictions/*.parquet")}


@pytest.mark.long
def test_a_score_stopped_by_sigterm_resumes(
    make_checkpoint: Make, pairs: Path, tmp_path: Path
) -> None:
    checkpoint, environment = make_checkpoint("masked"), {**os.environ, "OMP_NUM_THREADS": "1"}
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    child = subprocess.Popen(
        score_command(checkpoint, pairs, stopped),
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    while child.poll() is None and not list(stopped.rglob("partial/*/*.parquet")):
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 75, stderr
    assert "SIGTERM" in stderr and "continues" in stderr and "Traceback" not in stderr
    assert not read_prediction_files(stopped)  # the suite was in the middle
    for out in (stopped, whole):
        subprocess.run(
            score_command(checkpoint, pairs, out), env=environment, check=True, capture_output=True
        )
    assert (
        read_prediction_files(stopped) == read_prediction_files(whole)
        and len(read_prediction_files(whole)) == 1
    )
