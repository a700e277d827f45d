"""Downloads from servers that break off, never end, or lead elsewhere; archives that unpack to more
than memory holds.
"""

from __future__ import annotations

import gzip
import io
import json
import socket
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from local_server import serve

from antlm_bench.errors import DataError
from antlm_bench.suites import downloads, files

BODY = bytes(range(256)) * 40
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A local server. `answer` writes the answer to each request; `ranges` lists their Range."""

    def __init__(self) -> None:
        self.answer: Answer = send_whole
        self.ranges: list[str | None] = []
        self.url = ""

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        self.ranges.append(request.headers.get("Range"))
        self.answer(request)


def send(request: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    request.send_response(status)
    for name, value in ({"Content_Length": str(len(body))} | headers).items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


def send_whole(request: BaseHTTPRequestHandler) -> None:
    send(request, 200, BODY)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(downloads, "RETRY_DELAYS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(downloads, "TIMEOUT", 0.5)
    local_server = Server()
    with serve(local_server.handle, monkeypatch) as url:
        local_server.url = f"{url}/file"
        yield local_server


def send_half_then_rest(request: BaseHTTPRequestHandler) -> None:
    """Break off in the middle, and continue where the request says."""
    requested = request.headers.get("Range")
    if requested is None:
        send(request, 200, BODY[:4000], Content_Length=str(len(BODY)), ETag='"v1"')
        return
    start = int(requested.removeprefix("bytes=").removesuffix("-"))
    assert request.headers["If-Range"] == '"v1"'
    content_range = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
    send(request, 206, BODY[start:], Content_Range=content_range)


def test_broken_download_continues_where_it_stopped(server: Server) -> None:
    server.answer = send_half_then_rest

    assert downloads.fetch_url(server.url) == BODY
    assert server.ranges == [None, "bytes=4000-"]


def test_changed_file_is_downloaded_from_its_beginning(server: Server) -> None:
    changed = BODY[::-1]
    answers = [
        lambda r: send(r, 200, BODY[:4000], Content_Length=str(len(BODY)), ETag='"v1"'),
        lambda r: send(r, 200, changed, ETag='"v2"'),
    ]
    server.answer = lambda request: answers.pop(0)(request)

    assert downloads.fetch_url(server.url) == changed


def test_wrong_part_is_not_joined(server: Server) -> None:
    answers = [
        lambda r: send(r, 200, BODY[:4000], Content_Length=str(len(BODY)), ETag='"v1"'),
        lambda r: send(r, 206, BODY[7:], Content_Range=f"bytes 7-{len(BODY) - 1}/{len(BODY)}"),
        send_whole,
    ]
    server.answer = lambda request: answers.pop(0)(request)

    assert downloads.fetch_url(server.url) == BODY
    assert server.ranges == [None, "bytes=4000-", None]


def test_declared_length_beyond_the_limit_is_not_read(server: Server) -> None:
    server.answer = lambda request: send(request, 200, b"", Content_Length=str(1 << 40))

    with pytest.raises(DataError, match="larger than the limit of 1,000"):
        downloads.fetch_url(server.url, max_bytes=1000)


def send_without_end(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    try:
        while True:
            request.wfile.write(bytes(1 << 16))
    except OSError:
        pass


def test_endless_answer_stops_at_the_limit(server: Server) -> None:
    server.answer = send_without_end

    with pytest.raises(DataError, match="larger than 1,000,000 bytes"):
        downloads.fetch_url(server.url, max_bytes=1_000_000)


def test_slow_answer_stops_at_the_deadline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_SECONDS", 0.0)

    with pytest.raises(DataError, match="not finished after 0 seconds"):
        downloads.fetch_url(server.url)


@pytest.mark.parametrize(("code", "attempts"), [(socket.EAI_NONAME, 1), (socket.EAI_AGAIN, 3)])
def test_unknown_host_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, code: int, attempts: int
) -> None:
    requests: list[object] = []

    def fail(request: object) -> None:
        requests.append(request)
        raise urllib.error.URLError(socket.gaierror(code, "no address"))

    monkeypatch.setattr(downloads, "_open", fail)
    monkeypatch.setattr(downloads, "RETRY_DELAYS", (0.0, 0.0, 0.0))

    with pytest.raises(DataError, match=r"the connection failed: .*no address"):
        downloads.fetch_url("https://nowhere.invalid/x")
    assert len(requests) == attempts


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher:"]
)
def test_redirect_to_another_scheme_is_refused(server: Server, target: str) -> None:
    server.answer = lambda request: send(request, 302, b"", Location=target)

    with pytest.raises(DataError, match=r"[Rr]edirect"):
        downloads.fetch_url(server.url)


def test_redirect_in_a_circle_ends(server: Server) -> None:
    server.answer = lambda request: send(request, 302, b"", Location=server.url)

    with pytest.raises(DataError):
        downloads.fetch_url(server.url)


def answer_json(server: Server, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    downloads._list_osf_folder.cache_clear()
    monkeypatch.setattr(downloads, "OSF_API", server.url.removesuffix("/file"))
    server.answer = lambda request: send(request, 200, json.dumps(content).encode())


def osf_entry(url: object) -> dict[str, object]:
    return {"attributes": {"name": "x.jsonl"}, "links": {"download": url}}


@pytest.mark.parametrize(
    "url",
    ["http://osf.io/x", "file:///etc/passwd", "https://osf.io.evil.org/x", "https://[", "//x"],
)
def test_osf_answer_leads_to_osf_over_https_only(
    server: Server, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    answer_json(server, monkeypatch, {"data": [osf_entry(url)], "links": {}})

    with pytest.raises(DataError, match=r"no address of osf\.io"):
        downloads.fetch_osf_file("abcde", "x.jsonl")


def test_osf_page_that_repeats_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    next_page = {"data": [], "links": {"next": server.url}}
    answer_json(server, monkeypatch, next_page)

    with pytest.raises(DataError, match="or repeats one"):
        downloads.fetch_osf_file("abcde", "x.jsonl")


def test_osf_paging_without_end_is_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_json(server, monkeypatch, {})
    monkeypatch.setattr(downloads, "MAX_PAGES", 3)

    def send_next_page(request: BaseHTTPRequestHandler) -> None:
        page = {"data": [], "links": {"next": f"{server.url}{len(server.ranges)}"}}
        send(request, 200, json.dumps(page).encode())

    server.answer = send_next_page

    with pytest.raises(DataError, match="more than 3 pages"):
        downloads.fetch_osf_file("abcde", "x.jsonl")


@pytest.mark.parametrize(
    "content", [[], {"data": {}, "links": {}}, {"data": []}, {"data": [7, None], "links": {}}]
)
def test_osf_answer_of_a_wrong_type_is_an_error(
    server: Server, monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    answer_json(server, monkeypatch, content)

    with pytest.raises(DataError):
        downloads.fetch_osf_file("abcde", "x.jsonl")


# ---- archives


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FREE_BYTES", 10_000)


@pytest.mark.usefixtures("low_limits")
def test_gzip_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(bytes(1_000_000)))

    with pytest.raises(DataError, match="unpacks to more than") as caught:
        files.read_bytes(tmp_path / "x.csv.gz")
    assert "unpack it yourself" in caught.value.hint


@pytest.mark.usefixtures("low_limits")
def test_zip_bomb_is_refused() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("x.jsonl", bytes(1_000_000))

    with pytest.raises(DataError, match="unpacks to more than"):
        files.read_zip_member(archive.getvalue(), "x.jsonl", None, "x.zip")


def test_unpacked_size_has_an_absolute_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FREE_BYTES", 100)

    with pytest.raises(DataError, match="more than 50 bytes"):
        files.unpack_gzip(gzip.compress(b"x" * 51), "x.gz", max_bytes=50)
    assert files.unpack_gzip(gzip.compress(b"x" * 50), "x.gz", max_bytes=50) == b"x" * 50
