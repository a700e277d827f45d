"""Synthetic data files in the official layout for every suite of a leaderboard."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest
from synthetic import make_rows
from tiny_models import WORDS

from antlm_bench.suites import loader, sources, task_types
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.declaration_types import FileSpec, SuiteDeclaration
from antlm_bench.suites.spec import ExpectedCountsSpec, SuiteSpec

NUM_WORDS, CONTEXTS_PER_WORD = 12, 2  # children's words, and contexts of each
TRAINING_ROWS = 64  # rows of every train set


def serve_synthetic_data(patch: pytest.MonkeyPatch, most: int | None = None) -> None:
    """Replace the data of every suite but reading times by synthetic items.

    Groups have the official number of items, at most `most`. Ages of children and nonce words stay
    the real ones; their contexts are synthetic.
    """
    read_real_spec, read_real_declaration, get_real_file = (
        loader.read_suite_spec,
        task_types.read_declaration,
        sources.get_file,
    )

    def read_small_declaration(ref: str) -> tuple[SuiteDeclaration, Path]:
        spec, folder = read_real_declaration(ref)
        return (
            shrink_classification_spec(spec, most) if isinstance(spec, ClassificationSpec) else spec
        ), folder

    def read_small_spec(ref: str) -> tuple[SuiteSpec, Path]:
        spec, folder = read_real_spec(ref)
        assert spec.expect
        counts = {group: min(n, most or n) for group, n in spec.expect.counts.items()}
        total = sum(counts.values()) or min(spec.expect.items, most or spec.expect.items)
        expect = ExpectedCountsSpec(
            items=NUM_WORDS * CONTEXTS_PER_WORD if spec.children else total, counts=counts
        )
        return (spec if spec.times else spec.model_copy(update={"expect": expect})), folder

    def get_synthetic_file(
        spec: sources.SuiteWithData, file: str, folder: Path | None = None
    ) -> sources.DataFile:
        if isinstance(spec, ClassificationSpec):
            text = "".join(f"{json.dumps(row)}\n" for row in make_rows(spec, file, WORDS))
            return sources.DataFile(text.encode(), f"invented {file}")
        if (
            not isinstance(spec, SuiteSpec)
            or spec.times
            or (spec.children and file == spec.children.human)
        ):
            return get_real_file(spec, file, folder)
        if spec.children:
            ages = get_real_file(spec, spec.children.human, folder)
            return sources.DataFile(make_word_contexts(ages.raw.decode()), f"invented {file}")
        if spec.metric == "spearman" and spec.expect:
            lines = get_real_file(spec, file, folder).raw.splitlines(keepends=True)
            return sources.DataFile(b"".join(lines[: spec.expect.items]), f"the first of {file}")
        text = "".join(f"{json.dumps(row)}\n" for row in make_rows(spec, file, WORDS))
        return sources.DataFile(text.encode(), f"invented {file}")

    patch.setattr(task_types, "read_declaration", read_small_declaration)
    patch.setattr(loader, "read_suite_spec", read_small_spec)
    patch.setattr(sources, "get_file", get_synthetic_file)


def shrink_classification_spec(spec: ClassificationSpec, most: int | None) -> ClassificationSpec:
    """Reduce the rows of training sets, keep at most `most` scored rows, and drop substitutes."""
    assert spec.data
    sizes = {
        file: min(file_spec.rows or 0, most or 10**9) for file, file_spec in spec.data.files.items()
    }
    sizes |= {task.train: TRAINING_ROWS for task in spec.task.values() if task.train}
    data = spec.data.model_copy(
        update={"files": {file: FileSpec(rows=n) for file, n in sizes.items()}}
    )
    tasks = {name: task.model_copy(update={"substitutes": ()}) for name, task in spec.task.items()}
    return spec.model_copy(update={"data": data, "task": tasks})


def make_word_contexts(ages: str) -> bytes:
    """Make contexts of children's words; words of the tiny tokenizer come first."""
    children = [row["word"] for row in csv.DictReader(io.StringIO(ages))]
    words = sorted(children, key=lambda word: word not in WORDS)[:NUM_WORDS]
    rng = random.Random(0)
    contexts_by_word = {
        word: [{"context": " ".join(rng.choices(WORDS, k=3))} for _ in range(CONTEXTS_PER_WORD)]
        for word in words
    }
    return json.dumps(contexts_by_word).encode()
