"""lm-evaluation-harness results with samples (--log_samples) -> predictions of ours, so that two runs can be compared.

Read: multiple-choice tasks, whose samples hold the log-probability of every option. A task whose samples do not give
back lm-eval's own `acc`, item by item, is left out: then we would not know what its numbers mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.declarations import decode_utf8
from antlm_bench.errors import DataError, UsageError
from antlm_bench.metrics import summarize
from antlm_bench.types import Cell, Manifest, Prediction, Summary

METHOD = "lm-eval"  # the method of imported cells: whatever the harness's model class did
TASK = "task"  # the label of an item of a group: which of its tasks
OPEN = 1e-6  # how far a mean of ours may lie from the harness's
Row = Mapping[str, Any]


class _LeftOut(Exception):
    """Why a task is not imported."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A folder of results: manifest and cells of a run, and which tasks were left out, and why."""

    manifest: Manifest
    cells: tuple[tuple[Cell, list[Prediction]], ...]
    left_out: tuple[str, ...]


def read(folder: Path) -> Imported:
    """The newest results below a folder. A group is one suite, its tasks' mean the headline; suites are called
    "lm-eval.<task>".

    Raises DataError for files that are absent, damaged or hold nothing that can be read, UsageError for two models.
    """
    found = sorted(folder.rglob("results_*.json"), key=lambda path: path.name)
    if not found:
        raise DataError("no results_*.json", place=str(folder), hint="give the --output_path of an lm-eval run")
    if len({path.parent for path in found}) > 1:
        models = ", ".join(sorted({path.parent.name for path in found}))
        raise UsageError(f"results of several models: {models}", place=str(folder), hint="give one model's folder")
    file = found[-1]
    results = _json(file.read_bytes(), str(file))
    if not isinstance(results, dict) or not all(isinstance(results.get(k), dict) for k in ("results", "config")):
        raise DataError("not the results of lm-eval", place=str(file), hint="it lacks `results` or `config`")
    stamp = file.stem.removeprefix("results_")
    left_out: list[str] = []
    tasks: dict[str, list[Prediction]] = {}
    digests: dict[str, str] = {}
    for task in results["results"]:
        if task not in (results.get("groups") or {}):
            try:
                rows = list(_rows(file.parent / f"samples_{task}_{stamp}.jsonl"))
                tasks[task] = _predictions(task, rows, _delimiter(results, task))
                digests[task] = _digest(rows)
            except _LeftOut as why:
                left_out.append(f"{task}: {why}")
    cells = [_cell(suite, members, tasks, digests, results) for suite, members in _suites(results, tasks)]
    if not cells:
        raise DataError(f"nothing to import: {'; '.join(left_out)}", place=str(file), hint="run with --log_samples")
    return Imported(_manifest(results), tuple(cells), tuple(left_out))


def _suites(results: Row, tasks: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(name, tasks) of every top group of which all tasks are there, then of every task in none of these."""
    groups: Mapping[str, Sequence[str]] = results.get("group_subtasks") or {}
    inner = {member for members in groups.values() for member in members}

    def leaves(name: str) -> list[str]:
        return [leaf for member in groups[name] for leaf in (leaves(member) if groups.get(member) else [member])]

    grouped: set[str] = set()
    for name in groups:
        if name not in inner and groups[name] and all(leaf in tasks for leaf in leaves(name)):
            yield name, leaves(name)
            grouped |= set(leaves(name))
    yield from ((task, [task]) for task in tasks if task not in grouped)


def _predictions(task: str, rows: Sequence[Row], delimiter: str) -> list[Prediction]:
    made = []
    for row in rows:
        choices = [str(a.get("arg_1", "")).removeprefix(delimiter) for a in (row.get("arguments") or {}).values()]
        try:
            scores = tuple(float(answer[0]) for answer in row["filtered_resps"])
            right = float(row["acc"])
        except (KeyError, TypeError, ValueError, IndexError):
            raise _LeftOut("its samples hold no log-probability per option with an `acc`") from None
        if len(scores) < 2:
            raise _LeftOut("one continuation per item, no choice (loglikelihood)")
        gold, first = _gold(row.get("target"), choices), max(range(len(scores)), key=lambda i: scores[i])
        best = [i for i, score in enumerate(scores) if score == scores[first]]
        # The harness gives a tie to the first option; our own exports give each of k its share.
        if gold is None or right not in (float(first == gold), (gold in best) / len(best)):
            raise _LeftOut(f"item {row.get('doc_id')}: its samples do not give back lm-eval's own acc")
        lengths = tuple(map(len, choices)) if len(choices) == len(scores) else (0,) * len(scores)
        labels = {TASK: task}
        made.append(Prediction(f"{task}_{row.get('doc_id')}", gold, first, scores, (0,) * len(scores), lengths, labels))
    if not made:
        raise _LeftOut("no samples")
    return made


def _gold(target: object, choices: Sequence[str]) -> int | None:
    """Index of the right option: the target itself, or the place of its text among the choices."""
    text = str(target)
    return int(text) if text.isdecimal() else choices.index(text) if text in choices else None


def _cell(
    suite: str, members: Sequence[str], tasks: Mapping[str, list[Prediction]], digests: Mapping[str, str], results: Row
) -> tuple[Cell, list[Prediction]]:
    predictions = [prediction for task in members for prediction in tasks[task]]
    name, macro = f"lm-eval.{suite}", (TASK,) if len(members) > 1 else ()
    summary = summarize(
        predictions, suite=name, method=METHOD, metric="accuracy", macro=macro, groups=macro, notes=_notes(results)
    )
    said = results["results"].get(suite, {}).get("acc,none")
    ours = summarize(
        predictions, suite=name, method=METHOD, metric="accuracy", macro=macro, groups=(), ties="first"
    ).headline
    if macro and isinstance(said, float) and abs(said - ours.value) > OPEN:
        summary = replace(summary, notes=(*summary.notes, f"lm-eval averages this group otherwise ({said:.4f})"))
    version, limit = (results.get("versions") or {}).get(suite), results["config"].get("limit")
    digest = hashlib.sha256("".join(digests[task] for task in members).encode()).hexdigest()
    settings = {
        "suite": name,
        "suite_version": str(version),
        "suite_digest": digest,
        "task_hashes": {task: (results.get("task_hashes") or {}).get(task) for task in members},
        "shots": (results.get("n-shot") or {}).get(suite),
        "method": METHOD,
        "ties": "half",
        "reduction": "sum",
        "limit": limit,
        "model_args": results["config"].get("model_args"),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return Cell(name, METHOD, key, settings, _without_tokens(summary)), predictions


def _without_tokens(summary: Summary) -> Summary:
    """Samples do not say how many tokens an option has, so there is no mean per token."""
    return replace(summary, views={name: view for name, view in summary.views.items() if name != "per-token"})


def _notes(results: Row) -> list[str]:
    version, own = results.get("lm_eval_version") or "of unknown version", results.get("antlm_bench_version")
    if own:
        return [f"imported from an export of antlm-bench {own}"]
    return [f"imported from lm-eval {version}; ties count half here, and go to the first option there"]


def _manifest(results: Row) -> Manifest:
    """Of the imported run. The harness does not hash weights: what it says of the model stands in their place."""
    config = results["config"]
    about = json.dumps([config.get("model"), config.get("model_args"), config.get("model_sha")], sort_keys=True)
    name = str(results.get("model_name") or config.get("model") or "unknown")
    model = {"name": name, "weights": hashlib.sha256(about.encode()).hexdigest(), "parameters": None}
    model |= {"parameters": config.get("model_num_parameters"), "revision": config.get("model_revision")}
    versions = {"lm-eval": results.get("lm_eval_version"), "transformers": results.get("transformers_version")}
    date = results.get("date")
    seconds = date if isinstance(date, int | float) and 0 <= date < 1e11 else 0
    created = datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
    return Manifest(runs.SCHEMA, model, {name: str(v) for name, v in versions.items() if v}, created)


def _rows(file: Path) -> Iterator[Row]:
    """The samples of a task, those of the first filter where it has several."""
    try:
        text = decode_utf8(file.read_bytes(), str(file), DataError)
    except FileNotFoundError:
        raise _LeftOut("no samples: run with --log_samples") from None
    first = None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = _json(line.encode(), f"{file}:{number}")
            if not isinstance(row, dict):
                raise DataError("a sample is an object", place=f"{file}:{number}", hint="the file is damaged")
            first = row.get("filter") if first is None else first
            if row.get("filter") == first:
                yield row


def _digest(rows: Sequence[Row]) -> str:
    """Of the questions: what was asked and what was right, as the harness hashed them."""
    asked = [[row.get(name) for name in ("doc_id", "doc_hash", "prompt_hash", "target_hash")] for row in rows]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _delimiter(results: Row, task: str) -> str:
    config = (results.get("configs") or {}).get(task) or {}
    return str(config.get("target_delimiter", " "))


def _json(data: bytes, place: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"no JSON: {error}", place=place, hint="the file is damaged") from None
