"""Score in several processes that torchrun has started: each computes a shard.

The first process then puts the shards together and scores as one process does. It finds the cells
complete, or computes what another process could not. So results and errors are those of one
process.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from antlm_bench import runs
from antlm_bench.atomic_files import remove_path
from antlm_bench.commands.merge import merge_runs
from antlm_bench.commands.process_group import ProcessGroup
from antlm_bench.commands.score import ScoreCall
from antlm_bench.commands.score_options import ScoreOptions
from antlm_bench.console import print_warning
from antlm_bench.errors import BenchError, IncompleteError, RunError, UsageError
from antlm_bench.progress import Progress
from antlm_bench.runs import Shard
from antlm_bench.safe_files import refuse_url
from antlm_bench.types import Names, Run


def score_in_processes(
    group: ProcessGroup,
    models: Names,
    suites: Names,
    methods: Names,
    out: str | Path | None,
    options: ScoreOptions,
) -> list[Run]:
    """Score as `score` does. Return the runs in the first process, [] in the others.

    Errors are raised in the first process only; those of another process are warnings there.
    """
    with group:
        call = _prepare_call(group, models, suites, methods, out, options)
        if group.is_first:
            return call.score_all(lambda ref: _score_together(call, group, ref))
        for ref in call.refs:
            _score_shard(call, group, ref)
    return []


def _prepare_call(
    group: ProcessGroup,
    models: Names,
    suites: Names,
    methods: Names,
    out: str | Path | None,
    options: ScoreOptions,
) -> ScoreCall:
    """Check the arguments in all processes. Raises the error of the first, else that of another."""
    if options.shard is not None:
        raise UsageError(
            "torchrun divides the work among its processes by itself",
            location="--shard",
            hint="leave --shard out, or start the command without torchrun",
        )
    refuse_url(None if out is None else Path(out))
    error: BenchError | None = None
    try:
        options = replace(options, device=group.choose_device(options.device))
        call = ScoreCall(models, suites, methods, out, options)
    except BenchError as caught:
        error = caught
    problems = group.exchange(str(error or ""))
    if error and group.is_first:
        raise error
    for rank, problem in enumerate(problems):
        if problem:
            raise UsageError(problem, location=f"process {rank} of torchrun")
    return call


def _score_together(call: ScoreCall, group: ProcessGroup, ref: str) -> Run:
    """Score a checkpoint in the first process, from the shards of all processes."""
    run_dir, problems = _score_shard(call, group, ref)
    for rank, problem in enumerate(problems):
        if problem not in ("", problems[0]):
            print_warning(
                f"process {rank} of torchrun: {problem}\nThe first process computes its part."
            )
    options = call.request.options
    if run_dir is None:
        return call.score_checkpoint(ref)  # raises the error
    shards_dir = _shards_dir(run_dir)
    parts = [path for path in shards_dir.glob(f"*-of-{group.size}") if runs.is_shard_folder(path)]
    with suppress(BenchError):  # what is missing is computed below, and its error raised there
        merge_runs(sorted(parts), run_dir, allow_incomplete=True, replace_cells=True)
        options = replace(options, again=False)
    try:
        with Progress(ref) as progress:  # its items were counted with the shards
            run = call.score_checkpoint(ref, replace(call.request, options=options), progress)
    except IncompleteError:
        remove_path(shards_dir)
        raise
    remove_path(shards_dir)
    return run


def _score_shard(call: ScoreCall, group: ProcessGroup, ref: str) -> tuple[Path | None, list[str]]:
    """Compute this process' shard of a checkpoint, and wait for those of the others.

    Return the run folder (None if the checkpoint cannot be opened), and what kept processes from
    computing their shards, by rank: "" = nothing.
    """
    run_dir, problem = None, ""
    shard = Shard(group.rank + 1, group.size)
    options = replace(call.request.options, shard=str(shard), replace=False)
    try:
        checkpoint, notes = call.open(ref)
        run_dir = call.run_dir(checkpoint)
        folder = _shards_dir(run_dir) / f"{shard.index}-of-{shard.count}"
        # A command that was killed may have left cells of other suites, settings or checkpoints.
        runs.reject_links(run_dir.parent, folder)
        runs.forget_cells(folder)
        finished_run = None
        with suppress(RunError):
            finished_run = runs.open_stored_run(run_dir)
        call.session.score_opened(
            checkpoint,
            replace(call.request, options=options),
            folder,
            notes,
            finished_run,
            call.progress,
        )
    except BenchError as error:
        problem = str(error)
    return run_dir, group.exchange(problem)


def _shards_dir(run_dir: Path) -> Path:
    """Return the folder of the shards of a run, beside it."""
    return run_dir.with_name(f".{run_dir.name}.shards")
