"""Bytes from an official place on the net, whole or an error: the standard library, timeouts, three
attempts.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import lru_cache
from typing import Any

from antlm_bench.errors import DataError

TIMEOUT = 30.0  # seconds without a byte
RETRY_DELAYS = (0.0, 1.0, 4.0)  # seconds before each attempt
OSF_API = "https://api.osf.io/v2"
TRANSIENT_STATUS_CODES = frozenset(
    {408, 425, 429, 500, 502, 503, 504}
)  # HTTP states that may be gone in a second


def fetch_url(url: str) -> bytes:
    """The body behind a URL. DataError names the URL and what happened, after the attempts that
    could help.
    """
    reason = ""
    for pause in RETRY_DELAYS:
        time.sleep(pause)
        try:
            return _request_url(url)
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code not in TRANSIENT_STATUS_CODES:
                break
        except http.client.IncompleteRead as error:
            of = f" of {len(error.partial) + error.expected}" if error.expected else ""
            reason = f"truncated: the server stopped after {len(error.partial)}{of} bytes"
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"the connection failed: {error or type(error).__name__}"
    raise DataError(reason, location=url, hint="nothing was stored; try again, or fetch it by hand")


def fetch_osf_file(node: str, path: str) -> bytes:
    """A file of an OSF project by its path, which the OSF's API resolves folder by folder.
    DataError as in `get`.
    """
    *folders, name = path.split("/")
    url = f"{OSF_API}/nodes/{node}/files/osfstorage/?page%5Bsize%5D=100"
    for folder in folders:
        url = _find_osf_url(
            url, folder, ("relationships", "files", "links", "related", "href"), path
        )
    return fetch_url(_find_osf_url(url, name, ("links", "download"), path))


def _request_url(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "antlm-bench"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        raw: bytes = response.read()
    return raw


def _find_osf_url(url: str, name: str, key_path: tuple[str, ...], path: str) -> str:
    for entry in _list_osf_folder(url):
        if entry.get("attributes", {}).get("name") == name:
            value: Any = entry
            for key in key_path:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, str):
                return value
    raise DataError(
        f"the OSF has no {name!r} on the way to {path!r}",
        location=url,
        hint="it may have been moved",
    )


@lru_cache(maxsize=64)
def _list_osf_folder(url: str) -> tuple[dict[str, Any], ...]:
    """The entries of an OSF folder, all pages; remembered, since the files of a suite share their
    folder.
    """
    entries: list[dict[str, Any]] = []
    page: str | None = url
    while page:
        try:
            answer = json.loads(fetch_url(page))
            entries += answer["data"]
            page = answer["links"].get("next")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(
                "the OSF's API answers in a form that is not understood", location=page
            ) from None
    return tuple(entries)
