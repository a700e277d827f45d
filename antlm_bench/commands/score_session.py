"""Score many suites of many checkpoints in one process: nothing is opened or loaded twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from antlm_bench import runs
from antlm_bench.arguments import split_methods
from antlm_bench.checkpoints import loading_notes, open_checkpoint
from antlm_bench.checkpoints.checkpoint_records import CheckpointInfo, RecordedCheckpoint
from antlm_bench.checkpoints.last_opened import LastOpened
from antlm_bench.checkpoints.opening import LocatedCheckpoint, open_minicons_checkpoint
from antlm_bench.commands.cell_settings import AnySuite, SuiteCells, SuiteToScore
from antlm_bench.commands.requested_suites import RequestedSuites, SuiteCache
from antlm_bench.commands.score_options import ALL_METHODS, ScoreOptions, require_word_methods
from antlm_bench.comparison.summary_check import open_verified_runs
from antlm_bench.errors import BenchError, DataError, IncompleteError
from antlm_bench.progress import Progress, Workload
from antlm_bench.runs import Shard
from antlm_bench.runs.layout import build_manifest, check_single_name, run_dir
from antlm_bench.scoring.conventions import ScoringConventions
from antlm_bench.scoring.methods import default_method, resolve_method
from antlm_bench.scoring.shared_encodings import EncodingCache
from antlm_bench.suites.pair_files import FORMAT_FIELDS
from antlm_bench.types import Names, Run, as_list

if TYPE_CHECKING:
    from antlm_bench.commands.score_cells import AnyCheckpoint, SuiteScorer


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What is scored with each checkpoint of a call."""

    suites: RequestedSuites
    methods: Sequence[str]
    """Names, or "all"; () = the checkpoint's first."""
    options: ScoreOptions

    @property
    def shard(self) -> Shard | None:
        return None if self.options.shard is None else Shard.parse(self.options.shard)

    def command(self, checkpoint: AnyCheckpoint) -> list[str]:
        """Return the words of the command line that scores this, without --shard and --out."""
        model = str(checkpoint.metadata["given"])
        words = ["antlm-bench", "score", "--model", model]
        for name, values in (("--suite", self.suites.refs), ("--method", self.methods)):
            words += [word for value in values for word in (name, value)]
        options = self.options if "@" not in model else replace(self.options, revision=None)
        return words + options.command_words()


class ScoreSession:
    """Scores suites with checkpoints, one after the other.

    It keeps the checkpoint that it opened last, and the suites that it loaded last (SuiteCache).
    """

    def __init__(self, encodings: EncodingCache | None = None) -> None:
        """encodings: cache that checkpoints with equal tokenizers share; None = they do not."""
        self.suite_cache, self.encodings = SuiteCache(), encodings
        self._native: LastOpened[AnyCheckpoint] = LastOpened(open_checkpoint)
        self._minicons: LastOpened[AnyCheckpoint] = LastOpened(open_minicons_checkpoint)

    def score(
        self,
        ref: str,
        suites: Names,
        methods: Names = (),
        out: str | Path | None = None,
        options: ScoreOptions | None = None,
    ) -> Run:
        """Score one checkpoint. Arguments, result and errors are those of `score`.

        Raises IncompleteError for suites whose data cannot be read, after the others were scored.
        """
        options = options or ScoreOptions()
        request = self.build_request(as_list(suites), split_methods(methods), options)
        check_single_name(options.name, [ref])
        with Progress(f"opening {ref}") as progress:
            checkpoint = self.open(ref, options)
            folder = shard_dir(run_dir(checkpoint.metadata, out, False), out, request.shard)
            notes = loading_notes(checkpoint)
            run = self.score_opened(
                checkpoint, request, folder, notes, finished_run=None, progress=progress
            )
        if request.suites.unavailable:
            raise request.suites.build_incomplete_error((), 1, [run])
        return run

    def build_request(
        self, suites: Sequence[str], methods: Sequence[str], options: ScoreOptions
    ) -> ScoreRequest:
        """Check what is to be scored, before a model is opened. Raises UsageError."""
        options.validate(methods)
        requested_suites = RequestedSuites(
            suites,
            limit=options.limit,
            pair_format={name: getattr(options, name) for name in FORMAT_FIELDS},
            allow_incomplete=options.allow_incomplete,
            require_all=options.require_all,
            cache=self.suite_cache,
        )
        return ScoreRequest(requested_suites, methods, options)

    def open(
        self, ref: str, options: ScoreOptions, located: LocatedCheckpoint | None = None
    ) -> AnyCheckpoint:
        """Open a checkpoint for the engine of the options, unless it is open.

        located: its files; None = they are looked for.
        """
        opened = {"native": self._native, "minicons": self._minicons}
        for engine, other in opened.items():
            if engine != options.engine:
                other.close()
        checkpoint = opened[options.engine].open(ref, options.open_options(), located)
        if self.encodings is not None:
            checkpoint.share_encodings(self.encodings)
        return checkpoint

    def find_finished(
        self, checkpoint: RecordedCheckpoint, request: ScoreRequest, folder: Path
    ) -> Run | None:
        """Return the run if its folder has all cells of the request, with intact predictions.

        None: cells are missing, or something is wrong, and the checkpoint must be opened.
        """
        writer = runs.RunWriter(folder, build_manifest(checkpoint.metadata, request.options.name))
        try:
            stored_keys = {cell.key for cell in runs.open_stored_run(folder)}
            targets = _list_targets(checkpoint, request, (), request.suites.describe)
            all_cells = [SuiteCells(checkpoint, target) for target in targets]
            keys = {key for cells in all_cells for key in cells.keys.values()}
            if not keys <= stored_keys:
                return None
            with writer:
                if not all(cells.is_complete(writer, n) for cells in all_cells for n in cells.keys):
                    return None
                for key in keys if request.options.replace else ():
                    writer.remove_other_limits(key)
        except BenchError:  # opening the checkpoint leads to the same error, or to a better one
            return None
        return open_verified_runs([folder], keys=keys)[0]

    def close(self) -> None:
        """Release the checkpoint and its memory. The suites are kept."""
        self._native.close()
        self._minicons.close()

    def score_opened(
        self,
        checkpoint: AnyCheckpoint,
        request: ScoreRequest,
        folder: Path,
        notes: Sequence[str],
        finished_run: Run | None,
        progress: Progress,
    ) -> Run:
        """Score an opened checkpoint into a run folder, or the folder of a shard.

        notes: sentences on the checkpoint. finished_run: a shard leaves out its cells. Return the
        run; that of a shard has no cells. Raises IncompleteError with the run if some suites
        failed, and the DataError if there is only one suite.
        """
        from antlm_bench.commands.score_cells import SuiteScorer

        targets = _list_targets(checkpoint, request, notes, request.suites.load)
        progress.plan(Workload.sum(each.estimate_work(each.method_names) for each in targets))
        scorers = [partial(SuiteScorer, checkpoint, target) for target in targets]
        if request.shard is None:
            return self._write_run(checkpoint, request.options, folder, scorers, progress)
        from antlm_bench.checkpoints.machine import describe_machine_kind

        shard: Shard = request.shard
        manifest = build_manifest(checkpoint.metadata, request.options.name)
        machine = describe_machine_kind(str(checkpoint.metadata["device"]))
        command = request.command(checkpoint)
        with runs.ShardWriter(folder, manifest, shard, machine, command) as writer:
            errors = _score_each(
                scorers, lambda scorer: scorer.score_shard(shard, writer, finished_run, progress)
            )
            writer.finish()
        run = Run(str(folder), manifest, ())
        if errors:
            raise IncompleteError("\n".join(errors), runs=[run])
        return run

    def _write_run(
        self,
        checkpoint: AnyCheckpoint,
        options: ScoreOptions,
        folder: Path,
        scorers: Sequence[Callable[[], SuiteScorer]],
        progress: Progress,
    ) -> Run:
        keys = set[str]()
        with runs.RunWriter(folder, build_manifest(checkpoint.metadata, options.name)) as writer:

            def score_suite(scorer: SuiteScorer) -> None:
                suite_keys = scorer.score(writer, progress)
                keys.update(suite_keys)
                for key in suite_keys if options.replace else ():
                    writer.remove_other_limits(key)

            errors = _score_each(scorers, score_suite)
        finished = open_verified_runs([folder], keys=keys) if keys else []
        if errors:
            raise IncompleteError("\n".join(errors), runs=finished)
        return finished[0]


def _list_targets(
    checkpoint: CheckpointInfo,
    request: ScoreRequest,
    notes: Sequence[str],
    load: Callable[[Sequence[str]], Sequence[AnySuite]],
) -> list[SuiteToScore[AnySuite]]:
    """Return all suites, each with the methods that have the same conventions.

    load: returns the suites, given the names of the methods.
    """
    # Methods with the same conventions score the same texts and share the model's forwards.
    groups: dict[tuple[ScoringConventions, bool], list[str]] = {}
    methods = _resolve_methods(request.methods, checkpoint)
    if request.options.words is not None:
        require_word_methods(methods)
    for name in methods:
        method = resolve_method(name, checkpoint)
        conventions = request.options.conventions().for_method(method)
        has_rule = request.options.words is not None and method.needs_words
        groups.setdefault((conventions, has_rule), []).append(name)
    loaded = load([name for names in groups.values() for name in names])
    return [
        SuiteToScore(suite, request.suites.request_of(suite), names, request.options, notes)
        for suite in loaded
        for names in groups.values()
    ]


def _score_each(
    scorers: Sequence[Callable[[], SuiteScorer]], score: Callable[[SuiteScorer], None]
) -> list[str]:
    """Score all suites, and return the DataErrors, each once.

    Raises the DataError if it is that of all scorers: a suite has several, if its methods have
    different conventions.
    """
    errors: dict[str, DataError] = {}
    num_failed = 0
    for build_scorer in scorers:
        try:
            score(build_scorer())
        except DataError as error:  # the other suites are scored
            errors[str(error)] = error
            num_failed += 1
    if len(errors) == 1 and num_failed == len(scorers):
        raise next(iter(errors.values()))
    return list(errors)


def shard_dir(folder: Path, out: str | Path | None, shard: Shard | None) -> Path:
    """Return the folder into which a shard, or without one the run, is written.

    folder: the run folder. That of a shard is `out` itself, or lies beside a run folder whose name
    was chosen (without `out`, or for one of several checkpoints).
    """
    if shard is None or folder == (None if out is None else Path(out)):
        return folder
    return folder.with_name(f"{folder.name}.shard-{shard.index}-of-{shard.count}")


def _resolve_methods(requested_methods: Sequence[str], checkpoint: CheckpointInfo) -> list[str]:
    """Return the requested methods, or else the checkpoint's default method.

    "all" is replaced by every method that the checkpoint was trained for.
    """
    if not requested_methods:
        return [default_method(checkpoint, checkpoint.methods)]
    names: list[str] = []
    for name in requested_methods:
        trained_methods = checkpoint.trained_methods or checkpoint.methods
        names += trained_methods if name == ALL_METHODS else [name]
    return list(dict.fromkeys(names))
