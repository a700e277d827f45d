"""`data`: where the files of the suites are, where they come from, and whether they are the
published ones.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from antlm_bench.declarations import catalog
from antlm_bench.errors import DataError, IncompleteError, UsageError, map_collecting_errors
from antlm_bench.suites import sources
from antlm_bench.suites.pairs_csv import is_pairs_file
from antlm_bench.suites.sources import SuiteWithData
from antlm_bench.suites.task_types import TASK_TYPES, TextRow, read_declaration

OK_STATES = ("here", "verified", "complete")


def list_file_status(suite_names: Sequence[str]) -> list[TextRow]:
    """Return a row per file of the named suites; without names, a row per suite of the catalog.

    Opens no data file.
    """
    specs = _resolve_specs(suite_names or _single_suite_names())
    files = [(spec, sources.list_files(spec, folder)) for spec, folder in specs]
    if suite_names:
        return [_file_row(spec, row) for spec, rows in files for row in rows]
    return [_suite_row(spec, rows) for spec, rows in files]


def fetch_suites(suite_names: Sequence[str], target_dir: Path | None = None) -> Iterator[TextRow]:
    """Download what is missing, suite by suite; yield a row per suite.

    Raises as `sources.fetch_files`.
    """
    specs = {spec.name: spec for spec, _ in _resolve_specs(suite_names)}
    return map_collecting_errors(
        list(specs),
        lambda name: _suite_row(specs[name], sources.fetch_files(specs[name], target_dir)),
    )


def verify_files(suite_names: Sequence[str], show_rows: Callable[[list[TextRow]], None]) -> None:
    """Read every file, compare it with what is published, and show the rows before any error.

    Without names: every suite of which a file is here. Raises DataError where a file is damaged or
    not the published one, IncompleteError where a named suite lacks files or rows.
    """
    specs = _resolve_specs(suite_names or _single_suite_names())
    files = [(spec, sources.verify_files(spec, folder)) for spec, folder in specs]
    files = [(spec, rows) for spec, rows in files if suite_names or any(row.path for row in rows)]
    not_ok = [
        _file_row(spec, row) for spec, rows in files for row in rows if row.state not in OK_STATES
    ]
    show_rows([_suite_row(spec, rows) for spec, rows in files])
    if not_ok:
        show_rows(not_ok)
    states = Counter(row["state"] for row in not_ok)
    if wrong := states["damaged"] + states["differs"]:
        raise DataError(
            f"{wrong} files are damaged or not the published ones",
            hint="delete them and fetch them again",
        )
    if suite_names and not_ok:
        raise IncompleteError(
            f"{len(not_ok)} files are absent or lack rows", hint="antlm-bench data fetch SUITE"
        )


def list_data_dirs() -> list[TextRow]:
    """Return the folders that are searched, in order."""
    dirs = []
    if own := os.environ.get("ANTLM_BENCH_DATA"):
        dirs.append((Path(own), own, "ANTLM_BENCH_DATA"))
    cache, moved = sources.cache_dir(), os.environ.get("ANTLM_BENCH_CACHE")
    why = "ANTLM_BENCH_CACHE" if moved else "the cache: downloads go here"
    dirs.append((cache, str(cache), why))
    return [
        {"folder": shown, "why": reason, "exists": "yes" if path.is_dir() else "no"}
        for path, shown, reason in dirs
    ]


def _single_suite_names() -> list[str]:
    """Return the names of the catalog that do not consist of other suites."""
    specs = {name: read_declaration(name)[0] for name in catalog("tasks")}
    return [name for name, spec in specs.items() if not TASK_TYPES[spec.task_type].parts(spec, "")]


def _resolve_specs(suite_names: Sequence[str]) -> list[tuple[SuiteWithData, Path | None]]:
    """Return the declarations with data behind names of suites and collections, each once."""
    specs: dict[str, tuple[SuiteWithData, Path | None]] = {}
    for name in suite_names:
        if is_pairs_file(name):
            raise UsageError(f"{name!r} is a file of yours: nothing is fetched or published for it")
        spec, folder = read_declaration(name)
        if parts := TASK_TYPES[spec.task_type].parts(spec, ""):
            specs |= {part.name: (part, where) for part, where in _resolve_specs(parts)}
        elif hasattr(spec, "data"):
            specs[spec.name] = (spec, folder)
    return list(specs.values())


def _suite_row(spec: SuiteWithData, file_rows: Sequence[sources.FileStatus]) -> TextRow:
    here = [row for row in file_rows if row.path]
    states = Counter(row.state for row in file_rows)
    return {
        "suite": spec.name,
        "files": f"{len(here)} of {len(file_rows)}" if file_rows else "generated",
        "state": ", ".join(
            f"{count} {state}" if len(states) > 1 else state for state, count in states.items()
        ),
        "size": _format_size(
            sum({row.path: row.size or 0 for row in here}.values())
        ),  # members of one zip count once
        "folder": ", ".join(sorted({str(row.path.parent) for row in here if row.path})),
    }


def _file_row(spec: SuiteWithData, file_status: sources.FileStatus) -> TextRow:
    return {
        "file": file_status.file,
        "suite": spec.name,
        "state": file_status.state,
        "detail": file_status.detail,
        "path": str(file_status.path) if file_status.path else "",
    }


def _format_size(num_bytes: int) -> str:
    if num_bytes >= 1e6:
        return f"{num_bytes / 1e6:,.1f} MB"
    return f"{num_bytes / 1e3:,.0f} kB" if num_bytes else ""
