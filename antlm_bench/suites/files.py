"""Read, decompress (gzip, zip), download and atomically write files."""

from __future__ import annotations

import errno
import gzip
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from antlm_bench.errors import DataError

REFETCH_HINT = "remove it and fetch it again: antlm-bench data fetch"
TIMEOUT = 30.0  # seconds in which no byte arrives
RETRY_DELAYS = (0.0, 1.0, 4.0)  # seconds before each attempt
OSF_API = "https://api.osf.io/v2"
# HTTP errors after which a second attempt may succeed.
TRANSIENT_STATUS_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if its name ends in .gz. Raises DataError."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"damaged gzip: {error}", location=str(path), hint=REFETCH_HINT) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot be read: {reason}", location=str(path)) from None


def read_zip_member(archive: bytes, name: str, password: str | None, location: str) -> bytes:
    """Return the bytes of a member of a zip, without writing them to disk. Raises DataError.

    archive: the bytes of the zip. location: name of the archive for error messages.
    """
    location = f"{location}!{name}"
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return opened.read(name, password.encode() if password else None)
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


def write_atomically(path: Path, raw: bytes) -> None:
    """Write a file so that it is complete or absent: to a temporary file that is then renamed.

    Raises DataError if the folder cannot be written or the disk is full.
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


def fetch_url(url: str) -> bytes:
    """Download a URL in up to three attempts. Raises DataError with the URL and the reason."""
    reason = ""
    for delay in RETRY_DELAYS:
        time.sleep(delay)
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "antlm-bench"})
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                raw: bytes = response.read()
            return raw
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code not in TRANSIENT_STATUS_CODES:
                break
        except http.client.IncompleteRead as error:
            total = f" of {len(error.partial) + error.expected}" if error.expected else ""
            reason = f"truncated: the server stopped after {len(error.partial)}{total} bytes"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"the connection failed: {error or type(error).__name__}"
    raise DataError(reason, location=url, hint="nothing was stored; try again, or fetch it by hand")


def fetch_osf_file(node: str, path: str) -> bytes:
    """Download a file of an OSF project. Raises DataError as fetch_url.

    OSF's API does not take paths, so that folders are searched one after another.
    """
    *folders, name = path.split("/")
    url = f"{OSF_API}/nodes/{node}/files/osfstorage/?page%5Bsize%5D=100"
    folder_keys = ("relationships", "files", "links", "related", "href")
    for folder in folders:
        url = _find_osf_url(url, folder, folder_keys, path)
    return fetch_url(_find_osf_url(url, name, ("links", "download"), path))


def _find_osf_url(url: str, name: str, key_path: tuple[str, ...], path: str) -> str:
    for entry in _list_osf_folder(url):
        if entry.get("attributes", {}).get("name") == name:
            value: Any = entry
            for key in key_path:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, str):
                return value
    raise DataError(
        f"the OSF project has no {name!r}, part of the path {path!r}",
        location=url,
        hint="the file may have been moved or renamed",
    )


@lru_cache(maxsize=64)
def _list_osf_folder(url: str) -> tuple[dict[str, Any], ...]:
    """Return the entries of an OSF folder from all its pages. Cached: many files share a folder."""
    entries: list[dict[str, Any]] = []
    page: str | None = url
    while page:
        try:
            response = json.loads(fetch_url(page))
            entries += response["data"]
            page = response["links"].get("next")
        except (ValueError, KeyError, TypeError, AttributeError):
            message = "the OSF's API answers in an unknown format"
            raise DataError(message, location=page) from None
    return tuple(entries)
