"""The suites that a call of `score` names: checked at once, loaded when the first model is open.

`SuiteCache` keeps loaded suites for the next call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from antlm_bench.declarations import list_declarations
from antlm_bench.errors import BenchError, DataError, IncompleteError, UsageError
from antlm_bench.suites import loader
from antlm_bench.suites.names import absolute_path, deduplicate_suites
from antlm_bench.suites.pair_files import list_pair_files, select_format
from antlm_bench.suites.task_types import Suite, SuiteRequest, find_task_type
from antlm_bench.types import Run

MAX_CACHED_ITEMS = 250_000
"""Number of items that a SuiteCache keeps: those of all suites of a BabyLM year."""


class SuiteCache:
    """The suites that were loaded last. Those of a file that has changed are loaded again."""

    def __init__(self, max_items: int = MAX_CACHED_ITEMS) -> None:
        self.max_items = max_items
        self._suites: dict[str, tuple[Suite, FileStates]] = {}
        """Request as JSON -> suite, and the states of the user's files; the last used is last."""

    def load(self, request: SuiteRequest) -> Suite:
        """Return a suite. Raises as `loader.load_suite`."""
        key = json.dumps(asdict(request), sort_keys=True)
        suite, states = self._suites.pop(key, (None, ()))
        if suite is None or states != file_states(suite.origin):
            suite = loader.load_requested_suite(request)
        self._suites[key] = suite, file_states(suite.origin)
        while len(self._suites) > 1 and self._count_items() > self.max_items:
            del self._suites[next(iter(self._suites))]
        return suite

    def _count_items(self) -> int:
        return sum(len(suite.items) for suite, _ in self._suites.values())


FileStates = tuple[tuple[int, int], ...]
"""(size in bytes, time of the last change in ns) of each file of the user. Files of the catalog
have no state: their hashes are verified when they are read."""


def file_states(origin: Sequence[str]) -> FileStates:
    """Return the states of the user's files that exist; of a folder, those of its files."""
    paths = [file for path in origin for file in list_pair_files(Path(path)) if file.exists()]
    return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


class RequestedSuites:
    """The suites of a call, of which those whose data can be read are scored."""

    def __init__(
        self,
        refs: Sequence[str],
        *,
        limit: int | None = None,
        pair_format: Mapping[str, Any] | None = None,
        allow_incomplete: bool = False,
        require_all: bool = False,
        cache: SuiteCache | None = None,
    ) -> None:
        """Check the references (names, collections, files). Raises UsageError, DeclarationError.

        pair_format: how files of pairs are read, by FORMAT_FIELDS. cache: where suites are loaded;
        None = a new one. Other arguments: see ScoreOptions.
        """
        if not refs:
            raise UsageError(
                "no suite given", location="--suite", hint="see `antlm-bench list suites`"
            )
        self.refs = loader.list_suite_refs(refs)
        self.unavailable: dict[str, DataError] = {}
        """Reference -> why its data cannot be read, while the other suites are scored."""
        self.error: BenchError | None = None
        """The error of loading, which would be the same for every checkpoint."""
        self._require_all = require_all
        self._requests_by_ref = {
            ref: SuiteRequest(
                ref, limit, allow_incomplete, **select_format(ref, self.refs, pair_format or {})
            )
            for ref in self.refs
        }
        for request in self._requests_by_ref.values():
            loader.check_request(request)
        self._cache = cache or SuiteCache(max_items=0)
        self._requests: list[tuple[Suite, SuiteRequest]] = []
        self._suites: list[Suite] | None = None

    def request_of(self, suite: Suite) -> SuiteRequest:
        """Return the request that loads a suite in any working directory."""
        request = next(request for loaded, request in self._requests if loaded is suite)
        path = Path(request.ref).expanduser()
        if suite.origin and path.exists():
            return replace(request, ref=absolute_path(path))
        return request

    def load(self, methods: Sequence[str]) -> list[Suite]:
        """Load the suites whose data can be read, once.

        Raises MethodNotSupported before it opens any data file, DataError of a single suite, or of
        any suite under `require_all`, and IncompleteError if no suite can be read.
        """
        for ref in self.refs:
            find_task_type(ref).check_methods(ref, methods)
        if self._suites is None:
            try:
                self._suites = deduplicate_suites(self._load_available())
                if not self._suites:
                    raise self.describe_failures()
            except BenchError as error:
                self.error = error
                raise
        return self._suites

    def _load_available(self) -> Iterator[Suite]:
        for ref in self.refs:
            request = self._requests_by_ref[ref]
            try:
                suite = self._cache.load(request)
            except DataError as error:
                if self._require_all or len(self.refs) == 1:
                    raise
                self.unavailable[ref] = error
                continue
            self._requests.append((suite, request))
            yield suite

    def describe_failures(
        self,
        failures: Sequence[tuple[str, BenchError]] = (),
        num_checkpoints: int = 0,
        finished: Sequence[Run] = (),
    ) -> IncompleteError:
        """Return an error that lists what was not scored, and the command that downloads the data.

        failures: (checkpoint, its error). finished: the runs that have results.
        """
        lines = [f"  {ref}: {error}" for ref, error in failures]
        lines += [f"  {error}" for error in self.unavailable.values()]
        counts = [f"{len(failures)} of {num_checkpoints} checkpoints"] * bool(failures)
        if self.unavailable:
            counts.append(f"{len(self.unavailable)} of {len(self.refs)} suites")
        shipped = [ref for ref in self.unavailable if ref in list_declarations("tasks")]
        fetch = f"; download data: antlm-bench data fetch {' '.join(shipped)}" if shipped else ""
        return IncompleteError(
            f"{' and '.join(counts)} were not scored completely:\n" + "\n".join(lines),
            hint=f"fix them and repeat the command: finished cells are kept{fetch}",
            runs=finished,
        )
