"""Write a run chunk by chunk in a process that tests can kill.

python killable_run.py FOLDER [MOMENT]    MOMENT: kill myself at the n-th moment (before or inside a
write); none = finish
"""

from __future__ import annotations

import os
import signal
import sys

import numpy as np

from antlm_bench import atomic_files, runs
from antlm_bench.predictions import OptionColumns, Predictions
from antlm_bench.runs import folder_io
from antlm_bench.types import Cell, Estimate, Item, Manifest, Summary

CHUNKS, ITEMS, KEY = 4, 25, "k" * 64
MANIFEST = Manifest(
    runs.SCHEMA_VERSION,
    {"name": "toy", "weights": "abc"},
    {"antlm-bench": "0"},
    "2026-01-01T00:00:00+00:00",
)


def make_predictions(suite: str, index: int) -> Predictions:
    """Make a chunk of minimal pairs."""
    labels = {"phenomenon": suite, "paradigm": f"p{index}"}
    items = [Item(f"{suite} é {index}.{i}", (), 0, labels) for i in range(ITEMS)]
    options = OptionColumns(
        counts=np.full(ITEMS, 2, np.int32),
        scores=np.array([score for i in range(ITEMS) for score in (-1 / (i + 1), -0.3)]),
        tokens=np.tile([3, 4], ITEMS),
        characters=np.tile([9, 11], ITEMS),
    )
    return Predictions.build(items, np.arange(ITEMS) % 2, options)


def write_run(path: str) -> int:
    """Score two suites, reusing existing chunks; return the number of computed chunks."""
    computed = 0
    with runs.RunWriter(path, MANIFEST) as writer:
        for suite in ("alpha", "beta"):
            if writer.is_complete(suite, "causal", KEY):
                continue
            for index in range(CHUNKS):
                chunk = writer.load_chunk(suite, "causal", KEY, index)
                if chunk is None:
                    writer.save_chunk(suite, "causal", KEY, index, make_predictions(suite, index))
                    computed += 1
            summary = Summary(
                suite, "causal", "accuracy", (), Estimate(0.5, CHUNKS * ITEMS, 0.4, 0.6), {}, ()
            )
            writer.finish_cell(Cell(suite, "causal", KEY, {"bos": "auto"}, summary), CHUNKS)
    return computed


def kill_at(moment: int) -> None:
    """Count writes, flushes, renames and removals; SIGKILL this process in the n-th."""
    remaining = moment

    def count_moment() -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for module, name in (
        (folder_io.os, "fsync"),
        (folder_io.Path, "replace"),
        (folder_io.safe_files, "create_file"),
        (atomic_files.shutil, "rmtree"),
    ):
        original = getattr(module, name)

        def call_counted(*arguments, original=original, **options):  # type: ignore[no-untyped-def]
            count_moment()
            result = original(*arguments, **options)
            count_moment()
            return result

        setattr(module, name, call_counted)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        kill_at(int(sys.argv[2]))
    print(write_run(sys.argv[1]))
