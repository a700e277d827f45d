"""A recipe that a test can train: 6 causal, then 6 masked steps, with dropout."""

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
    """Read the training log without the seconds, which differ from run to run."""
    records = [
        json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def read_files(out: Path) -> dict[str, tuple[bytes, float]]:
    """Return name -> (bytes, time of change) of every file."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): (path.read_bytes(), path.stat().st_mtime) for path in files}


def read_weights(out: Path, checkpoint: str = "main") -> bytes:
    return (out / checkpoint / "model.safetensors").read_bytes()
