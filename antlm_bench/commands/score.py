"""`score`: score checkpoints on suites, and write run folders. It prints only progress."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from antlm_bench import runs
from antlm_bench.arguments import apply_settings, check_arguments, split_methods
from antlm_bench.checkpoints import expand_refs, loading_notes
from antlm_bench.checkpoints.checkpoint_records import (
    RecordedCheckpoint,
    find_checkpoint_record,
    hash_inputs,
    store_checkpoint_record,
)
from antlm_bench.checkpoints.opening import LocatedCheckpoint, locate_checkpoint
from antlm_bench.checkpoints.resolve import display_name
from antlm_bench.commands.published_runs import check_output, open_output
from antlm_bench.commands.score_options import ALL_METHODS, ScoreOptions
from antlm_bench.commands.score_session import ScoreRequest, ScoreSession, shard_dir
from antlm_bench.comparison.summary_check import open_verified_runs
from antlm_bench.errors import BenchError, UsageError
from antlm_bench.progress import Progress
from antlm_bench.runs.layout import check_single_name, run_dir
from antlm_bench.safe_files import find_url
from antlm_bench.scoring.shared_encodings import EncodingCache
from antlm_bench.suites.pair_files import is_pairs_ref
from antlm_bench.suites.pair_layouts import LAYOUTS
from antlm_bench.suites.task_types import find_task_type
from antlm_bench.types import Names, Run, as_list
from antlm_bench.weight_files import hash_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from antlm_bench.commands.score_cells import AnyCheckpoint
    from antlm_bench.keywords import ScoreKeywords

__all__ = ["ALL_METHODS", "ScoreCall", "ScoreOptions", "score"]


@check_arguments(options=ScoreOptions)
def score(
    models: Names,
    suites: Names,
    *,
    methods: Names = (),
    out: str | Path | None = None,
    options: ScoreOptions | None = None,
    **settings: Unpack[ScoreKeywords],
) -> list[Run]:
    """Score every checkpoint on every suite. Return one run per checkpoint.

    models: folders, hub ids, globs, folders of checkpoints. suites: names, collections, files of
    pairs, TOMLs. methods (or `method`): scoring methods (`antlm-bench list methods`); () =
    the checkpoint's first, "all" = each that it was trained for. out: the run folder, or for
    several checkpoints the folder of their run folders; default reports/<name>-<weights>. The run
    of a URL such as s3://bucket/run is computed in the user's cache, and published at the end.
    settings: fields of ScoreOptions, which replace those of `options`.

        [run] = antlm_bench.score("gpt2", "blimp", method="causal", dtype="bfloat16")
        run["blimp"].estimate.value  # a fraction

    A cell that the run folder already has under the same content key is not computed again; a call
    that was killed continues. With one checkpoint and one suite, its BenchError is raised. With
    several, the others are scored first, and then IncompleteError is raised; with `require_all`,
    the DataError of a suite is raised before any is scored.

    With `shard`, the folders hold a part of the predictions, and the returned runs have no cells:
    `antlm_bench.merge` puts the shards together.
    """
    options = apply_settings(options or ScoreOptions(), settings)
    return ScoreCall(models, suites, methods, out, options).score_all()


class ScoreCall:
    """A call of `score` whose arguments are checked."""

    def __init__(
        self,
        models: Names,
        suites: Names,
        methods: Names,
        out: str | Path | None,
        options: ScoreOptions,
    ) -> None:
        """Check the arguments, before a model is opened. Raises UsageError, DeclarationError."""
        method_names = split_methods(methods)
        options.validate(method_names)
        self.refs = expand_refs(as_list(models), options.revision)
        check_single_name(options.name, self.refs)
        # A single checkpoint encodes each text only once.
        self.session = ScoreSession(encodings=EncodingCache() if len(self.refs) > 1 else None)
        self.request = self.session.build_request(as_list(suites), method_names, options)
        _check_unigrams(options, self.request.suites.refs)
        self.acquisition_suites = _list_acquisition_suites(as_list(suites), len(self.refs))
        self.out = out
        acquisition_suites = ", ".join(self.acquisition_suites)
        check_output(out, {"--shard": options.shard or "", "--suite": acquisition_suites})
        self.progress = Progress(parts=("checkpoint", len(self.refs)))
        self._refs_by_weights: dict[str, str] = {}
        """Hash of the weights -> the first checkpoint with them."""
        self._located: dict[str, LocatedCheckpoint] = {}
        """By reference, so that the hub is asked once."""

    def score_all(self, score_checkpoint: Callable[[str], Run] | None = None) -> list[Run]:
        """Score all checkpoints.

        score_checkpoint: function that scores a checkpoint; None = the method of that name.
        """
        with self.progress:
            finished = self._score_each(score_checkpoint or self.score_checkpoint)
        if self.request.shard is not None:
            return finished
        for name in self.acquisition_suites:
            from antlm_bench.commands.acquisition import compute_acquisition  # needs scipy

            compute_acquisition([run.path for run in finished], name)
        keys = {cell.key for run in finished for cell in run}
        return open_verified_runs((run.path for run in finished), keys=keys)

    def _score_each(self, score_checkpoint: Callable[[str], Run]) -> list[Run]:
        """Score all checkpoints, and raise the errors together."""
        finished: list[Run] = []
        failures: list[tuple[str, BenchError]] = []
        suites = self.request.suites
        for ref in self.refs:
            try:
                self.progress.next_part(f"opening {ref}")
                finished.append(score_checkpoint(ref))
            except BenchError as error:
                # An error of the suites or options would be the same for every checkpoint.
                is_only_error = len(self.refs) == 1 and not suites.unavailable
                if is_only_error or error is suites.error or isinstance(error, UsageError):
                    raise
                failures.append((ref, error))
                finished += getattr(error, "runs", ())
        if failures or suites.unavailable:
            raise suites.build_incomplete_error(
                failures, len(self.refs), runs.distinguish_suites(finished)
            )
        return finished

    def score_checkpoint(
        self, ref: str, request: ScoreRequest | None = None, progress: Progress | None = None
    ) -> Run:
        """Score one checkpoint. request, progress: replace those of the call."""
        request, progress = request or self.request, progress or self.progress
        finished = self.find_finished(ref, request)
        if finished is not None:
            self._refs_by_weights.setdefault(str(finished.manifest.model["weights"]), ref)
            return finished
        checkpoint, notes = self._open_and_record(ref)
        folder = shard_dir(self.run_dir(checkpoint), self.out, request.shard)
        with open_output(folder, checkpoint.metadata["weights"]) as local_folder:
            return self.session.score_opened(
                checkpoint, request, local_folder, notes, finished_run=None, progress=progress
            )

    def find_finished(self, ref: str, request: ScoreRequest) -> Run | None:
        """Return the run of a checkpoint that has all cells of the request, without opening it.

        None: a cell is missing, or the checkpoint was not opened before with the same files,
        options and software. Raises CheckpointError.
        """
        located_ref, sources, options = self._locate(ref)
        if request.options.again or request.shard is not None:
            return None
        if not self._has_run(display_name(located_ref, options)):
            return None
        weights = hash_weights(sources.base, options.allow_pickle)
        inputs = hash_inputs(located_ref, sources, options, request.options.engine)
        recorded = find_checkpoint_record(inputs, sources, options, weights)
        if recorded is None:
            return None
        return self.session.find_finished(recorded, request, self.run_dir(recorded))

    def _open_and_record(self, ref: str) -> tuple[AnyCheckpoint, list[str]]:
        """Open a checkpoint, and store its facts, unless its files change meanwhile."""
        located, engine = self._locate(ref), self.request.options.engine
        inputs = hash_inputs(*located, engine)
        checkpoint, notes = self.open(ref)
        if inputs == hash_inputs(*located, engine):
            store_checkpoint_record(inputs, checkpoint)
        return checkpoint, notes

    def _locate(self, ref: str) -> LocatedCheckpoint:
        if ref not in self._located:
            self._located[ref] = locate_checkpoint(ref, self.request.options.open_options())
        return self._located[ref]

    def _has_run(self, name: str) -> bool:
        """Return whether a local folder has a run of a checkpoint of this name."""
        if find_url(self.out):
            return False
        folder = run_dir({"name": name, "weights": ""}, self.out, len(self.refs) > 1)
        if self.out is not None and len(self.refs) == 1:
            return (folder / "run.json").exists()
        return any(folder.parent.glob(f"{glob.escape(folder.name)}*/run.json"))

    def open(self, ref: str) -> tuple[AnyCheckpoint, list[str]]:
        """Open a checkpoint. Return it with notes, also if an earlier one has the same weights."""
        checkpoint = self.session.open(ref, self.request.options, self._located.get(ref))
        notes = list(loading_notes(checkpoint))
        first_ref = self._refs_by_weights.setdefault(str(checkpoint.metadata["weights"]), ref)
        if first_ref != ref:
            notes.insert(0, f"same weights as {first_ref}: this is not another checkpoint")
        return checkpoint, notes

    def run_dir(self, checkpoint: AnyCheckpoint | RecordedCheckpoint) -> Path:
        """Return the run folder of a checkpoint."""
        return run_dir(checkpoint.metadata, self.out, len(self.refs) > 1)


def _list_acquisition_suites(suites: Sequence[str], num_checkpoints: int) -> list[str]:
    """Return the age-of-acquisition suites. Raises UsageError for too few checkpoints for them."""
    if not any(find_task_type(ref).needs_checkpoint_series for ref in suites):
        return []
    from antlm_bench.commands.acquisition import find_acquisition_suites  # needs scipy

    return find_acquisition_suites(suites, num_checkpoints)


def _check_unigrams(options: ScoreOptions, suites: Sequence[str]) -> None:
    """Raise UsageError for a text of a unigram model that none of the suites uses."""
    layout = LAYOUTS.get(options.layout)
    has_judgements = layout is not None and not layout.is_paired
    if options.unigrams and not any(
        find_task_type(ref).uses_unigrams or (has_judgements and is_pairs_ref(ref))
        for ref in suites
    ):
        raise UsageError(
            f"none of these suites uses a unigram model: {', '.join(suites)}",
            location="--unigrams",
            hint='it is for judgements (kind = "acceptability", or --layout judgements)',
        )
