"""The texts of a sweep's suites and tasks: which are missing, whether they load, and a fingerprint.

Nothing is downloaded. Texts that were loaded once are not loaded again while their files stay the
same.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from antlm_bench.declarations import expand_user_path, is_file
from antlm_bench.errors import DataError, UsageError
from antlm_bench.suites import classification_loader, sources
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.classification_loader import ClassificationTask
from antlm_bench.suites.loader import load_suite
from antlm_bench.suites.pair_files import (
    FORMAT_FIELDS,
    is_pairs_ref,
    is_table_file,
    list_pair_files,
    pairs_exist,
    select_format,
)
from antlm_bench.suites.task_types import (
    Suite,
    find_task_type,
    read_declaration,
    read_declaration_of_type,
    read_suite_with_files,
)
from antlm_bench.sweeps.token_counts import CountsCache, TextCounts

SUITE_OPTIONS = ("limit", "allow_incomplete", *FORMAT_FIELDS)
"""Options of `score` that decide which texts are loaded."""
TASK_OPTIONS = ("valid", "columns", "limit_train", "limit_valid", "preset", "changes")
"""Options of `finetune` that decide which texts are loaded, and how often they are read."""


def load_suite_texts(suite: str, options: Mapping[str, Any]) -> Suite:
    """Load a suite. options: those of `score`. Raises DataError."""
    settings = {name: options[name] for name in SUITE_OPTIONS if name in options}
    pair_format = {name: settings.pop(name) for name in FORMAT_FIELDS if name in settings}
    return load_suite(suite, **settings, **select_format(suite, [suite], pair_format))


def load_task_texts(suite: str, task: str, options: Mapping[str, Any]) -> ClassificationTask:
    """Load a classification task. options: those of `finetune`. Raises DataError."""
    from antlm_bench.commands.finetune import FinetuneOptions

    arguments = FinetuneOptions(**options).loading_arguments(task)
    return classification_loader.load_task(suite, task, **arguments)


def find_suite_problem(suite: str, options: Mapping[str, Any], cache: CountsCache) -> str:
    """Return why a suite's data cannot be read; "" if they can.

    cache: remembers which files were read. Raises the errors of options that do not fit the suite.
    """
    missing = list_missing_files(suite)
    settings = {name: options[name] for name in SUITE_OPTIONS if name in options}
    return missing or _find_problem(
        ["suite", suite, settings, fingerprint_suite(suite)],
        lambda: len(load_suite_texts(suite, options).items),
        cache,
    )


def find_task_problem(suite: str, task: str, options: Mapping[str, Any], cache: CountsCache) -> str:
    """Return why a task's data cannot be read; "" if they can. As find_suite_problem."""
    valid = options.get("valid")
    missing = list_missing_task_files(suite, task, valid)
    settings = {name: options[name] for name in TASK_OPTIONS if name in options}
    return missing or _find_problem(
        ["task", suite, task, settings, fingerprint_suite(suite, valid)],
        lambda: len(load_task_texts(suite, task, options).train),
        cache,
    )


def _find_problem(key: list[Any], load: Callable[[], int], cache: CountsCache) -> str:
    """Load the texts, unless they were loaded before from the same files."""
    if key[-1] is None:  # texts without files, such as those of lm-eval
        return ""
    if cache.find(key) is None:
        try:
            cache.store(key, [TextCounts(rows=load())])
        except DataError as error:
            return error.message
    return ""


def list_missing_files(suite: str) -> str:
    """Return which files of a suite are missing; "" if none is. Nothing is read or downloaded."""
    if is_pairs_ref(suite):
        return "" if pairs_exist(suite) else "there is no such file"
    declared = read_suite_with_files(suite)
    if declared is None:
        return ""
    rows = sources.list_files(*declared)
    absent = [row.file for row in rows if row.path is None]
    if not absent:
        return ""
    names = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
    return f"{len(absent)} of {len(rows)} files are absent: {names}"


def list_missing_task_files(suite: str, task: str, valid: str | None) -> str:
    """Return which files of a classification task are missing; "" if none is."""
    if is_table_file(suite):
        paths = [suite, valid or ""]
        missing = [path for path in paths if not is_file(expand_user_path(path))]
        if missing and not missing[0]:
            raise UsageError(
                f"{suite!r} is a train file; the file that is scored is missing",
                location="options: valid",
                hint='options = { valid = "FILE" }',
            )
        return f"there is no file {missing[0]!r}" if missing else ""
    spec, folder = read_declaration_of_type(suite, ClassificationSpec)
    task_spec = spec.task[task]
    train_spec = spec.task[task_spec.trains_with or task]
    paths_by_file = {row.file: row.path for row in sources.list_files(spec, folder)}
    absent = [
        file for file in (train_spec.train, task_spec.valid) if file and not paths_by_file[file]
    ]
    if not absent:
        return ""
    if train_spec.substitutes and absent == [train_spec.train]:
        return ""  # loading tells whether a substitute is here
    return f"absent: {', '.join(map(shlex.quote, absent))}"


@cache
def fingerprint_suite(suite: str, valid: str | None = None) -> str | None:
    """Return a hash of a suite's declaration and of the state of its files, without reading them.

    valid: a second file of the user. None = the suite has no files (lm-eval:TASK).
    """
    if is_pairs_ref(suite):
        user_paths = [expand_user_path(path) for path in (suite, valid) if path]
        paths = [file for path in user_paths for file in list_pair_files(path)]
        parts: list[Any] = [suite]
    elif find_task_type(suite).matches(suite):
        path = expand_user_path(suite)
        if not path.is_file():
            return None
        paths, parts = [path], [suite]
    else:
        parts = [read_declaration(suite)[0].model_dump_json()]
        declared = read_suite_with_files(suite)
        rows = sources.list_files(*declared) if declared else []
        paths = [row.path for row in rows if row.path]
    for path in paths:
        state = path.stat()
        parts.append((str(path), state.st_size, state.st_mtime_ns))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
