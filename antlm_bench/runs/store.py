"""The run folder: one writer at a time, every file whole or absent, a killed run resumable chunk by
chunk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote

import pyarrow as pa

from antlm_bench.declarations import catalog
from antlm_bench.errors import RunError
from antlm_bench.runs import predictions_parquet
from antlm_bench.runs.run_json import (
    SCHEMA_VERSION,
    decode_run_json,
    encode_run_json,
    summary_digest,
)
from antlm_bench.runs.suite_names import (
    base_suite_name,
    distinguish_suites,
    is_same_suite,
    is_user_suite,
)
from antlm_bench.types import Cell, Manifest, Prediction, Run

MAX_NAME_LENGTH = (
    120  # characters of a suite's name in a file's name, of which systems allow 255 in all
)


class RunWriter:
    """The only door through which a run folder is written. A context manager: holds the folder's
    lock while open.

    A suite is scored in chunks of items; each chunk is stored whole when it is done (`put`), asked
    for on resumption (`chunk`) and trusted only if its bytes are the ones that were written for the
    same suite, method and key. `finish` joins the chunks, in order, into the final file; its bytes
    do not depend on how often the run was killed.

    path: created if absent. manifest: of this run; a folder that holds another checkpoint's run
    (other `manifest.model["weights"]`) is refused. Every failure of the disk or the folder is a
    RunError.
    """

    def __init__(self, path: str | Path, manifest: Manifest) -> None:
        self.path, self.manifest = Path(path), manifest
        self.cells: list[Cell] = []
        self._exit_stack = ExitStack()

    def __enter__(self) -> RunWriter:
        with ExitStack() as stack:
            make_folder(self.path)
            stack.enter_context(lock_folder(self.path))
            for leftover in self.path.rglob(".*.tmp"):  # a killed process was writing these
                leftover.unlink(missing_ok=True)
            if (self.path / "run.json").exists():
                run = open_stored_run(self.path)
                self._check_manifest(run.manifest)
                self.cells = list(run.cells)
                for cell in self.cells:  # killed between entering the cell and clearing up
                    self._remove_chunk_folders(
                        self._chunk_folder(cell.suite, cell.method, cell.key)
                    )
            self._exit_stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit_stack.close()

    def is_complete(
        self,
        suite: str,
        method: str,
        key: str,
        seed: int | None = None,
        origin: tuple[str, ...] = (),
    ) -> bool:
        """Is this cell finished under this very key, with its predictions intact and the summary
        made of them?

        origin: where the user's file lies now. A file that was moved keeps its cell, which learns
        of the new place.
        """
        for cell in self.cells:
            if (cell.suite, cell.method, cell.key, cell.seed) == (suite, method, key, seed):
                with suppress(RunError):
                    read_predictions_table(self.path, cell)
                    if summary_matches(self.path, cell) is False:
                        return False
                    if origin and cell.origin != origin:
                        self._replace_cell(replace(cell, origin=origin))
                    return True
        return False

    def suite_file_changed(
        self, origin: tuple[str, ...], settings: Mapping[str, Any], seed: int | None = None
    ) -> bool:
        """Does the folder hold a cell of this very file of the user's, of other items, though under
        the same limit?
        """
        asked, limit = (
            (settings["suite"], settings["method"], seed),
            json.dumps(settings.get("limit")),
        )
        return any(
            (base_suite_name(old), old.method, old.seed) == asked
            and old.settings.get("suite_digest") != settings["suite_digest"]
            and json.dumps(old.settings.get("limit")) == limit
            for old in self.cells
            if origin and old.origin == origin
        )

    def load_chunk(self, suite: str, method: str, key: str, index: int) -> list[Prediction] | None:
        """The stored chunk, or None if there is none that can be trusted (a damaged one is
        removed).
        """
        about = {**_file_metadata(suite, method, key), "chunk": str(index)}
        for path in sorted(self._chunk_folder(suite, method, key).glob(f"{index:05}.*.parquet")):
            with suppress(RunError, OSError):
                data = path.read_bytes()
                if path.name == _chunk_name(index, data):
                    table = predictions_parquet.decode_table(data, str(path))
                    if predictions_parquet.table_metadata(table) == about:
                        return predictions_parquet.table_to_predictions(table)
            path.unlink(missing_ok=True)
        return None

    def save_chunk(
        self, suite: str, method: str, key: str, index: int, predictions: Sequence[Prediction]
    ) -> None:
        """Store a chunk, instead of any stored before; once this returns it survives a kill or a
        power cut.
        """
        data = predictions_parquet.encode_predictions(
            predictions, {**_file_metadata(suite, method, key), "chunk": str(index)}
        )
        folder = self._chunk_folder(suite, method, key)
        make_folder(folder)
        for old in folder.glob(f"{index:05}.*.parquet"):
            with suppress(OSError):  # a folder that cannot be written is reported by the writing
                old.unlink()
        write_atomically(folder / _chunk_name(index, data), data)

    def finish_cell(
        self, cell: Cell, num_chunks: int, final_predictions: Sequence[Prediction] | None = None
    ) -> Cell:
        """Join chunks 0 .. chunks-1 into a cell's predictions, `enter` them, drop the chunks.

        settled: the same predictions with what only all of them together say. Raises RunError if a
        chunk is missing.
        """
        predictions: list[Prediction] = []
        for index in range(num_chunks):
            stored = self.load_chunk(cell.suite, cell.method, cell.key, index)
            if stored is None:
                raise RunError(
                    f"chunk {index} of {cell.suite} is missing",
                    location=str(self.path),
                    hint=predictions_parquet.RESCORE_HINT,
                )
            predictions += stored
        entered = self.write_cell(cell, final_predictions or predictions)
        self.discard_chunks(cell.suite, cell.method)
        return entered

    def write_cell(self, cell: Cell, predictions: Sequence[Prediction]) -> Cell:
        """Write a cell's predictions, then run.json with the cell in it; the cell with its digest
        and file.

        A cell of the same suite, method and seed under another key is replaced
        (`suite_names.same_suite`).
        """
        bound = {"summary": summary_digest(cell.summary)}
        data = predictions_parquet.encode_predictions(
            predictions, _file_metadata(cell.suite, cell.method, cell.key, cell.seed) | bound
        )
        cell = replace(
            cell, digest=hashlib.sha256(data).hexdigest(), file=self._choose_predictions_file(cell)
        )
        make_folder((self.path / cell.file).parent)
        self._replace_cell(cell, data)
        return cell

    def _replace_cell(self, cell: Cell, data: bytes | None = None) -> None:
        """Write the cell's predictions (`data`) and run.json with the cell instead of those that it
        replaces.
        """
        replaced = [old for old in self.cells if _replaces(old, cell)]
        at = self.cells.index(replaced[0]) if replaced else len(self.cells)
        cells = [old for old in self.cells if old not in replaced]
        cells.insert(at, cell)
        document = encode_run_json(
            self.manifest, cells, [_predictions_file(each) for each in cells]
        )
        if data is not None:
            write_atomically(self.path / cell.file, data)
        write_atomically(self.path / "run.json", document)
        self.cells = cells
        for file in {_predictions_file(old) for old in replaced} - {
            _predictions_file(each) for each in cells
        }:
            with suppress(OSError):  # run.json no longer names it
                (self.path / file).unlink(missing_ok=True)

    def _choose_predictions_file(self, cell: Cell) -> str:
        """Return the cell's own file: with a part of the suite's digest where another suite has the
        name, or a user's file the name of one of the catalog.
        """
        taken = {_predictions_file(old) for old in self.cells if not _replaces(old, cell)}
        digest = str(cell.settings.get("suite_digest") or cell.key)
        tags = ("", f"@{digest[:8]}", f"@{digest}")
        names = (
            _default_predictions_file(cell, tag)
            for tag in tags[is_user_suite(cell) and cell.suite in catalog("tasks") :]
        )
        return next(name for name in names if name not in taken)

    def discard_chunks(self, suite: str, method: str) -> None:
        """Remove the stored chunks of a suite under a method, whatever their key (`--again` starts
        from nothing).
        """
        self._remove_chunk_folders(*(self.path / "partial").glob(f"{_file_stem(suite, method)}.*"))

    def _remove_chunk_folders(self, *folders: Path) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # absent, or not empty: other suites are under way
            (self.path / "partial").rmdir()

    def _chunk_folder(self, suite: str, method: str, key: str) -> Path:
        return self.path / "partial" / f"{_file_stem(suite, method)}.{quote(key, safe='')}"

    def _check_manifest(self, existing: Manifest) -> None:
        """Keep one folder to one checkpoint, and the time at which it was begun."""
        if existing.model.get("weights") != self.manifest.model.get("weights"):
            message = f"the folder holds the run of another checkpoint ({existing.model.get('name', 'unknown')})"
            raise RunError(
                message, location=str(self.path), hint="choose another --out, or move that run away"
            )
        self.manifest = Manifest(
            SCHEMA_VERSION, self.manifest.model, self.manifest.software, existing.created
        )


def open_run(path: str | Path) -> Run:
    """Open a run folder, its suites under names that tell them apart (`suite_names`). Raises as
    `open_stored_run`.
    """
    return open_runs([path])[0]


def open_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Open run folders that are shown or compared together: one suite has one name in all. Raises
    as `open_stored_run`.
    """
    return distinguish_suites([open_stored_run(path) for path in paths])


def open_stored_run(path: str | Path) -> Run:
    """Open a run folder as it was written. Raises RunError if it is none, is damaged, or is a newer
    version's.
    """
    file = Path(path) / "run.json"
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        begun = (Path(path) / "partial").exists()
        hint = (
            "repeat the score command: it goes on where it stopped"
            if begun
            else "give the folder that holds run.json"
        )
        raise RunError(
            "no finished suite here" if begun else "not a run folder", location=str(path), hint=hint
        ) from error
    except OSError as error:
        raise _os_failure(file, error, "read") from error
    manifest, cells = decode_run_json(data, str(file))
    return Run(str(path), manifest, cells)


def summary_matches(path: str | Path, cell: Cell) -> bool | None:
    """Whether a cell's summary is the one that its predictions were written with; None where the
    file does not say.

    Raises RunError for predictions that are missing, or not the bytes that run.json describes.
    """
    file, data = _read_predictions_bytes(path, cell)
    bound = predictions_parquet.read_metadata(data, str(file)).get("summary")
    return None if bound is None else bound == summary_digest(cell.summary)


def read_predictions_table(path: str | Path, cell: Cell) -> pa.Table:
    """The predictions of a cell as an Arrow table (`runs.predictions_parquet.SCHEMA_VERSION` and
    labels), checked against run.json.
    """
    file, data = _read_predictions_bytes(path, cell)
    return predictions_parquet.decode_table(data, str(file))


def _read_predictions_bytes(path: str | Path, cell: Cell) -> tuple[Path, bytes]:
    """The file of a cell's predictions and its bytes, checked against run.json."""
    file = Path(path) / _predictions_file(cell)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise _os_failure(file, error, "read") from error
    if hashlib.sha256(data).hexdigest() != cell.digest:
        raise RunError(
            "not the bytes that run.json describes: cut short or edited",
            location=str(file),
            hint=predictions_parquet.RESCORE_HINT,
        )
    return file, data


def read_predictions(path: str | Path, cell: Cell) -> list[Prediction]:
    """The predictions of a cell, in the order of the suite."""
    return predictions_parquet.table_to_predictions(read_predictions_table(path, cell))


def write_atomically(path: Path, data: bytes) -> None:
    """Write, flush to the disk, rename: at every moment `path` holds the old bytes, the new bytes,
    or nothing.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _os_failure(path, error, "written") from error
    finally:
        with suppress(OSError):  # renamed where all went well; a disk or a signal may have said no
            temporary.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder for one process; the kernel lets go when that process ends, however it ends."""
    import fcntl  # POSIX only, and only writers need it

    path = folder / ".lock"
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _os_failure(path, error, "written") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise _os_failure(path, error, "locked") from error
            message = f"another process (pid {owner or 'unknown'}) is writing this run"
            raise RunError(
                message, location=str(folder), hint="wait for it, or choose another --out"
            ) from error
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                break
        os.close(handle)  # the previous holder removed the file between our open and our lock
    try:
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise _os_failure(path, error, "written") from error
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _os_failure(path: Path, error: OSError, action: str) -> RunError:
    """A RunError that says in plain words why the system refused, and what to do."""
    words = {
        errno.ENOSPC: (
            "the disk is full",
            "make room and repeat the command: nothing finished is lost",
        ),
        errno.EDQUOT: (
            "the disk quota is used up",
            "make room and repeat the command: nothing finished is lost",
        ),
        errno.EFBIG: (
            "the file-size limit is reached",
            "raise it (ulimit -f) and repeat: nothing finished is lost",
        ),
        errno.EROFS: ("the file system is read-only", "choose another place with --out"),
        errno.EACCES: ("permission denied", "choose another place with --out"),
        errno.EPERM: ("permission denied", "choose another place with --out"),
        errno.ENOTDIR: (
            "a part of the path is a file, not a folder",
            "choose another place with --out",
        ),
        errno.EEXIST: ("this is a file, not a folder", "choose another place with --out"),
        errno.ENOENT: ("the file is missing", predictions_parquet.RESCORE_HINT),
    }
    reason, hint = words.get(
        cast(int, error.errno), (error.strerror or str(error), "choose another place with --out")
    )
    return RunError(f"cannot be {action}: {reason}", location=str(path), hint=hint)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _os_failure(folder, error, "created") from error


def _file_metadata(suite: str, method: str, key: str, seed: int | None = None) -> dict[str, str]:
    about = {"schema": str(SCHEMA_VERSION), "suite": suite, "method": method, "key": key}
    return about if seed is None else {**about, "seed": str(seed)}


def _file_stem(suite: str, method: str, tag: str = "") -> str:
    """Return how files of a suite and a method begin; a name too long for a file system is cut and
    told by a hash.
    """
    name = quote(suite, safe="")
    if len(name) > MAX_NAME_LENGTH:
        name = f"{name[: MAX_NAME_LENGTH // 2]}@{hashlib.sha256(suite.encode()).hexdigest()[:16]}"
    return f"{name}{tag}.{quote(method, safe='')}"


def _predictions_file(cell: Cell) -> str:
    """Return where the predictions of a cell lie: as run.json says, else by its suite, method and
    seed.
    """
    return cell.file or _default_predictions_file(cell)


def _default_predictions_file(cell: Cell, tag: str = "") -> str:
    seed = "" if cell.seed is None else f".seed{cell.seed}"
    return f"predictions/{_file_stem(cell.suite, cell.method, tag)}{seed}.parquet"


def _replaces(old: Cell, new: Cell) -> bool:
    """Would entering `cell` replace `old`?"""
    return (old.method, old.seed) == (new.method, new.seed) and is_same_suite(old, new)


def _chunk_name(index: int, data: bytes) -> str:
    """A chunk's name carries the hash of its bytes, so that damage of any kind shows."""
    return f"{index:05}.{hashlib.sha256(data).hexdigest()[:16]}.parquet"
