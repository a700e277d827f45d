"""Local HTTP servers for tests of downloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class QuietHandler(SimpleHTTPRequestHandler):
    """A handler that serves a folder without a log."""

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def serve(
    answer: Callable[[BaseHTTPRequestHandler], None],
    monkeypatch: pytest.MonkeyPatch,
    protocol: str = "HTTP/1.0",
) -> Iterator[str]:
    """Serve GET requests by a function; yield the server's URL. See `_run_server`."""

    class Handler(QuietHandler):
        protocol_version = protocol

        def do_GET(self) -> None:
            answer(self)

    with _run_server(Handler, monkeypatch) as url:
        yield url


@contextmanager
def serve_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the files of a folder; yield the server's URL. See `_run_server`."""
    with _run_server(partial(QuietHandler, directory=str(folder)), monkeypatch) as url:
        yield url


@contextmanager
def _run_server(
    handler: Callable[..., BaseHTTPRequestHandler], monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Run a server in a thread. Downloads are allowed in this test, without a proxy."""
    for name in ("ANTLM_BENCH_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    options = {"poll_interval": 0.01}
    threading.Thread(target=server.serve_forever, kwargs=options, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
