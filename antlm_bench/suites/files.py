"""Local files as bytes: read, unpacked in memory (gzip, a member of a zip), stored whole or not at
all.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import uuid
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

from antlm_bench.errors import DataError

REFETCH_HINT = "remove it and fetch it again: antlm-bench data fetch"


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, unpacked if it ends in .gz. DataError where it cannot be read."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"damaged gzip: {error}", location=str(path), hint=REFETCH_HINT) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}", location=str(path)
        ) from None


def read_zip_member(archive: bytes, name: str, password: str | None, location: str) -> bytes:
    """A member of a zip, never written to disk; `place` is the archive as errors name it.
    DataError.
    """
    location = f"{location}!{name}"
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return opened.read(name, password.encode() if password else None)
    except KeyError:
        raise DataError("the archive has no such member", location=location) from None
    except NotImplementedError as error:
        raise DataError(f"cannot be unpacked: {error}", location=location) from None
    except RuntimeError:  # what zipfile raises for a missing or wrong password
        raise DataError(
            "the password of the declaration does not open it", location=location
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        # A wrong password passes zip's one-byte check once in 256 times and then looks like damage.
        raise DataError(
            f"damaged zip, or a wrong password: {error}", location=location, hint=REFETCH_HINT
        ) from None


def write_atomically(path: Path, raw: bytes) -> None:
    """Write a file: a temporary one in the same folder, synced, renamed. DataError leaves nothing
    half-written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        full = error.errno in (
            errno.ENOSPC,
            getattr(errno, "EDQUOT", None),
        )  # Windows knows no quota
        reason = "the disk is full" if full else f"cannot be written: {error.strerror or error}"
        raise DataError(
            reason, location=str(path), hint="the cache goes where ANTLM_BENCH_CACHE says"
        ) from None
    finally:
        with suppress(
            OSError
        ):  # renamed where all went well; where the folder is unusable, the error above says so
            temporary.unlink(missing_ok=True)


def count_rows(raw: bytes) -> int:
    """The lines of a file that hold anything."""
    return sum(1 for line in raw.split(b"\n") if line.strip())
