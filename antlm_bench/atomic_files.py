"""Files and folders that appear whole or not at all, and leave nothing behind.

A signal ends a process at any moment, without unwinding it. It removes what is in a
`temporary_path` then.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux: fcntl.h and fs.h
_paths: set[Path] = set()


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Remove a file or folder at the end of the context, or when a signal ends the process."""
    _paths.add(path)
    try:
        yield path
    finally:
        remove_path(path)
        _paths.discard(path)


def remove_temporary_paths() -> None:
    """Remove what is in a `temporary_path` now. A signal handler can call it at any moment."""
    for path in list(_paths):
        remove_path(path)


def remove_path(path: Path) -> None:
    """Remove a file or a folder, if it exists and can be removed. A link is not followed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; copy it where the file system has no hard links.

    A symbolic link is not followed. Raises FileNotFoundError or FileExistsError, and OSError if it
    cannot be copied either.
    """
    try:
        os.link(source, target, follow_symlinks=False)
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder in place of an existing one, if any. It is the old or the new one, whole.

    write: fills the new folder. Raises OSError, and whatever `write` raises; the old folder is
    kept then. The temporary names are always the same, so that the next call removes what a killed
    process left behind. Where the file system cannot exchange two folders (NFS), a kill between two
    renames leaves the old folder under its temporary name, and the next call puts it back first.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if old.exists() and not folder.exists():
        old.rename(folder)
    remove_path(old)
    remove_path(temporary)
    with temporary_path(temporary):
        temporary.mkdir(parents=True)
        write(temporary)
        if not folder.exists():
            temporary.rename(folder)
        elif not _exchange_folders(temporary, folder):
            folder.rename(old)
            try:
                temporary.rename(folder)
            except OSError:
                old.rename(folder)
                raise
            remove_path(old)


def _exchange_folders(a: Path, b: Path) -> bool:
    """Exchange the names of two folders in one step. Return False where that is not possible."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not Linux, or an old C library
        return False
    code = renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE)
    return bool(code == 0)
