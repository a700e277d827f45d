"""Folders for temporary files on a machine, which are removed even if their owner was killed.

    <scratch>/antlm-bench-<user>/<node>/lock      held, shared with others, by each worker's process
                                      /cache/     files that several workers read
                                      /<worker>/lock, cache -> ../cache, ...

A folder whose lock nobody holds belongs to no living process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from antlm_bench.atomic_files import remove_path
from antlm_bench.errors import RunError

LOCK_FILE = "lock"
HINT = "choose another folder: --executor-option scratch=DIR"


@contextmanager
def open_worker_folder(scratch: Path, node: str, worker: str) -> Iterator[Path]:
    """Create the folder of a worker; remove it at the end, and that of the node with its last one.

    What processes that were killed have left is removed. Raises RunError.
    """
    try:
        parent = _create_user_folder(scratch)
    except OSError as error:
        raise _scratch_failure(scratch, error) from error
    try:
        with _hold(parent / node, fcntl.LOCK_SH), _hold(parent / node / worker, fcntl.LOCK_EX):
            for folder in (parent, parent / node):
                _remove_abandoned(folder)
            (parent / node / "cache").mkdir(exist_ok=True)
            (parent / node / worker / "cache").symlink_to(parent / node / "cache")
            yield parent / node / worker
    except OSError as error:
        raise _scratch_failure(scratch, error) from error
    finally:
        try:
            _clean(parent, node)
        except KeyboardInterrupt:  # Ray cancels the task meanwhile
            _clean(parent, node)
            raise


def _clean(parent: Path, node: str) -> None:
    """Remove folders without an owner, and those above them that are empty then."""
    _remove_abandoned(parent / node)
    _remove_abandoned(parent)
    with suppress(OSError):
        parent.rmdir()


def _create_user_folder(scratch: Path) -> Path:
    """Create the folder of this user. Raises RunError if another user, or a link, has its name:
    what lies there must neither be trusted nor removed. Raises OSError.
    """
    folder = scratch / f"antlm-bench-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise RunError(
            "this folder belongs to another user, or is a link", location=str(folder), hint=HINT
        )
    return folder


def _scratch_failure(scratch: Path, error: OSError) -> RunError:
    return RunError(
        f"cannot be used: {error.strerror or error}",
        location=error.filename or str(scratch),
        hint=HINT,
    )


@contextmanager
def _hold(folder: Path, mode: int) -> Iterator[None]:
    """Create a folder and hold its lock."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the last worker has just removed it
            file = (folder / LOCK_FILE).open("ab")
            fcntl.flock(file, mode)
            if _is_current(file, folder):
                break
            file.close()
    with file:
        yield


def _is_current(file: BinaryIO, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK_FILE).stat())
    except FileNotFoundError:
        return False


def _remove_abandoned(folder: Path) -> None:
    """Remove the folders in a folder whose locks nobody holds."""
    for path in folder.glob(f"*/{LOCK_FILE}"):
        with suppress(OSError), path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_path(path.parent)
