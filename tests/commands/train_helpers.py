"""A recipe and a text so small that a test can train: both ways, with dropout, alternating at step
7 of 12.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STEPS = 12
RECIPE = """
title = "Tiny"
sources = ["nobody"]
methods = ["causal", "mlm"]
[model]
architecture = "ltg-bert"
layers = 1
hidden = 16
heads = 2
ffn = 24
positions = 32
tied = true
dropout = 0.1
attention_dropout = 0.1
norm_eps = 1e-6
buckets = 4
[tokenizer]
vocabulary = 300
[corpus]
document = "line"
[[phase]]
steps = 6
causal = 1
[[phase]]
steps = 6
masked = 1
[batch]
tokens = 64
length = 16
[optimizer]
name = "adamw"
lr = 1e-3
eps = 1e-4
"""
CAUSAL = (
    RECIPE.replace('"ltg-bert"', '"llama"')
    .replace('methods = ["causal", "mlm"]', 'methods = ["causal"]')
    .replace("masked = 1", "causal = 1")
)


def write_recipe(folder: Path, name: str = "tiny", text: str = RECIPE) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def read_log(out: Path) -> list[dict[str, Any]]:
    """The log, without the one field that differs from run to run."""
    found = [
        json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in found]


def read_files(out: Path) -> dict[str, tuple[bytes, float]]:
    """Every file with its bytes and the time it was written."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): (path.read_bytes(), path.stat().st_mtime) for path in files}


def read_weights(out: Path, checkpoint: str = "main") -> bytes:
    return (out / checkpoint / "model.safetensors").read_bytes()
