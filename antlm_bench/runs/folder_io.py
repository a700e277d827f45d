"""Create, lock and write folders and files. Every failure of the disk is a RunError."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import cast

from antlm_bench import safe_files
from antlm_bench.atomic_files import link_or_copy, replace_folder, temporary_path
from antlm_bench.errors import BenchError, RunError

OTHER_FOLDER_HINT = "choose another folder"
OTHER_OUT_HINT = f"{OTHER_FOLDER_HINT} with --out"
RESTORE_HINT = "restore the file, or move the folder away and score again"
RESCORE_HINT = "repeat the score command: it recomputes what is damaged"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at every moment it has the old bytes, the new bytes, or is absent.

    Raises RunError, also if the path is a device, a FIFO or a socket, which is not replaced.
    """
    with temporary_path(path.with_name(f".{path.name}.tmp")) as temporary:
        try:
            safe_files.reject_special_file(path)
            _write_and_sync(temporary, data)
            temporary.replace(path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            # The option that named the file is not known here: --out, --html, --figure, ...
            raise os_failure(path, error, "written", OTHER_FOLDER_HINT) from error


def write_cache_file(path: Path, data: bytes) -> None:
    """Write a file of the user's cache, and create its folder. Errors are ignored, because a cache
    is only there to save time.
    """
    with suppress(OSError, BenchError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write several files into a folder, which keeps its others. All are written, or none.

    Raises RunError.
    """

    def write(new_folder: Path) -> None:
        if folder.exists():
            shutil.copytree(
                folder, new_folder, copy_function=link_or_copy, symlinks=True, dirs_exist_ok=True
            )
        for name, data in files.items():
            (new_folder / name).unlink(missing_ok=True)  # the old file is linked to this name
            _write_and_sync(new_folder / name, data)

    try:
        replace_folder(folder, write)
    except OSError as error:
        raise os_failure(folder, error, "written") from error


def _write_and_sync(path: Path, data: bytes) -> None:
    with safe_files.create_file(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process. The kernel unlocks it when the process ends, in any way.

    Raises RunError if another process holds the lock.
    """
    import fcntl  # POSIX only, and only writers need it

    path = folder / ".lock"
    while True:
        try:
            handle = safe_files.open_for_writing(path, os.O_RDWR, 0o644)
        except OSError as error:
            raise os_failure(path, error, "written") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise os_failure(path, error, "locked") from error
            message = f"another process (pid {owner or 'unknown'}) is writing this run"
            raise RunError(
                message, location=str(folder), hint="wait for it, or choose another --out"
            ) from error
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle).st_ino:
                break
        os.close(handle)  # the previous holder removed the file between our open and our lock
    with ExitStack() as stack:
        stack.callback(os.close, handle)  # unlocks it, after the file is removed
        stack.enter_context(temporary_path(path))
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        except OSError as error:
            raise os_failure(path, error, "written") from error
        yield


def reject_links(root: Path, path: Path) -> None:
    """Raise RunError if a component of `path` below `root` is a link (`safe_files`)."""
    try:
        safe_files.reject_links(root, path)
    except OSError as error:
        raise os_failure(Path(error.filename or path), error, "written") from error


def os_failure(
    path: Path, error: OSError, action: str, elsewhere: str = OTHER_OUT_HINT
) -> RunError:
    """Return a RunError that explains an error of the operating system.

    action: what could not be done: read, written, created, ... elsewhere: hint at another folder to
    write to.
    """
    if action == "read":
        reason, repair = error.strerror or str(error), RESTORE_HINT
        if error.errno == errno.ENOENT:
            reason, repair = "the file is missing", RESCORE_HINT
        hint = suggest_reading(error, repair)
        return RunError(f"cannot be read: {reason}", location=str(path), hint=hint)
    resume = "make room and repeat the command: nothing finished is lost"
    reasons = {
        errno.ENOSPC: ("the disk is full", resume),
        errno.EDQUOT: ("the disk quota is used up", resume),
        errno.EFBIG: (
            "the file-size limit is reached",
            "raise it (ulimit -f) and repeat: nothing finished is lost",
        ),
        errno.EROFS: ("the file system is read-only", elsewhere),
        errno.EACCES: ("permission denied", elsewhere),
        errno.EPERM: ("permission denied", elsewhere),
        errno.ENOTDIR: ("a part of the path is a file, not a folder", elsewhere),
        errno.EEXIST: ("this is a file, not a folder", elsewhere),
        errno.ENOENT: ("a folder above it is missing, or takes no files", elsewhere),
    }
    unknown = error.strerror or str(error), elsewhere
    reason, hint = reasons.get(cast(int, error.errno), unknown)
    return RunError(f"cannot be {action}: {reason}", location=str(path), hint=hint)


def suggest_reading(error: Exception, repair: str) -> str:
    """Return a hint for a file or folder that cannot be read.

    repair: hint for one that is missing or damaged.
    """
    if isinstance(error, PermissionError):
        return "give yourself the right to read it, e.g. chmod -R u+rX"
    if isinstance(error, NotADirectoryError):
        return "a part of the path is a file: check the path"
    if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        return "the disk or the file server fails: repeat the command when it answers"
    return repair


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, unless they exist. Raises RunError; UsageError for a
    URL.
    """
    safe_files.refuse_url(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_failure(folder, error, "created") from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file as `write_atomically`, and create its folder. Raises RunError, UsageError."""
    make_folder(path.parent)
    write_atomically(path, data)


def check_is_writable(folder: Path) -> None:
    """Check that a folder can be written to, or that it can be created. Writes nothing.

    Raises RunError; UsageError for a URL.
    """
    safe_files.refuse_url(folder)
    if "\0" in str(folder):
        raise RunError("the name has a NUL character", location=repr(str(folder)))
    ancestor = folder
    while not os.path.lexists(ancestor) and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    number = 0
    if not ancestor.is_dir():
        number = errno.EEXIST if ancestor == folder else errno.ENOTDIR
    elif not os.access(ancestor, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(ancestor).f_flag & os.ST_RDONLY
        number = errno.EROFS if is_read_only else errno.EACCES
    if number:
        action = "written" if ancestor == folder else "created"
        raise os_failure(ancestor, OSError(number, os.strerror(number)), action)
