"""The suites that a call of `score` names: checked at once, loaded when the first model is open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from antlm_bench.declarations import list_declarations
from antlm_bench.errors import BenchError, DataError, IncompleteError, UsageError
from antlm_bench.suites import loader
from antlm_bench.suites.names import deduplicate_suites
from antlm_bench.suites.pairs_csv import columns_for_ref
from antlm_bench.suites.task_types import Suite, find_task_type
from antlm_bench.types import Run


class RequestedSuites:
    """The suites of a call, of which those whose data can be read are scored."""

    def __init__(
        self,
        refs: Sequence[str],
        *,
        limit: int | None = None,
        columns: Mapping[str, str] | None = None,
        allow_incomplete: bool = False,
        require_all: bool = False,
    ) -> None:
        """Check the references (names, collections, files). Raises UsageError, DeclarationError.

        Other arguments: see ScoreOptions.
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
        self._limit, self._columns = limit, columns or {}
        self._allow_incomplete, self._require_all = allow_incomplete, require_all
        self._suites: list[Suite] | None = None

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
            try:
                yield loader.load_suite(
                    ref,
                    limit=self._limit,
                    allow_incomplete=self._allow_incomplete,
                    columns=columns_for_ref(ref, self.refs, self._columns),
                )
            except DataError as error:
                if self._require_all or len(self.refs) == 1:
                    raise
                self.unavailable[ref] = error

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
