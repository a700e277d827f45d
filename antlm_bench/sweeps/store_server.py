"""The driver's side of a store for workers that do not see the sweep's folder.

A worker's process opens a session. What it asks for is carried out by a `FolderStore` of its own,
so that claims and journals are the same files as those of workers that see the folder. Files come
and go in pieces of bounded size. A folder that is sent is built beside the old one and then takes
its place, so that a reader sees the one or the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from antlm_bench.atomic_files import link_or_copy, remove_path, replace_folder
from antlm_bench.errors import BenchError, RunError
from antlm_bench.safe_files import (
    create_file,
    open_for_writing,
    open_regular_file,
    read_regular_file,
    reject_links,
)
from antlm_bench.sweeps.input_files import (
    SWEEP_DIR,
    InputFile,
    InputListing,
    InputRequest,
    describe_file,
    iter_files,
    list_input_files,
)
from antlm_bench.sweeps.journal import Event
from antlm_bench.sweeps.process_identity import ProcessIdentity
from antlm_bench.sweeps.references import check_relative_path
from antlm_bench.sweeps.store import MAX_SWEEP_BYTES, Claim, FolderStore, check_worker_name

PIECE_BYTES = 4 * 2**20
"""Longest piece of a file that is sent at once."""
STAGED_FILE = ".content"
"""Name of a single file in the folder where it is staged."""
SESSION_METHODS = frozenset(
    {
        "read_sweep",
        "join",
        "claim",
        "renew",
        "append_event",
        "read_new_events",
        "start_attempt",
        "end_attempt",
        "list_inputs",
        "list_outputs",
        "read_piece",
        "write_pieces",
        "commit",
    }
)
"""What a worker may call."""
Call = tuple[str, Sequence[Any]]
"""One of SESSION_METHODS, and its arguments."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a file that a worker sends."""

    file: str
    """Path in the folder that is sent; "" = that is a single file."""
    offset: int
    data: bytes


class StoreServer:
    """Carries out what workers without the sweep's folder ask for."""

    def __init__(self, folder: Path) -> None:
        """folder: the sweep's folder. Names of inputs are relative to the working directory."""
        self.folder = folder
        self._sessions: dict[str, _Session] = {}

    def open_session(self, session: str, process: ProcessIdentity) -> None:
        """Begin to serve a worker. process: who owns its claims."""
        self._sessions[session] = _Session(FolderStore(self.folder, process=process), session)

    def close_session(self, session: str) -> None:
        """Forget a worker that has ended, and what it was sending."""
        if entry := self._sessions.pop(session, None):
            entry.discard_staged()

    def call(self, session: str, calls: Sequence[Call]) -> tuple[bool, Any]:
        """Carry out calls in order. Return (True, the result of the last one), or (False, error)
        of the first one that fails; later ones are not carried out.
        """
        result = None
        try:
            if session not in self._sessions:
                raise RunError("the driver's store was started anew", location=str(self.folder))
            for method, arguments in calls:
                if method not in SESSION_METHODS:
                    raise RunError(f"the driver's store has no method {method!r}")
                result = getattr(self._sessions[session], method)(*arguments)
        except (BenchError, OSError) as error:
            return False, error
        return True, result

    def append_log(self, worker: str, data: bytes) -> None:
        """Append to the log of a worker. Raises OSError or UsageError."""
        check_worker_name(worker, "log")
        reject_links(self.folder, self.folder / "logs")
        path = FolderStore(self.folder).log_path(worker)
        with os.fdopen(open_for_writing(path, os.O_WRONLY | os.O_APPEND), "ab") as log:
            log.write(data)


@dataclass
class _Session:
    """What the server knows of a worker. Raises BenchError and OSError."""

    store: FolderStore
    name: str
    readable: dict[str, str] = field(default_factory=dict)
    """Path of a file that the worker may read -> version that it was told."""
    staged: set[Path] = field(default_factory=set)
    """Folders with what it is sending."""

    # ---- as in SweepStore

    def read_sweep(self) -> bytes:
        return read_regular_file(self.store.folder / "sweep.json", MAX_SWEEP_BYTES)

    def join(self, name: str) -> str:
        check_worker_name(name, "worker")
        return self.store.join(name)

    def claim(self, name: str) -> Claim | None:
        check_worker_name(name, "claim")
        return self.store.claim(name)

    def renew(self, claim: Claim) -> bool:
        check_worker_name(claim.id, "claim")
        return self.store.renew(claim)

    def append_event(self, event: Event) -> None:
        self.store.append_event(event)

    def read_new_events(self) -> list[Event]:
        return self.store.read_new_events()

    def start_attempt(self, started: Event, num_attempts: int) -> tuple[Event, list[InputFile]]:
        """Return the event with the number of the attempt, and the files its part begins with."""
        check_relative_path(started.unit)
        event, path = self.store.start_attempt(started, num_attempts)
        return event, self._list_files([path])

    def end_attempt(self, ended: Event) -> Event:
        check_relative_path(ended.unit)
        return self.store.end_attempt(ended)

    # ---- files from the driver

    def list_inputs(self, request: InputRequest) -> InputListing:
        """Return the files of a request that exist; the worker may read them from now on."""
        for path in request.sweep_paths:
            check_relative_path(path)
        listing = list_input_files(request, self.store.folder)
        self.readable |= {file.source: file.version for file in listing.files}
        return listing

    def list_outputs(self, paths: Sequence[str]) -> list[InputFile]:
        """Return the files in these files and folders of the sweep's folder."""
        for path in paths:
            check_relative_path(path)
        return self._list_files([self.store.folder / path for path in paths])

    def _list_files(self, paths: Sequence[Path]) -> list[InputFile]:
        folder, files = self.store.folder, []
        for path in paths:
            for file in iter_files(path):
                files.append(describe_file(file, f"{SWEEP_DIR}/{file.relative_to(folder)}"))
        self.readable |= {file.source: file.version for file in files}
        return files

    def read_piece(self, file: InputFile, offset: int) -> bytes:
        """Return up to PIECE_BYTES of a file that was listed. Raises RunError if it has changed."""
        if self.readable.get(file.source) != file.version:
            raise RunError("this file was not listed", location=file.source)
        with open_regular_file(Path(file.source)) as source:
            state = os.fstat(source.fileno())
            if f"{state.st_mtime_ns}-{state.st_ino}" != file.version:
                raise RunError("it has changed while it was sent", location=file.source)
            source.seek(offset)
            return source.read(PIECE_BYTES)

    # ---- files from the worker

    def write_pieces(self, target: str, pieces: Sequence[Piece]) -> None:
        """Keep pieces of files until `commit`. target: below the sweep's folder."""
        stage = self._stage(target)
        for piece in pieces:
            if piece.file:
                check_relative_path(piece.file)
            path = stage / (piece.file or STAGED_FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            if piece.offset == 0:
                with create_file(path) as file:
                    file.write(piece.data)
                continue
            with os.fdopen(open_for_writing(path, os.O_WRONLY), "r+b") as file:
                file.seek(piece.offset)
                file.write(piece.data)

    def commit(
        self, target: str, kept: Sequence[str], pieces: Sequence[Piece], claim: Claim
    ) -> None:
        """Put what was sent in place. kept: files of the old folder that the new one has, too.

        Raises RunError if another worker took over the claim.
        """
        self.write_pieces(target, pieces)
        path, stage = self.store.folder / target, self._stage(target)
        if not self.renew(claim):
            self.discard_staged()
            raise RunError("another worker took over", location=target)
        if (stage / STAGED_FILE).exists() and not path.is_dir():
            _sync(stage / STAGED_FILE)
            (stage / STAGED_FILE).replace(path)
        else:
            for file in iter_files(stage):
                _sync(file)
            for name in kept:
                check_relative_path(name)
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):
                    link_or_copy(path / name, stage / name)

            def move(new_folder: Path) -> None:
                new_folder.rmdir()
                stage.rename(new_folder)

            replace_folder(path, move)
        remove_path(stage)
        self.staged.discard(stage)

    def _stage(self, target: str) -> Path:
        """Return the folder in which a target is staged, created."""
        check_relative_path(target)
        is_part = re.fullmatch(r"parts/\w+\.\d+", target)
        root = target.partition("/")[0]
        if not is_part and root in ("parts", "claims", "journals", "logs", "sweep.json"):
            raise RunError(f"{target!r} is not for results", location=str(self.store.folder))
        path = self.store.folder / target
        reject_links(self.store.folder, path)
        stage = path.with_name(f".{path.name}.{self.name}")
        if stage not in self.staged:
            remove_path(stage)
            stage.mkdir(parents=True)
            self.staged.add(stage)
        return stage

    def discard_staged(self) -> None:
        for stage in self.staged:
            remove_path(stage)
        self.staged.clear()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
