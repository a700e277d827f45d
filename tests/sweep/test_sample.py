"""Twelve families of the sweep: every method that is offered gives the numbers of a plain loop
(`make sweep`: all).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from architecture_sweep import NOT_BUILT, REFUSED, examine_architecture, iter_architectures

SAMPLE = {
    ("gpt2", "causal"), ("llama", "causal"), ("opt", "causal"), ("gemma3_text", "causal"), ("mamba2", "causal"),
    ("xlm", "causal"), ("bert", "masked"), ("xlm-roberta", "masked"), ("mpnet", "masked"), ("deberta-v2", "masked"),
    ("modernbert", "masked"), ("esm", "masked"),
}  # fmt: skip
CLASS_NAMES = {(model_type, kind): name for model_type, kind, name in iter_architectures()}


@pytest.mark.parametrize(("model_type", "kind"), sorted(SAMPLE))
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
