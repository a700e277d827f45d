"""The worker's side of a store for workers that do not see the sweep's folder.

Everything that a unit reads and writes lies in a folder of the worker (`input_files`), which holds
the same paths as the driver's machine. Files that several workers of a machine read are fetched
once, into a cache, and are linked from there. What a unit writes is sent when it ends, and now and
then before, so that another machine can go on with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from antlm_bench.atomic_files import link_or_copy, remove_path
from antlm_bench.errors import BenchError, RunError
from antlm_bench.safe_files import create_file
from antlm_bench.sweeps.input_files import (
    FILES_DIR,
    SWEEP_DIR,
    InputFile,
    InputListing,
    InputRequest,
    build_request,
    iter_files,
    replace_texts,
)
from antlm_bench.sweeps.journal import Event
from antlm_bench.sweeps.store import Claim, decode_sweep, read_heartbeat
from antlm_bench.sweeps.store_server import PIECE_BYTES, Call, Piece
from antlm_bench.sweeps.units import Sweep, Unit, UnitFiles

SAVE_SECONDS = 60.0
"""Time between two times that an unfinished part is sent."""
CACHE_DIR, SNAPSHOT_DIR = "cache", "snapshot"
MAX_JSON_BYTES = 64 * 2**20
"""Longest JSON file in which paths of the worker's folder are replaced."""
MIN_FREE_BYTES = 2**30
"""Free space below which files that nobody uses are removed from the cache."""
SNAPSHOT_TRIES = 3


class StoreConnections:
    """A pool of connections to the driver's store, so that threads need not wait for each other."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = [(connection, threading.Lock()) for connection in connections]

    def call(self, *calls: Call) -> Any:
        """Return the result of the last call; they are carried out in order, by one message. Raises
        the error of the first call that fails; ConnectionError if the driver's store has gone.
        """
        connection, lock = self._acquire()
        try:
            connection.send(calls)
            is_ok, value = connection.recv()
        except (EOFError, OSError) as error:
            raise ConnectionError("the driver's store cannot be reached") from error
        finally:
            lock.release()
        if not is_ok:
            raise value
        return value

    def _acquire(self) -> tuple[Connection, threading.Lock]:
        """Return a connection that no other thread uses, and its lock, which is held."""
        for entry in self._connections:
            if entry[1].acquire(blocking=False):
                return entry
        self._connections[-1][1].acquire()
        return self._connections[-1]


@dataclass
class _CurrentUnit:
    """The unit that is carried out, and the files of it that were sent."""

    outputs: list[str]
    """Its part and what else it writes, as paths below the sweep's folder."""
    sent: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    """Output -> file -> state of the file when it was sent."""


class RemoteStore:
    """A sweep whose folder another machine has."""

    def __init__(self, root: Path, connections: StoreConnections) -> None:
        """root: the folder of this worker; with the cache of this machine, "cache", in it."""
        self.root = root.resolve()
        self.folder = self.root / SWEEP_DIR
        self.heartbeat_seconds = read_heartbeat()
        self.save_seconds = min(SAVE_SECONDS, 6 * self.heartbeat_seconds)
        self._connections = connections
        self._renewal_seconds = min(1.0, self.heartbeat_seconds / 4)
        self._last_renewal: tuple[Claim | None, float] = None, 0.0
        self._units: dict[str, Unit] = {}
        self._claim: Claim | None = None
        self._current: _CurrentUnit | None = None
        self._lock = threading.Lock()
        """Held while outputs are sent."""
        self._targets: dict[str, str] = {}
        """Path at the driver -> path here, of the current unit's inputs."""
        self._last_request: InputRequest | None = None
        self._links: dict[Path, str] = {}
        """Input -> version of the file."""
        for name in ("parts", "models", "runs", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        threading.Thread(target=self._save_periodically, daemon=True).start()

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._call_in_order((method, arguments))

    def _call_in_order(self, *calls: Call) -> Any:
        try:
            return self._connections.call(*calls)
        except ConnectionError as error:
            raise RunError(str(error), location=str(self.folder)) from error

    # ---- as in FolderStore

    def read_sweep(self) -> Sweep:
        sweep = decode_sweep(self._call("read_sweep"), "sweep.json of the driver")
        self._units = {unit.id: unit for unit in sweep.units}
        return sweep

    def join(self, name: str) -> str:
        return str(self._call("join", name))

    def claim(self, name: str) -> Claim | None:
        start_time = time.monotonic()
        claim: Claim | None = self._call("claim", name)
        if claim:
            self._claim = claim
            self._last_renewal = claim, start_time
        return claim

    def renew(self, claim: Claim) -> bool:
        """Renew a claim as in FolderStore.

        After an answer, and after a new claim, the driver is not asked for `_renewal_seconds`,
        because short units would ask too often. `commit` always asks.
        """
        renewed_claim, since = self._last_renewal
        if claim == renewed_claim and time.monotonic() - since < self._renewal_seconds:
            return True
        start_time = time.monotonic()
        try:
            is_owner = bool(self._connections.call(("renew", (claim,))))
            if is_owner:
                self._last_renewal = claim, start_time
            return is_owner
        except RunError as error:  # the driver's store was started anew
            raise ConnectionError(str(error)) from error

    def append_event(self, event: Event) -> None:
        if event.event == "stopped" and self._lock.acquire(blocking=False):
            try:
                with suppress(OSError, BenchError):
                    self._send_snapshot()
            finally:
                self._lock.release()
        self._call("append_event", event)

    def read_new_events(self) -> list[Event]:
        events: list[Event] = self._call("read_new_events")
        return events

    def log_path(self, worker: str) -> Path:
        return self.folder / "logs" / f"{worker}.log"

    # ---- inputs

    def localize(self, unit: Unit, files: UnitFiles) -> Unit:
        """Fetch the files that a unit reads, and return the unit with their paths here.

        Raises RunError or OSError.
        """
        waited_for = [self._units[each] for each in unit.waits_for if each in self._units]
        request = build_request(unit, files, waited_for)
        if request != self._last_request or request.sweep_paths:
            self._last_request = None
            self._fetch_inputs(self._call("list_inputs", request))
            self._last_request = request
        if files.writes:
            for file in self._call("list_outputs", files.writes):
                self._fetch(file, self.root / file.target)
        for path in files.writes:
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        if self._current:
            self._current.outputs += files.writes
        texts = self._targets
        arguments = replace_texts(unit.arguments, texts)
        return replace(unit, model=texts.get(unit.model, unit.model), arguments=arguments)

    def _fetch_inputs(self, listing: InputListing) -> None:
        self._targets = {path: str(self.root / each) for path, each in listing.targets.items()}
        self._drop_links({self.root / file.target for file in listing.files})
        for file in listing.files:
            self._link(file)

    def find_part(self, part: str) -> Path:
        """Fetch a published part, and return its folder. Raises RunError."""
        for file in self._call("list_outputs", [part]):
            self._fetch(file, self.root / file.target)
        (self.folder / part).mkdir(exist_ok=True)
        return self.folder / part

    def _drop_links(self, targets: set[Path]) -> None:
        """Remove links to inputs that a unit does not read: the cache can then drop the files."""
        for path in self._links.keys() - targets:
            path.unlink(missing_ok=True)
            del self._links[path]

    def _link(self, file: InputFile) -> None:
        """Link an input from the cache of this machine, and fetch it first if nobody has."""
        path = self.root / file.target
        if self._links.get(path) == file.version:
            return
        name = hashlib.sha256(f"{file.source}\0{file.version}".encode()).hexdigest()
        cached = self.root / CACHE_DIR / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with lock_file(cached.with_suffix(".lock")):
            if not cached.exists():
                make_room(cached.parent, file.size)
                temporary = cached.with_suffix(".new")
                self._copy(file, temporary)
                temporary.replace(cached)
            link_or_copy(cached, path)
        self._links[path] = file.version

    def _fetch(self, file: InputFile, path: Path) -> None:
        """Fetch a file that the unit may change."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._copy(file, path)
        if path.suffix == ".json" and file.size <= MAX_JSON_BYTES:
            path.write_bytes(_replace_json_texts(path.read_bytes(), self._targets))

    def _copy(self, file: InputFile, path: Path) -> None:
        offset = 0
        with create_file(path) as target:
            while offset < file.size:
                data: bytes = self._call("read_piece", file, offset)
                if not data:
                    raise RunError("it has changed while it was sent", location=file.source)
                target.write(data)
                offset += len(data)

    # ---- outputs

    def start_attempt(self, started: Event, num_attempts: int) -> tuple[Event, Path]:
        self._clean()  # after a claim that was lost
        event, files = self._call("start_attempt", started, num_attempts)
        part = f"parts/{event.unit}.{event.attempt}"
        (self.folder / part).mkdir()
        for file in files:
            self._fetch(file, self.root / file.target)
        self._current = _CurrentUnit([part])
        return event, self.folder / part

    def end_attempt(self, ended: Event) -> Event:
        """Send what a unit has written, and that it has ended."""
        with self._lock:
            current = self._current or _CurrentUnit([f"parts/{ended.unit}.{ended.attempt}"])
            commits = [
                commit
                for output in current.outputs
                for commit in self._send(output, self.folder / output, current)
            ]
            event: Event = self._call_in_order(*commits, ("end_attempt", (ended,)))
        self._clean()
        return event

    def _clean(self) -> None:
        """Remove what the last unit has written, and the parts that it has read."""
        with self._lock:
            for output in self._current.outputs if self._current else ():
                remove_path(self.folder / output)
            for path in (self.folder / "parts").iterdir():
                remove_path(path)
            self._current = None

    def _save_periodically(self) -> None:
        while True:
            time.sleep(self.save_seconds)
            # What cannot be sent now is sent later, or computed again.
            with suppress(OSError, BenchError), self._lock:
                self._send_snapshot()

    def _send_snapshot(self) -> None:
        """Send the outputs of a unit that is still carried out. Its lock is held."""
        current, root = self._current, self.root / SNAPSHOT_DIR
        for output in current.outputs if current else ():
            source = self.folder / output
            try:
                if source.is_dir() and take_snapshot(source, root / output) and current:
                    for commit in self._send(output, root / output, current):
                        self._call_in_order(commit)
            finally:
                remove_path(root)

    def _send(self, output: str, source: Path, current: _CurrentUnit) -> list[Call]:
        """Send the files of an output that have changed since it was sent last.

        Return the call that sends the last pieces and puts the output in place; [] if nothing has
        changed.

        Raises RunError or OSError.
        """
        states, sent = _list_states(source), current.sent.get(output, {})
        if states == sent or self._claim is None:
            return []
        changed = [name for name, state in states.items() if sent.get(name) != state]
        pieces: list[Piece] = []
        size = 0
        for name in changed:
            for piece in self._read_pieces(name, source / name if name else source):
                if pieces and size + len(piece.data) > PIECE_BYTES:
                    self._call("write_pieces", output, pieces)
                    pieces, size = [], 0
                pieces.append(piece)
                size += len(piece.data)
        kept = [name for name in states if name not in changed]
        current.sent[output] = states
        return [("commit", (output, kept, pieces, self._claim))]

    def _read_pieces(self, name: str, path: Path) -> Iterator[Piece]:
        if path.suffix == ".json" and path.stat().st_size <= MAX_JSON_BYTES:
            # Paths of this worker's folder are those of the driver, with a prefix.
            prefix = json.dumps(f"{self.root}/{FILES_DIR}")[1:-1]
            data = path.read_bytes().replace(prefix.encode(), b"")
            for offset in range(0, len(data) or 1, PIECE_BYTES):
                yield Piece(name, offset, data[offset : offset + PIECE_BYTES])
            return
        offset = 0
        with path.open("rb") as file:
            while (data := file.read(PIECE_BYTES)) or offset == 0:
                yield Piece(name, offset, data)
                offset += len(data) or 1


def take_snapshot(folder: Path, snapshot: Path) -> bool:
    """Link the files of a folder that others write to, as they were at one moment.

    Return False if the folder changes all the time. A file that is appended to may be longer in the
    snapshot than at that moment.
    """
    for _ in range(SNAPSHOT_TRIES):
        remove_path(snapshot)
        before = _list_folder_states(folder)
        with suppress(FileNotFoundError):
            for file in iter_files(folder):
                target = snapshot / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, target)
            if _list_folder_states(folder) == before:
                return snapshot.is_dir()
    return False


def _list_folder_states(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return folder -> what changes whenever a file in it is created, renamed or removed."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    states = {}
    for path in folders:
        with suppress(FileNotFoundError):
            state = path.stat()
            states[path] = (state.st_ino, state.st_mtime_ns)
    return states


def _list_states(source: Path) -> dict[str, tuple[int, ...]]:
    """Return file -> what changes whenever it is written, for a folder or a file ("")."""
    states: dict[str, tuple[int, ...]] = {}
    for file in iter_files(source):
        state = file.stat()
        name = "" if file == source else str(file.relative_to(source))
        states[name] = (state.st_ino, state.st_mtime_ns, state.st_size)
    return states


def _replace_json_texts(data: bytes, texts: Mapping[str, str]) -> bytes:
    """Replace texts in JSON that are exactly these."""
    for old, new in texts.items():
        data = data.replace(json.dumps(old).encode(), json.dumps(new).encode())
    return data


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold a lock of this machine. The kernel releases it when the process ends, in any way."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_room(cache: Path, size: int) -> None:
    """Remove files from a cache that no worker has linked, until a file of `size` bytes fits."""
    unused = [
        path
        for path in cache.iterdir()
        if path.suffix == "" and path.is_file() and path.stat().st_nlink == 1
    ]
    unused.sort(key=lambda path: path.stat().st_atime)
    for path in unused:
        if shutil.disk_usage(cache).free > size + MIN_FREE_BYTES:
            return
        path.unlink(missing_ok=True)
