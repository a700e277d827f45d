"""Runs as records of Every Eval Ever (evaleval/every_eval_ever, eval.schema.json).

Instance-level records need the text of every item. Runs hold none, so there are aggregate records
only: numbers with their uncertainty.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from antlm_bench.declarations import catalog
from antlm_bench.metrics import get_metric_spec
from antlm_bench.suites.task_types import read_declaration
from antlm_bench.types import Cell, Estimate, Group, Run

SCHEMA_VERSION = "0.3.0"


def build_record(run: Run) -> dict[str, Any]:
    """Return the record of a run: every cell's headline and groups."""
    model, created = run.manifest.model, run.manifest.created
    name = str(model.get("name", ""))
    seconds = str(datetime.fromisoformat(created).timestamp())
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": f"antlm-bench/{name}/{seconds}",
        "evaluation_timestamp": created,
        "retrieved_timestamp": seconds,
        "source_metadata": {
            "source_name": "antlm-bench",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {
            "name": "antlm-bench",
            "version": run.manifest.software.get("antlm-bench", "unknown"),
        },
        "model_info": {
            "name": name,
            "id": name,
            "additional_details": _to_strings({"weights_sha256": model.get("weights")}),
        },
        "evaluation_results": [result for cell in run for result in _build_results(cell)],
    }


def file_name(run: Run) -> str:
    """Return <uuid>.json, the same for the same record."""
    about = json.dumps([str(run.manifest.model.get("weights")), run.manifest.created])
    return f"{uuid.uuid5(uuid.NAMESPACE_URL, about)}.json"


def _build_results(cell: Cell) -> Iterator[dict[str, Any]]:
    seed = "" if cell.seed is None else f", seed {cell.seed}"
    name = f"{cell.suite} ({cell.method}{seed})"
    yield _build_result(
        cell,
        name,
        cell.summary.headline,
        ("average over " + ", then ".join(cell.summary.macro[::-1]))[:200],
    )
    for group in cell.summary.groups:
        yield _build_result(
            cell, f"{name}: {_group_path(group)}", group.estimate, f"one {group.level}"
        )


def _group_path(group: Group) -> str:
    return f"{group.within}/{group.name}" if group.within else group.name


def _build_result(cell: Cell, name: str, estimate: Estimate, description: str) -> dict[str, Any]:
    metric = get_metric_spec(cell.summary.metric)
    lowest, highest = metric.value_range if metric.is_bounded else (0.0, 1.0)
    interval = {"lower": estimate.low, "upper": estimate.high, "confidence_level": 0.95}
    counted = {**estimate.flags} | {
        "method": cell.method,
        "suite_version": cell.settings.get("suite_version"),
    }
    return {
        "evaluation_name": name,
        "source_data": _source_data(cell),
        "metric_config": {
            "evaluation_description": f"{metric.name}, {description}",
            "metric_id": metric.name,
            "lower_is_better": metric.lower_is_better,
            "score_type": "continuous",
            # Where a metric has no bounds, what was seen.
            "min_score": min(lowest, estimate.low),
            "max_score": max(highest, estimate.high),
        },
        "score_details": {
            "score": estimate.value,
            "details": _to_strings(counted),
            "uncertainty": {"confidence_interval": interval, "num_samples": estimate.n},
        },
    }


def _source_data(cell: Cell) -> dict[str, Any]:
    """Where the suite's data come from: its homepage, where we ship the suite; else a data set of
    the user's own.
    """
    suite = cell.suite
    name = suite if cell.seed is None else cell.finetuned_task[0]
    page = read_declaration(name)[0].homepage if name in catalog("tasks") else ""
    if page:
        return {"dataset_name": suite, "source_type": "url", "url": [page]}
    return {"dataset_name": suite, "source_type": "other"}


def _to_strings(values: Mapping[str, object]) -> dict[str, str]:
    """Return the values as texts, which the schema requires of details; None is left out."""
    return {name: str(value) for name, value in values.items() if value is not None}
