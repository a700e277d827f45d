"""Workers carry out the units of a sweep.

A worker claims a group, carries out its units, and goes on until all units are settled. Any number
of workers can start and end at any time, on any machine that sees the sweep's folder.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from antlm_bench.errors import BenchError, RunError
from antlm_bench.packages import require_packages
from antlm_bench.runs.provenance import ATTEMPT_VARIABLE
from antlm_bench.safe_files import open_for_writing
from antlm_bench.sweeps.journal import Event
from antlm_bench.sweeps.process_identity import node_name
from antlm_bench.sweeps.status import MAX_LOSSES, UnitState, load_state
from antlm_bench.sweeps.store import Claim, FolderStore, SweepStore
from antlm_bench.sweeps.unit_kinds import UnitContext, UnitKind, describe_unit
from antlm_bench.sweeps.units import UnitGroup

MAX_ERROR_LENGTH = 500
"""Characters of an error in a journal; the log has all of it."""
GOLDEN_RATIO = 0.618034
"""Multiples of it, modulo 1, are spread evenly for any number of workers."""
MIN_WAIT, MAX_WAIT = 0.05, 2.0
"""Seconds between two looks at the journals of a worker that has nothing to do."""
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker carries out units."""

    retries: int = 1
    """Further attempts at a unit that failed."""
    on_lost_claim: Callable[[], None] = lambda: None
    """Called from another thread when another worker took over this one's claim. By default, this
    worker finishes the unit, and its result is not used."""
    parent: int = 0
    """Process whose end is treated as a lost claim; 0 = none."""


@dataclass(frozen=True)
class WorkerSummary:
    """What a worker has done."""

    num_done: int
    num_failed: int


class Heartbeat:
    """A thread that renews a claim. A context manager."""

    def __init__(self, store: SweepStore, on_lost: Callable[[], None], parent: int = 0) -> None:
        """on_lost: called when the claim is lost, or when the process `parent` has ended."""
        self.claim: Claim | None = None
        """The claim to renew; None = none."""
        self.lost_claim: Claim | None = None
        self._store, self._on_lost, self._parent = store, on_lost, parent
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def is_lost(self, claim: Claim) -> bool:
        """Look now whether another worker took over a claim."""
        if self.lost_claim != claim:
            with suppress(OSError):  # the folder may be back at the next look
                if not self._store.renew(claim):
                    self.lost_claim = claim
        return self.lost_claim == claim

    def _run(self) -> None:
        interval = self._store.heartbeat_seconds
        next_beat = time.monotonic()
        while not self._stop.wait(min(interval, 1.0)):
            if self._parent and os.getppid() != self._parent:
                self._parent = 0
                self._on_lost()
            claim = self.claim
            if claim is not None and time.monotonic() >= next_beat:
                next_beat = time.monotonic() + interval
                if claim != self.lost_claim and self.is_lost(claim) and claim == self.claim:
                    self._on_lost()


class Worker:
    """A process that carries out units of a sweep."""

    def __init__(
        self,
        store: SweepStore,
        name: str,
        kinds: Mapping[str, UnitKind],
        options: WorkerOptions = WorkerOptions(),
    ) -> None:
        """kinds: name -> how to carry out a unit of this kind. Raises RunError."""
        self.store, self.kinds, self.options = store, kinds, options
        self.state = load_state(store)
        self.name = store.join(name)
        self.node = node_name()
        self.num_done = self.num_failed = 0
        self._heartbeat = Heartbeat(store, options.on_lost_claim, options.parent)
        self._claim: Claim | None = None
        self._attempt: Event | None = None
        """The attempt that is under way."""
        self._next_group = choose_first_group(name, len(self.state.sweep.groups))

    def run(self) -> WorkerSummary:
        """Carry out units until all of the sweep are settled.

        Raises RunError if the folder cannot be read or written; another worker then goes on.
        """
        wait = MIN_WAIT
        with self._heartbeat:
            while not self.state.is_settled:
                group = self._claim_group()
                if group is None:
                    time.sleep(wait)
                    wait = min(2 * wait, MAX_WAIT, self.store.heartbeat_seconds)
                    self._read_events()
                    continue
                wait = MIN_WAIT
                try:
                    self._run_group(group)
                finally:
                    self.leave()
        return WorkerSummary(self.num_done, self.num_failed)

    def leave(self) -> None:
        """Release the claim, so that another worker goes on at once.

        A signal handler can call it at any moment.
        """
        attempt, claim = self._attempt, self._claim
        self._attempt = self._claim = self._heartbeat.claim = None
        if claim is None:
            return
        with suppress(RunError):  # a claim that is not released expires
            if attempt is not None:
                stopped = _end_attempt(attempt, "stopped")
                self.store.append_event(stopped)
            self.store.append_event(Event("released", time=time.time(), claim=claim.id))

    def _claim_group(self) -> UnitGroup | None:
        """Claim a group with open units; None if other workers have all of them."""
        for index, group in self.state.iter_open_groups(self._next_group):
            claim = self.store.claim(group.id)
            if claim is not None:
                self._claim = self._heartbeat.claim = claim
                self._next_group = index
                return group
        return None

    def _run_group(self, group: UnitGroup) -> None:
        """Carry out the open units of a group; those that fail again after the others."""
        self._read_events()  # another worker may have finished the group before it was claimed
        while entries := self.state.list_open_units(group):
            for entry in entries:
                if self._claim is None or self._heartbeat.is_lost(self._claim):
                    print(f"{group.id}: another worker took over", file=sys.stderr)
                    return
                if entry.num_unfinished >= MAX_LOSSES:
                    self._give_up(entry)
                else:
                    self._run_unit(entry)

    def _give_up(self, entry: UnitState) -> None:
        """Record a unit as failed whose workers died again and again."""
        lost = [event for event in entry.counted_attempts if event.event == "started"]
        last = lost[-1]
        error, log = f"its worker died {len(lost)} times", f"logs/{last.worker}.log"
        event = _end_attempt(last, "failed", error=error, log=log, final=True)
        self.store.append_event(event)
        self.state.apply([event])
        self.num_failed += 1

    def _run_unit(self, entry: UnitState) -> None:
        """Carry out a unit and record what became of it.

        Raises RunError if the journal cannot be written or the disk is full.
        """
        assert self._claim
        unit = entry.unit
        event = Event(
            "started",
            unit.id,
            0,
            time.time(),
            worker=self.name,
            node=self.node,
            pid=os.getpid(),
            claim=self._claim.id,
        )
        started, part_dir = self.store.start_attempt(event, max(entry.attempts, default=0))
        self._attempt = started
        self.state.apply([started])
        context = UnitContext(self.store, self.state, part_dir, unit.id)
        os.environ[ATTEMPT_VARIABLE] = str(started.attempt)
        names = filter(None, [unit.kind, unit.model, describe_unit(unit)])
        context.log(f"attempt {started.attempt}: {' '.join(names)}")
        start_time = time.monotonic()
        failure: BaseException | None = None
        try:
            if unit.kind not in self.kinds:
                raise RunError(f"unknown unit kind {unit.kind!r}: the sweep is of another version")
            kind = self.kinds[unit.kind]
            with require_packages():
                kind.carry_out(self.store.localize(unit, kind.list_files(unit)), context)
        except (Exception, SystemExit) as error:
            failure = error
        finally:
            os.environ.pop(ATTEMPT_VARIABLE, None)
        seconds = time.monotonic() - start_time
        if self._claim is None or self._heartbeat.is_lost(self._claim):
            return  # the new owner carries it out
        if failure is None:
            self._record_end(_end_attempt(started, "done", seconds=seconds))
            self.num_done += 1
        else:
            self._record_failure(entry, started, failure, seconds)
        context.log(f"{'done' if failure is None else 'failed'} in {seconds:.1f} s")

    def _record_failure(
        self, entry: UnitState, started: Event, failure: BaseException, seconds: float
    ) -> None:
        traceback.print_exception(type(failure), failure, failure.__traceback__)
        if is_disk_full(failure):  # the unit is not the reason: its attempt does not count
            with suppress(RunError, OSError):
                self._record_end(_end_attempt(started, "stopped"))
            raise RunError(
                f"the disk is full: {describe_failure(failure)}",
                location=str(self.store.folder),
                hint="make room and repeat the command: nothing finished is lost",
            ) from failure
        error = describe_failure(failure)
        final = entry.num_failures >= self.options.retries
        log = f"logs/{self.name}.log"
        self._record_end(
            _end_attempt(started, "failed", seconds=seconds, error=error, log=log, final=final)
        )
        self.num_failed += final

    def _record_end(self, ended: Event) -> None:
        event = self.store.end_attempt(ended)
        self.state.apply([event])
        self._attempt = None

    def _read_events(self) -> None:
        self.state.apply(self.store.read_new_events())


def _end_attempt(
    started: Event, name: Literal["done", "failed", "stopped"], **values: Any
) -> Event:
    """Return the event of the end of an attempt. values: further fields of it."""
    if "seconds" in values:
        values["seconds"] = round(values["seconds"], 3)
    return replace(started, event=name, time=time.time(), claim="", **values)


def open_store(folder: Path, connections: str = "") -> SweepStore:
    """Open a sweep. connections: descriptors of connections to the driver's store, as "5,6", if
    this machine does not see the sweep's folder; `folder` is then one for this worker alone.
    """
    if not connections:
        return FolderStore(folder)
    from multiprocessing.connection import Connection

    from antlm_bench.sweeps.remote_store import RemoteStore, StoreConnections

    descriptors = [int(each) for each in connections.split(",")]
    return RemoteStore(folder.parent, StoreConnections([Connection(n) for n in descriptors]))


@contextmanager
def redirect_output(path: Path) -> Iterator[None]:
    """Append what this process and its children print to a file inside this context.

    Raises RunError if the file cannot be opened.
    """
    try:
        log = open_for_writing(path, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror}", location=str(path)) from error
    _flush_output()
    originals = {number: os.dup(number) for number in (1, 2)}
    try:
        for number in originals:
            os.dup2(log, number)
        os.close(log)
        yield
    finally:
        _flush_output()
        for number, original in originals.items():
            os.dup2(original, number)
            os.close(original)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


def choose_first_group(worker: str, num_groups: int) -> int:
    """Return the index of the group at which a worker begins: another one for each worker.

    A worker whose name ends in a number n begins at the fraction n x golden ratio (modulo 1) of the
    list, so that worker 0 begins at its start. Other names are hashed.
    """
    number = worker.rpartition("-")[2]
    if number.isdecimal():
        fraction = int(number) * GOLDEN_RATIO % 1
    else:
        fraction = zlib.crc32(worker.encode()) / 2**32
    return int(fraction * num_groups)


def describe_failure(error: BaseException) -> str:
    """Return an error as one line for a journal."""
    if isinstance(error, BenchError):
        text = f"{error.location}: {error.message}" if error.location else error.message
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    line = " ".join(text.split())
    return line if len(line) <= MAX_ERROR_LENGTH else line[: MAX_ERROR_LENGTH - 3] + "..."


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that led to it, says that a disk or quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL_DISK_ERRORS:
            return True
        # safetensors reports errors of the system as text.
        if any(os.strerror(number) in str(error) for number in FULL_DISK_ERRORS):
            return True
        error = error.__cause__ or error.__context__
    return False
