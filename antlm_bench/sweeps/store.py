"""What the workers of a sweep share: claims, journals and parts, in a folder or elsewhere.

`FolderStore` needs a file system that several machines see, with exclusive creation of files and
folders, and nothing else: no locks, no equal clocks.

    sweep.json              all units and groups
    journals/<worker>.jsonl what happened (`journal`)
    claims/<name>.<n>       the n-th claim of a group of units, or of the driver. The highest n owns
                            it, and renews the time of the file as a heartbeat
    parts/<unit>.<attempt>/ run folder with the results of one attempt at a unit
    models/, runs/          checkpoints of train units, one run folder per checkpoint
    logs/<worker>.log       output of a worker

Nothing is removed from claims/, so that a paused owner that wakes up sees that another one took
over. What it may have finished is a duplicate with equal content: the lowest attempt counts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from antlm_bench import safe_files
from antlm_bench.atomic_files import link_or_copy, temporary_path
from antlm_bench.errors import BenchError, RunError, UsageError
from antlm_bench.runs.folder_io import (
    check_is_writable,
    make_folder,
    os_failure,
    reject_links,
    suggest_reading,
    write_atomically,
)
from antlm_bench.safe_files import create_file, open_for_writing, read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.sweeps.journal import Event, JournalReader, JournalWriter
from antlm_bench.sweeps.process_identity import (
    ProcessIdentity,
    current_process,
    decode_process,
)
from antlm_bench.sweeps.units import (
    SWEEP_SCHEMA_VERSION,
    Sweep,
    Unit,
    UnitFiles,
    UnitGroup,
    check_dependencies,
    encode_sweep,
)

HEARTBEAT_VARIABLE = "ANTLM_BENCH_HEARTBEAT"
"""Environment variable with the seconds between two heartbeats of a claim."""
HEARTBEAT_SECONDS = 10.0
MIN_HEARTBEAT_SECONDS, MAX_HEARTBEAT_SECONDS = 0.01, 3600
EXPIRY_HEARTBEATS = 6
"""A claim that misses this many heartbeats in a row has expired."""
DRIVER_CLAIM = "driver"
MAX_SWEEP_BYTES = 2**30
MAX_CLAIM_BYTES = 10_000
OTHER_OUT_HINT = "set another `out` in the sweep's TOML: a folder that all workers see"
REPEAT_HINT = "repeat antlm-bench run SWEEP.toml, which writes or computes anew what is gone"
FOLDERS = ("journals", "claims", "parts", "models", "runs", "logs")


@dataclass(frozen=True, slots=True)
class Claim:
    """The right of a worker to carry out a group of units, or of a driver to start workers."""

    name: str
    number: int

    @property
    def id(self) -> str:
        return f"{self.name}.{self.number}"


@dataclass(frozen=True, slots=True)
class Owner:
    """Content of a claim."""

    worker: str
    process: ProcessIdentity


class DamagedSweep(RunError):
    """sweep.json is damaged. `run` with the sweep's TOML writes it anew."""


class SweepStore(Protocol):
    """What workers and the driver share. A store without a shared folder has the same methods."""

    folder: Path
    """The sweep's folder on this machine."""
    heartbeat_seconds: float

    def read_sweep(self) -> Sweep:
        """Return the units of the sweep. Raises RunError."""
        ...

    def join(self, name: str) -> str:
        """Open a journal for this process and return its name: `name`, or `name`.2, ... if that is
        taken. Raises RunError.
        """
        ...

    def claim(self, name: str) -> Claim | None:
        """Claim a group, or take over an expired claim; None if another worker has it."""
        ...

    def renew(self, claim: Claim) -> bool:
        """Show that the owner of a claim is alive. Return False if another worker took over."""
        ...

    def append_event(self, event: Event) -> None:
        """Append an event to the journal of this process. Raises RunError."""
        ...

    def read_new_events(self) -> list[Event]:
        """Return the events of other processes since the last call. Raises RunError."""
        ...

    def start_attempt(self, started: Event, num_attempts: int) -> tuple[Event, Path]:
        """Create the folder of a new attempt, with what earlier ones have finished, and append the
        event that it has started.

        num_attempts: attempts that are known; the new one has a higher number, which no other
        worker gets. Returns the event with that number, and the folder. Raises RunError.
        """
        ...

    def end_attempt(self, ended: Event) -> Event:
        """Make the part of an attempt visible to all, and append the event of its end. Return the
        event, which names the part of a unit that is done, if it is not empty. Raises RunError.
        """
        ...

    def find_part(self, part: str) -> Path:
        """Return the folder of a published part, given its name. Raises RunError."""
        ...

    def localize(self, unit: Unit, files: UnitFiles) -> Unit:
        """Make the files that a unit reads readable on this machine, and return the unit with their
        paths here. Raises RunError or OSError.
        """
        ...

    def log_path(self, worker: str) -> Path:
        """Return the file on this machine with the output of a worker."""
        ...


class FolderStore:
    """A sweep in a folder that all workers see."""

    def __init__(
        self,
        folder: Path,
        heartbeat_seconds: float | None = None,
        process: ProcessIdentity | None = None,
    ) -> None:
        """heartbeat_seconds: None = 10, or what ANTLM_BENCH_HEARTBEAT has. process: the owner of
        claims; None = this process. Raises UsageError.
        """
        self.folder = folder
        self.heartbeat_seconds = heartbeat_seconds or read_heartbeat()
        self._process = process or current_process()
        self._worker = ""
        self._journal: JournalWriter | None = None
        self._reader = JournalReader(folder / "journals")
        self._claim_numbers: dict[str, int] = {}
        """Name -> highest known number of its claims."""
        self._owners: dict[str, Owner] = {}
        """Claim id -> who made it."""
        self._heartbeats: dict[str, tuple[int, float]] = {}
        """Claim id -> time of its file, and this machine's monotonic clock when that changed."""
        self._released_claims: set[str] = set()
        self._ended_workers: set[str] = set()

    # ---- sweep.json

    def create(self) -> None:
        """Create the folders of the sweep, unless they exist. Raises RunError; UsageError for a
        URL.
        """
        self.check_is_writable()
        with _suggest_another_out():
            for name in FOLDERS:
                make_folder(self.folder / name)

    def check_is_writable(self) -> None:
        """Check that the folders of the sweep exist, or can be created. Writes nothing.

        Raises RunError; UsageError for a URL.
        """
        with _suggest_another_out():
            check_is_writable(self.folder)
            for name in FOLDERS:
                reject_links(self.folder, self.folder / name)
                check_is_writable(self.folder / name)

    def write_sweep(self, sweep: Sweep) -> None:
        """Write sweep.json in place of an older one. Raises RunError."""
        write_atomically(self.folder / "sweep.json", encode_sweep(sweep))

    def has_sweep(self) -> bool:
        return (self.folder / "sweep.json").exists()

    def read_sweep(self) -> Sweep:
        """Return the units of the sweep. Raises RunError."""
        path = self.folder / "sweep.json"
        try:
            return decode_sweep(read_regular_file(path, MAX_SWEEP_BYTES), str(path))
        except FileNotFoundError:
            raise RunError(
                "not the folder of a sweep: there is no sweep.json",
                location=str(self.folder),
                hint="antlm-bench run SWEEP.toml makes one",
            ) from None
        except OSError as error:
            raise _os_failure(path, error, "read") from error

    # ---- claims

    def claim(self, name: str) -> Claim | None:
        """Claim a group, or take over an expired claim; None if another worker has it.

        Raises RunError.
        """
        owner = {"worker": self._worker, "process": asdict(self._process)}
        path = self._claim_path(name)
        try:
            current = self.find_claim(name)
            if current and not self._has_expired(current.id):
                return None
            claim = Claim(name, current.number + 1 if current else 1)
            path = self._claim_path(claim.id)
            descriptor = open_for_writing(path, os.O_WRONLY | os.O_EXCL)
        except FileExistsError:
            return None
        except OSError as error:
            raise _os_failure(path, error, "created") from error
        # An empty claim, which a full disk leaves behind, expires as any other.
        with suppress(OSError), os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(owner).encode())
        self._claim_numbers[name] = claim.number
        return claim

    def renew(self, claim: Claim) -> bool:
        """Show that the owner of a claim is alive. Return False if another worker took over.

        Raises OSError if the folder cannot be reached.
        """
        os.utime(self._claim_path(claim.id), follow_symlinks=False)
        return not self._claim_path(f"{claim.name}.{claim.number + 1}").exists()

    def find_claim(self, name: str) -> Claim | None:
        """Return the highest claim of a group or of the driver; None if there is none.

        Raises OSError.
        """
        number = self._claim_numbers.get(name, 0)
        while os.path.lexists(self._claim_path(f"{name}.{number + 1}")):  # a link is a claim, too
            number += 1
        self._claim_numbers[name] = number
        return Claim(name, number) if number else None

    def read_owner(self, claim_id: str) -> Owner | None:
        """Return the owner of a claim; None if its file is missing, empty or damaged."""
        if claim_id not in self._owners:
            try:
                data = read_regular_file(self._claim_path(claim_id), MAX_CLAIM_BYTES)
                record: Any = parse_json(data)
                owner = Owner(str(record["worker"]), decode_process(record["process"]))
            except (OSError, ValueError, TypeError, KeyError):
                return None
            self._owners[claim_id] = owner
        return self._owners[claim_id]

    def is_surely_free(self, claim_id: str) -> bool:
        """Return whether a claim was released, or its worker has ended."""
        if claim_id in self._released_claims:
            return True
        owner = self.read_owner(claim_id)
        if owner is None:
            return False
        # A worker that a scheduler started again has the name "name.2".
        names = {owner.worker, re.sub(r"\.\d+$", "", owner.worker)}
        return bool(names & self._ended_workers) or owner.process.has_ended()

    def seconds_since_heartbeat(self, claim_id: str) -> float:
        """Return the seconds since this store saw the time of a claim's file change, or since its
        first call for the claim. Only the clock of this machine is read.
        """
        try:
            file_time = self._claim_path(claim_id).lstat().st_mtime_ns
        except FileNotFoundError:
            file_time = 0
        now = time.monotonic()
        last_time, since = self._heartbeats.get(claim_id, (None, now))
        if file_time != last_time:
            since = now
        self._heartbeats[claim_id] = (file_time, since)
        return now - since

    def list_dead_claims(self, claim_ids: Iterable[str]) -> set[str]:
        """Return the claims whose owner seems to be dead. For display: no claim is taken over.

        The time of a claim's file is compared with that of a new file in the same folder, so that
        both times are of the file server's clock.
        """
        dead: set[str] = set()
        if not (claim_ids := list(claim_ids)):
            return dead
        now = self._read_server_clock()
        for claim_id in claim_ids:
            with suppress(OSError):
                age = now - self._claim_path(claim_id).lstat().st_mtime
                if self.is_surely_free(claim_id) or age > self._expiry_seconds:
                    dead.add(claim_id)
        return dead

    def _read_server_clock(self) -> float:
        """Return the time that the folder gives to new files; this machine's if it takes none."""
        path = self._claim_path(f".clock-{os.getpid()}")
        try:
            safe_files.reject_links(self.folder, path)
            with temporary_path(path), create_file(path) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return time.time()

    @property
    def _expiry_seconds(self) -> float:
        return EXPIRY_HEARTBEATS * self.heartbeat_seconds

    def _has_expired(self, claim_id: str) -> bool:
        silence = self.seconds_since_heartbeat(claim_id)
        return self.is_surely_free(claim_id) or silence > self._expiry_seconds

    def _claim_path(self, claim_id: str) -> Path:
        return self.folder / "claims" / claim_id

    # ---- journals

    def join(self, name: str) -> str:
        """Open a journal for this process and return its name. Raises RunError."""
        for folder in ("journals", "claims", "parts", "logs"):
            reject_links(self.folder, self.folder / folder)
        try:
            self._journal = JournalWriter(self.folder / "journals", name)
        except OSError as error:
            raise _os_failure(self.folder / "journals" / name, error, "created") from error
        self._worker = self._reader.skip = self._journal.name
        return self._worker

    def append_event(self, *events: Event) -> None:
        """Append events to the journal of this process. Raises RunError."""
        assert self._journal, "join() comes first"
        for event in events:
            self._remember_end(event)
        self._journal.append(*events)

    def read_new_events(self) -> list[Event]:
        """Return the events of other processes since the last call. Raises RunError."""
        try:
            events = list(self._reader.read_new_events())
        except OSError as error:
            raise _os_failure(self.folder / "journals", error, "read") from error
        for event in events:
            self._remember_end(event)
        return events

    def _remember_end(self, event: Event) -> None:
        """Note a claim that is released, or a worker that has ended."""
        if event.event == "released":
            self._released_claims.add(event.claim)
        elif event.event == "ended":
            self._ended_workers.add(event.worker)

    # ---- parts

    def start_attempt(self, started: Event, num_attempts: int) -> tuple[Event, Path]:
        """As in SweepStore."""
        attempt, path = self._create_part(started.unit, num_attempts)
        event = replace(started, attempt=attempt)
        self.append_event(event)
        return event, path

    def _create_part(self, unit: str, num_attempts: int) -> tuple[int, Path]:
        attempt = num_attempts + 1
        try:
            while True:
                path = self.folder / "parts" / f"{unit}.{attempt}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    attempt += 1
            for earlier in range(attempt - 1, 0, -1):
                previous = path.with_name(f"{unit}.{earlier}")
                if previous.is_dir() and not previous.is_symlink() and any(previous.iterdir()):
                    _link_finished_files(previous, path)
                    break
        except OSError as error:
            raise _os_failure(path, error, "created") from error
        return attempt, path

    def end_attempt(self, ended: Event) -> Event:
        """As in SweepStore. An empty part is removed."""
        part = f"parts/{ended.unit}.{ended.attempt}"
        with suppress(OSError):  # not empty
            (self.folder / part).rmdir()
            part = ""
        event = replace(ended, part=part if ended.event == "done" else "")
        self.append_event(event)
        return event

    def find_part(self, part: str) -> Path:
        """Return the folder of a published part, given its name. Raises RunError."""
        path = self.folder / part
        if not re.fullmatch(r"parts/\w+\.\d+", part):
            raise RunError(f"{part!r} is not the name of a part", location=str(self.folder))
        if not path.is_dir() or path.is_symlink():
            raise RunError(
                "the results of a finished unit are gone",
                location=str(path),
                hint=REPEAT_HINT,
            )
        return path

    def list_parts(self) -> set[str]:
        """Return the names of the part folders that exist. Raises RunError."""
        try:
            with os.scandir(self.folder / "parts") as entries:
                return {f"parts/{each.name}" for each in entries}
        except OSError as error:
            raise _os_failure(self.folder / "parts", error, "read") from error

    def localize(self, unit: Unit, files: UnitFiles) -> Unit:
        """Return the unit as it is: all machines see the same files."""
        del files
        return unit

    def log_path(self, worker: str) -> Path:
        """Return the file with the output of a worker."""
        return self.folder / "logs" / f"{worker}.log"


def read_heartbeat() -> float:
    """Return the seconds between two heartbeats of a claim. Raises UsageError."""
    text = os.environ.get(HEARTBEAT_VARIABLE) or str(HEARTBEAT_SECONDS)
    with suppress(ValueError):
        if MIN_HEARTBEAT_SECONDS <= float(text) <= MAX_HEARTBEAT_SECONDS:
            return float(text)
    raise UsageError(
        f"{text!r} is not a number of seconds from {MIN_HEARTBEAT_SECONDS} to "
        f"{MAX_HEARTBEAT_SECONDS:,}",
        location=HEARTBEAT_VARIABLE,
        hint=f"unset it, or give all workers the same value; the default is {HEARTBEAT_SECONDS:g}",
    )


def check_worker_name(name: str, location: str) -> None:
    """Raise UsageError for a name that cannot be that of files."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise UsageError(
            f"{name!r} is not a name of a worker",
            location=location,
            hint="use letters, digits, '.', '_' and '-'",
        )


def decode_sweep(data: bytes, location: str) -> Sweep:
    """Read sweep.json. location: its path, for messages. Raises DamagedSweep, and RunError for one
    of another version.
    """
    try:
        document = json.loads(data)
        schema = document["schema"]
        if not isinstance(schema, int):
            raise TypeError("schema is not a number")
        if schema != SWEEP_SCHEMA_VERSION:
            raise RunError(
                f"has the schema {schema}; this version reads {SWEEP_SCHEMA_VERSION}",
                location=location,
                hint="go on with the version that wrote it, or set another `out` in the TOML",
            )
        groups = tuple(
            _build_group([_build_unit(record) for record in records])
            for records in document["groups"]
        )
        sweep = Sweep(
            str(document["name"]), groups, _read_executors(document), _read_configuration(document)
        )
        check_dependencies(sweep)
        return sweep
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise DamagedSweep(
            f"damaged: {type(error).__name__}: {error}",
            location=location,
            hint=REPEAT_HINT,
        ) from error


def _read_executors(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings of executors; {} in a file of an older version."""
    executors = document.get("executors", {})
    if type(executors) is not dict or not all(type(each) is dict for each in executors.values()):
        raise TypeError("executors is not an object of objects")
    return executors


def _read_configuration(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the driver took from a configuration file; {} if it took nothing."""
    configuration = document.get("configuration", {})
    if type(configuration) is not dict or type(configuration.get("values", {})) is not dict:
        raise TypeError("configuration is not an object with an object of values")
    return configuration


def _build_unit(record: Mapping[str, Any]) -> Unit:
    needs, waits_for = tuple(record["needs"]), tuple(record["waits_for"])
    unit = Unit(**{**record, "needs": needs, "waits_for": waits_for})
    texts = (unit.kind, unit.stage, unit.model, *needs, *waits_for)
    if not all(type(text) is str for text in texts) or type(unit.arguments) is not dict:
        raise TypeError(f"the values of a unit have wrong types: {record!r:.100}")
    return unit


def _build_group(units: list[Unit]) -> UnitGroup:
    """Build a group. Its id names files, so that it is computed and not read."""
    return UnitGroup(f"{units[0].id}-{len(units)}", tuple(units))


def _link_finished_files(source: Path, target: Path) -> None:
    """Give a new attempt the files of an earlier one, as hard links where the file system has them.

    Run folders replace files and change none, so that two attempts can share them. Hidden files
    (locks, temporary files) belong to the process that made them.
    """

    def link_if_there(old: str, new: str) -> None:
        with suppress(FileNotFoundError):  # an owner that still runs has just replaced it
            link_or_copy(old, new)

    def ignore_hidden(folder: str, names: list[str]) -> Iterator[str]:
        del folder
        return (name for name in names if name.startswith("."))

    with suppress(shutil.Error):  # what could not be copied is computed again
        shutil.copytree(
            source,
            target,
            symlinks=True,
            ignore=ignore_hidden,
            copy_function=link_if_there,
            dirs_exist_ok=True,
        )


@contextmanager
def _suggest_another_out() -> Iterator[None]:
    """Let errors name the key of the sweep's TOML, and not the option of other commands."""
    try:
        yield
    except BenchError as error:
        if error.location == "--out":
            error.location = "out"
        error.hint = OTHER_OUT_HINT
        raise


def _os_failure(path: Path, error: OSError, action: str) -> RunError:
    failure = os_failure(path, error, action, OTHER_OUT_HINT)
    if action == "read":
        failure.hint = suggest_reading(error, REPEAT_HINT)
    return failure
