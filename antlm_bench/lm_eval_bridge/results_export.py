"""Export a run as a results file and samples files of lm-evaluation-harness.

The keys are those of lm_eval 0.4.13 (result_schema.py, loggers/evaluation_tracker.py). A suite with
groups becomes a group of tasks "<suite>_<group>", like lm-eval's BLiMP. Samples hold ids, labels
and log-probabilities, but no texts.
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
from antlm_bench.types import Cell, Floats, Run

FileContents = dict[str, bytes]  # file name -> content
PERPLEXITY_VIEWS = ("byte-perplexity", "word-perplexity")  # views that lm-eval also reports


def build_files(run: Run, method: str) -> FileContents:
    """Return the files that lm-eval would have written for the cells of a method."""
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
    """Return whether a cell has no seed, and its metric has an lm-eval format."""
    return cell.seed is None and get_metric_spec(cell.summary.metric).lm_eval is not None


def sanitize_name(name: str) -> str:
    """Replace characters that a file name cannot have, as lm-eval's evaluation_tracker does."""
    return re.sub(r"[\"<>:/|\\?*\[\]\x00-\x1f]+", "__", name)[:180].lstrip(".") or "_"


def build_results_header(run: Run, method: str) -> dict[str, Any]:
    """Return the content of a results file without results. Values unknown here are null."""
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
    """Add a cell to the results, and yield (task, samples) for each of its tasks.

    The standard error of a mean over items is computed as in lm-eval: sample deviation / sqrt n,
    "N/A" for a single item. For groups and other metrics it is the width of our 95% interval / (2 *
    1.96); lm-eval used another estimator for groups until June 2026 (#3882).
    """
    spec = get_metric_spec(cell.summary.metric)
    lm_eval_format = spec.lm_eval or LmEvalFormat()
    metric, item_values = compute_item_values(cell, predictions)
    # lm-eval's samples have no value for corpus metrics, so contributions are not exported.
    sample_values: Sequence[float | None] = [None] * len(predictions)
    if lm_eval_format.sample_values and item_values is not None:
        sample_values = list(item_values)
    headline, views = cell.summary.headline, cell.summary.views
    version = str(cell.settings.get("suite_version", ""))
    rows = predictions.table.to_pylist()
    indices_by_task = _indices_by_task(cell, predictions, has_groups=item_values is not None)
    for task, indices in indices_by_task.items():
        value: float = headline.value
        stderr = standard_error(cell)
        if item_values is not None:
            values = item_values[indices]
            values = values[~np.isnan(values)]  # as in lm-eval
            value = float(values.mean()) if len(values) else value
            stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        entry = build_result_entry(task, metric, value, stderr, len(indices))
        entry |= {
            f"{view.replace('-', '_')},none": views[view].value
            for view in PERPLEXITY_VIEWS
            if view in views
        }
        results["results"][task] = entry
        results["configs"][task] = {
            "task": task,
            "dataset_name": cell.suite,
            "output_type": lm_eval_format.output_type,
        }
        results["versions"][task] = version
        results["n-shot"][task] = 0
        results["higher_is_better"][task] = {metric: not spec.lower_is_better}
        results["n-samples"][task] = {
            # A run does not record how many items a limit left out.
            "original": None if cell.settings.get("limit") else len(indices),
            "effective": len(indices),
        }
        results["task_hashes"][task] = cell.settings.get("suite_digest")
        samples = [
            build_sample(doc_id, rows[index], predictions.has_ratings, metric, sample_values[index])
            for doc_id, index in enumerate(indices)
        ]
        yield task, samples
    if len(indices_by_task) > 1 or cell.suite not in indices_by_task:
        entry = build_result_entry(
            cell.suite, metric, headline.value, standard_error(cell), headline.n
        )
        entry["sample_count"] = {f"{metric},none": headline.n}
        results["groups"][cell.suite] = results["results"][cell.suite] = entry
        results["group_subtasks"][cell.suite] = list(indices_by_task)
        results["versions"][cell.suite] = version


def _indices_by_task(
    cell: Cell, predictions: Predictions, *, has_groups: bool
) -> dict[str, list[int]]:
    """Return task -> indices of its items. A group of the cell is a task of lm-eval's results."""
    level = cell.summary.groups[-1].level if cell.summary.groups else ""
    indices_by_task: dict[str, list[int]] = {}
    for index, label in enumerate(predictions.labels(level)):
        group = (label or "") if has_groups else ""
        task = f"{cell.suite}_{group}" if group and group != cell.suite else cell.suite
        indices_by_task.setdefault(task, []).append(index)
    return indices_by_task


def compute_item_values(cell: Cell, predictions: Predictions) -> tuple[str, Floats | None]:
    """Return lm-eval's name of the cell's metric, and the values (n,) of which it is the mean.

    The values are None if the metric is not a mean over items, NaN for items without a value.
    """
    spec = get_metric_spec(cell.summary.metric)
    lm_eval_format = spec.lm_eval or LmEvalFormat()
    name = lm_eval_format.metric or spec.name.replace("-", "_")
    if spec.item_kind is ItemKind.TASK_VALUE:
        name = str(cell.settings["judge"][1])
    if not lm_eval_format.is_item_mean:
        return name, None
    table = build_table(predictions, set(), str(cell.settings.get("reduction", "sum")))
    return name, load_cell_metric(cell).per_item(table)


def standard_error(cell: Cell) -> float | None:
    """Return the standard error that the headline's 95% interval implies; None without one."""
    spec = get_metric_spec(cell.summary.metric)
    low, high = spec.known_interval(*cell.estimate.interval)
    return None if low is None or high is None else (high - low) / (2 * statistics.Z)


def build_result_entry(
    name: str, metric: str, value: float, stderr: float | None, n: int
) -> dict[str, Any]:
    """Return one entry of `results`."""
    return {
        "name": name,
        "alias": name,
        "sample_len": n,
        f"{metric},none": value,
        f"{metric}_stderr,none": "N/A" if stderr is None else stderr,
    }


def build_sample(
    doc_id: int,
    row: Mapping[str, Any],
    is_rated: bool,
    metric: str,
    value: float | None,
) -> dict[str, Any]:
    """Return one sample.

    As in lm-eval, log-probabilities are strings. is_greedy is null, because a run does not store
    it. row: of a table of predictions. Its flags (an item that did not fit, for instance) are kept
    under a key that lm-eval does not have. is_rated: whether its gold is a rating. value: of the
    metric, None = the item has no value.
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
        **({"cluster": row["cluster"]} if row.get("cluster") else {}),
        "target_hash": hashlib.sha256(str(gold).encode()).hexdigest(),
        **({"flags": row["flags"]} if row["flags"] else {}),
        **({metric: float(value)} if value is not None and not np.isnan(value) else {}),
    }
