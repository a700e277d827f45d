"""Download files over HTTP, and find files of projects of the Open Science Framework (OSF).

A server is not trusted: size, time and number of pages are limited, and an answer leads to no other
scheme than https.
"""

from __future__ import annotations

import http.client
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from antlm_bench.errors import DataError
from antlm_bench.safe_json import parse_json

TIMEOUT = 30.0  # seconds in which no byte arrives
MAX_SECONDS = 1800.0
"""Longest time for one file, over all attempts."""
MAX_BYTES = 256 << 20
"""Largest download, if the suite's TOML declares no `max_bytes`."""
MAX_PAGE_BYTES = 8 << 20
"""Largest answer of OSF's API."""
MAX_PAGES = 100
"""Pages of one OSF folder that are read."""
RETRY_DELAYS = (0.0, 1.0, 4.0)  # seconds before each attempt
OSF_API = "https://api.osf.io/v2"
# HTTP errors after which a second attempt may succeed.
TRANSIENT_STATUS_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})
READ_SIZE = 1 << 16
RETRY_HINT = "nothing was stored; try again, or fetch it by hand"


@dataclass
class _Download:
    """The bytes of a URL that have arrived, over several attempts."""

    url: str
    max_bytes: int
    deadline: float
    data: bytearray = field(default_factory=bytearray)
    on_bytes: Callable[[int], None] | None = None
    validator: str = ""
    """ETag or date of the answer. With it the server can continue where it stopped."""

    def fail(self, message: str, hint: str = RETRY_HINT) -> DataError:
        return DataError(message, location=self.url, hint=hint)

    def run(self) -> None:
        """Read the URL to its end. Raises DataError beyond a limit, and the errors of urllib."""
        headers = {"User-Agent": "antlm-bench"}
        if self.data and self.validator:
            headers |= {"Range": f"bytes={len(self.data)}-", "If-Range": self.validator}
        request = urllib.request.Request(self.url, headers=headers)
        with _open(request) as response:
            self._start(response)
            while block := response.read1(READ_SIZE):
                self.data += block
                if self.on_bytes:
                    self.on_bytes(len(self.data))
                if len(self.data) > self.max_bytes:
                    raise self.fail(
                        f"larger than {self.max_bytes:,} bytes",
                        "if that is right, declare `max_bytes` of the source in the suite's TOML",
                    )
                if time.monotonic() > self.deadline:
                    raise self.fail(f"not finished after {MAX_SECONDS:.0f} seconds")
            remaining = response.length
        if remaining:
            raise http.client.IncompleteRead(bytes(self.data), remaining)

    def _start(self, response: http.client.HTTPResponse) -> None:
        """Keep what has arrived if the server continues there; else begin again."""
        start = f"bytes {len(self.data)}-"
        if response.status == 206 and response.headers.get("Content-Range", "").startswith(start):
            return
        if response.status == 206:  # another part than the one that was asked for
            self.data.clear()
            self.validator = ""
            raise http.client.HTTPException("the server sent another part of the file")
        self.data.clear()
        etag = response.headers.get("ETag", "")
        is_strong = etag and not etag.startswith("W/")
        self.validator = etag if is_strong else response.headers.get("Last-Modified", "")
        if (response.length or 0) > self.max_bytes:
            raise self.fail(
                f"{response.length:,} bytes, larger than the limit of {self.max_bytes:,}",
                "if that is right, declare `max_bytes` of the source in the suite's TOML",
            )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to https only, or to http from http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme, req.type) != ("http", "http"):
            raise DataError(
                f"the server redirects to {newurl[:100]!r}, which is not https",
                location=req.full_url,
                hint="fetch it by hand, if you trust it",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request) -> Any:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _SafeRedirects(),
    ):
        opener.add_handler(handler)
    return opener.open(request, timeout=TIMEOUT)


def fetch_url(
    url: str, max_bytes: int | None = None, on_bytes: Callable[[int], None] | None = None
) -> bytes:
    """Download a URL in up to three attempts; each continues the previous one if the server can.

    max_bytes: largest size; None = MAX_BYTES. on_bytes: receives the number of bytes that have
    arrived. Raises DataError with the URL and the reason.
    """
    deadline = time.monotonic() + MAX_SECONDS
    download = _Download(url, max_bytes or MAX_BYTES, deadline, on_bytes=on_bytes)
    reason = ""
    for delay in RETRY_DELAYS:
        time.sleep(delay)
        try:
            download.run()
            return bytes(download.data)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # what has arrived is no part of the file any more
                download.data.clear()
            elif error.code not in TRANSIENT_STATUS_CODES:
                break
        except http.client.IncompleteRead as error:
            arrived = len(download.data)
            total = f" of {arrived + error.expected}" if error.expected else ""
            reason = f"truncated: the server stopped after {arrived}{total} bytes"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"the connection failed: {error or type(error).__name__}"
            if _is_unknown_host(error):
                break
    raise download.fail(reason)


def _is_unknown_host(error: Exception) -> bool:
    """Return whether the resolver knows no such host: a second attempt fails like the first."""
    cause = getattr(error, "reason", error)
    return isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME


def fetch_osf_file(
    node: str,
    path: str,
    max_bytes: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> bytes:
    """Download a file of an OSF project. Arguments and errors as for fetch_url.

    OSF's API does not take paths, so that folders are searched one after another.
    """
    *folders, name = path.split("/")
    url = f"{OSF_API}/nodes/{node}/files/osfstorage/?page%5Bsize%5D=100"
    folder_keys = ("relationships", "files", "links", "related", "href")
    for folder in folders:
        url = _find_osf_url(url, folder, folder_keys, path)
    url = _find_osf_url(url, name, ("links", "download"), path)
    return fetch_url(url, max_bytes, on_bytes)


def _find_osf_url(url: str, name: str, key_path: tuple[str, ...], path: str) -> str:
    for entry in _list_osf_folder(url):
        if _get(entry, ("attributes", "name")) == name:
            value = _get(entry, key_path)
            if isinstance(value, str):
                return _check_osf_url(value, url)
    raise DataError(
        f"the OSF project has no {name!r}, part of the path {path!r}",
        location=url,
        hint="the file may have been moved or renamed",
    )


def _get(value: Any, key_path: tuple[str, ...]) -> Any:
    """Return the value at a path of keys in nested tables, None if there is none."""
    for key in key_path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _check_osf_url(url: str, location: str) -> str:
    """Return a URL of an answer. Raises DataError unless it is https and OSF's own."""
    try:
        parts, api = urllib.parse.urlsplit(url), urllib.parse.urlsplit(OSF_API)
    except ValueError:
        parts, api = urllib.parse.SplitResult("", "", "", "", ""), urllib.parse.urlsplit(OSF_API)
    host = parts.hostname or ""
    is_osf = parts.scheme == "https" and (host == "osf.io" or host.endswith(".osf.io"))
    if not is_osf and (parts.scheme, parts.netloc) != (api.scheme, api.netloc):
        raise DataError(
            f"the OSF's API answers with {url[:100]!r}, which is no address of osf.io",
            location=location,
            hint=RETRY_HINT,
        )
    return url


@lru_cache(maxsize=64)
def _list_osf_folder(url: str) -> tuple[Any, ...]:
    """Return the entries of an OSF folder from all its pages. Cached: many files share a folder."""
    entries: list[Any] = []
    pages: list[str] = []
    page: str | None = url
    while page:
        if page in pages or len(pages) == MAX_PAGES:
            message = f"the OSF's API answers with more than {MAX_PAGES} pages, or repeats one"
            raise DataError(message, location=page, hint=RETRY_HINT)
        pages.append(page)
        try:
            response = parse_json(fetch_url(page, MAX_PAGE_BYTES))
            if not isinstance(response["data"], list):
                raise TypeError
            entries += response["data"]
            page = response["links"].get("next")
            if page is not None:
                page = _check_osf_url(page, pages[-1])
        except (ValueError, KeyError, TypeError, AttributeError):
            message = "the OSF's API answers in an unknown format"
            raise DataError(message, location=pages[-1]) from None
    return tuple(entries)
