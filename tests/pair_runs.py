"""Runs with chosen predictions, for the tests of compare and check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from prediction_rows import PredictionRow, from_rows

from antlm_bench import runs
from antlm_bench.commands.published_runs import open_output
from antlm_bench.metrics import summarize
from antlm_bench.types import Cell, Manifest, Run

SETTINGS = {
    "suite_digest": "d",
    "suite_version": "1",
    "ties": "half",
    "reduction": "sum",
    "context": "",
    "bos": "auto",
    "limit": None,
    "conventions": 1,
    "dtype": "float32",
}
PARADIGMS_BY_PHENOMENON = {
    "islands": ("adjunct_island", "wh_island"),
    "agreement": ("anaphor", "determiner"),
    "binding": ("case", "c_command"),
}


TOY_MANIFEST = Manifest(runs.SCHEMA_VERSION, {"name": "toy", "weights": "w"}, {}, "2026-01-01")


def add_toy_cell(run_dir: Path, suite: str, gaps: tuple[float, ...] = (1, -1)) -> None:
    """Compute a cell of a suite, as a command does."""
    cell, predictions = make_cell(make_predictions({"p": gaps}), suite=suite)
    with runs.RunWriter(run_dir, TOY_MANIFEST) as writer:
        writer.write_cell(replace(cell, key=f"{suite}{gaps}"), from_rows(predictions))


def publish_toy_cell(url: str, suite: str, gaps: tuple[float, ...] = (1, -1)) -> None:
    """Add a cell to the run at a URL, as a command does."""
    with open_output(Path(url), "w") as run_dir:
        add_toy_cell(run_dir, suite, gaps)


def make_predictions(
    gaps_by_paradigm: Mapping[str, Sequence[float]], phenomenon: Mapping[str, str] | None = None
) -> list[PredictionRow]:
    """Make one minimal pair per gap (log P of the good minus that of the bad option).

    `gaps_by_paradigm`: paradigm -> gaps; `phenomenon`: paradigm -> phenomenon.
    """
    predictions = []
    for paradigm, gaps in gaps_by_paradigm.items():
        labels = {"phenomenon": (phenomenon or {}).get(paradigm, "all"), "paradigm": paradigm}
        for i, gap in enumerate(gaps):
            pred = 0 if gap >= 0 else 1
            predictions.append(
                PredictionRow(
                    f"{paradigm}_{i}", 0, pred, (float(gap) - 9, -9.0), (3, 3), (9, 9), labels
                )
            )
    return predictions


def draw_logprob_gaps(
    items: int, rates: Mapping[str, float] | float = 0.8, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draw log-probability gaps of each paradigm, positive with the rate of its phenomenon."""
    rng = np.random.default_rng(seed)
    gaps = {}
    for phenomenon, paradigms in PARADIGMS_BY_PHENOMENON.items():
        rate = rates if isinstance(rates, float) else rates[phenomenon]
        for paradigm in paradigms:
            size, sign = rng.uniform(0.1, 3.0, items), np.where(rng.random(items) < rate, 1, -1)
            gaps[paradigm] = size * sign
    return gaps


PHENOMENON_BY_PARADIGM = {
    paradigm: phenomenon
    for phenomenon, paradigms in PARADIGMS_BY_PHENOMENON.items()
    for paradigm in paradigms
}


def make_cell(
    predictions: Sequence[PredictionRow],
    suite: str = "toy",
    method: str = "causal",
    metric: str = "accuracy",
    macro: Sequence[str] = ("paradigm",),
    groups: Sequence[str] = ("phenomenon", "paradigm"),
    **settings: Any,
) -> tuple[Cell, Sequence[PredictionRow]]:
    rules = {
        "ties": "half",
        "reduction": "sum",
        **{k: v for k, v in settings.items() if k in ("ties", "reduction")},
    }
    summary = summarize(
        from_rows(predictions),
        suite=suite,
        method=method,
        metric=metric,
        macro=macro,
        groups=groups,
        **rules,
    )
    return Cell(suite, method, "k", {**SETTINGS, **settings}, summary), predictions


def write_run(
    folder: Path, *cells: tuple[Cell, Sequence[PredictionRow]], name: str = "toy", weights: str = ""
) -> Run:
    """Write a run folder of these cells and read it back."""
    manifest = Manifest(
        runs.SCHEMA_VERSION,
        {"name": name, "weights": weights or folder.name},
        {"antlm-bench": "0"},
        "2026-01-01",
    )
    with runs.RunWriter(folder, manifest) as writer:
        for cell, predictions in cells:
            writer.write_cell(cell, from_rows(predictions))
    return runs.open_run(folder)


def write_toy_run(folder: Path, values: Mapping[str, Sequence[float]], **settings: Any) -> Run:
    """Write a run of the suite "toy" with these log-probability gaps."""
    return write_run(
        folder,
        make_cell(make_predictions(values, PHENOMENON_BY_PARADIGM), **settings),
        name=folder.name,
    )


def write_gate_runs(folder: Path, suite: str = "toy") -> Path:
    """Write a baseline run "base", a run "worse" in one phenomenon, and one "noisy".

    "noisy" is as good as "base", but its errors are on other items.
    """
    baseline_gaps = draw_logprob_gaps(300, 0.85, seed=3)
    write_toy_run(folder / "base", baseline_gaps, suite=suite)
    rng = np.random.default_rng(4)
    worse_gaps = {name: gaps + rng.normal(0, 0.02, 300) for name, gaps in baseline_gaps.items()}
    for name in PARADIGMS_BY_PHENOMENON["islands"]:
        worse_gaps[name] = worse_gaps[name] - 0.7
    write_toy_run(folder / "worse", worse_gaps, suite=suite)
    write_toy_run(folder / "noisy", draw_logprob_gaps(300, 0.85, seed=9), suite=suite)
    return folder
