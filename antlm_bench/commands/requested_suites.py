"""The suites that a call of `score` names: checked at once, loaded when the first model is open.

`SuiteCache` keeps loaded suites for the next call.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from antlm_bench.commands.suite_records import RecordedSuite, find_suite_record, load_and_record
from antlm_bench.declarations import list_declarations
from antlm_bench.errors import BenchError, DataError, IncompleteError, UsageError
from antlm_bench.metrics import ItemKind, MetricSpec, get_metric_spec
from antlm_bench.suites import loader
from antlm_bench.suites.names import absolute_path, deduplicate_suites
from antlm_bench.suites.pair_files import list_pair_files, select_format
from antlm_bench.suites.task_types import Suite, SuiteRequest, find_task_type
from antlm_bench.types import Item, Run

MAX_CACHED_ITEMS = 250_000
"""Number of items that a SuiteCache keeps: those of all suites of a BabyLM year."""


class FromFiles(Protocol):
    """What is loaded from files."""

    @property
    def origin(self) -> Sequence[str]:
        """Absolute paths of the user's files."""
        ...


L = TypeVar("L", bound=FromFiles)
FileStates = tuple[tuple[int, int], ...]
"""(size in bytes, time of the last change in ns) of each file of the user. Files of the catalog
have no state: their hashes are verified when they are read."""


class FileCache(Generic[L]):
    """A cache of objects that are loaded from files. An object is loaded again if one of its files
    has changed.
    """

    def __init__(self, max_size: int, measure_size: Callable[[L], int] = lambda _: 1) -> None:
        """max_size: largest sum of the sizes of all entries. The last entry is always kept."""
        self.max_size, self.measure_size = max_size, measure_size
        self._loaded: dict[str, tuple[L, FileStates]] = {}
        """Arguments as JSON -> the object, and the states of its files. The entry that was used
        last is at the end.
        """

    def get(self, arguments: Any, load: Callable[[], L]) -> L:
        """Return what `load` returns for these arguments. Raises as `load`."""
        key = json.dumps(arguments, sort_keys=True, default=list)
        loaded, states = self._loaded.pop(key, (None, ()))
        if loaded is None or states != _read_file_states(loaded.origin):
            loaded = load()
        self._loaded[key] = loaded, _read_file_states(loaded.origin)
        while len(self._loaded) > 1 and self._sum_sizes() > self.max_size:
            del self._loaded[next(iter(self._loaded))]
        return loaded

    def _sum_sizes(self) -> int:
        return sum(self.measure_size(loaded) for loaded, _ in self._loaded.values())


class SuiteCache(FileCache[Suite]):
    """The suites that were loaded last, up to a number of items."""

    def __init__(self, max_items: int = MAX_CACHED_ITEMS) -> None:
        super().__init__(max_items, lambda suite: len(suite.items))

    def load(self, request: SuiteRequest) -> Suite:
        """Return a suite, and remember what its keys depend on. Raises as `loader.load_suite`."""
        return self.get(
            asdict(request),
            lambda: load_and_record(request),
        )


def _read_file_states(origin: Sequence[str]) -> FileStates:
    """Return the states of the user's files that exist; of a folder, those of its files."""
    paths = [file for path in origin for file in list_pair_files(Path(path)) if file.exists()]
    return tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def _require_defined_score(suite: Suite, request: SuiteRequest) -> None:
    """Raise DataError if the suite's score is undefined for its items, by the limit or the file."""
    spec = get_metric_spec(suite.metric)
    reason = spec.find_undefined_reason([item.gold for item in suite.items])
    if not reason:
        return
    items = suite.items
    if suite.num_left_out:
        items = loader.load_requested_suite(replace(request, limit=None)).items
    if reason_of_all := spec.find_undefined_reason([item.gold for item in items]):
        raise DataError(
            f"{spec.heading} is undefined: {reason_of_all}",
            location=request.ref,
            hint="add such items to the file, or declare which labels are which"
            if spec.item_kind is ItemKind.JUDGEMENT
            else "add items with other ratings",
        )
    level = suite.groups[-1] if suite.groups else None
    smallest = find_smallest_limit(items, level, spec)
    raise DataError(
        f"{spec.heading} is undefined with this limit: {reason}",
        location=f"{request.ref}, --limit {request.limit}",
        hint=f"leave --limit out, or raise it to {smallest} or more",
    )


def find_smallest_limit(items: Sequence[Item], level: str | None, spec: MetricSpec) -> int:
    """Return the smallest limit per group of a level with which the metric is defined."""
    counts: Counter[str] = Counter()
    needed_limits, golds = [], []  # the smallest limit that includes an item, and its gold
    for item in items:
        group = item.labels[level] if level else ""
        counts[group] += 1
        needed_limits.append(counts[group])
        golds.append(item.gold)
    pairs = zip(needed_limits, golds, strict=True)
    for_two_golds = min((limit for limit, gold in pairs if gold != golds[0]), default=1)
    return max(for_two_golds, *sorted(needed_limits)[: spec.min_items])


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
        self._requests: list[tuple[Suite | RecordedSuite, SuiteRequest]] = []
        self._suites: list[Suite] | None = None
        self._described: list[Suite | RecordedSuite] | None = None

    def request_of(self, suite: Suite | RecordedSuite) -> SuiteRequest:
        """Return the request that loads a suite in any working directory."""
        request = next(request for loaded, request in self._requests if loaded is suite)
        path = Path(request.ref).expanduser()
        if suite.origin and path.exists():
            return replace(request, ref=absolute_path(path))
        return request

    def load(self, methods: Sequence[str]) -> list[Suite]:
        """Load the suites whose data can be read, once.

        Raises MethodNotSupported before it opens any data file, DataError of a single suite, or of
        any suite under `require_all`, and IncompleteError if no suite can be read. A suite whose
        score is undefined for its items counts as one that cannot be read.
        """
        self._check_methods(methods)
        if self._suites is None:
            try:
                self._suites = deduplicate_suites(
                    suite for ref in self.refs for suite in self._load_if_available(ref)
                )
                if not self._suites:
                    raise self.build_incomplete_error()
            except BenchError as error:
                self.error = error
                raise
        return self._suites

    def describe(self, methods: Sequence[str]) -> Sequence[Suite | RecordedSuite]:
        """Return what the content keys need of each suite: recorded facts, or the loaded suite.

        The result is kept for the next call. Raises as `load`.
        """
        if self._suites is not None:
            return self.load(methods)
        self._check_methods(methods)
        if self._described is None:
            self._described = deduplicate_suites(
                suite for ref in self.refs for suite in self._describe_if_available(ref)
            )
        if not self._described:
            raise self.build_incomplete_error()
        return self._described

    def _check_methods(self, methods: Sequence[str]) -> None:
        for ref in self.refs:
            find_task_type(ref).check_methods(ref, methods)

    def _describe_if_available(self, ref: str) -> Iterator[Suite | RecordedSuite]:
        request = self._requests_by_ref[ref]
        suite = find_suite_record(request)
        if suite is None:
            yield from self._load_if_available(ref)
        else:
            self._requests.append((suite, request))
            yield suite

    def _load_if_available(self, ref: str) -> Iterator[Suite]:
        """Yield the suite, or nothing if its data cannot be read and others are scored."""
        request = self._requests_by_ref[ref]
        self.unavailable.pop(ref, None)
        try:
            suite = self._cache.load(request)
            _require_defined_score(suite, request)
        except DataError as error:
            if self._require_all or len(self.refs) == 1:
                raise
            self.unavailable[ref] = error
            return
        self._requests.append((suite, request))
        yield suite

    def build_incomplete_error(
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
