"""`data`: list, download and verify the data files of suites."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from antlm_bench.errors import DataError, IncompleteError, UsageError, map_collecting_errors
from antlm_bench.suites import sources
from antlm_bench.suites.pairs_csv import is_pairs_file
from antlm_bench.suites.sources import SuiteWithData
from antlm_bench.suites.task_types import TASK_TYPES, CatalogRow, read_catalog, read_declaration

OK_STATES = ("here", "verified", "complete")
"""States of a file (sources.FileStatus) that are no problem."""


def list_file_status(suite_names: Sequence[str]) -> list[CatalogRow]:
    """Return a row per file of the named suites; without names, a row per suite of the catalog.

    No data file is opened.
    """
    specs = _resolve_specs(suite_names or _single_suite_names())
    files = [(spec, sources.list_files(spec, folder)) for spec, folder in specs]
    if suite_names:
        return [_file_row(spec, row) for spec, rows in files for row in rows]
    return [_suite_row(spec, rows) for spec, rows in files]


def fetch_suites(
    suite_names: Sequence[str], target_dir: Path | None = None
) -> Iterator[CatalogRow]:
    """Download missing files, suite by suite. Yield a row per suite.

    Raises as `sources.fetch_files`.
    """
    specs = {spec.name: spec for spec, _ in _resolve_specs(suite_names)}
    return map_collecting_errors(
        list(specs),
        lambda name: _suite_row(specs[name], sources.fetch_files(specs[name], target_dir)),
    )


def verify_files(suite_names: Sequence[str]) -> tuple[list[CatalogRow], list[CatalogRow]]:
    """Read every file and compare it with the published one.

    Returns a row per suite, and a row per file that differs. Without names, all suites with local
    files are verified.
    """
    specs = _resolve_specs(suite_names or _single_suite_names())
    files = [(spec, sources.verify_files(spec, folder)) for spec, folder in specs]
    if not suite_names:
        files = [(spec, rows) for spec, rows in files if any(row.path for row in rows)]
    bad_files = [
        _file_row(spec, row) for spec, rows in files for row in rows if row.state not in OK_STATES
    ]
    return [_suite_row(spec, rows) for spec, rows in files], bad_files


def raise_on_bad_files(bad_files: Sequence[CatalogRow], are_required: bool) -> None:
    """Raise DataError if a file is damaged or differs from the published one.

    are_required: raise IncompleteError, too, if files are absent or lack rows.
    """
    states = Counter(row["state"] for row in bad_files)
    num_wrong = states["damaged"] + states["differs"]
    if num_wrong:
        raise DataError(
            f"{num_wrong} files are damaged or not the published ones",
            hint="delete them and download them again: antlm-bench data fetch SUITE",
        )
    if are_required and bad_files:
        raise IncompleteError(
            f"{len(bad_files)} files are absent or lack rows", hint="antlm-bench data fetch SUITE"
        )


def list_data_dirs() -> list[CatalogRow]:
    """Return a row per folder that is searched for data, in order."""
    folders = []
    if data_dir := os.environ.get("ANTLM_BENCH_DATA"):
        folders.append((data_dir, "ANTLM_BENCH_DATA"))
    is_moved = bool(os.environ.get("ANTLM_BENCH_CACHE"))
    cache_reason = "ANTLM_BENCH_CACHE" if is_moved else "the cache: downloads go here"
    folders.append((str(sources.cache_dir()), cache_reason))
    return [
        {"folder": folder, "why": reason, "exists": Path(folder).is_dir()}
        for folder, reason in folders
    ]


def _single_suite_names() -> list[str]:
    """Return the names of the catalog's suites, without collections of suites."""
    specs, _ = read_catalog()
    return [
        name for name, spec in specs.items() if not TASK_TYPES[spec.task_type].members(spec, "")
    ]


def _resolve_specs(suite_names: Sequence[str]) -> list[tuple[SuiteWithData, Path | None]]:
    """Return each suite with data files once: its declaration, and the folder of that.

    A collection stands for its members.
    """
    specs: dict[str, tuple[SuiteWithData, Path | None]] = {}
    for name in suite_names:
        if is_pairs_file(name):
            raise UsageError(
                f"{name!r} is a file of yours: it has no published version",
                hint="name suites: antlm-bench list suites",
            )
        spec, folder = read_declaration(name)
        if members := TASK_TYPES[spec.task_type].members(spec, ""):
            specs |= {member.name: (member, path) for member, path in _resolve_specs(members)}
        elif hasattr(spec, "data"):
            specs[spec.name] = (spec, folder)
    return list(specs.values())


def _suite_row(spec: SuiteWithData, file_rows: Sequence[sources.FileStatus]) -> CatalogRow:
    local_files = [row for row in file_rows if row.path]
    states = Counter(row.state for row in file_rows)
    # In bytes. Files in the same zip have the same path, which counts once.
    size_by_path = {row.path: row.size or 0 for row in local_files}
    return {
        "suite": spec.name,
        "files": f"{len(local_files)} of {len(file_rows)}" if file_rows else "generated",
        "state": ", ".join(
            f"{count} {state}" if len(states) > 1 else state for state, count in states.items()
        ),
        "size": sum(size_by_path.values()),
        "folder": ", ".join(sorted({str(row.path.parent) for row in local_files if row.path})),
    }


def _file_row(spec: SuiteWithData, file_status: sources.FileStatus) -> CatalogRow:
    return {
        "file": file_status.file,
        "suite": spec.name,
        "state": file_status.state,
        "detail": file_status.detail,
        "path": str(file_status.path) if file_status.path else "",
    }
