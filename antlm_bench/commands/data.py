"""`data`: where the files of the suites are, where they come from, and whether they are the
published ones.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from antlm_bench.commands.list import CatalogRow
from antlm_bench.commands.several import map_collecting_errors
from antlm_bench.declarations import catalog
from antlm_bench.errors import DataError, IncompleteError, UsageError
from antlm_bench.suites import loader, sources
from antlm_bench.suites.acquisition import AcquisitionSpec
from antlm_bench.suites.collection import CollectionSpec
from antlm_bench.suites.pairs_csv import is_pairs_file
from antlm_bench.suites.sources import SuiteWithData

OK_STATES = ("here", "verified", "complete")


def list_file_status(suite_names: Sequence[str]) -> list[CatalogRow]:
    """Every file of the named suites; of no names, one row per suite of the catalog. Opens no data
    file.
    """
    if suite_names:
        return [
            _file_row(spec, row)
            for spec, folder in _resolve_specs(suite_names)
            for row in sources.list_files(spec, folder)
        ]
    return [
        _suite_row(spec, sources.list_files(spec, folder))
        for spec, folder in _resolve_specs(_all_suite_names())
    ]


def fetch_suites(
    suite_names: Sequence[str], target_dir: Path | None = None
) -> Iterator[CatalogRow]:
    """Download what is missing, suite by suite; yields a row per suite. Raises as `sources.fetch`."""
    specs = {spec.name: spec for spec, _ in _resolve_specs(suite_names)}
    return map_collecting_errors(
        list(specs),
        lambda name: _suite_row(specs[name], sources.fetch_files(specs[name], target_dir)),
    )


def verify_files(suite_names: Sequence[str]) -> tuple[list[CatalogRow], list[CatalogRow]]:
    """Read every file and compare it with what is published.

    Returns a row per suite, and a row per file that is not as published. Of no names: every suite
    of which something is here.
    """
    found = [
        (spec, sources.verify_files(spec, folder))
        for spec, folder in _resolve_specs(suite_names or _all_suite_names())
    ]
    found = [(spec, rows) for spec, rows in found if suite_names or any(row.path for row in rows)]
    doubtful = [
        _file_row(spec, row) for spec, rows in found for row in rows if row.state not in OK_STATES
    ]
    return [_suite_row(spec, rows) for spec, rows in found], doubtful


def raise_on_bad_files(doubtful_files: Sequence[CatalogRow], are_required: bool) -> None:
    """Raise DataError where a file is damaged or not the published one.

    are_required: raise IncompleteError where files are absent or lack rows, too.
    """
    states = Counter(row["state"] for row in doubtful_files)
    if wrong := states["damaged"] + states["differs"]:
        raise DataError(
            f"{wrong} files are damaged or not the published ones",
            hint="delete them and fetch them again",
        )
    if are_required and doubtful_files:
        raise IncompleteError(
            f"{len(doubtful_files)} files are absent or lack rows",
            hint="antlm-bench data fetch SUITE",
        )


def list_data_dirs() -> list[CatalogRow]:
    """The folders that are searched, in order."""
    own, cache = os.environ.get("ANTLM_BENCH_DATA"), sources.cache_dir()
    is_set = bool(os.environ.get("ANTLM_BENCH_CACHE"))
    why = "ANTLM_BENCH_CACHE" if is_set else "the cache: downloads go here"
    folders = [(own, "ANTLM_BENCH_DATA")] if own else []
    return [
        {"folder": folder, "why": reason, "exists": Path(folder).is_dir()}
        for folder, reason in [*folders, (str(cache), why)]
    ]


def _all_suite_names() -> list[str]:
    files = ((name, loader.read_declaration(name)[0]) for name in catalog("tasks"))
    return [name for name, spec in files if not isinstance(spec, CollectionSpec | AcquisitionSpec)]


def _resolve_specs(suite_names: Sequence[str]) -> list[tuple[SuiteWithData, Path | None]]:
    """The declarations behind names and collections, each once."""
    found: dict[str, tuple[SuiteWithData, Path | None]] = {}
    for name in suite_names:
        if is_pairs_file(name):
            raise UsageError(f"{name!r} is a file of yours: nothing is fetched or published for it")
        spec, folder = loader.read_declaration(name)
        if isinstance(spec, CollectionSpec):
            members = [
                suite
                for member in spec.members
                if member.made_by != "nothing"
                for suite in member.suite_names
            ]
            found |= {one.name: (one, where) for one, where in _resolve_specs(members)}
        elif isinstance(spec, AcquisitionSpec):
            found |= {one.name: (one, where) for one, where in _resolve_specs([spec.words])}
        else:
            found[spec.name] = (spec, folder)
    return list(found.values())


def _suite_row(spec: SuiteWithData, file_rows: Sequence[sources.FileStatus]) -> CatalogRow:
    here = [row for row in file_rows if row.path]
    states = Counter(row.state for row in file_rows)
    return {
        "suite": spec.name,
        "files": f"{len(here)} of {len(file_rows)}" if file_rows else "generated",
        "state": ", ".join(
            f"{count} {state}" if len(states) > 1 else state for state, count in states.items()
        ),
        # in bytes; members of one zip count once
        "size": sum({row.path: row.size or 0 for row in here}.values()),
        "folder": ", ".join(sorted({str(row.path.parent) for row in here if row.path})),
    }


def _file_row(spec: SuiteWithData, file_status: sources.FileStatus) -> CatalogRow:
    place = str(file_status.path) if file_status.path else ""
    return {
        "file": file_status.file,
        "suite": spec.name,
        "state": file_status.state,
        "detail": file_status.detail,
        "path": place,
    }
