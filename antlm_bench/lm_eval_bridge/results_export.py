"""Export runs as results of lm-evaluation-harness: its results file and its samples.

Keys as lm_eval 0.4.13 writes them (result_schema.py, loggers/evaluation_tracker.py). A suite with
groups becomes a group of tasks "<suite>_<group>", as lm-eval's BLiMP is. Samples hold ids, labels
and log-probabilities, never a text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from antlm_bench import runs, statistics
from antlm_bench.metrics import ItemKind, LmEvalFormat, get_metric_spec, load_cell_metric
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.predictions import Predictions
from antlm_bench.types import Cell, Estimate, Floats, Run

FileContents = dict[str, bytes]
PERPLEXITY_VIEWS = ("byte-perplexity", "word-perplexity")  # views that lm-eval reports, too


def build_files(run: Run, method: str) -> FileContents:
    """Return name -> bytes of the files that lm-eval would have written for a method's cells."""
    stamp = run.manifest.created.replace(":", "-")
    results = build_results_header(run, method)
    contents: FileContents = {}
    for cell in run:
        if cell.method == method and is_exportable(cell):
            predictions = runs.read_predictions(run.path, cell)
            for task, samples in add_cell_results(results, cell, predictions):
                lines = "".join(f"{json.dumps(s, ensure_ascii=False)}\n" for s in samples)
                contents[f"samples_{sanitize_name(task)}_{stamp}.jsonl"] = lines.encode()
    text = json.dumps(results, indent=2, ensure_ascii=False)
    contents[f"results_{stamp}.json"] = f"{text}\n".encode()
    return contents


def is_exportable(cell: Cell) -> bool:
    """Return whether lm-eval's results can hold a cell: they have no seeds, and not all metrics."""
    return cell.seed is None and get_metric_spec(cell.summary.metric).lm_eval is not None


def sanitize_name(name: str) -> str:
    """Return a name as that of a file or folder (evaluation_tracker's rule), never a path."""
    return re.sub(r"[\"<>:/|\\?*\[\]\x00-\x1f]+", "__", name)[:180].lstrip(".") or "_"


def build_results_header(run: Run, method: str) -> dict[str, Any]:
    """Return the results file without results. What only lm-eval knows is null."""
    model, software = run.manifest.model, run.manifest.software
    name = str(model.get("name", ""))
    settings: Mapping[str, Any] = next((cell.settings for cell in run if cell.method == method), {})
    return {
        "results": {},
        "groups": {},
        "group_subtasks": {},
        "configs": {},
        "versions": {},
        "n-shot": {},
        "higher_is_better": {},
        "n-samples": {},
        "config": {
            "model": "antlm-bench",
            "model_args": {"pretrained": name, "method": method},
            "model_num_parameters": model.get("parameters"),
            "model_dtype": settings.get("dtype"),
            "model_revision": model.get("revision"),
            "model_sha": model.get("weights"),
            "batch_size": None,
            "batch_sizes": [],
            "device": None,
            "use_cache": None,
            "limit": settings.get("limit"),
            "bootstrap_iters": 0,
            "gen_kwargs": {},
        },
        "git_hash": None,
        "date": datetime.fromisoformat(run.manifest.created).timestamp(),
        "transformers_version": software.get("transformers"),
        "lm_eval_version": None,
        "antlm_bench_version": software.get("antlm-bench"),
        "task_hashes": {},
        "model_source": "antlm-bench",
        "model_name": name,
        "model_name_sanitized": sanitize_name(name),
    }


def add_cell_results(
    results: dict[str, Any], cell: Cell, predictions: Predictions
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Add a cell to the results, and yield (task, samples) of each of its tasks.

    Standard errors: of a task as in lm-eval (sample deviation / sqrt n); of a group, and of any
    other metric, the width of our 95% interval / (2 * 1.96). lm-eval used another estimator for
    groups until June 2026 (#3882). "N/A", as in lm-eval, for a single item.
    """
    spec = get_metric_spec(cell.summary.metric)
    lm_eval = spec.lm_eval or LmEvalFormat()
    metric, item_values = compute_item_values(cell, predictions)
    # A document's contribution to a corpus metric is not a value of its sample.
    sample_values: Sequence[float | None] = [None] * len(predictions)
    if lm_eval.sample_values and item_values is not None:
        sample_values = list(item_values)
    headline, views = cell.summary.headline, cell.summary.views
    version = str(cell.settings.get("suite_version", ""))
    level = cell.summary.groups[-1].level if cell.summary.groups else ""
    rows = predictions.table.to_pylist()
    indices_by_task: dict[str, list[int]] = {}
    for index, label in enumerate(predictions.labels(level)):
        group = label or "" if item_values is not None else ""
        task = f"{cell.suite}_{group}" if group and group != cell.suite else cell.suite
        indices_by_task.setdefault(task, []).append(index)
    for task, indices in indices_by_task.items():
        value: float = headline.value
        error: float | None = standard_error(headline)
        if item_values is not None:
            values = item_values[indices]
            values = values[~np.isnan(values)]  # lm-eval, too, leaves out items without a value
            value = float(values.mean()) if len(values) else value
            error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        entry = build_result_entry(task, metric, value, error, len(indices))
        entry |= {
            f"{v.replace('-', '_')},none": views[v].value for v in PERPLEXITY_VIEWS if v in views
        }
        results["results"][task] = entry
        results["configs"][task] = {
            "task": task,
            "dataset_name": cell.suite,
            "output_type": lm_eval.output_type,
        }
        results["versions"][task] = version
        results["n-shot"][task] = 0
        results["higher_is_better"][task] = {metric: not spec.lower_is_better}
        results["n-samples"][task] = {"original": len(indices), "effective": len(indices)}
        results["task_hashes"][task] = cell.settings.get("suite_digest")
        sample_pairs = [(index, sample_values[index]) for index in indices]
        samples = [
            build_sample(doc_id, rows[index], predictions.has_ratings, metric, sample_value)
            for doc_id, (index, sample_value) in enumerate(sample_pairs)
        ]
        yield task, samples
    if len(indices_by_task) > 1 or cell.suite not in indices_by_task:
        entry = build_result_entry(
            cell.suite, metric, headline.value, standard_error(headline), headline.n
        )
        entry["sample_count"] = {f"{metric},none": headline.n}
        results["groups"][cell.suite] = results["results"][cell.suite] = entry
        results["group_subtasks"][cell.suite] = list(indices_by_task)
        results["versions"][cell.suite] = version


def compute_item_values(cell: Cell, predictions: Predictions) -> tuple[str, Floats | None]:
    """Return lm-eval's name of a metric, and the items' values (n,) where it is their mean.

    NaN where an item has no value.
    """
    spec = get_metric_spec(cell.summary.metric)
    lm_eval = spec.lm_eval or LmEvalFormat()
    name = lm_eval.metric or spec.name.replace("-", "_")
    if spec.item_kind is ItemKind.TASK_VALUE:
        name = str(cell.settings["judge"][1])
    if not lm_eval.is_item_mean:
        return name, None
    table = build_table(predictions, set(), str(cell.settings.get("reduction", "sum")))
    return name, load_cell_metric(cell).per_item(table)


def standard_error(estimate: Estimate) -> float:
    """Return the standard error behind a 95% interval."""
    return (estimate.high - estimate.low) / (2 * statistics.Z)


def build_result_entry(
    name: str, metric: str, value: float, error: float | None, n: int
) -> dict[str, Any]:
    """Return one entry of `results`."""
    numbers = {f"{metric},none": value, f"{metric}_stderr,none": "N/A" if error is None else error}
    return {"name": name, "alias": name, "sample_len": n, **numbers}


def build_sample(
    doc_id: int,
    row: Mapping[str, Any],
    is_rated: bool,
    metric: str,
    value: float | None,
) -> dict[str, Any]:
    """Return one sample. Log-probabilities are texts, as lm-eval writes them; whether an option is
    greedy is unknown: null.

    row: of a table of predictions. is_rated: whether its gold is a rating. value: of the metric,
    None = the item has no value.
    """
    labels = {level: label for level, label in row.get("labels", {}).items() if label is not None}
    gold = row["gold"] if is_rated else int(row["gold"])
    doc = {"id": row["id"], **labels}
    responses = [[repr(score), None] for score in row["scores"]]
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": str(gold),
        "arguments": {},
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": "none",
        "metrics": [metric],
        "doc_hash": hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest(),
        "target_hash": hashlib.sha256(str(gold).encode()).hexdigest(),
        **({metric: float(value)} if value is not None and not np.isnan(value) else {}),
    }
