"""The command `doctor` with tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable
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
