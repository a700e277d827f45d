"""Memory does not grow with the suite: only what is kept per item does, and that is little."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from score_helpers import write_pairs

Make = Callable[..., Path]
# Kept for every pair: its Item with two texts (0.7 kB of Python objects), its Prediction (0.3 kB,
# and again as much as Arrow columns and bytes while the chunks are joined into one file); 8,192
# pairs measured 34 MiB with what allocators keep. Tokens, plans, batches and logits, some 30 kB a
# pair, live for one chunk, which both suites fill (4,096 items).
ALLOWED = 45 * 2**20
SCRIPT = """
import resource, sys
from antlm_bench.cli.app import run
code = run(sys.argv[1:])
unit = 1 if sys.platform == "darwin" else 1024
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
sys.exit(code)
"""


def peak(checkpoint: Path, pairs: int, place: Path) -> int:
    """Bytes of resident memory at most, of a process that scores so many pairs, no two alike."""
    rows = []
    for n in range(pairs):
        text = " ".join(
            ["the", "cat", "dog", "boy", "girl", "house", "old", "small"][int(d, 8)]
            for d in f"{n:o}"
        )
        rows.append({"good": f"the old {text} sleeps", "bad": f"the old {text} sleep"})
    suite = write_pairs(place / f"{pairs}.csv", rows)
    argv = [
        "score",
        "--model",
        str(checkpoint),
        "--suite",
        str(suite),
        "--out",
        str(place / str(pairs)),
        "--csv",
    ]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *argv, "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.rpartition("peak ")[2])


@pytest.mark.long
def test_memory_does_not_grow_with_the_suite(make_checkpoint: Make, tmp_path: Path) -> None:
    small, large = (peak(make_checkpoint(), pairs, tmp_path) for pairs in (4_096, 12_288))
    assert large - small < ALLOWED, f"{(large - small) / 2**20:.0f} MiB more for 8,192 more pairs"
