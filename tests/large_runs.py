"""Run folders as large as real ones (67 paradigms, 19 checkpoints, GLUE by seed), with random
predictions.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prediction_rows import PredictionRow, from_rows

from antlm_bench import metrics, runs
from antlm_bench.types import Cell, Manifest

FIELDS = ("morphology", "semantics", "syntax", "syntax/semantics")
PHENOMENON_LIST = """
anaphor_agreement argument_structure binding control_raising determiner_noun_agreement ellipsis
filler_gap irregular_forms island_effects npi_licensing quantifiers subject_verb_agreement
"""
PHENOMENA = PHENOMENON_LIST.split()
PARADIGMS = [
    (f"{PHENOMENA[i % 12]}_with_adjective_irregular_{i // 12 + 1}", PHENOMENA[i % 12])
    for i in range(67)
]
TASKS = {"rte": "accuracy", "mrpc": "f1", "boolq": "accuracy", "cola": "mcc"}
MILESTONES = [*range(1, 10), *range(10, 101, 10)]
HOSTILE_NAMES = [
    '</script><img src=x onerror="alert(1)">',
    "‮עברית\u0007 🦙",
    '"><svg/onload=alert(2)>&amp;{{ 7*7 }}' + "x" * 60,
]


def make_manifest(name: str, weights: str = "", **more: Any) -> Manifest:
    model = {
        "name": name,
        "weights": weights or name,
        "architecture": "Toy",
        "parameters": 24_500_000,
        **more,
    }
    return Manifest(
        runs.SCHEMA_VERSION,
        model,
        {"antlm-bench": "0.1.0", "torch": "2.13.0"},
        "2026-11-21T03:33:33+00:00",
    )


def draw_pairs(
    skill: float, salt: str, paradigms: Sequence[tuple[str, str]], items: int
) -> list[PredictionRow]:
    """Draw predictions: the chance of a right one depends on the skill and on the paradigm."""
    predictions = []
    rng = np.random.default_rng(zlib.crc32(salt.encode()))
    for paradigm, phenomenon in paradigms:
        hard = np.random.default_rng(zlib.crc32(paradigm.encode()))
        offset, hardness = hard.uniform(-0.22, 0.22), hard.uniform(size=items)
        for i in range(items):
            right = 0.6 * hardness[i] + 0.4 * rng.uniform() < skill + offset
            labels = {
                "field": FIELDS[PHENOMENA.index(phenomenon) % 4],
                "phenomenon": phenomenon,
                "paradigm": paradigm,
            }
            scores = (-20.0, -21.5) if right else (-21.0, -20.25)
            predictions.append(
                PredictionRow(
                    f"{paradigm}.{i}", 0, int(not right), scores, (7, 7), (31, 30), labels
                )
            )
    return predictions


def write_suite(
    writer: runs.RunWriter, name: str, method: str, answers: list[PredictionRow], digest: str = "d"
) -> None:
    options = {
        "metric": "accuracy",
        "macro": ["paradigm"],
        "groups": ["field", "phenomenon", "paradigm"],
    }
    summary = metrics.summarize(from_rows(answers), suite=name, method=method, **options)  # type: ignore[arg-type]
    settings = {
        "suite_digest": digest,
        "suite_version": "1",
        "ties": "half",
        "bos": "auto",
        "dtype": "float32",
    }
    writer.write_cell(Cell(name, method, "k", settings, summary), from_rows(answers))


def write_task(
    writer: runs.RunWriter, name: str, skill: float, seed: int, *, constant: bool = False
) -> None:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    gold = np.random.default_rng(zlib.crc32(name.encode())).integers(2, size=120)
    pred = np.where(rng.uniform(size=120) < skill + rng.normal() / 40, gold, 1 - gold) * (
        not constant
    )
    answers = [
        PredictionRow(
            f"{i}",
            int(g),
            int(p),
            (-0.1, -2.4) if p == 0 else (-2.4, -0.1),
            (9, 9),
            (40, 40),
            {"task": name},
        )
        for i, (g, p) in enumerate(zip(gold, pred, strict=True))
    ]
    options = {"metric": TASKS[name], "macro": [], "groups": [], "reduction": "class"}
    summary = metrics.summarize(
        from_rows(answers), suite=f"glue-2025.{name}", method="finetune-causal", **options
    )  # type: ignore[arg-type]
    settings = {
        "task": name,
        "collection": "glue-2025",
        "select": "held-out",
        "preset": "",
        "suite_digest": name,
    }
    history = {"collapsed": ["always answers class 0"] if constant else []}
    cell = Cell(
        f"glue-2025.{name}", "finetune-causal", "k", settings, summary, seed=seed, history=history
    )
    writer.write_cell(cell, from_rows(answers))


def write_model_run(
    folder: Path, name: str, skill: float, method: str = "causal", seeds: int = 0, items: int = 12
) -> Path:
    """Write a run of 67 paradigms, a supplement, and four classification tasks per seed."""
    with runs.RunWriter(folder, make_manifest(name)) as writer:
        write_suite(writer, "blimp-filtered", method, draw_pairs(skill, name, PARADIGMS, items))
        write_suite(
            writer, "supplement", method, draw_pairs(skill - 0.1, name + "s", PARADIGMS[:5], 40)
        )
        for seed in range(1, seeds + 1):
            for number, task_name in enumerate(TASKS):
                write_task(
                    writer,
                    task_name,
                    skill + 0.03 * number,
                    seed,
                    constant=(seed, task_name, name[0]) == (2, "rte", "l"),
                )
    return folder


def write_checkpoint_runs(
    folder: Path, top: float, marks: Sequence[int] = MILESTONES, twins: Sequence[int] = ()
) -> list[Path]:
    """Write runs of chck_1M ...; those in `twins` have the weights of the checkpoint before."""
    run_dirs, weights = [], ""
    for mark in marks:
        weights = weights if mark in twins else f"{folder.name}-{mark}"
        run_dir = folder / f"chck_{mark}M"
        with runs.RunWriter(run_dir, make_manifest(f"chck_{mark}M", weights)) as writer:
            for name, paradigms in (
                ("blimp-fast", PARADIGMS[:4]),
                ("supplement-fast", PARADIGMS[4:6]),
            ):
                skill = top - 0.3 / (1 + mark / 12)
                write_suite(
                    writer, name, "causal", draw_pairs(skill, f"{weights}{name}", paradigms, 50)
                )
        run_dirs.append(run_dir)
    return run_dirs


def write_training_log(folder: Path, steps: int = 600) -> Path:
    """Write the training log of a causal, then masked, then causal run."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    lines, before = [], "clm"
    for step in range(1, steps + 1):
        objective = "mlm" if steps / 6 < step <= 5 * steps / 6 else "clm"
        loss = (
            3
            + 4 * np.exp(-step / steps * 4)
            + (0.8 if objective == "mlm" else 0)
            + rng.normal() / 12
        )
        record: dict[str, Any] = {
            "step": step,
            "words": 16_000 * step,
            "tokens": 21_000 * step,
            "lr": 1e-3,
            "norm": 1.0,
        }
        lines.append(
            record
            | {"loss": {objective: float(loss)}}
            | ({"switch": objective} if objective != before else {})
        )
        before = objective
    lines.insert(100, {"step": 100, "checkpoint": "chck_1M", "scores": []})
    (folder / "train.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )
    return folder
