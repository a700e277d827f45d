"""Write small sweeps, with their suites, for tests."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from antlm_bench.sweeps.declaration import read_sweep_file
from antlm_bench.sweeps.expansion import ExpandedSweep, expand_sweep

PAIRS = (
    ("the cat sleeps.", "the cat sleep."),
    ("the old dog sees a cat.", "the old dog see a cat."),
    ("who sees the dogs?", "who see the dogs?"),
    ("the cat sees himself.", "the cat sees herself."),
)


def write_pairs(path: Path, pairs: Sequence[tuple[str, str]] = PAIRS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("good", "bad"), *pairs])
    return path


def write_texts(path: Path, count: int) -> Path:
    """Write texts of two classes."""
    rows = [
        (f"the {'cat' if n % 2 else 'dog'} sleeps {'a ' * (n % 5)}", n % 2) for n in range(count)
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def expand_text(folder: Path, text: str) -> ExpandedSweep:
    """Write sweep.toml in a folder, and return its units."""
    path = folder / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    return expand_sweep(read_sweep_file(path), "sweep.toml")
