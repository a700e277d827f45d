"""Read the results files of lm-evaluation-harness, and its files of samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from antlm_bench.declarations import decode_utf8
from antlm_bench.errors import DataError
from antlm_bench.safe_files import read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.suites import files

DAMAGED_HINT = "the file is damaged: run lm-eval again"
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
"""Key of a results file whose value is a JSON object -> whether that object's values are, too."""
JsonObject = Mapping[str, Any]


def load_results_files(path: Path) -> list[tuple[Path, JsonObject]]:
    """Return (path, content) of the results files, the newest first.

    Raises DataError if there is none, or one is damaged.
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
            message = "not a results file of lm-eval: `results` or `config` is missing"
            hint = "give the results file (results_<date>.json), or its folder"
            raise DataError(message, location=str(file), hint=hint)
    if not results_files:
        message = "no results file of lm-eval (results_<date>.json, results.json)"
        hint = "give the --output_path of an lm-eval run"
        raise DataError(message, location=str(path), hint=hint)
    return sorted(results_files, key=lambda f: (get_timestamp(f[1]), f[0].name), reverse=True)


def _check_tables(results: JsonObject, location: str) -> None:
    """Raise DataError if a value has the wrong type, or a group contains itself."""

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
        # Depth first, without recursion, because a damaged file may nest very deep.
        stack = [iter([name])]
        ancestors: list[str] = []
        while stack:
            member = next(stack[-1], None)
            if member is None:
                stack.pop()
                finished |= set(ancestors[-1:])
                ancestors = ancestors[:-1]
            elif member in ancestors:
                raise damaged(f"`group_subtasks`: {member!r} contains itself")
            elif member not in finished:
                ancestors.append(member)
                stack.append(iter(groups.get(member) or ()))


def get_timestamp(results: JsonObject) -> float:
    """Return the time of the run in seconds since 1970; 0 if it is unknown."""
    date = results.get("date")
    return float(date) if isinstance(date, int | float) and 0 <= date < 1e11 else 0.0


def read_samples_file(file: Path) -> list[JsonObject]:
    """Read a samples file: JSON lines, or one JSON list (before lm-eval 0.4.3).

    Raises DataError if it is damaged.
    """
    text = decode_utf8(files.read_bytes(file), str(file), DataError)
    if text.lstrip().startswith("["):
        samples = _parse_json(text.encode(), str(file))
        return select_first_filter(add_locations(samples, str(file)))
    lines = ((f"{file}:{n}", line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    return select_first_filter(
        [(location, _parse_json(line.encode(), location)) for location, line in lines]
    )


def add_locations(samples: Sequence[Any], location: str) -> list[tuple[str, Any]]:
    return [(f"{location}: sample {index}", row) for index, row in enumerate(samples)]


def select_first_filter(located_samples: Sequence[tuple[str, Any]]) -> list[JsonObject]:
    """Return one sample per document. If the task has several filters, it is the first filter's.

    located_samples: (location, sample). Older files do not name the filter, but repeat the document
    for each. Raises DataError for invalid samples, and if the samples of a document have different
    answers.
    """
    for location, sample in located_samples:
        if not isinstance(sample, dict):
            raise DataError("a sample is not an object", location=location, hint=DAMAGED_HINT)
    for location, sample in located_samples:
        if sample.get("doc_id") is None:
            raise DataError("a sample has no `doc_id`", location=location, hint=DAMAGED_HINT)
    samples: dict[str, JsonObject] = {}
    for location, sample in located_samples:
        if sample.get("filter") == located_samples[0][1].get("filter"):
            first = samples.setdefault(str(sample["doc_id"]), sample)
            if _answer_key(first) != _answer_key(sample):
                message = f"two samples of doc_id {sample['doc_id']} have different answers"
                hint = "the file holds two runs: import them separately"
                raise DataError(message, location=location, hint=hint)
    return list(samples.values())


def _answer_key(sample: JsonObject) -> str:
    """Return a key that is equal for equal questions and answers.

    Filters change the filtered responses and the acc. So these are not compared if a sample does
    not name its filter.
    """
    names = ["target", "arguments", "resps"]
    if "resps" not in sample or "filter" in sample:
        names += ["filtered_resps", "acc"]
    return json.dumps([sample.get(name) for name in names], sort_keys=True)


def _parse_json(data: bytes, location: str, is_jsonl: bool = False) -> Any:
    try:
        return parse_json(data, allow_nan=True)
    except ValueError as error:
        hint = "the file is damaged"
        if is_jsonl:
            hint = "this is a samples file; give the results file of the same folder"
        raise DataError(f"not JSON: {error}", location=location, hint=hint) from None


def _load_json_or_none(file: Path) -> Any:
    """Return the content of a JSON file, None if it is not JSON."""
    try:
        return parse_json(read_regular_file(file), allow_nan=True)
    except (OSError, ValueError):
        return None
