"""Where the bytes of a suite are: the user's data folder, else the cache, else the official place; always checked.

Order: ANTLM_BENCH_DATA, the folder of a user's own TOML, the cache (ANTLM_BENCH_CACHE, else the platform's), download.
A file counts only if its unpacked bytes have the published sha256; nothing half-written is ever left behind.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from antlm_bench.errors import DataError, UsageError
from antlm_bench.suites.spec import DataSpec, FileSpec, SourceSpec, SuiteSpec


@dataclass(frozen=True, slots=True)
class Found:
    """The unpacked bytes of a file, and where they lie (as an error names it)."""

    raw: bytes
    place: str


def locate(spec: SuiteSpec, file: str, folder: Path | None = None) -> Found:
    """The bytes of one file of a suite; `folder` is that of a user's own TOML. DataError says what is wrong and where."""
    assert spec.data is not None
    data, known = spec.data, spec.data.files[file]
    for root in roots(folder):
        for pattern in data.where:
            found = _look(root, pattern.format(file=file, stem=file.rpartition(".")[0]), data.password)
            if found:
                _check(found, known)
                return found
    raise DataError(f"{file} of {spec.name!r} is absent")


def roots(folder: Path | None = None) -> list[Path]:
    """The data roots that are searched, in order."""
    found = []
    if own := os.environ.get("ANTLM_BENCH_DATA"):
        found.append(Path(own).expanduser())
        if not found[0].is_dir():
            raise UsageError(f"{own!r} is not a folder", place="ANTLM_BENCH_DATA")
    if folder:
        found.append(folder)
    return [*found, cache()]


def cache() -> Path:
    """The cache folder (it need not exist): ANTLM_BENCH_CACHE, else the platform's place for caches."""
    if own := os.environ.get("ANTLM_BENCH_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "antlm-bench"


def read_file(path: Path) -> bytes:
    """The bytes of a user's file, unpacked if it ends in .gz. DataError where it cannot be read."""
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {getattr(error, 'strerror', None) or error}", place=str(path)) from None
    return _gunzip(raw, str(path)) if path.name.lower().endswith(".gz") else raw


def _look(root: Path, where: str, password: str | None) -> Found | None:
    path, _, member = where.partition("!")
    for candidate in (root / path, root / f"{path}.gz"):
        if candidate.is_file():
            raw = read_file(candidate)
            return Found(_member(raw, member, password, str(candidate)), f"{candidate}!{member}") if member else Found(raw, str(candidate))
    return None


def _gunzip(raw: bytes, place: str) -> bytes:
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"damaged gzip: {error}", place=place, hint="delete it and fetch it again") from None


def _member(raw: bytes, member: str, password: str | None, place: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return archive.read(member, password.encode() if password else None)
    except KeyError:
        raise DataError(f"the archive holds no {member!r}", place=place) from None
    except RuntimeError:
        raise DataError("wrong password", place=f"{place}!{member}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError) as error:
        raise DataError(f"damaged zip: {error}", place=f"{place}!{member}") from None


def _check(found: Found, known: FileSpec) -> None:
    if known.sha256 and hashlib.sha256(found.raw).hexdigest() != known.sha256:
        raise DataError("not the official file: its sha256 differs", place=found.place)
