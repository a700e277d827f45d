"""Import results of lm-evaluation-harness with samples (--log_samples) as a run.

Only multiple-choice tasks can be imported, because their samples have a log-probability per option.
A task is skipped if its samples contradict its results: if they do not give lm-eval's `acc` for
each item and as the mean, or if their number differs from the number in the results.
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
from typing import Any, NamedTuple

import numpy as np

from antlm_bench import runs
from antlm_bench.declarations import is_file
from antlm_bench.errors import DataError, UsageError
from antlm_bench.lm_eval_bridge.results_export import sanitize_name
from antlm_bench.lm_eval_bridge.results_files import (
    JsonObject,
    add_locations,
    get_timestamp,
    load_results_files,
    read_samples_file,
    select_first_filter,
)
from antlm_bench.metrics import summarize
from antlm_bench.predictions import OptionColumns, Predictions, concat_predictions
from antlm_bench.printable import format_count
from antlm_bench.suites.templates import drop_single_clusters, hash_document
from antlm_bench.types import FLAGS, Cell, Item, Manifest, shorten_list

METHOD = "lm-eval"  # method of imported cells, which depends on lm-eval's model class
TASK_LEVEL = "task"  # label level of the tasks of an lm-eval group
TOLERANCE = 1e-6  # largest accepted difference between two means
NO_SAMPLES = "no samples: run with --log_samples"


class _TaskSkipped(Exception):
    """Raised for a task that cannot be imported, with the reason as the message."""


@dataclass(frozen=True, slots=True)
class ImportedRun:
    """The manifest and cells of an imported run."""

    manifest: Manifest
    cells: tuple[tuple[Cell, Predictions], ...]
    skipped_tasks: tuple[str, ...]
    """One line per task that was not imported, with the reason."""


def read_results(path: Path) -> ImportedRun:
    """Read one results file, or all in a folder. The newest result of each suite and limit counts.

    Formats: lm-eval 0.4.0 to 0.4.2 and BabyLM 2024 (results.json or any name, samples as one JSON
    list), 0.4.3 to 0.4.13 (results_<date>.json, samples as JSON lines). A task or group becomes the
    suite "lm-eval.<name>"; the headline of a group is the mean of its tasks. Raises DataError for
    files that are absent, damaged or have nothing to import, UsageError for results of several
    models.
    """
    newest_first = load_results_files(path)
    models = {str(_build_manifest(results).model["weights"]) for _, results in newest_first}
    if len(models) > 1:
        names = {file.parent.name for file, _ in newest_first}
        names |= {_model_name(results) for _, results in newest_first}
        message = f"results of several models: {', '.join(sorted(names))}"
        raise UsageError(message, location=str(path), hint="give the folder or file of one model")
    cells: dict[tuple[str, str], tuple[Cell, Predictions]] = {}
    skipped: list[str] = []
    for file, results in newest_first:
        tasks, skipped_in_file = _load_tasks(file, results)
        skipped += skipped_in_file
        for suite, members in _group_into_suites(results, tasks):
            key = suite, str(_effective_limit(results, members))
            if key in cells:
                skipped.append(f"{suite}: an older result; to import it, give {file}")
            else:
                cells[key] = _build_cell(suite, members, tasks, results)
    if not cells:
        hint = (
            "if samples and results contradict each other, run lm-eval again; only multiple-choice "
            "tasks with a log-probability per option and one right option can be imported"
        )
        if skipped and all(line.endswith(NO_SAMPLES) for line in skipped):
            hint = "run with --log_samples"
        message = f"nothing to import: {_describe_skipped(skipped) or 'no task'}"
        raise DataError(message, location=str(path), hint=hint)
    manifest = _build_manifest(newest_first[0][1])
    return ImportedRun(manifest, tuple(cells.values()), tuple(dict.fromkeys(skipped)))


def _describe_skipped(lines: Sequence[str]) -> str:
    """Join lines "TASK: REASON" into a sentence per reason, with the first of its tasks."""
    tasks_by_reason: dict[str, list[str]] = {}
    for line in dict.fromkeys(lines):
        task, _, reason = line.partition(": ")
        tasks_by_reason.setdefault(reason, []).append(task)
    return "; ".join(
        f"{shorten_list(tasks)}: {reason}" for reason, tasks in tasks_by_reason.items()
    )


class _ImportedTask(NamedTuple):
    """A task of a results file."""

    predictions: Predictions
    digest: str
    """sha256 of the questions and right answers."""
    clusters: list[str]
    """Hash of what each item shares with those that it belongs to, "" = it is alone."""


def _load_tasks(file: Path, results: JsonObject) -> tuple[dict[str, _ImportedTask], list[str]]:
    """Return (task -> its predictions and documents, skipped tasks with reasons) of a file."""
    tasks: dict[str, _ImportedTask] = {}
    skipped: list[str] = []
    for task in results["results"]:
        if task in (results.get("groups") or {}) or (results.get("group_subtasks") or {}).get(task):
            continue
        try:
            samples = _find_samples(file, results, task)
            predictions = _build_predictions(task, samples, _target_delimiter(results, task))
            _check_totals(results, task, samples)
            clusters = [_find_cluster(sample) for sample in samples]
            tasks[task] = _ImportedTask(predictions, _digest(samples), clusters)
        except _TaskSkipped as reason:
            skipped.append(f"{task}: {reason}")
    return tasks, skipped


def _find_samples(file: Path, results: JsonObject, task: str) -> list[JsonObject]:
    """Return the samples of a task; their location depends on the version of lm-eval.

    Raises _TaskSkipped if there are none, DataError for damaged ones.
    """
    samples = results.get("samples")
    if isinstance(samples, dict) and isinstance(samples.get(task), list):
        return select_first_filter(add_locations(samples[task], str(file)))
    stamp = file.stem.removeprefix("results_")
    arguments = results["config"].get("model_args")
    names = [f"samples_{name}_{stamp}.jsonl" for name in (task, sanitize_name(task))]
    if isinstance(arguments, str):  # lm-eval 0.4.0 to 0.4.2
        names += [f"{re.sub(pattern, '__', arguments)}_{task}.jsonl" for pattern in ("/|=", "/")]
    for name in names:
        if is_file(file.parent / name):
            return read_samples_file(file.parent / name)
    raise _TaskSkipped(NO_SAMPLES)


def _check_totals(results: JsonObject, task: str, samples: Sequence[JsonObject]) -> None:
    """Raise _TaskSkipped if the number or the mean `acc` of the samples differ from the results."""
    counts = (results.get("n-samples") or {}).get(task) or {}
    expected = counts.get("effective")
    if isinstance(expected, int) and expected != len(samples):
        num_samples = format_count(len(samples), "sample")
        raise _TaskSkipped(f"it has {num_samples}, but n-samples is {expected}")
    metric = f"acc,{samples[0].get('filter', 'none')}"
    reported = results["results"][task].get(metric)
    mean = sum(float(row["acc"]) for row in samples) / len(samples)
    if isinstance(reported, int | float) and not abs(reported - mean) <= TOLERANCE:
        raise _TaskSkipped(
            f"the mean `acc` of its {format_count(len(samples), 'sample')} is {mean:.4f}, "
            f"but {reported:.4f} in the results file"
        )


def _group_into_suites(
    results: JsonObject, tasks: Mapping[str, Any]
) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, tasks) of each complete outermost group, then of each remaining task."""
    subtasks = results.get("group_subtasks") or {}
    groups = {name: members or () for name, members in subtasks.items()}
    subgroups = {member for members in groups.values() for member in members}

    def list_member_tasks(name: str) -> list[str]:
        member_tasks, seen, pending = [], set(), [*reversed(groups[name])]
        while pending:
            member = pending.pop()
            if member not in seen:
                seen.add(member)
                if groups.get(member):
                    pending += reversed(groups[member])
                else:
                    member_tasks.append(member)
        return member_tasks

    grouped: set[str] = set()
    for name in groups:
        member_tasks = list_member_tasks(name)
        is_complete = bool(member_tasks) and all(task in tasks for task in member_tasks)
        if name not in subgroups and is_complete:
            yield name, member_tasks
            grouped |= set(member_tasks)
    yield from ((task, [task]) for task in tasks if task not in grouped)


def _build_predictions(task: str, samples: Sequence[JsonObject], delimiter: str) -> Predictions:
    """Return the predictions that the samples of a task hold.

    A target such as "1" may be the text of an option or its index. The reading that gives lm-eval's
    acc for all samples is used. Raises _TaskSkipped if neither does.
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
    """Texts of the options, without the delimiter before them."""
    scores: tuple[float, ...]
    """Log-probabilities of the options."""
    target: str
    """Text or index of the right option."""
    acc: float
    """lm-eval's accuracy of this sample."""
    flags: frozenset[str]
    """Names out of types.FLAGS, which only samples of `results_export` have."""

    @classmethod
    def from_json(cls, sample: JsonObject, delimiter: str) -> _Sample:
        """Parse a sample. Raises _TaskSkipped if it has no log-probability per option."""
        try:
            choices = [choice.removeprefix(delimiter) for choice in _list_continuations(sample)]
            scores = tuple(float(response[0]) for response in _list_responses(sample))
            sample_id, target = str(sample["doc_id"]), str(sample.get("target"))
            acc = float(sample["acc"])
            flags = frozenset(FLAGS).intersection(sample.get("flags") or ())
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
            message = "its samples have no log-probability per option, or no `acc`"
            raise _TaskSkipped(message) from None
        if len(scores) < 2:
            raise _TaskSkipped("its items have one continuation and no choice (loglikelihood)")
        for number, score in enumerate(scores, start=1):
            if math.isnan(score) or score == math.inf:
                message = f"item {sample_id}: the log-probability of option {number} is {score}"
                raise _TaskSkipped(message)
        return cls(sample_id, choices, scores, target, acc, flags)

    def gold_index(self, by_text: bool) -> int | None:
        """Return the index of the right option; None if the target gives no option.

        by_text: look for the target among the texts of the options first.
        """
        if by_text and self.target in self.choices:
            return self.choices.index(self.target)
        index = int(self.target) if self.target.isdecimal() and len(self.target) < 10 else -1
        return index if 0 <= index < len(self.scores) else None

    def find_contradiction(self, gold: int | None) -> str:
        """Return why a gold index contradicts the sample's acc; "" if it does not."""
        if gold is None or gold >= len(self.scores):
            options = f"none of its {len(self.scores)} options"
            return f"item {self.id}: the target {self.target[:60]!r} is {options}"
        # In lm-eval a tie is decided for the first option; exports of this package credit 1/k.
        best = self.best_options()
        if "too-long" in self.flags:  # it was not scored, and counts as wrong
            expected = [0.0]
        else:
            expected = [float(best[0] == gold), (gold in best) / len(best)]
        if self.acc in expected:
            return ""
        return f"item {self.id}: its log-probabilities do not give lm-eval's acc"

    def best_options(self) -> list[int]:
        """Return the indices of the options with the best score. Two equal texts tie."""
        if "identical" in self.flags and len(self.scores) == 2:
            return [0, 1]
        return [i for i, score in enumerate(self.scores) if score == max(self.scores)]

    def option_lengths(self) -> list[int]:
        """Return the number of characters of each option; 0 where the texts are unknown."""
        n = len(self.scores)
        return list(map(len, self.choices)) if len(self.choices) == n else [0] * n


def _join_samples(task: str, samples: Sequence[_Sample], golds: Sequence[int]) -> Predictions:
    items = [
        Item(f"{task}_{sample.id}", options=(), gold=gold, labels={TASK_LEVEL: task})
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
    flags = [(name, np.array([name in sample.flags for sample in samples])) for name in FLAGS]
    return Predictions.build(items, pred, options, flags)


def _list_continuations(sample: JsonObject) -> list[str]:
    """Return the continuations of a sample.

    `arguments` is {"gen_args_0": {"arg_1": continuation}, ...} or [[context, continuation], ...].
    """
    arguments = sample.get("arguments") or []
    requests = list(arguments.values()) if isinstance(arguments, dict) else arguments
    return [str(r.get("arg_1", "") if isinstance(r, dict) else r[1]) for r in requests]


def _list_responses(sample: JsonObject) -> list[Any]:
    """Return (log-probability, is_greedy) of each continuation."""
    if "filtered_resps" in sample:
        return list(sample["filtered_resps"])
    return [responses[0] for responses in sample["resps"]]


def _build_cell(
    suite: str,
    task_names: Sequence[str],
    tasks: Mapping[str, _ImportedTask],
    results: JsonObject,
) -> tuple[Cell, Predictions]:
    predictions = concat_predictions([tasks[task].predictions for task in task_names])
    clusters = [cluster for task in task_names for cluster in tasks[task].clusters]
    predictions = predictions.with_clusters(drop_single_clusters(clusters))
    name, macro = f"lm-eval.{suite}", (TASK_LEVEL,) if len(task_names) > 1 else ()
    summarize_accuracy = partial(
        summarize, predictions, suite=name, method=METHOD, metric="accuracy", macro=macro
    )
    limit = _effective_limit(results, task_names)
    notes = [*_import_notes(results), *_limit_notes(limit)]
    summary = summarize_accuracy(groups=macro, notes=notes)
    reported = results["results"].get(suite, {}).get("acc,none")
    recomputed = summarize_accuracy(groups=(), ties="first").headline.value
    if macro and isinstance(reported, float) and abs(reported - recomputed) > TOLERANCE:
        note = f"lm-eval reports another average for this group ({reported:.4f})"
        summary = replace(summary, notes=(*summary.notes, note))
    digests = "".join(tasks[task].digest for task in task_names)
    settings = {
        "suite": name,
        "suite_version": str((results.get("versions") or {}).get(suite)),
        "suite_digest": hashlib.sha256(digests.encode()).hexdigest(),
        "task_hashes": {task: (results.get("task_hashes") or {}).get(task) for task in task_names},
        "shots": (results.get("n-shot") or {}).get(suite),
        "method": METHOD,
        "ties": "half",
        "reduction": "sum",
        "limit": limit,
        "model_args": results["config"].get("model_args"),
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    # Samples do not hold token counts, so the view per-token would be wrong.
    views = {name: view for name, view in summary.views.items() if name != "per-token"}
    return Cell(name, METHOD, key[:16], settings, replace(summary, views=views)), predictions


def _effective_limit(results: JsonObject, task_names: Sequence[str]) -> Any:
    """Return lm-eval's limit of documents per task (below 1, a share); None if it left none out."""
    limit = results["config"].get("limit")
    counts = [(results.get("n-samples") or {}).get(task) or {} for task in task_names]
    is_complete = all(
        isinstance(count.get("original"), int) and count["original"] == count.get("effective")
        for count in counts
    )
    return None if is_complete else limit


def _limit_notes(limit: Any) -> list[str]:
    if not isinstance(limit, int | float) or isinstance(limit, bool):
        return []
    first = "the first document" if limit == 1 else f"the first {limit:g} documents"
    documents = f"{limit:.3g} of the documents" if limit < 1 else first
    return [f"limit: {documents} of each task"]


def _import_notes(results: JsonObject) -> list[str]:
    exporting_version = results.get("antlm_bench_version")
    if exporting_version:
        return [f"imported from an export of antlm-bench {exporting_version}"]
    version = results.get("lm_eval_version") or "of unknown version"
    return [
        f"imported from lm-eval {version}; ties count half here, and go to the first option there"
    ]


def _build_manifest(results: JsonObject) -> Manifest:
    """Return the manifest of an imported run.

    lm-eval does not hash weights, so `weights` is a hash of the model arguments.
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
    date = datetime.fromtimestamp(get_timestamp(results), timezone.utc)
    return Manifest(runs.SCHEMA_VERSION, model, software, date.isoformat(timespec="seconds"))


def _model_name(results: JsonObject) -> str:
    """Return the model's name. Before lm-eval 0.4.3 it is only in model_args: pretrained=NAME."""
    config = results["config"]
    arguments = config.get("model_args")
    pattern = r"(?:^|,)\s*pretrained=([^,]+)"
    match = re.search(pattern, arguments) if isinstance(arguments, str) else None
    pretrained = match[1] if match else None
    return str(results.get("model_name") or pretrained or config.get("model") or "unknown")


def _find_cluster(sample: JsonObject) -> str:
    """Return a hash that equal documents share, as in runs of this package, or the cluster that an
    export of this package states; "" if the sample states neither."""
    cluster, document = sample.get("cluster"), sample.get("doc")
    if isinstance(cluster, str) and cluster:
        return cluster
    return hash_document(document) if document else ""


def _digest(samples: Sequence[JsonObject]) -> str:
    """Return the sha256 of the questions and right answers, from lm-eval's own hashes if any."""
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
