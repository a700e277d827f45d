"""Read, decompress (gzip, zip, tar) and atomically write data files.

A packed file is refused, before it is unpacked whole, if it would unpack to more than MAX_UNPACKED
bytes, or to more than MAX_RATIO times its own size: a file of a few megabytes could fill the
memory otherwise.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import tarfile
import uuid
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from antlm_bench import safe_files
from antlm_bench.errors import DataError

REFETCH_HINT = "remove it and fetch it again: antlm-bench data fetch"
REPACK_HINT = "pack the file again, or give it unpacked"
UNPACK_HINT = "if you trust its author, unpack it yourself and give the unpacked file"
MAX_UNPACKED = 128 << 20
"""Largest unpacked size in bytes. The largest official file has 49 MB (MultiRC)."""
MAX_RATIO = 200
"""Largest ratio of unpacked to packed size. Official files reach 43 (MultiRC)."""
FREE_BYTES = 64 << 20
"""Unpacked size in bytes up to which the ratio does not matter."""


def read_bytes(path: Path, damage_hint: str = REPACK_HINT) -> bytes:
    """Return the bytes of a file, decompressed if its name ends in .gz, but an archive (.tar.gz) as
    it is. Raises DataError.

    damage_hint: what to do about a damaged file; the default is for a user's own file.
    """
    try:
        raw = safe_files.read_regular_file(path)
        if is_tar_file(path.name) or not path.name.lower().endswith(".gz"):
            return raw
        return unpack_gzip(raw, str(path))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"damaged gzip: {error}", location=str(path), hint=damage_hint) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot be read: {reason}", location=str(path)) from None


def unpack_gzip(packed: bytes, location: str, max_bytes: int = MAX_UNPACKED) -> bytes:
    """Return the unpacked bytes of a gzip file.

    Raises DataError for a file that unpacks to more than `max_bytes` or MAX_RATIO allow, and the
    errors of gzip for damage.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        limit = _unpacked_limit(len(packed), max_bytes)
        unpacked = file.read(limit + 1)
    if len(unpacked) > limit:
        raise _too_large_error(limit, location)
    return unpacked


def is_tar_file(name: str) -> bool:
    """Return whether a file is a compressed archive, by its name."""
    return name.lower().endswith((".tar.gz", ".tgz"))


def read_tar_members(archive: bytes, location: str) -> dict[str, bytes]:
    """Return name -> bytes of the files in a .tar.gz, sorted by name; nothing is written to disk.

    Names have no folders. Hidden files, links and other special members are left out. location:
    the archive, for error messages. Raises DataError for a damaged archive, and for two files with
    the same name.
    """
    members: dict[str, bytes] = {}
    end = -1  # offset of the last header
    try:
        unpacked = unpack_gzip(archive, location)
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as opened:
            for member in opened:
                if member.size < 0 or member.offset <= end:
                    raise tarfile.ReadError("a size is negative")  # tarfile would never end
                end = member.offset
                name = member.name.rpartition("/")[2]
                # A sparse member unpacks to more than the archive holds.
                if not member.isreg() or member.issparse() or name.startswith("."):
                    continue
                if name in members:
                    raise DataError(f"two members are called {name!r}", location=location)
                file = opened.extractfile(member)
                members[name] = file.read() if file else b""
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError, RecursionError) as error:
        message = f"damaged archive: {error}"
        raise DataError(message, location=location, hint=REFETCH_HINT) from None
    return dict(sorted(members.items()))


def _unpacked_limit(packed_size: int, max_bytes: int) -> int:
    return min(max(FREE_BYTES, MAX_RATIO * packed_size), max_bytes)


def _too_large_error(limit: int, location: str) -> DataError:
    message = f"it unpacks to more than {limit:,} bytes, the largest size for a file as small"
    return DataError(message, location=location, hint=UNPACK_HINT)


def read_zip_member(archive: bytes, name: str, password: str | None, location: str) -> bytes:
    """Return the bytes of a member of a zip, without writing them to disk. Raises DataError.

    archive: the bytes of the zip. location: name of the archive for error messages.
    """
    location = f"{location}!{name}"
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            member = opened.getinfo(name)
            limit = _unpacked_limit(member.compress_size, MAX_UNPACKED)
            if member.file_size > limit:  # zipfile unpacks no more than this size
                raise _too_large_error(limit, location)
            return opened.read(member, password.encode() if password else None)
    except KeyError:
        raise DataError("the archive has no such member", location=location) from None
    except NotImplementedError as error:
        raise DataError(f"cannot be unpacked: {error}", location=location) from None
    except RuntimeError:  # zipfile's error for a missing or wrong password
        message = "the password in the suite's TOML does not open the archive"
        raise DataError(message, location=location) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        # A wrong password passes zip's one-byte check once in 256 times and then looks like damage.
        message = f"damaged zip, or a wrong password: {error}"
        raise DataError(message, location=location, hint=REFETCH_HINT) from None


def write_atomically(path: Path, raw: bytes, root: Path) -> None:
    """Write a file so that it is complete or absent: to a temporary file that is then renamed.

    No link below `root` is followed. Raises DataError if the folder cannot be written or the disk
    is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        safe_files.reject_links(root, path.parent)
        safe_files.reject_special_file(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        quota_exceeded = getattr(errno, "EDQUOT", None)  # does not exist on Windows
        is_full = error.errno in (errno.ENOSPC, quota_exceeded)
        reason = "the disk is full" if is_full else f"cannot be written: {error.strerror or error}"
        hint = "ANTLM_BENCH_CACHE sets another folder for the cache"
        raise DataError(reason, location=str(path), hint=hint) from None
    finally:
        with suppress(OSError):  # an error of the folder was raised above
            temporary.unlink(missing_ok=True)


def count_rows(raw: bytes) -> int:
    """Count the lines of a file that are not blank."""
    return sum(1 for line in raw.split(b"\n") if line.strip())
