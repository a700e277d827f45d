"""Chunks of predictions of an unfinished suite: files in partial/ of a run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from antlm_bench import safe_files
from antlm_bench.atomic_files import remove_path
from antlm_bench.errors import RunError
from antlm_bench.predictions import Predictions
from antlm_bench.runs import predictions_parquet
from antlm_bench.runs.folder_io import (
    lock_folder,
    make_folder,
    reject_links,
    write_atomically,
)
from antlm_bench.runs.run_json import SCHEMA_VERSION

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_NAME_LENGTH = 120
"""Characters of a suite's name in a file name. Systems allow 255 bytes in all."""
MAX_PREDICTIONS_BYTES = 1_000_000_000
"""Largest file of predictions that is read."""


class ChunkFolder:
    """A folder with chunks in partial/. A chunk is stored whole, and its name has its hash.

    It is a context manager, which creates the folder, locks it and reads it (`take_over`).
    """

    path: Path
    _exit_stack: ExitStack
    """What the end of the context releases: the lock."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            make_folder(self.path)
            stack.enter_context(lock_folder(self.path))
            self.remove_leftovers()
            self.take_over()
            self._exit_stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit_stack.close()

    def take_over(self) -> None:
        """Read what the locked folder holds. Raises RunError if that belongs to something else."""
        raise NotImplementedError

    def remove_leftovers(self) -> None:
        """Remove temporary files of a killed writer. Raises RunError for a folder that is a link.

        Links in a folder that was downloaded must not redirect what is written or removed here.
        """
        chunk_folders = (self.path / "partial").glob("*")
        for folder in (self.path / "partial", self.path / "predictions", *chunk_folders):
            reject_links(self.path, folder)
        for pattern in (".*.json.tmp", "predictions/.*.parquet.tmp", "partial/*/.*.parquet.tmp"):
            for leftover in self.path.glob(pattern):
                with suppress(OSError):  # a folder of that name: not ours, and writing reports it
                    leftover.unlink()

    def load_chunk(self, suite: str, method: str, key: str, index: int) -> Predictions | None:
        """Return a stored chunk, or None if there is none. A damaged chunk is removed."""
        for path, predictions in _iter_chunk_files(self.path, suite, method, key, index):
            if predictions is not None:
                return predictions
            with suppress(OSError):  # a folder of that name: `save_chunk` writes beside it
                path.unlink(missing_ok=True)
        return None

    def save_chunk(
        self, suite: str, method: str, key: str, index: int, predictions: Predictions
    ) -> None:
        """Store a chunk in place of an older one. Afterwards it survives a kill or a power cut."""
        metadata = {**file_metadata(suite, method, key), "chunk": str(index)}
        data = predictions_parquet.encode_predictions(predictions, metadata)
        folder = chunk_folder(self.path, suite, method, key)
        make_folder(folder)
        for old in folder.glob(_chunk_pattern(index)):
            with suppress(OSError):  # writing the new file reports it
                old.unlink()
        write_atomically(folder / _chunk_name(index, data), data)

    def discard_chunks(self, suite: str, method: str) -> None:
        """Remove the stored chunks of a suite under a method, whatever their key."""
        stem = file_stem(suite, method)
        folders = (self.path / "partial").glob(f"{stem}.*")
        # A dot after the stem is in the name of a longer suite: keys have none.
        self.remove_chunk_folders(*(f for f in folders if "." not in f.name[len(stem) + 1 :]))

    def remove_chunk_folders(self, *folders: Path) -> None:
        """Remove folders in partial/, and partial/ itself if it is empty then."""
        for folder in folders:
            remove_path(folder)
        with suppress(OSError):  # absent, or not empty: other suites are under way
            (self.path / "partial").rmdir()


def read_chunk(
    root: Path, suite: str, method: str, key: str, index: int
) -> tuple[str, Predictions] | None:
    """Return (name of the file, predictions) of an intact chunk in `root`, or None.

    The name has the hash of the bytes: chunks of one name are equal.
    """
    files = _iter_chunk_files(root, suite, method, key, index)
    intact = ((path.name, predictions) for path, predictions in files if predictions is not None)
    return next(intact, None)


def chunk_folder(root: Path, suite: str, method: str, key: str) -> Path:
    """Return the folder of a cell's chunks below `root`."""
    return root / "partial" / f"{file_stem(suite, method)}.{quote(key, safe='')}"


def _iter_chunk_files(
    root: Path, suite: str, method: str, key: str, index: int
) -> Iterator[tuple[Path, Predictions | None]]:
    """Yield (file, predictions) for the files of a chunk; None = damaged, or of another cell."""
    metadata = {**file_metadata(suite, method, key), "chunk": str(index)}
    for path in sorted(chunk_folder(root, suite, method, key).glob(_chunk_pattern(index))):
        intact = None
        with suppress(RunError, OSError):
            data = safe_files.read_regular_file(path, MAX_PREDICTIONS_BYTES)
            if path.name == _chunk_name(index, data):
                predictions = predictions_parquet.decode_predictions(data, str(path))
                if predictions_parquet.stored_metadata(predictions) == metadata:
                    intact = predictions
        yield path, intact


def file_metadata(suite: str, method: str, key: str, seed: int | None = None) -> dict[str, str]:
    metadata = {"schema": str(SCHEMA_VERSION), "suite": suite, "method": method, "key": key}
    return metadata if seed is None else {**metadata, "seed": str(seed)}


def file_stem(suite: str, method: str, tag: str = "") -> str:
    """Return how the names of files of a suite and a method begin.

    A name that is too long for a file system is cut, and a hash is added.
    """
    name = quote(suite, safe="")
    if len(name) > MAX_NAME_LENGTH:
        name = f"{name[: MAX_NAME_LENGTH // 2]}@{hashlib.sha256(suite.encode()).hexdigest()[:16]}"
    return f"{name}{tag}.{quote(method, safe='')}"


def _chunk_pattern(index: int) -> str:
    return f"{index:05}.*.parquet"


def _chunk_name(index: int, data: bytes) -> str:
    """Return a file name with the hash of the chunk's bytes, so that any damage shows."""
    return f"{index:05}.{hashlib.sha256(data).hexdigest()[:16]}.parquet"
