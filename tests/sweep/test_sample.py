"""Fourteen architectures of the sweep: every method equals a plain loop (`make sweep`: all)."""

from __future__ import annotations

from pathlib import Path

import pytest
from architecture_sweep import NOT_BUILT, REFUSED, examine_architecture, iter_architectures

CAUSAL = ("gpt2", "llama", "opt", "gemma3_text", "mamba2", "xlm")
MASKED = ("bert", "xlm-roberta", "mpnet", "deberta-v2", "modernbert", "esm")
ENCODER_DECODERS = ("fsmt", "pegasus_x")
SAMPLE = [
    *((name, "causal") for name in CAUSAL),
    *((name, "masked") for name in MASKED),
    *((name, "encoder-decoder") for name in ENCODER_DECODERS),
]
CLASS_NAMES = {(model_type, kind): name for model_type, kind, name in iter_architectures()}


@pytest.mark.long
@pytest.mark.parametrize(("model_type", "kind"), SAMPLE)
def test_every_offered_method_equals_a_plain_loop(
    model_type: str, kind: str, tmp_path: Path
) -> None:
    row = examine_architecture(
        model_type, kind, CLASS_NAMES[model_type, kind], tmp_path / "checkpoint"
    )
    assert row.outcome == "exact", row


def test_exceptions_name_architectures_of_the_library() -> None:
    class_names = {name for _, _, name in iter_architectures()}
    assert REFUSED.keys() <= class_names and not REFUSED.keys() & NOT_BUILT.keys()
