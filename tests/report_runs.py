"""Run folders as `score` and `finetune` write them, without a model, for the tests of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prediction_rows import PredictionRow, from_rows

from antlm_bench import runs
from antlm_bench.metrics import summarize
from antlm_bench.types import Cell, Manifest

TASK_LIST = "boolq cola mnli mnli-mm mrpc multirc qnli qqp rte sst2 wsc"
TASKS_2024 = tuple(TASK_LIST.split())
METRIC_BY_TASK = {"cola": "mcc", "mrpc": "f1", "qqp": "f1"}


def make_pairs(right: int, n: int, labels: str = "p") -> list[PredictionRow]:
    """Make n minimal pairs in two paradigms, the first `right` of them right."""
    scores = [(-1.0, -2.0) if i < right else (-2.0, -1.0) for i in range(n)]
    return [
        PredictionRow(
            f"{labels}_{i}",
            0,
            int(s[0] < s[1]),
            s,
            (3, 3),
            (9, 9),
            {"paradigm": f"{labels}{i % 2}"},
        )
        for i, s in enumerate(scores)
    ]


def make_class_predictions(
    task: str, right: int, n: int, seed: int = 0, constant: bool = False
) -> list[PredictionRow]:
    """Make predictions of n texts of two classes, `right` of them right (chosen by the seed).

    `constant`: class 0 is predicted for all of them.
    """
    order = np.random.default_rng(seed).permutation(n)
    predictions = []
    for i in range(n):
        gold = i % 2
        pred = 0 if constant else gold if order[i] < right else 1 - gold
        scores = (-0.1, -2.4) if pred == 0 else (-2.4, -0.1)
        predictions.append(
            PredictionRow(f"{task}_{i}", gold, pred, scores, (9, 9), (40, 40), {"task": task})
        )
    return predictions


def make_cell(
    suite: str, method: str, right: int, n: int, notes: Sequence[str] = (), **settings: Any
) -> tuple[Any, ...]:
    predictions = make_pairs(right, n)
    summary = summarize(
        from_rows(predictions),
        suite=suite,
        method=method,
        metric="accuracy",
        macro=["paradigm"],
        groups=["paradigm"],
        notes=list(notes),
    )
    facts = {"suite": suite, "suite_digest": f"digest of {suite}", "ties": "half", **settings}
    return Cell(suite, method, "k", facts, summary), predictions


def make_finetuned_cell(
    task: str,
    seed: int,
    right: int,
    n: int = 40,
    way: str = "causal",
    suite: str = "glue-2024",
    **more: Any,
) -> tuple[Any, ...]:
    """Make the cell of one finetuned task; `more`: collapse warnings, notes and settings."""
    collapsed, notes = list(more.pop("collapsed", ())), list(more.pop("notes", ()))
    name, method = f"{suite}.{task}", f"finetune-{way}"
    predictions = make_class_predictions(task, right, n, seed, bool(collapsed))
    metric = METRIC_BY_TASK.get(task, "accuracy")
    summary = summarize(
        from_rows(predictions),
        suite=name,
        method=method,
        metric=metric,
        macro=(),
        groups=(),
        reduction="class",
        notes=notes,
    )
    facts = {
        "suite": name,
        "suite_digest": f"digest of {task}",
        "collection": suite,
        "task": task,
        "seed": seed,
    }
    facts |= {"select": "held-out", "preset": "", "lr": 5e-5, **more}
    return Cell(
        name, method, "k", facts, summary, seed=seed, history={"collapsed": collapsed}
    ), predictions


def write_run(folder: Path, cells: Sequence[tuple[Any, ...]], name: str = "", **model: Any) -> Path:
    """Write a run folder with these cells; the checkpoint is named after the folder, or `name`."""
    model_facts: Mapping[str, Any] = {
        "name": name or folder.name,
        "weights": f"w of {folder.name}",
        **model,
    }
    with runs.RunWriter(
        folder,
        Manifest(
            runs.SCHEMA_VERSION, model_facts, {"antlm-bench": "0"}, "2026-01-01T00:00:00+00:00"
        ),
    ) as writer:
        for cell, predictions in cells:
            writer.write_cell(cell, from_rows(predictions))
    return folder


def make_zero_shot_cells(
    method: str, *, ewok: str = "ewok-2025", more: int = 0
) -> list[tuple[Any, ...]]:
    """Make the scored members of babylm-2024: 70 (+ more), 60 and 50 of 100 right."""
    right = {"blimp-filtered": 70 + more, "supplement": 60, ewok: 50}
    return [make_cell(suite, method, count, 100) for suite, count in right.items()]


def make_glue_cells(
    way: str = "causal", seeds: Sequence[int] = (1, 2, 3), tasks: Sequence[str] = TASKS_2024
) -> list[tuple[Any, ...]]:
    """Make a cell per task of glue-2024 and seed, 28 + seed of 40 right."""
    return [make_finetuned_cell(task, seed, 28 + seed, way=way) for task in tasks for seed in seeds]
