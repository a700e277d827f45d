"""Read and write files in folders that a stranger may have made.

A writer follows no link below the folder that the user names, so that it never writes, truncates or
deletes a file elsewhere. A reader opens regular files only, because a FIFO blocks it and a device
has no end. Every failure is an OSError with a message for the user; callers add the location. Only
a URL is a UsageError.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, cast

from antlm_bench.errors import UsageError

LINK_MESSAGE = "this is a link, which is not followed on writing: remove it"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Windows lacks these flags.
_NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def open_regular_file(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError for a FIFO, a device or a folder, without waiting."""
    descriptor = _open(path, os.O_RDONLY | _NO_WAIT)
    try:
        _check_is_regular(descriptor, path)
        return cast(BinaryIO, os.fdopen(descriptor, "rb"))
    except BaseException:
        os.close(descriptor)
        raise


def _open(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file as `os.open`, but raise OSError for a name with a NUL character, too."""
    try:
        return os.open(path, flags, mode)
    except ValueError as error:
        raise OSError(errno.EINVAL, "the name has a NUL character", str(path)) from error


def read_regular_file(path: Path, max_bytes: int | None = None) -> bytes:
    """Return the bytes of a file. Raises OSError as `open_regular_file`, and for a file of more
    than `max_bytes`, before it is read.
    """
    with open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            message = f"{size:,} bytes, larger than the {max_bytes:,} that are read"
            raise OSError(errno.EOVERFLOW, message, str(path))
        return file.read()


def create_file(path: Path) -> BinaryIO:
    """Create a file for writing, in place of an older one of this name. A link is replaced, not
    followed.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | _NO_WAIT
    return cast(BinaryIO, os.fdopen(_open(path, flags), "wb"))


def open_for_writing(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open or create a file in place and return its descriptor.

    flags: of `os.open`. Raises OSError for a link, a file with a second hard link, and anything
    that is not a regular file.
    """
    try:
        descriptor = _open(path, flags | os.O_CREAT | _NO_FOLLOW | _NO_WAIT, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(errno.ELOOP, LINK_MESSAGE, str(path)) from error
        raise
    try:
        _check_is_regular(descriptor, path)
        if os.fstat(descriptor).st_nlink > 1:
            raise OSError(errno.EMLINK, LINK_MESSAGE, str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def reject_special_file(path: Path) -> None:
    """Raise OSError if a path is a device, a FIFO, a socket or a folder, or a link to an open file
    (`/dev/stdout`).

    If another file were renamed to this path, it would be gone. Root may do that even in /dev.
    Other links pass, because only the link is replaced, and not what it points to.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode) and str(path.readlink()).startswith("/proc/"):
        raise OSError(errno.EINVAL, "this is a link to an open file, not a file", str(path))
    if not stat.S_ISLNK(mode):
        _check_mode(mode, path)


def reject_links(root: Path, path: Path) -> None:
    """Raise OSError if a component of `path` below `root` is a link.

    `root` itself is the user's choice and may be a link. Components that do not exist pass.
    """
    current = root
    for component in path.relative_to(root).parts:
        current /= component
        if current.is_symlink():
            raise OSError(errno.ELOOP, LINK_MESSAGE, str(current))


def find_url(path: str | Path | None) -> str:
    """Return the URL that a path was made of, which has lost a slash; "" for a path of files."""
    text = "" if path is None else str(path)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return ""
    scheme, _, rest = text.partition(":")
    return f"{scheme.lower()}://{rest.lstrip('/')}"


def refuse_url(path: Path | None) -> Path | None:
    """Return the path of an output. Raises UsageError for a URL, which would name a local folder
    `s3:`.
    """
    if url := find_url(path):
        raise UsageError(
            f"{url} is not a folder",
            location="--out",
            hint="give a local folder, and copy it when it is done: aws s3 sync DIR s3://...",
        )
    return path


def _check_is_regular(descriptor: int, path: Path) -> None:
    _check_mode(os.fstat(descriptor).st_mode, path)


def _check_mode(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, f"this is {kind}, not a file", str(path))
