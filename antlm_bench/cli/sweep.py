"""The commands `run`, `resume`, `status` and `worker`: carry out a sweep."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from antlm_bench.cli.configuration import (
    describe_sweep_configuration,
    use_sweep_configuration,
)
from antlm_bench.cli.plan import DryRunOption
from antlm_bench.cli.shared_options import (
    ExecutorOptionsOption,
    Tables,
    parse_executor_options,
    prints_tables,
    settings_option,
    split_names,
)
from antlm_bench.cli.stop_signals import end_on_signals, end_process
from antlm_bench.errors import IncompleteError, Interrupted
from antlm_bench.printable import format_count

if TYPE_CHECKING:
    from antlm_bench.commands.sweep import RunSweepOptions
    from antlm_bench.sweeps.status import SweepStatus

SweepArgument = Annotated[
    Path, typer.Argument(metavar="FILE|DIR", help="A sweep's .toml, or its folder.")
]


@prints_tables()
def run_sweep_command(
    sweep: SweepArgument,
    executor: Annotated[
        str, settings_option(metavar="NAME", help="What starts the workers: local, slurm, ...")
    ] = "local",
    workers: Annotated[
        int | None,
        settings_option(metavar="N", min=1, help="Workers.", show_default="one per GPU or core"),
    ] = None,
    devices: Annotated[
        list[str] | None,
        settings_option(
            metavar="0,1", help="GPUs, one worker for each.", show_default="all that are visible"
        ),
    ] = None,
    threads: Annotated[
        int | None,
        settings_option(
            metavar="K", min=1, help="CPU threads per worker.", show_default="cores / workers"
        ),
    ] = None,
    retries: Annotated[
        int, settings_option(metavar="N", min=0, help="Further attempts at a unit that fails.")
    ] = 1,
    no_wait: Annotated[
        bool, settings_option("--no-wait", help="Start the workers of a scheduler, then end.")
    ] = False,
    executor_option: ExecutorOptionsOption = None,
    dry_run: DryRunOption = False,
) -> Tables:
    """Carry out a sweep: all units that are not done. Repeat the command to continue.

    A failed unit does not stop the others; it is tried again by the next `run`. Ctrl-C stops the
    workers.
    """
    from antlm_bench.commands.sweep import RunSweepOptions
    from antlm_bench.reporting.sweep_table import build_sweep_table

    options = RunSweepOptions(
        executor=executor,
        workers=workers,
        devices=tuple(split_names(devices)),
        threads=threads,
        retries=retries,
        wait=not no_wait,
        executor_options=parse_executor_options(executor_option),
    )
    if dry_run:
        from antlm_bench.commands.plan import plan_sweep
        from antlm_bench.reporting.plan_table import build_plan_table

        yield build_plan_table(plan_sweep(sweep, run_options=options))
        return
    status = _run(sweep, options)
    yield build_sweep_table(status)
    if not no_wait:
        _check_is_complete(status)


def _run(path: Path, options: RunSweepOptions) -> SweepStatus:
    from antlm_bench.commands.sweep import run_sweep
    from antlm_bench.sweeps.expansion import load_sweep
    from antlm_bench.sweeps.store import FolderStore

    if path.is_dir():
        sweep = FolderStore(path).read_sweep()
        with use_sweep_configuration(sweep.configuration):
            return run_sweep(sweep, path, options)
    expanded, folder = load_sweep(path)
    sweep = replace(expanded.sweep, configuration=describe_sweep_configuration())
    return run_sweep(sweep, folder, options)


def _check_is_complete(status: SweepStatus) -> None:
    """Raise IncompleteError unless all units are done."""
    if status.is_complete:
        return
    counts = {"failed": "failed", "blocked": "need a failed one"}
    texts = [
        f"{status.count(state):,} {text}" for state, text in counts.items() if status.count(state)
    ]
    if num_open := status.count("running", "lost", "waiting"):
        texts.append(f"{num_open:,} are not carried out")
    raise IncompleteError(
        f"of {status.count():,} units, {', '.join(texts)}",
        location=status.folder,
        hint="the logs say why; the same command tries them again",
    )


@prints_tables()
def status_command(sweep: SweepArgument) -> Tables:
    """Show how far a sweep is: units per stage, what failed and why, what runs where."""
    from antlm_bench.commands.sweep import read_sweep_status
    from antlm_bench.reporting.sweep_table import build_sweep_table

    yield build_sweep_table(read_sweep_status(_find_folder(sweep)))


def _find_folder(path: Path) -> Path:
    """Return the folder of a sweep, given it or the sweep's TOML."""
    if path.is_dir():
        return path
    from antlm_bench.sweeps.declaration import read_sweep_file

    return read_sweep_file(path).folder


def worker_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The sweep's folder.")],
    name: Annotated[
        str,
        settings_option(
            metavar="NAME", help="Name of the worker.", show_default="its node and process"
        ),
    ] = "",
    retries: Annotated[
        int, settings_option(metavar="N", min=0, help="Further attempts at a unit that fails.")
    ] = 1,
    parent: Annotated[int, typer.Option(hidden=True)] = 0,
    connections: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Carry out units of a sweep until all are done or failed.

    `run` starts workers. Any scheduler can start more of them, on machines that see the folder;
    each takes what no other worker has.
    """
    import sys

    from antlm_bench.sweeps.process_identity import node_name
    from antlm_bench.sweeps.store import check_worker_name
    from antlm_bench.sweeps.unit_kinds import UNIT_KINDS
    from antlm_bench.sweeps.worker import Worker, WorkerOptions, open_store, redirect_output

    def end() -> None:
        end_process(
            "another worker took over, or the command that started this one has ended",
            Interrupted.exit_code,
        )

    worker_name = name or f"{node_name()}-{os.getpid()}"
    check_worker_name(worker_name, "--name")
    options = WorkerOptions(retries, on_lost_claim=end, parent=parent)
    worker = Worker(open_store(folder, connections), worker_name, UNIT_KINDS, options)
    end_on_signals(before_end=worker.leave)
    log = worker.store.log_path(worker.name)
    print(f"worker {worker.name}: output in {log}", file=sys.stderr)
    configuration = worker.state.sweep.configuration
    with redirect_output(log), use_sweep_configuration(configuration):
        summary = worker.run()
    print(
        f"worker {worker.name}: {format_count(summary.num_done, 'unit')} done, "
        f"{summary.num_failed:,} failed",
        file=sys.stderr,
    )
