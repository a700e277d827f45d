"""Export runs as records of Every Eval Ever (evaleval/every_eval_ever, eval.schema.json).

Only aggregate records are written: scores with their uncertainty. Instance-level records need the
texts of the items, which runs do not store.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from antlm_bench.declarations import list_declarations
from antlm_bench.metrics import get_metric_spec
from antlm_bench.suites.task_types import read_declaration
from antlm_bench.types import Cell, Estimate, Run

SCHEMA_VERSION = "0.3.0"


def build_record(run: Run) -> dict[str, Any]:
    """Build the record of a run: a result per suite, method and seed, and one per item group."""
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


def build_file_name(run: Run) -> str:
    """Return <uuid>.json. The UUID depends on the weights and on the run's creation time."""
    identity = json.dumps([str(run.manifest.model.get("weights")), run.manifest.created])
    return f"{uuid.uuid5(uuid.NAMESPACE_URL, identity)}.json"


def _build_results(cell: Cell) -> Iterator[dict[str, Any]]:
    seed = "" if cell.seed is None else f", seed {cell.seed}"
    name = f"{cell.suite} ({cell.method}{seed})"
    summary = cell.summary
    source = _build_source_data(cell)
    yield _build_result(cell, source, name, summary.headline, _describe_average(summary.macro))
    for group in summary.groups:
        path = f"{group.within}/{group.name}" if group.within else group.name
        yield _build_result(cell, source, f"{name}: {path}", group.estimate, f"one {group.level}")


def _describe_average(macro_levels: Sequence[str]) -> str:
    """Describe how a headline averages over items or groups, in at most 200 characters.

    macro_levels: levels of the macro-average, outermost first; () = all items count equally.
    """
    if not macro_levels:
        return "over all items"
    innermost_first = macro_levels[::-1]
    return ("average over " + ", then ".join(innermost_first))[:200]  # the schema's limit


def _build_result(
    cell: Cell, source: Mapping[str, Any], name: str, estimate: Estimate, description: str
) -> dict[str, Any]:
    """Return the record of an estimate. source: the cell's source data."""
    metric = get_metric_spec(cell.summary.metric)
    lowest, highest = metric.value_range if metric.is_bounded else (0.0, 1.0)
    uncertainty: dict[str, Any] = {"num_samples": estimate.n}
    low, high = metric.known_interval(*estimate.interval)
    if low is not None:
        ends = {"lower": low, "upper": high, "confidence_level": 0.95}
        uncertainty = {"confidence_interval": ends, **uncertainty}
    details = {**estimate.flags} | {
        "method": cell.method,
        "suite_version": cell.settings.get("suite_version"),
        "notes": "; ".join(cell.summary.notes) or None,
    }
    return {
        "evaluation_name": name,
        "source_data": source,
        "metric_config": {
            "evaluation_description": f"{metric.name}, {description}",
            "metric_id": metric.name,
            "lower_is_better": metric.lower_is_better,
            "score_type": "continuous",
            # The schema requires bounds. An unbounded metric gets 0..1, widened to this interval.
            "min_score": min(lowest, estimate.low),
            "max_score": max(highest, estimate.high),
        },
        "score_details": {
            "score": estimate.value,
            "details": _to_strings(details),
            "uncertainty": uncertainty,
        },
    }


def _build_source_data(cell: Cell) -> dict[str, Any]:
    """Return the homepage of a shipped suite as the source of its data, else "other"."""
    # A finetuned cell is named SUITE.TASK; the declaration is named SUITE.
    suite = cell.suite if cell.seed is None else cell.finetuned_task[0]
    homepage = read_declaration(suite)[0].homepage if suite in list_declarations("tasks") else ""
    if homepage:
        return {"dataset_name": cell.suite, "source_type": "url", "url": [homepage]}
    return {"dataset_name": cell.suite, "source_type": "other"}


def _to_strings(values: Mapping[str, object]) -> dict[str, str]:
    """Return the values as strings, which the schema requires, without those that are None."""
    return {name: str(value) for name, value in values.items() if value is not None}
