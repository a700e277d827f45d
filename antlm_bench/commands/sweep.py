"""Carry out a sweep, and report its progress."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from antlm_bench.commands.stop_requests import catch_stop_signals
from antlm_bench.errors import RunError, UsageError
from antlm_bench.progress import Progress
from antlm_bench.sweeps.executors import EXECUTORS, Executor, ExecutorRecord, ExecutorSettings
from antlm_bench.sweeps.journal import Event
from antlm_bench.sweeps.process_identity import describe_process, host_identity
from antlm_bench.sweeps.status import (
    SweepState,
    SweepStatus,
    UnitState,
    UnitStateName,
    build_status,
    load_state,
)
from antlm_bench.sweeps.store import DRIVER_CLAIM, Claim, DamagedSweep, FolderStore
from antlm_bench.sweeps.unit_kinds import describe_unit
from antlm_bench.sweeps.units import Sweep
from antlm_bench.sweeps.worker import Heartbeat

POLL_SECONDS = 0.2
MAX_VAIN_RESTARTS = 3
"""Restarts per worker without a unit that is finished in between."""
GRACE_SECONDS = 5.0
"""How long workers may take to see that all units are settled, before they are stopped."""

MAX_LOGGED_FAILURES = 20
"""Failed units that `run` names as they fail. Its last table and `status` name them, too."""


@dataclass(frozen=True)
class RunSweepOptions:
    """How a sweep is carried out."""

    executor: str = "local"
    """Name of a record in EXECUTORS."""
    workers: int | None = None
    """None = as the executor decides."""
    devices: tuple[str, ...] = ()
    """GPUs, a worker for each."""
    threads: int | None = None
    """CPU threads of a worker; None = the cores divided by the workers."""
    retries: int = 1
    """Further attempts at a unit that failed."""
    wait: bool = True
    """Whether to wait until all units are settled. False = start the workers only."""
    executor_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the executor, in place of those of the sweep."""
    worker_command: tuple[str, ...] = ()
    """The command that runs a worker; () = `antlm-bench worker`."""


def read_sweep_status(folder: Path) -> SweepStatus:
    """Return how far a sweep is. Starts nothing and changes nothing. Raises RunError."""
    store = FolderStore(folder)
    return build_status(store, load_state(store))


def open_executor(sweep: Sweep, folder: Path, options: RunSweepOptions) -> Executor:
    """Open the executor of a sweep, with the settings that the sweep has for it and the options.

    Starts nothing. Raises UsageError for options that do not fit, and RunError for a scheduler that
    is not here.
    """
    record = EXECUTORS[options.executor]
    if not options.wait and not record.workers_outlive_driver:
        raise UsageError(
            f"the workers of the executor {record.name!r} end with the command that starts them",
            location="--no-wait",
            hint="use it with a scheduler: --executor slurm",
        )
    executor_options = {**sweep.executors.get(record.name, {}), **options.executor_options}
    settings = ExecutorSettings(
        sweep_dir=folder.resolve(),
        num_workers=options.workers,
        devices=options.devices,
        threads=options.threads,
        retries=options.retries,
        options=executor_options,
        **({"worker_command": options.worker_command} if options.worker_command else {}),
    )
    return record.open(settings)


def run_sweep(
    sweep: Sweep, folder: Path, options: RunSweepOptions = RunSweepOptions()
) -> SweepStatus:
    """Carry out the units of a sweep that are not done, and return what became of all.

    folder: the sweep's folder; what it holds already is kept. Failed units are tried again. Ctrl-C
    stops the workers. Raises UsageError for options that do not fit, and RunError for a folder that
    cannot be written or in which another process carries out the sweep.
    """
    executor = open_executor(sweep, folder, options)
    store = FolderStore(folder)
    store.create()
    return _Driver(store, executor, EXECUTORS[options.executor], options).run(sweep)


class _Driver:
    """The process that starts workers and waits for them. It computes nothing itself."""

    def __init__(
        self,
        store: FolderStore,
        executor: Executor,
        record: ExecutorRecord,
        options: RunSweepOptions,
    ) -> None:
        self.store, self.executor, self.record, self.options = store, executor, record, options
        self.num_started = 0
        self.num_vain_restarts = self.num_logged_failures = 0
        self.ended_workers: set[str] = set()
        self.is_taken_over = False

    def run(self, sweep: Sweep) -> SweepStatus:
        self.claim, events = claim_driver(self.store)
        with (
            catch_stop_signals() as stop_signals,
            Heartbeat(self.store, self._note_takeover) as heartbeat,
        ):
            heartbeat.claim = self.claim
            try:
                state = self._prepare(sweep, events)
                if not state.is_settled:
                    self._carry_out(state, stop_signals)
                status = build_status(self.store, state)
            finally:
                with suppress(RunError):
                    self.store.append_event(Event("released", claim=self.claim.id))
        if stop_signals:
            signal.raise_signal(stop_signals[0])  # ends the process with its exit code
        return status

    def _prepare(self, sweep: Sweep, events: Sequence[Event]) -> SweepState:
        """Write sweep.json, and return the state with units to be repeated: those that failed, and
        those whose results are gone although a run folder is still to be collected from them.
        """
        old = None
        with suppress(DamagedSweep):  # it is written anew
            old = self.store.read_sweep() if self.store.has_sweep() else None
        self.changes = describe_changes(old, sweep) if old else ""
        self.store.write_sweep(sweep)
        state = load_state(self.store, sweep, events)
        self._repeat(state, state.list_units_to_repeat())
        parts = self.store.list_parts()
        self._repeat(
            state, [each for part, each in state.iter_awaited_parts() if part not in parts]
        )
        return state

    def _repeat(self, state: SweepState, entries: Sequence[UnitState]) -> None:
        """Let units be carried out again."""
        events = [
            Event("repeat", entry.unit.id, max(entry.attempts), time.time()) for entry in entries
        ]
        self.store.append_event(*events)  # at once: each waits for the disk
        state.apply(events)

    def _carry_out(self, state: SweepState, stop_signals: Sequence[int]) -> None:
        num_workers = min(self.executor.num_workers, len(state.sweep.groups))
        progress = Progress(
            state.sweep.name,
            "units",
            total=len(state.units),
            estimate_remaining=lambda: _estimate_remaining(state),
        )
        with progress:
            progress.skip(state.num_settled)
            if self.changes:
                progress.log(self.changes)
            progress.log(describe_start(state, num_workers, self.store.folder))
            # After an error, workers that outlive this process go on: they may be those of another
            # driver, or have waited long in a queue.
            must_stop = not self.record.workers_outlive_driver
            try:
                self._start_workers(num_workers)
                if self.options.wait:
                    self._wait(state, progress, stop_signals)
                    must_stop = True
            finally:
                if must_stop:
                    if stop_signals:
                        progress.log("stopping the workers; the same command continues")
                    self._stop_workers(state, is_early=not state.is_settled)

    def _wait(self, state: SweepState, progress: Progress, stop_signals: Sequence[int]) -> None:
        """Return when all units are settled, a stop signal came, or workers die again and again.

        Raises RunError if another driver took over.
        """
        while not state.is_settled and not stop_signals:
            if self.is_taken_over:
                raise RunError(
                    "another process took over this sweep while this one was paused",
                    location=str(self.store.folder),
                )
            num_settled = state.num_settled
            num_ended = self._note_ended_workers(progress)
            events = self.store.read_new_events()
            state.apply(events)
            self._log_failures(events, state, progress)
            progress.describe(describe_progress(state))
            if state.num_settled > num_settled:
                self.num_vain_restarts = 0
                progress.advance(state.num_settled - num_settled)
            if num_ended and not state.is_settled:
                num_running = self.num_started - len(self.ended_workers)
                allowed = MAX_VAIN_RESTARTS * self.executor.num_workers - self.num_vain_restarts
                num_restarts = min(num_ended, max(allowed, 0))
                if num_running + num_restarts == 0:
                    progress.log("workers end before they finish a unit: no more are started")
                    return
                self.num_vain_restarts += num_restarts
                self._start_workers(num_restarts)
            time.sleep(POLL_SECONDS)

    def _log_failures(self, events: Sequence[Event], state: SweepState, progress: Progress) -> None:
        """Print what failed, up to MAX_LOGGED_FAILURES units."""
        for event in events:
            if event.final and event.unit in state.units:
                self.num_logged_failures += 1
                if self.num_logged_failures <= MAX_LOGGED_FAILURES:
                    progress.log(describe_failure(event, state))

    def _start_workers(self, count: int) -> None:
        numbers = range(self.num_started, self.num_started + count)
        self.executor.start([f"r{self.claim.number}-{number}" for number in numbers])
        self.num_started += count

    def _note_ended_workers(self, progress: Progress | None = None) -> int:
        """Tell the store which workers have ended, so that their claims expire at once.

        Returns their number.
        """
        count = 0
        for worker, status in self.executor.poll().items():
            if status.state == "ended" and worker not in self.ended_workers:
                count += 1
                self.ended_workers.add(worker)
                self.store.append_event(Event("ended", worker=worker, time=time.time()))
                if status.detail and progress:
                    log = self.executor.log_location(worker)
                    progress.log(f"worker {worker} has ended: {status.detail} ({log})")
        return count

    def _stop_workers(self, state: SweepState, is_early: bool) -> None:
        """Stop all workers; those that are about to end by themselves get a moment."""
        deadline = time.monotonic() + (0 if is_early else GRACE_SECONDS)
        while time.monotonic() < deadline and any(
            status.state == "running" for status in self.executor.poll().values()
        ):
            time.sleep(POLL_SECONDS / 4)
        self.executor.stop()
        with suppress(RunError):  # a full disk: the claims expire by themselves
            self._note_ended_workers()
            state.apply(self.store.read_new_events())

    def _note_takeover(self) -> None:
        self.is_taken_over = True


def claim_driver(store: FolderStore) -> tuple[Claim, list[Event]]:
    """Claim the right to start workers. Return the claim and the events of all journals so far.

    Waits for a driver on another machine that may be dead. Raises RunError if there is another
    driver.
    """
    store.join("driver")
    events = store.read_new_events()
    claim = store.claim(DRIVER_CLAIM)
    last_silence = 0.0
    while claim is None:
        current = store.find_claim(DRIVER_CLAIM)
        owner = store.read_owner(current.id) if current else None
        silence = store.seconds_since_heartbeat(current.id) if current else 0.0
        is_here = owner is not None and owner.process.host == host_identity()
        if is_here or silence < last_silence:
            name = describe_process(owner.process) if owner else "unknown"
            raise RunError(
                f"another process carries out this sweep ({name})",
                location=str(store.folder),
                hint="antlm-bench status shows how far it is; stop it to start another one",
            )
        last_silence = silence
        time.sleep(store.heartbeat_seconds / 5)
        claim = store.claim(DRIVER_CLAIM)
    return claim, events


def describe_changes(old: Sweep, new: Sweep) -> str:
    """Return a sentence on the units that a sweep has gained and lost; "" if it has not."""
    old_ids, new_ids = ({unit.id for unit in sweep.units} for sweep in (old, new))
    added, removed = len(new_ids - old_ids), len(old_ids - new_ids)
    if not added and not removed:
        return ""
    return (
        f"the sweep has changed: units added: {added:,}; removed: {removed:,}, whose results stay "
        "in the folder"
    )


def _estimate_remaining(state: SweepState) -> tuple[float | None, bool]:
    """Return the seconds left (None = not known), and whether some units are not in them."""
    time_left = state.estimate_time_left(max(state.counts["running"], 1))
    return time_left.seconds, bool(time_left.unknown_kinds)


def describe_progress(state: SweepState) -> str:
    """Return the label of the progress bar."""
    counts: tuple[tuple[UnitStateName, str], ...] = (
        ("running", "running"),
        ("failed", "failed"),
        ("blocked", "blocked"),
    )
    texts = [f"{state.counts[name]:,} {text}" for name, text in counts if state.counts[name]]
    return f"{state.sweep.name} ({', '.join(texts)})" if texts else state.sweep.name


def describe_failure(event: Event, state: SweepState) -> str:
    """Return a line on a unit that failed for good."""
    unit = state.units[event.unit].unit
    name = " ".join(filter(None, [unit.stage, unit.model, describe_unit(unit)]))
    return f"failed: {name}: {event.error} (attempt {event.attempt} on {event.node}, {event.log})"


def describe_start(state: SweepState, num_workers: int, folder: Path) -> str:
    """Return a line on what is about to be carried out."""
    num_done = state.counts["done"]
    done = f", {num_done:,} are done" if num_done else ""
    workers = "1 worker" if num_workers == 1 else f"{num_workers:,} workers"
    return f"{state.sweep.name}: {len(state.units):,} units{done}; {workers}; {folder}"
