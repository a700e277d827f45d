"""lm-evaluation-harness results with samples (--log_samples) -> predictions of ours, so that two runs can be compared.

Read: multiple-choice tasks, whose samples hold the log-probability of every option. A task whose samples do not give
back lm-eval's own `acc`, item by item, is left out: then we would not know what its numbers mean.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.declarations import decode_utf8, is_file
from antlm_bench.errors import DataError, UsageError
from antlm_bench.exports.to_lm_eval import sanitized
from antlm_bench.metrics import summarize
from antlm_bench.suites import files
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


def read(path: Path) -> Imported:
    """The results below a folder, or those of one file; of a suite that stands in several the newest, which is said.

    Formats: lm-eval 0.4.0 to 0.4.2 and BabyLM 2024 (results.json or a name of the user's, samples as one JSON list),
    0.4.3 to 0.4.13 (results_<date>.json, samples as JSON lines). A group is one suite, its tasks' mean the headline;
    suites are called "lm-eval.<task>".
    Raises DataError for files that are absent, damaged or hold nothing that can be read, UsageError for two models.
    """
    newest_first = _results_files(path)
    models = {str(_manifest(results).model["weights"]) for _, results in newest_first}
    if len(models) > 1:
        names = ", ".join(
            sorted({file.parent.name for file, _ in newest_first} | {_model_name(r) for _, r in newest_first})
        )
        raise UsageError(f"results of several models: {names}", place=str(path), hint="give one model's folder or file")
    cells: dict[str, tuple[Cell, list[Prediction]]] = {}
    left_out: list[str] = []
    for file, results in newest_first:
        tasks, digests, lost = _tasks(file, results)
        left_out += lost
        for suite, members in _suites(results, tasks):
            if suite in cells:
                left_out.append(f"{suite}: an older result ({file})")
            else:
                cells[suite] = _cell(suite, members, tasks, digests, results)
    if not cells:
        raise DataError(f"nothing to import: {'; '.join(left_out)}", place=str(path), hint="run with --log_samples")
    return Imported(_manifest(newest_first[0][1]), tuple(cells.values()), tuple(dict.fromkeys(left_out)))


def _results_files(path: Path) -> list[tuple[Path, Row]]:
    """The files of results with their contents, the newest first. DataError where there is none, or one is damaged."""
    candidates = [path] if path.is_file() else sorted(path.rglob("*.json"))
    found = []
    for file in candidates:
        named = file == path or file.name.startswith("results")
        results = _json(files.read(file), str(file), file.suffix == ".jsonl") if named else _json_or_none(file)
        if isinstance(results, dict) and all(isinstance(results.get(key), dict) for key in ("results", "config")):
            found.append((file, results))
        elif named:
            hint = "give the file of results (results_<date>.json), or the folder that holds it"
            raise DataError("not the results of lm-eval: no `results` or no `config`", place=str(file), hint=hint)
    if not found:
        hint = "give the --output_path of an lm-eval run"
        raise DataError("no file of lm-eval's results (results_<date>.json, results.json)", place=str(path), hint=hint)
    return sorted(found, key=lambda pair: (_seconds(pair[1]), pair[0].name), reverse=True)


def _tasks(file: Path, results: Row) -> tuple[dict[str, list[Prediction]], dict[str, str], list[str]]:
    """(task -> predictions, task -> digest, tasks that were left out and why) of one file of results."""
    tasks: dict[str, list[Prediction]] = {}
    digests: dict[str, str] = {}
    left_out: list[str] = []
    for task in results["results"]:
        if task in (results.get("groups") or {}) or (results.get("group_subtasks") or {}).get(task):
            continue
        try:
            rows = _samples(file, results, task)
            tasks[task] = _predictions(task, rows, _delimiter(results, task))
            digests[task] = _digest(rows)
        except _LeftOut as why:
            left_out.append(f"{task}: {why}")
    return tasks, digests, left_out


def _samples(file: Path, results: Row, task: str) -> list[Row]:
    """The samples of a task, from where its version of lm-eval puts them. Raises _LeftOut, DataError."""
    inside = results.get("samples")
    if isinstance(inside, dict) and isinstance(inside.get(task), list):
        return _first_of_each(_numbered(inside[task], str(file)))
    stamp = file.stem.removeprefix("results_")
    arguments = results["config"].get("model_args")
    names = [f"samples_{name}_{stamp}.jsonl" for name in (task, sanitized(task))]
    if isinstance(arguments, str):  # lm-eval 0.4.0 to 0.4.2
        names += [f"{re.sub(pattern, '__', arguments)}_{task}.jsonl" for pattern in ("/|=", "/")]
    for name in names:
        if is_file(file.parent / name):
            return _rows(file.parent / name)
    raise _LeftOut("no samples: run with --log_samples")


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
        try:
            choices = [choice.removeprefix(delimiter) for choice in _continuations(row)]
            scores = tuple(float(answer[0]) for answer in _answers(row))
            right = float(row["acc"])
        except (AttributeError, KeyError, TypeError, ValueError, IndexError):
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


def _continuations(row: Row) -> list[str]:
    """The continuations of a document: of {"gen_args_0": {"arg_1": ...}}, or of older [[context, continuation]]."""
    requests = row.get("arguments") or []
    listed = list(requests.values()) if isinstance(requests, dict) else requests
    return [str(each.get("arg_1", "") if isinstance(each, dict) else each[1]) for each in listed]


def _answers(row: Row) -> list[Any]:
    """(log-probability, was it greedy?) of each continuation; without filters the first response to each."""
    if "filtered_resps" in row:
        return list(row["filtered_resps"])
    return [responses[0] for responses in row["resps"]]


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
    model = {"name": _model_name(results), "weights": hashlib.sha256(about.encode()).hexdigest(), "parameters": None}
    model |= {"parameters": config.get("model_num_parameters"), "revision": config.get("model_revision")}
    versions = {"lm-eval": results.get("lm_eval_version"), "transformers": results.get("transformers_version")}
    created = datetime.fromtimestamp(_seconds(results), timezone.utc).isoformat(timespec="seconds")
    return Manifest(runs.SCHEMA, model, {name: str(v) for name, v in versions.items() if v}, created)


def _model_name(results: Row) -> str:
    """The model as the harness names it; before 0.4.3 only its arguments do: pretrained=NAME."""
    config = results["config"]
    arguments = config.get("model_args")
    named = re.search(r"(?:^|,)\s*pretrained=([^,]+)", arguments) if isinstance(arguments, str) else None
    return str(results.get("model_name") or (named and named[1]) or config.get("model") or "unknown")


def _seconds(results: Row) -> float:
    """When the harness ran, in seconds since 1970; 0 where it does not say."""
    date = results.get("date")
    return float(date) if isinstance(date, int | float) and 0 <= date < 1e11 else 0.0


def _rows(file: Path) -> list[Row]:
    """The samples of a file: JSON lines, or (before lm-eval 0.4.3) one JSON list. DataError where it is damaged."""
    text = decode_utf8(files.read(file), str(file), DataError)
    if text.lstrip().startswith("["):
        return _first_of_each(_numbered(_json(text.encode(), str(file)), str(file)))
    lines = [(f"{file}:{number}", line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return _first_of_each([(place, _json(line.encode(), place)) for place, line in lines])


def _numbered(rows: Sequence[Any], place: str) -> list[tuple[str, Any]]:
    return [(f"{place}: sample {number}", row) for number, row in enumerate(rows)]


def _first_of_each(rows: Sequence[tuple[str, Any]]) -> list[Row]:
    """The samples (each with its place) of the first filter, where a task has several; older files do not name it, but
    repeat documents."""
    found: dict[str, Row] = {}
    for place, row in rows:
        if not isinstance(row, dict):
            raise DataError("a sample is an object", place=place, hint="the file is damaged: run lm-eval again")
        if row.get("filter") == rows[0][1].get("filter"):
            found.setdefault(str(row.get("doc_id", place)), row)
    return list(found.values())


def _digest(rows: Sequence[Row]) -> str:
    """Of the questions: what was asked and what was right, as the harness hashed them."""
    names = ("doc_id", "doc_hash", "prompt_hash", "target_hash")
    older = ("doc", "target", "arguments")  # before lm-eval 0.4.3 there were no hashes
    asked = [[row.get(name) for name in (names if "doc_hash" in row else (*names, *older))] for row in rows]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _delimiter(results: Row, task: str) -> str:
    config = (results.get("configs") or {}).get(task) or {}
    return str(config.get("target_delimiter", " "))


def _json(data: bytes, place: str, lines: bool = False) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        hint = "these are samples; give the file of results beside them" if lines else "the file is damaged"
        raise DataError(f"no JSON: {error}", place=place, hint=hint) from None


def _json_or_none(file: Path) -> Any:
    """The content of a file that may be anything."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
