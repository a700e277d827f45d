"""Sources: the search order, and failing downloads, played by a server in a thread."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from local_server import serve

from antlm_bench.errors import DataError, UsageError
from antlm_bench.progress import Progress
from antlm_bench.suites import downloads, files, loader, sources
from antlm_bench.suites.spec import SuiteSpec

ROW = {"sentence_good": "The wug sleeps.", "sentence_bad": "The wug sleep."}
BODY = (json.dumps(ROW) + "\n").encode() * 3
SHA = hashlib.sha256(BODY).hexdigest()


class Net:
    """A server that answers each path by a script; counts the requests."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, list[str]] = {}
        self.bodies: dict[str, bytes] = {}
        self.url = ""

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.split("?")[0]
        self.asked.append(path)
        script = self.answers.get(path, ["whole"])
        how = script.pop(0) if len(script) > 1 else script[0]
        self.answer(request, how, self.bodies.get(path, BODY))

    @staticmethod
    def answer(to: BaseHTTPRequestHandler, how: str, body: bytes) -> None:
        to.close_connection = True
        if how.isdigit():
            to.send_response(int(how))
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        if how == "hangs up":
            return
        to.send_response(200)
        if how == "dies midway":  # chunked, and the last chunk never comes
            to.send_header("Transfer-Encoding", "chunked")
            to.end_headers()
            to.wfile.write(b"%x\r\n%s\r\n20\r\nhalf" % (len(body), body))
            return
        to.send_header("Content-Length", str(len(body) + (50 if how == "truncated" else 0)))
        to.end_headers()
        if how == "stalls":
            to.wfile.write(body[:10])
            to.wfile.flush()
            threading.Event().wait(1.0)
            return
        to.wfile.write(body)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    monkeypatch.setattr(downloads, "RETRY_DELAYS", (0.0, 0.0))
    monkeypatch.setattr(downloads, "TIMEOUT", 0.3)
    net = Net()
    with serve(net.handle, monkeypatch, "HTTP/1.1") as net.url:
        yield net


def suite(url: str = "http://127.0.0.1:9", **data: object) -> SuiteSpec:
    tables: dict[str, object] = {
        "where": ["wugs/{file}"],
        "sources": [{"http": url + "/{file}"}],
        "files": {"wugs.jsonl": {"sha256": SHA}},
    }
    return SuiteSpec.model_validate(
        {
            "kind": "suite",
            "name": "wugs",
            "version": "1",
            "title": "Wugs",
            "licence": "none",
            "citation": "none",
            "item": {"options": [{"scored": "{sentence_good}"}, {"scored": "{sentence_bad}"}]},
            "data": tables | data,
        }
    )


def write_file(path: Path, data: bytes) -> None:
    files.write_atomically(path, data, path.parent)


def left() -> list[str]:
    """What lies in the cache."""
    return sorted(
        str(path.relative_to(sources.cache_dir()))
        for path in sources.cache_dir().rglob("*")
        if path.is_file()
    )


def test_a_download_is_checked_kept_packed_and_not_repeated(net: Net) -> None:
    first = sources.get_file(suite(net.url), "wugs.jsonl")
    again = sources.get_file(suite(net.url), "wugs.jsonl")
    assert first.raw == again.raw == BODY and first.location == again.location
    assert net.asked == ["/wugs.jsonl"]
    assert left() == ["wugs/wugs.jsonl.gz"]
    assert [row.state for row in sources.verify_files(suite())] == ["verified"]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "truncated: the server stopped after 213 of 263 bytes"),
        ("dies midway", "truncated|connection failed"),
        ("hangs up", "connection failed"),
        ("stalls", "connection failed: .*timed out"),
        ("404", "the server answers 404"),
        ("503", "the server answers 503"),
    ],
)
def test_a_bad_download_is_one_error_and_leaves_nothing(net: Net, how: str, says: str) -> None:
    net.answers["/wugs.jsonl"] = [how]
    with pytest.raises(DataError, match=says) as caught:
        sources.get_file(suite(net.url), "wugs.jsonl")
    assert caught.value.location == "wugs"
    assert f"cannot download wugs.jsonl: {net.url}/wugs.jsonl: " in caught.value.message
    assert left() == []
    assert len(net.asked) == (1 if how == "404" else 2)  # what may pass is tried again


def test_a_server_that_recovers_is_enough(net: Net) -> None:
    net.answers["/wugs.jsonl"] = ["truncated", "whole"]
    assert sources.get_file(suite(net.url), "wugs.jsonl").raw == BODY


def test_wrong_bytes_are_refused_before_they_are_stored(net: Net) -> None:
    net.bodies["/wugs.jsonl"] = BODY.replace(b"wug", b"dax")
    with pytest.raises(DataError, match=rf"wrong hash.*expected {SHA[:12]}"):
        sources.get_file(suite(net.url), "wugs.jsonl")
    assert left() == []


def test_without_a_hash_the_first_download_is_pinned(
    net: Net,
) -> None:
    open_suite = suite(net.url, files={"wugs.jsonl": {"rows": 3}})
    net.bodies["/wugs.jsonl"] = b"<html>please log in</html>"
    with pytest.raises(DataError, match="1 row, expected 3"):
        sources.get_file(open_suite, "wugs.jsonl")
    assert left() == []
    net.bodies["/wugs.jsonl"] = BODY
    sources.get_file(open_suite, "wugs.jsonl")
    assert left() == ["wugs/wugs.jsonl.gz", "wugs/wugs.jsonl.gz.sha256"]
    assert sources.verify_files(open_suite)[0].state == "complete"
    kept = sources.cache_dir() / "wugs" / "wugs.jsonl.gz"
    kept.write_bytes(gzip.compress(BODY.replace(b"wug", b"dax")))
    with pytest.raises(DataError, match="not the bytes of the first download"):
        sources.get_file(open_suite, "wugs.jsonl")


def test_a_second_place_is_tried_and_all_failures_are_told(net: Net) -> None:
    both = suite(sources=[{"http": net.url + "/gone/{file}"}, {"http": net.url + "/{file}"}])
    net.answers["/gone/wugs.jsonl"] = ["404"]
    assert sources.get_file(both, "wugs.jsonl").raw == BODY
    neither = suite(
        sources=[{"http": net.url + "/gone/{file}"}, {"http": net.url + "/gone/{file}"}],
        where=["x/{file}"],
    )
    with pytest.raises(DataError, match=r"from any of 2 sources.*404.*404"):
        sources.get_file(neither, "wugs.jsonl")


@pytest.mark.parametrize("variable", ["ANTLM_BENCH_OFFLINE", "HF_HUB_OFFLINE"])
def test_an_absent_file_offline_is_named_with_its_source(
    net: Net, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(DataError) as caught:
        sources.get_file(suite(net.url), "wugs.jsonl")
    text = str(caught.value)
    assert f"wugs.jsonl of 'wugs' is absent and {variable} forbids" in text
    assert (
        f"{net.url}/wugs.jsonl" in text and str(sources.cache_dir() / "wugs" / "wugs.jsonl") in text
    )
    assert net.asked == []


def test_a_full_disk_leaves_nothing_half_written(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="the disk is full"):
        sources.get_file(suite(net.url), "wugs.jsonl")
    assert left() == []


def test_a_cache_that_is_no_folder_is_one_error(
    net: Net, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANTLM_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be written"):
        sources.get_file(suite(net.url), "wugs.jsonl")


def test_the_user_s_folder_comes_first_plain_or_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))
    write_file(sources.cache_dir() / "wugs" / "wugs.jsonl", BODY)
    assert sources.get_file(suite(), "wugs.jsonl").location.startswith(str(sources.cache_dir()))
    write_file(tmp_path / "wugs" / "wugs.jsonl.gz", gzip.compress(BODY))
    assert sources.get_file(suite(), "wugs.jsonl").location == str(
        tmp_path / "wugs" / "wugs.jsonl.gz"
    )
    write_file(tmp_path / "wugs" / "wugs.jsonl", BODY + b"\n")
    with pytest.raises(DataError, match="wrong hash"):
        sources.get_file(suite(), "wugs.jsonl")
    assert [(row.state, row.size) for row in sources.list_files(suite())] == [
        ("here", len(BODY) + 1)
    ]
    assert sources.verify_files(suite())[0].state == "differs"
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="not a folder"):
        sources.list_files(suite())


def test_damaged_gzip_is_fetched_again_only_in_the_cache(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, packed = suite(net.url), gzip.compress(BODY)
    bad = sources.cache_dir() / "wugs" / "wugs.jsonl.gz"
    for damaged in (packed[:-9], packed[:20] + b"\xff\xff" + packed[22:], b"nonsense", b""):
        write_file(bad, damaged)
        if damaged:
            with pytest.raises(DataError, match="damaged gzip"):
                sources.get_file(spec, "wugs.jsonl")
            assert sources.verify_files(spec)[0].state == "damaged"
        assert [row.state for row in sources.fetch_files(spec)] == ["verified"]
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path))
    write_file(tmp_path / "wugs" / "wugs.jsonl.gz", b"mine, do not touch")
    with pytest.raises(DataError, match="damaged gzip"):
        sources.fetch_files(spec)
    assert (tmp_path / "wugs" / "wugs.jsonl.gz").read_bytes() == b"mine, do not touch"


def test_a_folder_that_was_fetched_into_serves_as_data_folder(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = sources.fetch_files(suite(net.url), tmp_path / "to")
    assert row.path == tmp_path / "to" / "wugs" / "wugs.jsonl.gz" and row.state == "verified"
    assert left() == []
    monkeypatch.setenv("ANTLM_BENCH_DATA", str(tmp_path / "to"))
    monkeypatch.setenv("ANTLM_BENCH_OFFLINE", "1")
    assert sources.get_file(suite(net.url), "wugs.jsonl").raw == BODY


def test_fetching_counts_files_and_tells_bytes(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr(Progress, "describe", lambda _, label: labels.append(label))
    progress = Progress(unit="files", total=2)
    sources.fetch_files(suite(net.url), progress=progress)
    assert (progress.num_done, progress.num_computed) == (1, 1)
    assert labels[0] == "wugs wugs.jsonl" and labels[-1] == "wugs wugs.jsonl 0.0 MB"
    sources.fetch_files(suite(net.url), progress=progress)
    assert (progress.num_done, progress.num_computed) == (2, 1)


# ---- archives


def zipped(name: str, content: bytes, password: bytes) -> bytes:
    """A zip of one member under the traditional encryption (APPNOTE 6.1), which zipfile reads but
    does not write.
    """
    keys = [0x12345678, 0x23456789, 0x34567890]

    def crc(value: int, byte: int) -> int:
        return ~zlib.crc32(bytes([byte]), ~value & 0xFFFFFFFF) & 0xFFFFFFFF

    def update(byte: int) -> None:
        keys[0] = crc(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    check = zlib.crc32(content)
    encrypted = bytearray()
    for byte in bytes(11) + bytes([check >> 24]) + content:
        mixed = (keys[2] | 2) & 0xFFFF
        encrypted.append(byte ^ ((mixed * (mixed ^ 1) >> 8) & 0xFF))
        update(byte)
    entry = struct.pack(
        "<HHHHHIIIHH", 20, 1, 0, 0, 33, check, len(encrypted), len(content), len(name), 0
    )
    local = b"PK\3\4" + entry + name.encode() + bytes(encrypted)
    central = (
        b"PK\1\2"
        + struct.pack("<H", 20)
        + entry
        + struct.pack("<HHHII", 0, 0, 0, 0, 0)
        + name.encode()
    )
    return (
        local
        + central
        + b"PK\5\6"
        + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    )


def archive_suite(url: str = "", password: str = "secret") -> SuiteSpec:
    return suite(
        where=["w.zip!in/{file}"],
        password=password,
        sources=[{"http": (url or "http://x") + "/w.zip"}],
    )


def test_an_encrypted_archive_is_fetched_whole_and_read_in_place(net: Net) -> None:
    net.bodies["/w.zip"] = zipped("in/wugs.jsonl", BODY, b"secret")
    found = sources.get_file(archive_suite(net.url), "wugs.jsonl")
    assert found.raw == BODY and found.location.endswith("w.zip!in/wugs.jsonl")
    assert (
        left() == ["w.zip"] and (sources.cache_dir() / "w.zip").read_bytes() == net.bodies["/w.zip"]
    )
    assert sources.get_file(archive_suite(), "wugs.jsonl") == found


def test_a_wrong_password_or_a_damaged_archive_is_one_error(net: Net) -> None:
    whole = zipped("in/wugs.jsonl", BODY, b"secret")
    place = sources.cache_dir() / "w.zip"
    for password in [
        f"wrong {n}" for n in range(300)
    ]:  # about one of them passes the one-byte check
        write_file(place, whole) if password == "wrong 0" else None
        with pytest.raises(DataError, match="password"):
            sources.get_file(archive_suite(password=password), "wugs.jsonl")
    net.bodies["/w.zip"] = whole[:-30]
    place.unlink()
    with pytest.raises(DataError, match="damaged zip"):
        sources.get_file(archive_suite(net.url), "wugs.jsonl")
    assert left() == []
    write_file(place, zipped("in/other.jsonl", BODY, b"secret"))
    with pytest.raises(DataError, match="no such member"):
        sources.get_file(archive_suite(), "wugs.jsonl")


# ---- OSF and the hub
# ---------------------------------------------------------------------------------------------


def test_an_osf_path_is_resolved_by_folder_and_page(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folder(name: str, to: str) -> dict[str, object]:
        return {
            "attributes": {"name": name},
            "relationships": {"files": {"links": {"related": {"href": net.url + to}}}},
        }

    def listing(*entries: object, then: str | None = None) -> bytes:
        return json.dumps({"data": entries, "links": {"next": then}}).encode()

    monkeypatch.setattr(downloads, "OSF_API", net.url)
    net.bodies["/nodes/ab1cd/files/osfstorage/"] = listing(
        folder("other", "/no"), then=net.url + "/more"
    )
    net.bodies["/more"] = listing(folder("evaluation data", "/inner"))
    net.bodies["/inner"] = listing(
        {"attributes": {"name": "wugs.jsonl"}, "links": {"download": net.url + "/raw"}}
    )
    spec = suite(sources=[{"osf": "ab1cd", "path": "evaluation data/{file}"}])
    assert sources.get_file(spec, "wugs.jsonl").raw == BODY
    assert net.asked[-1] == "/raw"
    gone = suite(sources=[{"osf": "ab1cd", "path": "evaluation data/x/{file}"}], where=["y/{file}"])
    with pytest.raises(DataError, match="the OSF project has no 'x'"):
        sources.get_file(gone, "wugs.jsonl")
    downloads._list_osf_folder.cache_clear()
    net.bodies["/nodes/ab1cd/files/osfstorage/"] = b"<html>"
    with pytest.raises(DataError, match="an unknown format"):
        sources.get_file(gone, "wugs.jsonl")


def ewok() -> SuiteSpec:
    derive = {
        "partition": "Domain",
        "fields": ["Context1", "Target1"],
        "swap": [["Context1", "Context2"], ["Target1", "Target2"]],
        "vocabulary": {"file": "words.txt", "where": ["{file}"]},
    }
    hub = [{"hub": "some/set", "split": "test"}]
    return suite(where=["e/{file}"], sources=hub, derive=derive, files={"d.jsonl": {"rows": 2}})


EWOK = {
    "Domain": "d",
    "Context1": "A cat sat. It slept!",
    "Context2": "c2",
    "Target1": "It's here.",
    "Target2": "t2",
}


@pytest.mark.long
@pytest.mark.usefixtures("net")
def test_hub_rows_are_filtered_by_words_and_written_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = EWOK | {"Context1": "A zyx sat."}
    monkeypatch.setattr(sources, "load_hub_rows", lambda *_: [EWOK, unknown])
    write_file(sources.cache_dir() / "words.txt", b"a\ncat\nsat\nit\nslept\n's\nhere\n.\n!\n")
    found = sources.get_file(ewok(), "d.jsonl")
    rows = [json.loads(line) for line in found.raw.splitlines()]
    assert rows[0] == EWOK
    assert rows[1] == EWOK | {
        "Context1": "c2",
        "Context2": EWOK["Context1"],
        "Target1": "t2",
        "Target2": "It's here.",
    }
    assert left() == ["e/d.jsonl.gz", "e/d.jsonl.gz.sha256", "words.txt"]


@pytest.mark.long
def test_the_filter_keeps_the_official_fast_subset(real_data: Path) -> None:
    from antlm_bench.suites.derivation import build_word_tokenizer

    words = set(files.read_bytes(real_data / "ewok_filter_vocab.txt.gz").decode().split("\n"))
    split = build_word_tokenizer()
    texts = {o.text for item in loader.load_suite("ewok-fast-2025").items for o in item.options}
    assert len(texts) > 1_000 and all(
        token in words for text in texts for token in split(text.lower())
    )


@pytest.mark.usefixtures("net")
def test_a_gated_hub_set_says_how_to_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("some/set is a gated dataset\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    write_file(sources.cache_dir() / "words.txt", b"a\n")
    with pytest.raises(
        DataError, match=r"DatasetNotFoundError: some/set is a gated dataset\)"
    ) as caught:
        sources.get_file(ewok(), "d.jsonl")
    assert (
        "accept the terms at https://huggingface.co/datasets/some/set and set HF_TOKEN"
        in caught.value.hint
    )


@pytest.mark.usefixtures("net")
def test_hub_rows_that_do_not_fit_the_declaration_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_file(sources.cache_dir() / "words.txt", b"x\n")
    for rows, says in (([], "have different files"), ([{"Domain": "d"}], "'Context1' is None")):
        monkeypatch.setattr(sources, "load_hub_rows", lambda *_, rows=rows: rows)
        with pytest.raises(DataError, match=says):
            sources.get_file(ewok(), "d.jsonl")
