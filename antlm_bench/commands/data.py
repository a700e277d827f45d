"""`data`: list, download and verify the data files of suites."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from antlm_bench.errors import DataError, IncompleteError, UsageError, map_collecting_errors
from antlm_bench.printable import format_count
from antlm_bench.progress import Progress, Workload
from antlm_bench.suites import sources
from antlm_bench.suites.pair_files import is_pairs_ref
from antlm_bench.suites.sources import SuiteWithData
from antlm_bench.suites.task_types import TASK_TYPES, CatalogRow, read_catalog, read_declaration

OK_STATES = ("here", "verified", "complete")
"""States of a file (sources.FileStatus) that are not problems."""


def list_file_status(suite_names: Sequence[str]) -> list[CatalogRow]:
    """Return a row per file of the named suites; without names, a row per suite of the catalog.

    No data file is opened.
    """
    specs = _resolve_specs(suite_names or _suite_names_without_collections())
    statuses_by_suite = [(spec, sources.list_files(spec, folder)) for spec, folder in specs]
    if suite_names:
        return [_file_row(spec, status) for spec, files in statuses_by_suite for status in files]
    return [_suite_row(spec, files) for spec, files in statuses_by_suite]


def fetch_suites(
    suite_names: Sequence[str], target_dir: Path | None = None
) -> Iterator[CatalogRow]:
    """Download missing files, suite by suite. Yield a row per suite.

    Raises the same errors as `sources.fetch_files`.
    """
    return _fetch_specs({spec.name: spec for spec, _ in _resolve_specs(suite_names)}, target_dir)


def _fetch_specs(
    specs: Mapping[str, SuiteWithData], target_dir: Path | None
) -> Iterator[CatalogRow]:
    counts = {name: len(spec.data.files) if spec.data else 0 for name, spec in specs.items()}
    works = {name: Workload(count, count) for name, count in counts.items()}
    with Progress(unit="files") as progress:
        progress.plan(Workload.sum(works.values()))

        def fetch(name: str) -> CatalogRow:
            progress.start_piece(name, works[name])
            return _suite_row(specs[name], sources.fetch_files(specs[name], target_dir, progress))

        yield from map_collecting_errors(list(specs), fetch)


def verify_files(suite_names: Sequence[str]) -> tuple[list[CatalogRow], list[CatalogRow]]:
    """Read every file and compare it with the published one.

    Returns a row per suite, and a row per file whose state is not in OK_STATES. Without names, all
    suites with local files are verified.
    """
    specs = _resolve_specs(suite_names or _suite_names_without_collections())
    statuses_by_suite = []
    with Progress(unit="suites", total=len(specs)) as progress:
        for spec, folder in specs:
            progress.describe(spec.name)
            statuses_by_suite.append((spec, sources.verify_files(spec, folder)))
            progress.advance()
    if not suite_names:
        statuses_by_suite = [
            (spec, files) for spec, files in statuses_by_suite if any(file.path for file in files)
        ]
    bad_files = [
        _file_row(spec, file)
        for spec, files in statuses_by_suite
        for file in files
        if file.state not in OK_STATES
    ]
    return [_suite_row(spec, files) for spec, files in statuses_by_suite], bad_files


def raise_on_bad_files(bad_files: Sequence[CatalogRow], suite_names: Sequence[str]) -> None:
    """Raise DataError if a file is damaged or differs from the published one.

    suite_names: the suites that the user named; empty = none. If there are any, also raise
    IncompleteError if no file is wrong, but files are absent or lack rows.
    """
    names = suite_names or list(dict.fromkeys(str(row["suite"]) for row in bad_files))
    fetch = f"antlm-bench data fetch {shlex.join(names)}"
    states = Counter(row["state"] for row in bad_files)
    num_wrong = states["damaged"] + states["differs"]
    if num_wrong:
        raise DataError(
            f"damaged, or not as published: {format_count(num_wrong, 'file')}",
            hint=f"delete them and download them again: {fetch}",
        )
    if suite_names and bad_files:
        raise IncompleteError(
            f"absent, or without some rows: {format_count(len(bad_files), 'file')}",
            hint=fetch,
        )


def list_data_dirs() -> list[CatalogRow]:
    """Return a row per folder that is searched for data, in order."""
    folders = []
    if data_dir := os.environ.get("ANTLM_BENCH_DATA"):
        folders.append((data_dir, "ANTLM_BENCH_DATA"))
    has_custom_cache = bool(os.environ.get("ANTLM_BENCH_CACHE"))
    cache_reason = "ANTLM_BENCH_CACHE" if has_custom_cache else "the cache: downloads go here"
    folders.append((str(sources.cache_dir()), cache_reason))
    return [
        {"folder": folder, "why": reason, "exists": Path(folder).is_dir()}
        for folder, reason in folders
    ]


def _suite_names_without_collections() -> list[str]:
    specs, _ = read_catalog()
    # members(spec, ""): the members of a collection, whatever the command.
    return [
        name for name, spec in specs.items() if not TASK_TYPES[spec.task_type].members(spec, "")
    ]


def _resolve_specs(suite_names: Sequence[str]) -> list[tuple[SuiteWithData, Path]]:
    """Return (declaration, folder of its TOML) of every suite that has data files.

    A collection is replaced by its members. No suite is repeated.
    """
    specs: dict[str, tuple[SuiteWithData, Path]] = {}
    for name in suite_names:
        if is_pairs_ref(name):
            raise UsageError(
                f"{name!r} is a file of yours: it has no published version",
                hint="name suites: antlm-bench list suites",
            )
        spec, folder = read_declaration(name)
        if members := TASK_TYPES[spec.task_type].members(spec, ""):
            specs |= {member.name: (member, path) for member, path in _resolve_specs(members)}
        elif hasattr(spec, "data"):  # other suites have no data files
            specs[spec.name] = (spec, folder)
    return list(specs.values())


def _suite_row(spec: SuiteWithData, files: Sequence[sources.FileStatus]) -> CatalogRow:
    local_files = [file for file in files if file.path]
    states = Counter(file.state for file in files)
    # In bytes. Files in the same zip have the same path, which counts once.
    size_by_path = {file.path: file.size or 0 for file in local_files}
    return {
        "suite": spec.name,
        # Code generates the items of a suite without files.
        "files": f"{len(local_files)} of {len(files)}" if files else "generated",
        "state": ", ".join(
            f"{count} {state}" if len(states) > 1 else state
            for state, count in sorted(states.items())
        ),
        "size": sum(size_by_path.values()),
        "folder": ", ".join(sorted({str(file.path.parent) for file in local_files if file.path})),
    }


def _file_row(spec: SuiteWithData, file_status: sources.FileStatus) -> CatalogRow:
    return {
        "file": file_status.file,
        "suite": spec.name,
        "state": file_status.state,
        "detail": file_status.detail,
        "path": str(file_status.path) if file_status.path else "",
    }
