"""`data`: where the files of the suites are, where they come from, and whether they are the published ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from antlm_bench.commands.list import Row
from antlm_bench.commands.several import each
from antlm_bench.declarations import catalog
from antlm_bench.errors import DataError, IncompleteError, UsageError
from antlm_bench.suites import loader, sources
from antlm_bench.suites.acquisition import AcquisitionSpec
from antlm_bench.suites.collection import CollectionSpec
from antlm_bench.suites.pairs_csv import is_pairs_file
from antlm_bench.suites.sources import WithFiles

GOOD = ("here", "verified", "complete")


def status(names: Sequence[str]) -> list[Row]:
    """Every file of the named suites; of no names, one row per suite of the catalog. Opens no data file."""
    if names:
        return [_file(spec, row) for spec, folder in _specs(names) for row in sources.status(spec, folder)]
    return [_suite(spec, sources.status(spec, folder)) for spec, folder in _specs(_all())]


def fetch(names: Sequence[str], to: Path | None = None) -> Iterator[Row]:
    """Download what is missing, suite by suite; yields a row per suite. Raises as `sources.fetch`."""
    specs = {spec.name: spec for spec, _ in _specs(names)}
    return each(list(specs), lambda name: _suite(specs[name], sources.fetch(specs[name], to)))


def verify(names: Sequence[str], shown: Callable[[list[Row]], None]) -> None:
    """Read every file and compare it with what is published; the rows go to `shown`, then the verdict is raised.

    Of no names: every suite of which something is here. Raises DataError where a file is damaged or not the published
    one, IncompleteError where a named suite lacks files or rows.
    """
    found = [(spec, sources.verify(spec, folder)) for spec, folder in _specs(names or _all())]
    found = [(spec, rows) for spec, rows in found if names or any(row.path for row in rows)]
    doubtful = [_file(spec, row) for spec, rows in found for row in rows if row.state not in GOOD]
    shown([_suite(spec, rows) for spec, rows in found])
    if doubtful:
        shown(doubtful)
    states = Counter(row["state"] for row in doubtful)
    if wrong := states["damaged"] + states["differs"]:
        raise DataError(f"{wrong} files are damaged or not the published ones", hint="delete them and fetch them again")
    if names and doubtful:
        raise IncompleteError(f"{len(doubtful)} files are absent or lack rows", hint="antlm-bench data fetch SUITE")


def where() -> list[Row]:
    """The folders that are searched, in order."""
    own = os.environ.get("ANTLM_BENCH_DATA")
    rows = [{"folder": own, "why": "ANTLM_BENCH_DATA", "exists": _yes(Path(own).is_dir())}] if own else []
    why = "ANTLM_BENCH_CACHE" if os.environ.get("ANTLM_BENCH_CACHE") else "the cache: downloads go here"
    return [*rows, {"folder": str(sources.cache()), "why": why, "exists": _yes(sources.cache().is_dir())}]


def _all() -> list[str]:
    files = ((name, loader.declared(name)[0]) for name in catalog("tasks"))
    return [name for name, spec in files if not isinstance(spec, CollectionSpec | AcquisitionSpec)]


def _specs(names: Sequence[str]) -> list[tuple[WithFiles, Path | None]]:
    """The declarations behind names and collections, each once."""
    found: dict[str, tuple[WithFiles, Path | None]] = {}
    for name in names:
        if is_pairs_file(name):
            raise UsageError(f"{name!r} is a file of yours: nothing is fetched or published for it")
        spec, folder = loader.declared(name)
        if isinstance(spec, CollectionSpec):
            members = [suite for member in spec.members if member.made_by != "nothing" for suite in member.parts]
            found |= {one.name: (one, where) for one, where in _specs(members)}
        elif isinstance(spec, AcquisitionSpec):
            found |= {one.name: (one, where) for one, where in _specs([spec.words])}
        else:
            found[spec.name] = (spec, folder)
    return list(found.values())


def _suite(spec: WithFiles, rows: Sequence[sources.Row]) -> Row:
    here = [row for row in rows if row.path]
    states = Counter(row.state for row in rows)
    return {
        "suite": spec.name,
        "files": f"{len(here)} of {len(rows)}" if rows else "generated",
        "state": ", ".join(f"{count} {state}" if len(states) > 1 else state for state, count in states.items()),
        "size": _size(sum({row.path: row.size or 0 for row in here}.values())),  # members of one zip count once
        "folder": ", ".join(sorted({str(row.path.parent) for row in here if row.path})),
    }


def _file(spec: WithFiles, row: sources.Row) -> Row:
    place = str(row.path) if row.path else ""
    return {"file": row.file, "suite": spec.name, "state": row.state, "detail": row.detail, "path": place}


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB" if count else ""


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
