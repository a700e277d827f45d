"""lm-evaluation-harness results with samples (--log_samples) -> predictions of ours, so that two
runs can be compared.

Read: multiple-choice tasks, whose samples hold the log-probability of every option. A task whose
samples do not give back lm-eval's own `acc`, item by item and as their mean, or are not as many as
the results say, is left out: then we would not know what its numbers mean.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from antlm_bench import runs
from antlm_bench.declarations import decode_utf8, is_file
from antlm_bench.errors import DataError, UsageError
from antlm_bench.lm_eval_bridge.results_export import sanitize_name
from antlm_bench.metrics import summarize
from antlm_bench.suites import files
from antlm_bench.types import Cell, Manifest, Prediction, Summary

METHOD = "lm-eval"  # the method of imported cells: whatever the harness's model class did
TASK_LEVEL = "task"  # the label of an item of a group: which of its tasks
TOLERANCE = 1e-6  # how far a mean of ours may lie from the harness's
NO_SAMPLES = "no samples: run with --log_samples"
DAMAGED_HINT = "the file is damaged: run lm-eval again"
# Tables of a file of results: whether their values are tables, too.
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
    """A folder of results: manifest and cells of a run, and which tasks were left out, and why."""

    manifest: Manifest
    cells: tuple[tuple[Cell, list[Prediction]], ...]
    skipped_tasks: tuple[str, ...]


def read_results(path: Path) -> ImportedRun:
    """The results below a folder, or those of one file; of a suite that stands in several the
    newest, which is said.

    Formats: lm-eval 0.4.0 to 0.4.2 and BabyLM 2024 (results.json or a name of the user's, samples
    as one JSON list), 0.4.3 to 0.4.13 (results_<date>.json, samples as JSON lines). A group is one
    suite, its tasks' mean the headline; suites are called "lm-eval.<task>". Raises DataError for
    files that are absent, damaged or hold nothing that can be read, UsageError for two models.
    """
    newest_first = _load_results_files(path)
    models = {str(_build_manifest(results).model["weights"]) for _, results in newest_first}
    if len(models) > 1:
        names = ", ".join(
            sorted(
                {file.parent.name for file, _ in newest_first}
                | {_model_name(r) for _, r in newest_first}
            )
        )
        raise UsageError(
            f"results of several models: {names}",
            location=str(path),
            hint="give one model's folder or file",
        )
    cells: dict[str, tuple[Cell, list[Prediction]]] = {}
    left_out: list[str] = []
    for file, results in newest_first:
        tasks, digests, lost = _load_tasks(file, results)
        left_out += lost
        for suite, members in _group_into_suites(results, tasks):
            if suite in cells:
                left_out.append(f"{suite}: an older result ({file})")
            else:
                cells[suite] = _build_cell(suite, members, tasks, digests, results)
    if not cells:
        hint = "run lm-eval again where samples and results contradict each other; only multiple-choice tasks with a "
        hint += "log-probability per option and one right option can be imported"
        if left_out and all(line.endswith(NO_SAMPLES) for line in left_out):
            hint = "run with --log_samples"
        raise DataError(
            f"nothing to import: {'; '.join(left_out) or 'no task'}", location=str(path), hint=hint
        )
    return ImportedRun(
        _build_manifest(newest_first[0][1]), tuple(cells.values()), tuple(dict.fromkeys(left_out))
    )


def _load_results_files(path: Path) -> list[tuple[Path, JsonObject]]:
    """The files of results with their contents, the newest first. DataError where there is none, or
    one is damaged.
    """
    candidates = [path] if path.is_file() else sorted(path.rglob("*.json"))
    found = []
    for file in candidates:
        named = file == path or file.name.startswith("results")
        results = (
            _parse_json(files.read_bytes(file), str(file), file.suffix == ".jsonl")
            if named
            else _load_json_or_none(file)
        )
        if isinstance(results, dict) and all(
            isinstance(results.get(key), dict) for key in ("results", "config")
        ):
            _check_tables(results, str(file))
            found.append((file, results))
        elif named:
            hint = "give the file of results (results_<date>.json), or the folder that holds it"
            raise DataError(
                "not the results of lm-eval: no `results` or no `config`",
                location=str(file),
                hint=hint,
            )
    if not found:
        hint = "give the --output_path of an lm-eval run"
        raise DataError(
            "no file of lm-eval's results (results_<date>.json, results.json)",
            location=str(path),
            hint=hint,
        )
    return sorted(found, key=lambda pair: (_get_timestamp(pair[1]), pair[0].name), reverse=True)


def _check_tables(results: JsonObject, location: str) -> None:
    """Raise DataError for a part of a file of results that is not the table that it has to be."""
    for key, nested in RESULT_TABLES.items():
        table = results.get(key)
        if table is not None and not isinstance(table, dict):
            raise DataError(f"`{key}` is no table", location=location, hint=DAMAGED_HINT)
        for name, value in (table or {}).items():
            if nested and not (isinstance(value, dict) or (value is None and key != "results")):
                raise DataError(
                    f"`{key}` of {name!r} is no table", location=location, hint=DAMAGED_HINT
                )
    groups = results.get("group_subtasks") or {}
    for name, members in groups.items():
        listed = members is None or (
            isinstance(members, list) and all(isinstance(one, str) for one in members)
        )
        if not listed:
            raise DataError(
                f"`group_subtasks` of {name!r} is no list of names",
                location=location,
                hint=DAMAGED_HINT,
            )
    finished: set[str] = set()
    for name in groups:
        path = [iter([name])]  # depth first, without recursion: a file may nest as deep as it likes
        opened: list[str] = []
        while path:
            member = next(path[-1], None)
            if member is None:
                path.pop()
                finished |= set(opened[-1:])
                opened = opened[:-1]
            elif member in opened:
                raise DataError(
                    f"`group_subtasks`: {member!r} is a part of itself",
                    location=location,
                    hint=DAMAGED_HINT,
                )
            elif member not in finished:
                opened.append(member)
                path.append(iter(groups.get(member) or ()))


def _load_tasks(
    file: Path, results: JsonObject
) -> tuple[dict[str, list[Prediction]], dict[str, str], list[str]]:
    """(task -> predictions, task -> digest, tasks that were left out and why) of one file of
    results.
    """
    tasks: dict[str, list[Prediction]] = {}
    digests: dict[str, str] = {}
    left_out: list[str] = []
    for task in results["results"]:
        if task in (results.get("groups") or {}) or (results.get("group_subtasks") or {}).get(task):
            continue
        try:
            rows = _find_samples(file, results, task)
            predictions = _build_predictions(task, rows, _target_delimiter(results, task))
            _check_totals(results, task, rows)
            tasks[task], digests[task] = predictions, _digest(rows)
        except _TaskSkipped as why:
            left_out.append(f"{task}: {why}")
    return tasks, digests, left_out


def _find_samples(file: Path, results: JsonObject, task: str) -> list[JsonObject]:
    """The samples of a task, from where its version of lm-eval puts them. Raises _LeftOut,
    DataError.
    """
    inside = results.get("samples")
    if isinstance(inside, dict) and isinstance(inside.get(task), list):
        return _select_first_filter(_add_locations(inside[task], str(file)))
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
    """Raise _LeftOut where the samples of a task are not as many, or not as often right, as its
    results say.
    """
    counts = (results.get("n-samples") or {}).get(task) or {}
    expected = counts.get("effective")
    if isinstance(expected, int) and expected != len(samples):
        raise _TaskSkipped(f"{len(samples)} of {expected} samples are there (n-samples)")
    metric = f"acc,{samples[0].get('filter', 'none')}"
    reported = results["results"][task].get(metric)
    mean = sum(float(row["acc"]) for row in samples) / len(samples)
    if isinstance(reported, int | float) and not abs(reported - mean) <= TOLERANCE:
        raise _TaskSkipped(
            f"the mean `acc` of its {len(samples)} samples is {mean:.4f}, and its results say {reported:.4f}"
        )


def _group_into_suites(
    results: JsonObject, tasks: Mapping[str, Any]
) -> Iterator[tuple[str, list[str]]]:
    """(name, tasks) of every top group of which all tasks are there, then of every task in none of
    these.
    """
    groups = {
        name: members or () for name, members in (results.get("group_subtasks") or {}).items()
    }
    inner = {member for members in groups.values() for member in members}

    def leaves(name: str) -> list[str]:
        found, seen, waiting = [], set(), [*reversed(groups[name])]
        while waiting:
            member = waiting.pop()
            if member in seen:
                continue
            seen.add(member)
            if groups.get(member):
                waiting += reversed(groups[member])
            else:
                found.append(member)
        return found

    grouped: set[str] = set()
    for name in groups:
        if name not in inner and groups[name] and all(leaf in tasks for leaf in leaves(name)):
            yield name, leaves(name)
            grouped |= set(leaves(name))
    yield from ((task, [task]) for task in tasks if task not in grouped)


def _build_predictions(
    task: str, samples: Sequence[JsonObject], delimiter: str
) -> list[Prediction]:
    """The samples of a task as Predictions. Raises _LeftOut where they do not give back lm-eval's
    own acc.

    A target that is a number may be the text of an option or its index; lm-eval's own acc tells
    which.
    """
    if not samples:
        raise _TaskSkipped(NO_SAMPLES)
    asked = [_Sample.from_json(row, delimiter) for row in samples]
    wrong = ""
    for by_text in (True, False):
        golds = [one.gold_index(by_text) for one in asked]
        said = next((one.find_contradiction(gold) for one, gold in zip(asked, golds, strict=True)
                     if one.find_contradiction(gold)), "")  # fmt: skip
        wrong = wrong or said
        if not said:
            return [
                one.to_prediction(task, gold)
                for one, gold in zip(asked, golds, strict=True)
                if gold is not None
            ]
    raise _TaskSkipped(wrong)


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sample: its options' texts (without delimiter) and log-probabilities, the target, and
    lm-eval's acc.
    """

    id: str
    choices: list[str]
    scores: tuple[float, ...]
    target: str
    acc: float

    @classmethod
    def from_json(cls, sample: JsonObject, delimiter: str) -> _Sample:
        """Raises _LeftOut for a sample that is no choice between options with a log-probability
        each.
        """
        try:
            choices = [choice.removeprefix(delimiter) for choice in _list_continuations(sample)]
            scores = tuple(float(answer[0]) for answer in _list_responses(sample))
            made = cls(
                str(sample["doc_id"]),
                choices,
                scores,
                str(sample.get("target")),
                float(sample["acc"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError):
            raise _TaskSkipped(
                "its samples hold no log-probability per option with an `acc`"
            ) from None
        if len(scores) < 2:
            raise _TaskSkipped("one continuation per item, no choice (loglikelihood)")
        for number, score in enumerate(scores, start=1):
            if math.isnan(score) or score == math.inf:
                raise _TaskSkipped(
                    f"item {made.id}: the log-probability of option {number} is {score}"
                )
        return made

    def gold_index(self, by_text: bool) -> int | None:
        """Index of the right option: the place of the target among the options, or the target
        itself.
        """
        if by_text and self.target in self.choices:
            return self.choices.index(self.target)
        index = int(self.target) if self.target.isdecimal() and len(self.target) < 10 else -1
        return index if 0 <= index < len(self.scores) else None

    def find_contradiction(self, gold: int | None) -> str:
        """Why this sample cannot be read so, "" where it can."""
        if gold is None or gold >= len(self.scores):
            return f"item {self.id}: the target {self.target[:60]!r} is none of its {len(self.scores)} options"
        # The harness gives a tie to the first option; our own exports give each of k its share.
        first, best = self._best_options()
        credits = (float(first == gold), (gold in best) / len(best))
        return (
            ""
            if self.acc in credits
            else f"item {self.id}: its samples do not give back lm-eval's own acc"
        )

    def _best_options(self) -> tuple[int, list[int]]:
        """The first of the best options, and all of them."""
        best = [i for i, score in enumerate(self.scores) if score == max(self.scores)]
        return best[0], best

    def to_prediction(self, task: str, gold: int) -> Prediction:
        n = len(self.scores)
        lengths = tuple(map(len, self.choices)) if len(self.choices) == n else (0,) * n
        return Prediction(
            f"{task}_{self.id}",
            gold,
            self._best_options()[0],
            self.scores,
            (0,) * n,
            lengths,
            {TASK_LEVEL: task},
        )


def _list_continuations(sample: JsonObject) -> list[str]:
    """The continuations of a document: of {"gen_args_0": {"arg_1": ...}}, or of older [[context,
    continuation]].
    """
    requests = sample.get("arguments") or []
    listed = list(requests.values()) if isinstance(requests, dict) else requests
    return [str(each.get("arg_1", "") if isinstance(each, dict) else each[1]) for each in listed]


def _list_responses(sample: JsonObject) -> list[Any]:
    """(log-probability, was it greedy?) of each continuation; without filters the first response to
    each.
    """
    if "filtered_resps" in sample:
        return list(sample["filtered_resps"])
    return [responses[0] for responses in sample["resps"]]


def _build_cell(
    suite: str,
    task_names: Sequence[str],
    tasks: Mapping[str, list[Prediction]],
    digests: Mapping[str, str],
    results: JsonObject,
) -> tuple[Cell, list[Prediction]]:
    predictions = [prediction for task in task_names for prediction in tasks[task]]
    name, macro = f"lm-eval.{suite}", (TASK_LEVEL,) if len(task_names) > 1 else ()
    summary = summarize(
        predictions,
        suite=name,
        method=METHOD,
        metric="accuracy",
        macro=macro,
        groups=macro,
        notes=_import_notes(results),
    )
    said = results["results"].get(suite, {}).get("acc,none")
    ours = summarize(
        predictions,
        suite=name,
        method=METHOD,
        metric="accuracy",
        macro=macro,
        groups=(),
        ties="first",
    ).headline
    if macro and isinstance(said, float) and abs(said - ours.value) > TOLERANCE:
        summary = replace(
            summary, notes=(*summary.notes, f"lm-eval averages this group otherwise ({said:.4f})")
        )
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
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]
    return Cell(name, METHOD, key, settings, _drop_per_token_view(summary)), predictions


def _drop_per_token_view(summary: Summary) -> Summary:
    """Samples do not say how many tokens an option has, so there is no mean per token."""
    return replace(
        summary, views={name: view for name, view in summary.views.items() if name != "per-token"}
    )


def _import_notes(results: JsonObject) -> list[str]:
    version, own = (
        results.get("lm_eval_version") or "of unknown version",
        results.get("antlm_bench_version"),
    )
    if own:
        return [f"imported from an export of antlm-bench {own}"]
    return [
        f"imported from lm-eval {version}; ties count half here, and go to the first option there"
    ]


def _build_manifest(results: JsonObject) -> Manifest:
    """Of the imported run. The harness does not hash weights: what it says of the model stands in
    their place.
    """
    config = results["config"]
    about = json.dumps(
        [config.get("model"), config.get("model_args"), config.get("model_sha")], sort_keys=True
    )
    model = {
        "name": _model_name(results),
        "weights": hashlib.sha256(about.encode()).hexdigest(),
        "parameters": None,
    }
    model |= {
        "parameters": config.get("model_num_parameters"),
        "revision": config.get("model_revision"),
    }
    versions = {
        "lm-eval": results.get("lm_eval_version"),
        "transformers": results.get("transformers_version"),
    }
    created = datetime.fromtimestamp(_get_timestamp(results), timezone.utc).isoformat(
        timespec="seconds"
    )
    return Manifest(
        runs.SCHEMA_VERSION, model, {name: str(v) for name, v in versions.items() if v}, created
    )


def _model_name(results: JsonObject) -> str:
    """The model as the harness names it; before 0.4.3 only its arguments do: pretrained=NAME."""
    config = results["config"]
    arguments = config.get("model_args")
    named = (
        re.search(r"(?:^|,)\s*pretrained=([^,]+)", arguments)
        if isinstance(arguments, str)
        else None
    )
    return str(
        results.get("model_name") or (named and named[1]) or config.get("model") or "unknown"
    )


def _get_timestamp(results: JsonObject) -> float:
    """When the harness ran, in seconds since 1970; 0 where it does not say."""
    date = results.get("date")
    return float(date) if isinstance(date, int | float) and 0 <= date < 1e11 else 0.0


def _read_samples_file(file: Path) -> list[JsonObject]:
    """The samples of a file: JSON lines, or (before lm-eval 0.4.3) one JSON list. DataError where
    it is damaged.
    """
    text = decode_utf8(files.read_bytes(file), str(file), DataError)
    if text.lstrip().startswith("["):
        return _select_first_filter(
            _add_locations(_parse_json(text.encode(), str(file)), str(file))
        )
    lines = [
        (f"{file}:{number}", line)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    return _select_first_filter(
        [(place, _parse_json(line.encode(), place)) for place, line in lines]
    )


def _add_locations(samples: Sequence[Any], location: str) -> list[tuple[str, Any]]:
    return [(f"{location}: sample {number}", row) for number, row in enumerate(samples)]


def _select_first_filter(located_samples: Sequence[tuple[str, Any]]) -> list[JsonObject]:
    """The samples (each with its place) of the first filter, where a task has several; older files
    do not name it, but repeat documents. Raises DataError for what is no sample, and for a document
    with two answers.
    """
    for place, row in located_samples:
        if not isinstance(row, dict):
            raise DataError("a sample is an object", location=place, hint=DAMAGED_HINT)
    for place, row in located_samples:
        if row.get("doc_id") is None:
            raise DataError("a sample has no `doc_id`", location=place, hint=DAMAGED_HINT)
    found: dict[str, JsonObject] = {}
    for place, row in located_samples:
        if row.get("filter") == located_samples[0][1].get("filter"):
            first = found.setdefault(str(row["doc_id"]), row)
            if _answer_key(first) != _answer_key(row):
                message = f"two samples of doc_id {row['doc_id']} have different answers"
                raise DataError(
                    message, location=place, hint="the file holds two runs: import each by itself"
                )
    return list(found.values())


def _answer_key(sample: JsonObject) -> str:
    """What was asked and answered, for comparison. Filters change the filtered answers, and so the
    acc: where a sample does not name its filter, only what the model said counts.
    """
    answers = (
        ["resps"]
        if "resps" in sample and "filter" not in sample
        else ["resps", "filtered_resps", "acc"]
    )
    return json.dumps(
        [sample.get(name) for name in ("target", "arguments", *answers)], sort_keys=True
    )


def _digest(samples: Sequence[JsonObject]) -> str:
    """Of the questions: what was asked and what was right, as the harness hashed them."""
    names = ("doc_id", "doc_hash", "prompt_hash", "target_hash")
    older = ("doc", "target", "arguments")  # before lm-eval 0.4.3 there were no hashes
    asked = [
        [row.get(name) for name in (names if "doc_hash" in row else (*names, *older))]
        for row in samples
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _target_delimiter(results: JsonObject, task: str) -> str:
    config = (results.get("configs") or {}).get(task) or {}
    return str(config.get("target_delimiter", " "))


def _parse_json(data: bytes, location: str, is_jsonl: bool = False) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        hint = (
            "these are samples; give the file of results beside them"
            if is_jsonl
            else "the file is damaged"
        )
        raise DataError(f"no JSON: {error}", location=location, hint=hint) from None


def _load_json_or_none(file: Path) -> Any:
    """The content of a file that may be anything."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
