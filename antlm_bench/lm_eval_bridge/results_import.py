"""Import results of lm-evaluation-harness with samples (--log_samples) as a run.

Multiple-choice tasks are imported, whose samples hold the log-probability of every option. A task
is skipped where the meaning of its numbers is unknown: its samples do not give lm-eval's own `acc`,
item by item and as their mean, or are not as many as the results state.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from antlm_bench import runs
from antlm_bench.declarations import decode_utf8, is_file
from antlm_bench.errors import DataError, UsageError
from antlm_bench.lm_eval_bridge.results_export import sanitize_name
from antlm_bench.metrics import summarize
from antlm_bench.predictions import OptionColumns, Predictions, concat_predictions
from antlm_bench.suites import files
from antlm_bench.types import Cell, Item, Manifest

METHOD = "lm-eval"  # the method of imported cells: whatever lm-eval's model class did
TASK_LEVEL = "task"  # the label of a group's items: their task
TOLERANCE = 1e-6  # between our mean and lm-eval's
NO_SAMPLES = "no samples: run with --log_samples"
DAMAGED_HINT = "the file is damaged: run lm-eval again"
# Table of a results file -> whether its values are tables, too.
RESULT_TABLES = {
    "results": True,
    "groups": False,
    "group_subtasks": False,
    "configs": True,
    "versions": False,
    "n-shot": False,
    "n-samples": True,
    "task_hashes": False,
}
JsonObject = Mapping[str, Any]


class _TaskSkipped(Exception):
    """Why a task is not imported."""


@dataclass(frozen=True, slots=True)
class ImportedRun:
    """The manifest and cells of an imported run."""

    manifest: Manifest
    cells: tuple[tuple[Cell, Predictions], ...]
    skipped_tasks: tuple[str, ...]
    """Lines of task and reason."""


def read_results(path: Path) -> ImportedRun:
    """Read the results below a folder, or those of one file; of each suite the newest.

    Formats: lm-eval 0.4.0 to 0.4.2 and BabyLM 2024 (results.json or a name of the user's, samples
    as one JSON list), 0.4.3 to 0.4.13 (results_<date>.json, samples as JSON lines). A group is one
    suite, its tasks' mean the headline; suites are called "lm-eval.<task>". Raises DataError for
    files that are absent, damaged or hold nothing that can be read, UsageError for two models.
    """
    newest_first = _load_results_files(path)
    models = {str(_build_manifest(results).model["weights"]) for _, results in newest_first}
    if len(models) > 1:
        names = {file.parent.name for file, _ in newest_first}
        names |= {_model_name(results) for _, results in newest_first}
        message = f"results of several models: {', '.join(sorted(names))}"
        raise UsageError(message, location=str(path), hint="give one model's folder or file")
    cells: dict[str, tuple[Cell, Predictions]] = {}
    skipped: list[str] = []
    for file, results in newest_first:
        tasks, digests, skipped_here = _load_tasks(file, results)
        skipped += skipped_here
        for suite, members in _group_into_suites(results, tasks):
            if suite in cells:
                skipped.append(f"{suite}: an older result ({file})")
            else:
                cells[suite] = _build_cell(suite, members, tasks, digests, results)
    if not cells:
        hint = (
            "run lm-eval again where samples and results contradict each other; only "
            "multiple-choice tasks with a log-probability per option and one right option can be "
            "imported"
        )
        if skipped and all(line.endswith(NO_SAMPLES) for line in skipped):
            hint = "run with --log_samples"
        message = f"nothing to import: {'; '.join(skipped) or 'no task'}"
        raise DataError(message, location=str(path), hint=hint)
    manifest = _build_manifest(newest_first[0][1])
    return ImportedRun(manifest, tuple(cells.values()), tuple(dict.fromkeys(skipped)))


def _load_results_files(path: Path) -> list[tuple[Path, JsonObject]]:
    """Return the results files with their contents, the newest first.

    Raises DataError where there is none, or one is damaged.
    """
    candidates = [path] if path.is_file() else sorted(path.rglob("*.json"))
    results_files = []
    for file in candidates:
        has_results_name = file == path or file.name.startswith("results")
        if has_results_name:
            results = _parse_json(files.read_bytes(file), str(file), file.suffix == ".jsonl")
        else:
            results = _load_json_or_none(file)
        if isinstance(results, dict) and all(
            isinstance(results.get(key), dict) for key in ("results", "config")
        ):
            _check_tables(results, str(file))
            results_files.append((file, results))
        elif has_results_name:
            message = "not the results of lm-eval: no `results` or no `config`"
            hint = "give the file of results (results_<date>.json), or the folder that holds it"
            raise DataError(message, location=str(file), hint=hint)
    if not results_files:
        message = "no file of lm-eval's results (results_<date>.json, results.json)"
        hint = "give the --output_path of an lm-eval run"
        raise DataError(message, location=str(path), hint=hint)
    return sorted(results_files, key=lambda f: (_get_timestamp(f[1]), f[0].name), reverse=True)


def _check_tables(results: JsonObject, location: str) -> None:
    """Raise DataError where a part of a results file is not the table that it has to be."""

    def damaged(message: str) -> DataError:
        return DataError(message, location=location, hint=DAMAGED_HINT)

    for key, is_nested in RESULT_TABLES.items():
        table = results.get(key)
        if table is not None and not isinstance(table, dict):
            raise damaged(f"`{key}` is not a table")
        for name, value in (table or {}).items():
            is_table = isinstance(value, dict) or (value is None and key != "results")
            if is_nested and not is_table:
                raise damaged(f"`{key}` of {name!r} is not a table")
    groups = results.get("group_subtasks") or {}
    for name, members in groups.items():
        is_list = isinstance(members, list) and all(isinstance(m, str) for m in members)
        if members is not None and not is_list:
            raise damaged(f"`group_subtasks` of {name!r} is not a list of names")
    finished: set[str] = set()
    for name in groups:
        # Depth first, without recursion, for a file may nest arbitrarily deep.
        stack = [iter([name])]
        ancestors: list[str] = []
        while stack:
            member = next(stack[-1], None)
            if member is None:
                stack.pop()
                finished |= set(ancestors[-1:])
                ancestors = ancestors[:-1]
            elif member in ancestors:
                raise damaged(f"`group_subtasks`: {member!r} is a part of itself")
            elif member not in finished:
                ancestors.append(member)
                stack.append(iter(groups.get(member) or ()))


def _load_tasks(
    file: Path, results: JsonObject
) -> tuple[dict[str, Predictions], dict[str, str], list[str]]:
    """Return (task -> predictions, task -> digest, skipped tasks and why) of one results file."""
    tasks: dict[str, Predictions] = {}
    digests: dict[str, str] = {}
    skipped: list[str] = []
    for task in results["results"]:
        if task in (results.get("groups") or {}) or (results.get("group_subtasks") or {}).get(task):
            continue
        try:
            samples = _find_samples(file, results, task)
            predictions = _build_predictions(task, samples, _target_delimiter(results, task))
            _check_totals(results, task, samples)
            tasks[task], digests[task] = predictions, _digest(samples)
        except _TaskSkipped as reason:
            skipped.append(f"{task}: {reason}")
    return tasks, digests, skipped


def _find_samples(file: Path, results: JsonObject, task: str) -> list[JsonObject]:
    """Return the samples of a task, from where its version of lm-eval puts them.

    Raises _TaskSkipped, DataError.
    """
    samples = results.get("samples")
    if isinstance(samples, dict) and isinstance(samples.get(task), list):
        return _select_first_filter(_add_locations(samples[task], str(file)))
    stamp = file.stem.removeprefix("results_")
    arguments = results["config"].get("model_args")
    names = [f"samples_{name}_{stamp}.jsonl" for name in (task, sanitize_name(task))]
    if isinstance(arguments, str):  # lm-eval 0.4.0 to 0.4.2
        names += [f"{re.sub(pattern, '__', arguments)}_{task}.jsonl" for pattern in ("/|=", "/")]
    for name in names:
        if is_file(file.parent / name):
            return _read_samples_file(file.parent / name)
    raise _TaskSkipped(NO_SAMPLES)


def _check_totals(results: JsonObject, task: str, samples: Sequence[JsonObject]) -> None:
    """Raise _TaskSkipped where number or mean `acc` of samples differ from the task's results."""
    counts = (results.get("n-samples") or {}).get(task) or {}
    expected = counts.get("effective")
    if isinstance(expected, int) and expected != len(samples):
        raise _TaskSkipped(f"{len(samples)} of {expected} samples are there (n-samples)")
    metric = f"acc,{samples[0].get('filter', 'none')}"
    reported = results["results"][task].get(metric)
    mean = sum(float(row["acc"]) for row in samples) / len(samples)
    if isinstance(reported, int | float) and not abs(reported - mean) <= TOLERANCE:
        raise _TaskSkipped(
            f"the mean `acc` of its {len(samples)} samples is {mean:.4f}, "
            f"and its results say {reported:.4f}"
        )


def _group_into_suites(
    results: JsonObject, tasks: Mapping[str, Any]
) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, tasks) of every complete top group, then of every task in none of these."""
    subtasks = results.get("group_subtasks") or {}
    groups = {name: members or () for name, members in subtasks.items()}
    subgroups = {member for members in groups.values() for member in members}

    def list_leaves(name: str) -> list[str]:
        leaves, seen, todo = [], set(), [*reversed(groups[name])]
        while todo:
            member = todo.pop()
            if member not in seen:
                seen.add(member)
                if groups.get(member):
                    todo += reversed(groups[member])
                else:
                    leaves.append(member)
        return leaves

    grouped: set[str] = set()
    for name in groups:
        leaves = list_leaves(name)
        if name not in subgroups and leaves and all(leaf in tasks for leaf in leaves):
            yield name, leaves
            grouped |= set(leaves)
    yield from ((task, [task]) for task in tasks if task not in grouped)


def _build_predictions(task: str, samples: Sequence[JsonObject], delimiter: str) -> Predictions:
    """Return the predictions that the samples of a task hold.

    A target that is a number may be the text of an option or its index; lm-eval's own acc tells
    which. Raises _TaskSkipped where neither gives lm-eval's own acc.
    """
    if not samples:
        raise _TaskSkipped(NO_SAMPLES)
    parsed = [_Sample.from_json(sample, delimiter) for sample in samples]
    first_contradiction = ""
    for by_text in (True, False):
        golds = [sample.gold_index(by_text) for sample in parsed]
        contradictions = (s.find_contradiction(gold) for s, gold in zip(parsed, golds, strict=True))
        contradiction = next(filter(None, contradictions), "")
        if not contradiction:
            return _join_samples(task, parsed, [gold for gold in golds if gold is not None])
        first_contradiction = first_contradiction or contradiction
    raise _TaskSkipped(first_contradiction)


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sample of a multiple-choice task."""

    id: str
    choices: list[str]
    """The texts of the options, without the delimiter."""
    scores: tuple[float, ...]
    """Their log-probabilities."""
    target: str
    acc: float
    """lm-eval's own accuracy of this sample."""

    @classmethod
    def from_json(cls, sample: JsonObject, delimiter: str) -> _Sample:
        """Parse a sample. Raises _TaskSkipped where it has no log-probability per option."""
        try:
            choices = [choice.removeprefix(delimiter) for choice in _list_continuations(sample)]
            scores = tuple(float(response[0]) for response in _list_responses(sample))
            sample_id, target = str(sample["doc_id"]), str(sample.get("target"))
            acc = float(sample["acc"])
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
            message = "its samples hold no log-probability per option with an `acc`"
            raise _TaskSkipped(message) from None
        if len(scores) < 2:
            raise _TaskSkipped("one continuation per item, no choice (loglikelihood)")
        for number, score in enumerate(scores, start=1):
            if math.isnan(score) or score == math.inf:
                message = f"item {sample_id}: the log-probability of option {number} is {score}"
                raise _TaskSkipped(message)
        return cls(sample_id, choices, scores, target, acc)

    def gold_index(self, by_text: bool) -> int | None:
        """Return the index of the right option: the option with the target as text, or the target
        itself.
        """
        if by_text and self.target in self.choices:
            return self.choices.index(self.target)
        index = int(self.target) if self.target.isdecimal() and len(self.target) < 10 else -1
        return index if 0 <= index < len(self.scores) else None

    def find_contradiction(self, gold: int | None) -> str:
        """Return why a gold contradicts this sample's own acc; "" where it does not."""
        if gold is None or gold >= len(self.scores):
            options = f"none of its {len(self.scores)} options"
            return f"item {self.id}: the target {self.target[:60]!r} is {options}"
        # lm-eval gives a tie to the first option; our own exports give each of k its share.
        best = self.best_options()
        if self.acc in (float(best[0] == gold), (gold in best) / len(best)):
            return ""
        return f"item {self.id}: its samples do not give back lm-eval's own acc"

    def best_options(self) -> list[int]:
        """Return the indices of the options with the best score."""
        return [i for i, score in enumerate(self.scores) if score == max(self.scores)]

    def option_lengths(self) -> list[int]:
        """Return the number of characters of each option; 0 where the texts are unknown."""
        n = len(self.scores)
        return list(map(len, self.choices)) if len(self.choices) == n else [0] * n


def _join_samples(task: str, samples: Sequence[_Sample], golds: Sequence[int]) -> Predictions:
    items = [
        Item(f"{task}_{sample.id}", (), gold, {TASK_LEVEL: task})
        for sample, gold in zip(samples, golds, strict=True)
    ]
    scores = np.array([score for sample in samples for score in sample.scores])
    options = OptionColumns(
        counts=np.array([len(sample.scores) for sample in samples], np.int32),
        scores=scores,
        tokens=np.zeros(len(scores), np.int32),  # samples do not tell
        characters=np.array([n for sample in samples for n in sample.option_lengths()], np.int32),
    )
    pred = np.array([sample.best_options()[0] for sample in samples])  # lm-eval's argmax
    return Predictions.build(items, pred, options)


def _list_continuations(sample: JsonObject) -> list[str]:
    """Return the continuations: {"gen_args_0": {"arg_1": ...}}, or [[context, continuation]]."""
    arguments = sample.get("arguments") or []
    requests = list(arguments.values()) if isinstance(arguments, dict) else arguments
    return [str(r.get("arg_1", "") if isinstance(r, dict) else r[1]) for r in requests]


def _list_responses(sample: JsonObject) -> list[Any]:
    """Return (log-probability, is greedy) of each continuation; without filters the first ones."""
    if "filtered_resps" in sample:
        return list(sample["filtered_resps"])
    return [responses[0] for responses in sample["resps"]]


def _build_cell(
    suite: str,
    task_names: Sequence[str],
    tasks: Mapping[str, Predictions],
    digests: Mapping[str, str],
    results: JsonObject,
) -> tuple[Cell, Predictions]:
    predictions = concat_predictions([tasks[task] for task in task_names])
    name, macro = f"lm-eval.{suite}", (TASK_LEVEL,) if len(task_names) > 1 else ()
    summarize_accuracy = partial(
        summarize, predictions, suite=name, method=METHOD, metric="accuracy", macro=macro
    )
    summary = summarize_accuracy(groups=macro, notes=_import_notes(results))
    reported = results["results"].get(suite, {}).get("acc,none")
    ours = summarize_accuracy(groups=(), ties="first").headline.value
    if macro and isinstance(reported, float) and abs(reported - ours) > TOLERANCE:
        note = f"lm-eval averages this group otherwise ({reported:.4f})"
        summary = replace(summary, notes=(*summary.notes, note))
    version, limit = (results.get("versions") or {}).get(suite), results["config"].get("limit")
    digest = hashlib.sha256("".join(digests[task] for task in task_names).encode()).hexdigest()
    settings = {
        "suite": name,
        "suite_version": str(version),
        "suite_digest": digest,
        "task_hashes": {task: (results.get("task_hashes") or {}).get(task) for task in task_names},
        "shots": (results.get("n-shot") or {}).get(suite),
        "method": METHOD,
        "ties": "half",
        "reduction": "sum",
        "limit": limit,
        "model_args": results["config"].get("model_args"),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    # Samples do not hold the number of an option's tokens, so there is no mean per token.
    views = {name: view for name, view in summary.views.items() if name != "per-token"}
    return Cell(name, METHOD, key[:16], settings, replace(summary, views=views)), predictions


def _import_notes(results: JsonObject) -> list[str]:
    if own_version := results.get("antlm_bench_version"):
        return [f"imported from an export of antlm-bench {own_version}"]
    version = results.get("lm_eval_version") or "of unknown version"
    return [
        f"imported from lm-eval {version}; ties count half here, and go to the first option there"
    ]


def _build_manifest(results: JsonObject) -> Manifest:
    """Return the manifest of an imported run.

    lm-eval does not hash weights; a hash of its model arguments stands for them.
    """
    config = results["config"]
    model_settings = [config.get("model"), config.get("model_args"), config.get("model_sha")]
    text = json.dumps(model_settings, sort_keys=True)
    model = {
        "name": _model_name(results),
        "weights": hashlib.sha256(text.encode()).hexdigest(),
        "parameters": config.get("model_num_parameters"),
        "revision": config.get("model_revision"),
    }
    versions = {
        "lm-eval": results.get("lm_eval_version"),
        "transformers": results.get("transformers_version"),
    }
    software = {name: str(version) for name, version in versions.items() if version}
    date = datetime.fromtimestamp(_get_timestamp(results), timezone.utc)
    return Manifest(runs.SCHEMA_VERSION, model, software, date.isoformat(timespec="seconds"))


def _model_name(results: JsonObject) -> str:
    """Return lm-eval's name of the model; before 0.4.3 it is in the arguments: pretrained=NAME."""
    config = results["config"]
    arguments = config.get("model_args")
    pattern = r"(?:^|,)\s*pretrained=([^,]+)"
    match = re.search(pattern, arguments) if isinstance(arguments, str) else None
    pretrained = match[1] if match else None
    return str(results.get("model_name") or pretrained or config.get("model") or "unknown")


def _get_timestamp(results: JsonObject) -> float:
    """Return when lm-eval ran, in seconds since 1970; 0 where that is unknown."""
    date = results.get("date")
    return float(date) if isinstance(date, int | float) and 0 <= date < 1e11 else 0.0


def _read_samples_file(file: Path) -> list[JsonObject]:
    """Read the samples of a file: JSON lines, or (before lm-eval 0.4.3) one JSON list.

    Raises DataError where it is damaged.
    """
    text = decode_utf8(files.read_bytes(file), str(file), DataError)
    if text.lstrip().startswith("["):
        samples = _parse_json(text.encode(), str(file))
        return _select_first_filter(_add_locations(samples, str(file)))
    lines = ((f"{file}:{n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    return _select_first_filter(
        [(location, _parse_json(line.encode(), location)) for location, line in lines]
    )


def _add_locations(samples: Sequence[Any], location: str) -> list[tuple[str, Any]]:
    return [(f"{location}: sample {number}", row) for number, row in enumerate(samples)]


def _select_first_filter(located_samples: Sequence[tuple[str, Any]]) -> list[JsonObject]:
    """Return the samples of the first filter, where a task has several.

    located_samples: (location, sample). Older files do not name the filter, but repeat documents.
    Raises DataError for invalid samples, and for a document with two answers.
    """
    for location, sample in located_samples:
        if not isinstance(sample, dict):
            raise DataError("a sample is an object", location=location, hint=DAMAGED_HINT)
    for location, sample in located_samples:
        if sample.get("doc_id") is None:
            raise DataError("a sample has no `doc_id`", location=location, hint=DAMAGED_HINT)
    samples: dict[str, JsonObject] = {}
    for location, sample in located_samples:
        if sample.get("filter") == located_samples[0][1].get("filter"):
            first = samples.setdefault(str(sample["doc_id"]), sample)
            if _answer_key(first) != _answer_key(sample):
                message = f"two samples of doc_id {sample['doc_id']} have different answers"
                hint = "the file holds two runs: import each by itself"
                raise DataError(message, location=location, hint=hint)
    return list(samples.values())


def _answer_key(sample: JsonObject) -> str:
    """Return question and answer of a sample, for comparison.

    Filters change the filtered responses, and so the acc: where a sample does not name its filter,
    only the model's responses are compared.
    """
    names = ["target", "arguments", "resps"]
    if "resps" not in sample or "filter" in sample:
        names += ["filtered_resps", "acc"]
    return json.dumps([sample.get(name) for name in names], sort_keys=True)


def _digest(samples: Sequence[JsonObject]) -> str:
    """Return the sha256 of the questions and right answers, as lm-eval hashed them."""
    names = ("doc_id", "doc_hash", "prompt_hash", "target_hash")
    older_names = (*names, "doc", "target", "arguments")  # lm-eval before 0.4.3 had no hashes
    questions = [
        [sample.get(name) for name in (names if "doc_hash" in sample else older_names)]
        for sample in samples
    ]
    return hashlib.sha256(json.dumps(questions).encode()).hexdigest()


def _target_delimiter(results: JsonObject, task: str) -> str:
    config = (results.get("configs") or {}).get(task) or {}
    return str(config.get("target_delimiter", " "))


def _parse_json(data: bytes, location: str, is_jsonl: bool = False) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        samples_hint = "these are samples; give the file of results beside them"
        hint = samples_hint if is_jsonl else "the file is damaged"
        raise DataError(f"no JSON: {error}", location=location, hint=hint) from None


def _load_json_or_none(file: Path) -> Any:
    """Return the content of a file that may be no JSON, None then."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
