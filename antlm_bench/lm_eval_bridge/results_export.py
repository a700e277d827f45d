"""Runs as lm-evaluation-harness results: its result file and its samples, for the tools that read
those.

Keys as lm_eval 0.4.13 writes them (result_schema.py, loggers/evaluation_tracker.py). A suite with
groups becomes a group of tasks "<suite>_<group>", as BLiMP is there. Samples hold ids, labels and
log-probabilities, never a text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from antlm_bench import runs, statistics
from antlm_bench.metrics import ItemKind, LmEvalFormat, get_metric_spec, load_cell_metric
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.types import Cell, Estimate, Floats, Prediction, Run

FileContents = dict[str, bytes]
PERPLEXITY_VIEWS = ("byte-perplexity", "word-perplexity")  # views that the harness has numbers of


def build_files(run: Run, method: str) -> FileContents:
    """name -> bytes of the files that lm-eval would have left for the `exportable` cells of one
    method.
    """
    stamp = run.manifest.created.replace(":", "-")
    document = build_results_header(run, method)
    made: FileContents = {}
    for cell in run:
        if cell.method == method and is_exportable(cell):
            for task, rows in add_cell_results(
                document, cell, runs.read_predictions(run.path, cell)
            ):
                lines = (json.dumps(row, ensure_ascii=False) for row in rows)
                made[f"samples_{sanitize_name(task)}_{stamp}.jsonl"] = (
                    "\n".join(lines) + "\n"
                ).encode()
    made[f"results_{stamp}.json"] = (
        json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    )
    return made


def is_exportable(cell: Cell) -> bool:
    """Choices between texts; the harness has neither seeds of finetuning nor reading times nor
    curves.
    """
    return cell.seed is None and get_metric_spec(cell.summary.metric).lm_eval is not None


def sanitize_name(name: str) -> str:
    """A name as a file's or folder's (evaluation_tracker's rule), never one that leads out of its
    place.
    """
    return re.sub(r"[\"<>:/|\\?*\[\]\x00-\x1f]+", "__", name)[:180].lstrip(".") or "_"


def build_results_header(run: Run, method: str) -> dict[str, Any]:
    """The result file without results. What only the harness knows is null, as it is there when
    unknown.
    """
    model, software = run.manifest.model, run.manifest.software
    name = str(model.get("name", ""))
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
            "model_dtype": next(
                (cell.settings.get("dtype") for cell in run if cell.method == method), None
            ),
            "model_revision": model.get("revision"),
            "model_sha": model.get("weights"),
            "batch_size": None,
            "batch_sizes": [],
            "device": None,
            "use_cache": None,
            "limit": next(
                (cell.settings.get("limit") for cell in run if cell.method == method), None
            ),
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
    results: dict[str, Any], cell: Cell, predictions: Sequence[Prediction]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Put a cell into the result file; (task, samples) of each of its tasks.

    Standard errors: of a task as the harness has it (sample deviation / sqrt n); of a group, and of
    any other metric, our 95% interval of that very number, its width / (2 * 1.96). The harness took
    another estimator's for groups until June 2026 (#3882). "N/A", as there, for a single item.
    """
    spec = get_metric_spec(cell.summary.metric)
    lm_eval = spec.lm_eval or LmEvalFormat()
    metric, credit = compute_item_credits(cell, predictions)
    # What documents contribute to a number of all of them is no sample's own.
    of_samples = credit if lm_eval.sample_values else None
    version = str(cell.settings.get("suite_version", ""))
    level = cell.summary.groups[-1].level if cell.summary.groups else ""
    members: dict[str, list[int]] = {}
    for place, prediction in enumerate(predictions):
        name = prediction.labels.get(level, "") if credit is not None else ""
        members.setdefault(
            f"{cell.suite}_{name}" if name and name != cell.suite else cell.suite, []
        ).append(place)
    for task, places in members.items():
        value: float = cell.summary.headline.value
        error: float | None = standard_error(cell.summary.headline)
        if credit is not None:
            own = credit[places][
                ~np.isnan(credit[places])
            ]  # lm-eval, too, leaves out what it has no number of
            value = float(own.mean()) if len(own) else value
            error = float(own.std(ddof=1) / np.sqrt(len(own))) if len(own) > 1 else None
        results["results"][task] = build_result_entry(task, metric, value, error, len(places))
        for view in PERPLEXITY_VIEWS:
            if view in cell.summary.views:
                results["results"][task][f"{view.replace('-', '_')},none"] = cell.summary.views[
                    view
                ].value
        results["configs"][task] = {
            "task": task,
            "dataset_name": cell.suite,
            "output_type": lm_eval.output_type,
        }
        results["versions"][task] = version
        results["n-shot"][task] = 0
        results["higher_is_better"][task] = {metric: not spec.lower_is_better}
        results["n-samples"][task] = {"original": len(places), "effective": len(places)}
        results["task_hashes"][task] = cell.settings.get("suite_digest")
        yield (
            task,
            [
                build_sample(
                    n, predictions[p], metric, None if of_samples is None else of_samples[p]
                )
                for n, p in enumerate(places)
            ],
        )
    if len(members) > 1 or cell.suite not in members:
        whole = cell.summary.headline
        group = build_result_entry(cell.suite, metric, whole.value, standard_error(whole), whole.n)
        group["sample_count"] = {f"{metric},none": whole.n}
        results["groups"][cell.suite] = results["results"][cell.suite] = group
        results["group_subtasks"][cell.suite] = list(members)
        results["versions"][cell.suite] = version


def compute_item_credits(
    cell: Cell, predictions: Sequence[Prediction]
) -> tuple[str, Floats | None]:
    """The harness's name of a metric, and what each item adds to its mean (n,), where it is one;
    nan adds nothing.
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
    """The standard error that a 95% interval stands for."""
    return (estimate.high - estimate.low) / (2 * statistics.Z)


def build_result_entry(
    name: str, metric: str, value: float, error: float | None, n: int
) -> dict[str, Any]:
    """One entry of `results`."""
    numbers = {f"{metric},none": value, f"{metric}_stderr,none": "N/A" if error is None else error}
    return {"name": name, "alias": name, "sample_len": n, **numbers}


def build_sample(
    doc_id: int, prediction: Prediction, metric: str, credit: float | None
) -> dict[str, Any]:
    """One row of samples. Log-probabilities are texts, as the harness writes them; whether an
    option was greedy is not known, and null.
    """
    doc = {"id": prediction.id, **prediction.labels}
    answers = [[repr(score), None] for score in prediction.scores]
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": str(prediction.gold),
        "arguments": {},
        "resps": [[answer] for answer in answers],
        "filtered_resps": answers,
        "filter": "none",
        "metrics": [metric],
        "doc_hash": hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).hexdigest(),
        "target_hash": hashlib.sha256(str(prediction.gold).encode()).hexdigest(),
        **({metric: float(credit)} if credit is not None and not np.isnan(credit) else {}),
    }
