"""The shipped classification suites, and a declaration with two small tasks."""

from __future__ import annotations

from pathlib import Path

from antlm_bench.declarations import list_declarations
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.task_types import read_declaration_file

SHIPPED = {
    name: spec
    for name, path in list_declarations("tasks").items()
    if isinstance(spec := read_declaration_file(path), ClassificationSpec)
}
DECLARATION = """
kind = "classification"
name = "mine"
version = "1"
title = "t"
licence = "l"
citation = "c"

[training]
lr = 5e-5
batch = 32
epochs = 10
patience = 3
warmup = 0.06
schedule = "linear"
weight_decay = 0.01
clip = 1.0
dropout = 0.1
max_length = 64

[task.mood]
metric = "f1"
classes = ["bad", "good"]
first = "{text}"
train = "mood.train.jsonl"
valid = "mood.valid.jsonl"
training = { epochs = 3, lr = 1e-4 }

[task.mood-too]
metric = "accuracy"
classes = ["bad", "good"]
first = "{text}"
trains_with = "mood"
valid = "mood.valid.jsonl"

[preset.loud]
source = "somebody"
select = "valid"
training = { lr = 1e-3, batch = 8 }
task.mood = { batch = 4 }

[data]
where = ["{file}"]
files = { "mood.train.jsonl" = {}, "mood.valid.jsonl" = {} }
"""


def write_declaration(folder: Path, body: str = DECLARATION) -> Path:
    path = folder / "mine.toml"
    path.write_text(body)
    return path
