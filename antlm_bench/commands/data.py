"""`data`: where the files of the suites are, where they come from, and whether they are the
published ones.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from antlm_bench.declarations import catalog
from antlm_bench.errors import DataError, IncompleteError, UsageError, map_collecting_errors
from antlm_bench.suites import sources
from antlm_bench.suites.pairs_csv import is_pairs_file
from antlm_bench.suites.sources import SuiteWithData
from antlm_bench.suites.task_types import TASK_TYPES, CatalogRow, read_declaration

OK_STATES = ("here", "verified", "complete")


def list_file_status(suite_names: Sequence[str]) -> list[CatalogRow]:
    """Return a row per file of the named suites; without names, a row per suite of the catalog.

    Opens no data file.
    """
    specs = _resolve_specs(suite_names or _single_suite_names())
    files = [(spec, sources.list_files(spec, folder)) for spec, folder in specs]
    if suite_names:
        return [_file_row(spec, row) for spec, rows in files for row in rows]
    return [_suite_row(spec, rows) for spec, rows in files]


def fetch_suites(
    suite_names: Sequence[str], target_dir: Path | None = None
) -> Iterator[CatalogRow]:
    """Download what is missing, suite by suite; yield a row per suite.

    Raises as `sources.fetch_files`.
    """
    specs = {spec.name: spec for spec, _ in _resolve_specs(suite_names)}
    return map_collecting_errors(
        list(specs),
        lambda name: _suite_row(specs[name], sources.fetch_files(specs[name], target_dir)),
    )


def verify_files(suite_names: Sequence[str]) -> tuple[list[CatalogRow], list[CatalogRow]]:
    """Read every file and compare it with what is published.

    Returns a row per suite, and a row per file that is not as published. Without names: every suite
    of which a file is here.
    """
    specs = _resolve_specs(suite_names or _single_suite_names())
    files = [(spec, sources.verify_files(spec, folder)) for spec, folder in specs]
    files = [(spec, rows) for spec, rows in files if suite_names or any(row.path for row in rows)]
    not_ok = [
        _file_row(spec, row) for spec, rows in files for row in rows if row.state not in OK_STATES
    ]
    return [_suite_row(spec, rows) for spec, rows in files], not_ok


def raise_on_bad_files(bad_files: Sequence[CatalogRow], are_required: bool) -> None:
    """Raise DataError where a file is damaged or not the published one.

    are_required: raise IncompleteError where files are absent or lack rows, too.
    """
    states = Counter(row["state"] for row in bad_files)
    if wrong := states["damaged"] + states["differs"]:
        raise DataError(
            f"{wrong} files are damaged or not the published ones",
            hint="delete them and fetch them again",
        )
    if are_required and bad_files:
        raise IncompleteError(
            f"{len(bad_files)} files are absent or lack rows", hint="antlm-bench data fetch SUITE"
        )


def list_data_dirs() -> list[CatalogRow]:
    """Return the folders that are searched, in order."""
    dirs = []
    if own := os.environ.get("ANTLM_BENCH_DATA"):
        dirs.append((Path(own), own, "ANTLM_BENCH_DATA"))
    cache, moved = sources.cache_dir(), os.environ.get("ANTLM_BENCH_CACHE")
    why = "ANTLM_BENCH_CACHE" if moved else "the cache: downloads go here"
    dirs.append((cache, str(cache), why))
    return [
        {"folder": shown, "why": reason, "exists": path.is_dir()} for path, shown, reason in dirs
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


def _suite_row(spec: SuiteWithData, file_rows: Sequence[sources.FileStatus]) -> CatalogRow:
    here = [row for row in file_rows if row.path]
    states = Counter(row.state for row in file_rows)
    return {
        "suite": spec.name,
        "files": f"{len(here)} of {len(file_rows)}" if file_rows else "generated",
        "state": ", ".join(
            f"{count} {state}" if len(states) > 1 else state for state, count in states.items()
        ),
        "size": sum(
            {row.path: row.size or 0 for row in here}.values()
        ),  # in bytes; members of one zip count once
        "folder": ", ".join(sorted({str(row.path.parent) for row in here if row.path})),
    }


def _file_row(spec: SuiteWithData, file_status: sources.FileStatus) -> CatalogRow:
    return {
        "file": file_status.file,
        "suite": spec.name,
        "state": file_status.state,
        "detail": file_status.detail,
        "path": str(file_status.path) if file_status.path else "",
    }
