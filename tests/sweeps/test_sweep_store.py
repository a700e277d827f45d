"""Claims, journals and parts of a sweep in a folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sweeps.fake_units import make_store, make_sweep, make_unit

from antlm_bench.errors import RunError, UsageError
from antlm_bench.sweeps.journal import (
    Event,
    JournalReader,
    JournalWriter,
    decode_events,
    encode_event,
)
from antlm_bench.sweeps.process_identity import ProcessIdentity, current_process
from antlm_bench.sweeps.store import Claim, FolderStore, decode_sweep
from antlm_bench.sweeps.units import encode_sweep


def open_store(folder: Path, name: str, heartbeat: float = 0.1) -> FolderStore:
    store = FolderStore(folder, heartbeat)
    store.join(name)
    return store


def set_owner(folder: Path, claim: str, process: ProcessIdentity) -> None:
    """Make a claim look as if another process owned it."""
    path = folder / "claims" / claim
    record = json.loads(path.read_text())
    record["process"] = {
        "host": process.host,
        "pid": process.pid,
        "start_time": process.start_time,
    }
    path.write_text(json.dumps(record))


ELSEWHERE = ProcessIdentity("another machine", 1, "1")


def test_a_claimed_group_is_not_claimed_again(tmp_path: Path) -> None:
    make_store(tmp_path)
    first, second = open_store(tmp_path, "a"), open_store(tmp_path, "b")
    assert first.claim("g") == Claim("g", 1)
    assert second.claim("g") is None
    assert first.renew(Claim("g", 1))


def test_a_released_claim_is_free_at_once(tmp_path: Path) -> None:
    make_store(tmp_path)
    first, second = open_store(tmp_path, "a"), open_store(tmp_path, "b")
    claim = first.claim("g")
    first.append_event(Event("released", claim=claim.id))
    second.read_new_events()
    assert second.claim("g") == Claim("g", 2)
    assert not first.renew(claim)


def test_claims_of_a_dead_process_are_free_at_once(tmp_path: Path) -> None:
    make_store(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    first, second = open_store(tmp_path, "a", 100), open_store(tmp_path, "b", 100)
    first.claim("g")
    dead = ProcessIdentity(current_process().host, process.pid, "1")
    set_owner(tmp_path, "g.1", dead)
    assert second.claim("g") == Claim("g", 2)


def test_a_process_with_the_number_of_a_dead_one_is_another(tmp_path: Path) -> None:
    me = current_process()
    assert not me.has_ended()
    assert ProcessIdentity(me.host, me.pid, "1").has_ended()
    assert not ProcessIdentity("another machine", me.pid, "1").has_ended()


def test_a_zombie_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    from antlm_bench.sweeps.process_identity import read_start_time

    identity = ProcessIdentity(current_process().host, process.pid, read_start_time(process.pid))
    assert not identity.has_ended()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert identity.has_ended()
    process.communicate()


def test_claims_expire_on_the_observers_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)
    first, second = open_store(tmp_path, "a", 10), open_store(tmp_path, "b", 10)
    claim = first.claim("g")
    set_owner(tmp_path, "g.1", ELSEWHERE)
    os.utime(tmp_path / "claims" / "g.1", (5, 5))  # the owner's clock means nothing
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert second.claim("g") is None
    now += 59
    assert second.claim("g") is None
    first.renew(claim)
    now += 59
    assert second.claim("g") is None
    now += 61
    assert second.claim("g") == Claim("g", 2)


def test_claims_of_an_ended_worker_are_free(tmp_path: Path) -> None:
    make_store(tmp_path)
    driver = open_store(tmp_path, "driver-1")
    first, again = open_store(tmp_path, "w-0", 100), open_store(tmp_path, "w-0", 100)
    other = open_store(tmp_path, "w-1", 100)
    first.claim("g")
    again.claim("h")
    for claim in ("g.1", "h.1"):
        set_owner(tmp_path, claim, ELSEWHERE)
    assert other.claim("g") is None
    driver.append_event(Event("ended", worker="w-0"))
    other.read_new_events()
    assert other.claim("g") == Claim("g", 2)
    assert other.claim("h") == Claim("h", 2)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"worker": "x"}',
        '{"process": {"pid": 1}}',
        '{"worker": "x", "process": {"host": 1, "pid": "x", "start_time": ""}}',
    ],
)
def test_a_claim_without_a_readable_owner_expires(tmp_path: Path, content: str) -> None:
    make_store(tmp_path)
    (tmp_path / "claims" / "g.1").write_text(content)
    store = open_store(tmp_path, "a", 0.01)
    assert store.claim("g") is None
    time.sleep(0.1)
    assert store.claim("g") == Claim("g", 2)


def test_a_link_is_a_claim_that_expires(tmp_path: Path) -> None:
    make_store(tmp_path)
    (tmp_path / "claims" / "g.1").symlink_to(tmp_path / "nowhere")
    store = open_store(tmp_path, "a", 0.01)
    assert store.claim("g") is None
    time.sleep(0.1)
    assert store.claim("g") == Claim("g", 2)
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_reached_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path)
    store, other = open_store(tmp_path, "a"), open_store(tmp_path, "b")
    other.claim("g")

    def fail(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "lstat", fail)
    with pytest.raises(RunError, match=r"claims/g: cannot be created: Stale file handle"):
        store.claim("g")


@pytest.mark.parametrize("text", ["abc", "0", "-1", "nan", "inf"])
def test_a_wrong_heartbeat_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_HEARTBEAT", text)
    with pytest.raises(UsageError, match=f"ANTLM_BENCH_HEARTBEAT: '{text}' is not a number"):
        FolderStore(tmp_path)


def test_equal_names_get_journals_of_their_own(tmp_path: Path) -> None:
    make_store(tmp_path)
    names = [FolderStore(tmp_path).join("w-0") for _ in range(3)]
    assert names == ["w-0", "w-0.2", "w-0.3"]


def test_events_are_read_once_and_not_from_oneself(tmp_path: Path) -> None:
    make_store(tmp_path)
    first, second = open_store(tmp_path, "a"), open_store(tmp_path, "b")
    first.append_event(Event("started", "u", 1, worker="a"))
    assert [event.event for event in second.read_new_events()] == ["started"]
    first.append_event(Event("done", "u", 1, worker="a", seconds=1.5, part="parts/u.1"))
    assert second.read_new_events() == [
        Event("done", "u", 1, worker="a", seconds=1.5, part="parts/u.1")
    ]
    assert second.read_new_events() == first.read_new_events() == []


def test_torn_and_damaged_lines_are_ignored(tmp_path: Path) -> None:
    journal = tmp_path / "a.jsonl"
    journal.write_bytes(
        b'{"event":"done","unit":"u","attempt":1}\n'
        b"\xff\x00\n[1]\n{}\n"
        b'{"event":"done","attempt":"1"}\n'
        b'{"event":"later version","unit":"u"}\n'
        b'{"event":"done","unit":"v"'
    )
    reader = JournalReader(tmp_path)
    assert [event.unit for event in reader.read_new_events()] == ["u"]
    with journal.open("ab") as file:
        file.write(b',"attempt":2}\n')
    assert [event.unit for event in reader.read_new_events()] == ["v"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"event":[],"unit":"u","attempt":1}',
        b'{"event":"done","unit":"u","attempt":1,"seconds":NaN}',
        b'{"event":"done","unit":"u","attempt":1,"seconds":1e400}',
        b'{"event":"started","unit":"u","attempt":1,"time":-1e300}',
        b'{"event":"started","unit":"u","attempt":-1}',
        b'{"event":"started","unit":"u","attempt":1000000000000}',
        b'{"event":"started","unit":"u","attempt":1,"claim":"../../x"}',
        b'{"event":"started","unit":"u","attempt":1,"claim":"\\u0000"}',
    ],
)
def test_events_with_impossible_values_are_ignored(line: bytes) -> None:
    good = encode_event(Event("done", "v", 1))
    assert [event.unit for event in decode_events(line + b"\n" + good)] == ["v"]


def test_a_short_write_does_not_damage_the_next_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = JournalWriter(tmp_path, "a")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
    with pytest.raises(RunError, match="No space left"):
        writer.append(Event("done", "u", 1))
    monkeypatch.undo()
    writer.append(Event("done", "v", 1), Event("done", "w", 1))
    assert [event.unit for event in JournalReader(tmp_path).read_new_events()] == ["v", "w"]


def test_an_event_survives_its_line() -> None:
    event = Event("failed", "u", 3, 1.5, 2.0, "w", "n", 7, "c", "p", "é\n", "l", True)
    assert decode_events(encode_event(event)) == [event]


def test_attempts_get_folders_of_their_own(tmp_path: Path) -> None:
    make_store(tmp_path)
    first, second = open_store(tmp_path, "a"), open_store(tmp_path, "b")
    event = Event("started", "u")
    assert first.start_attempt(event, 0) == (replace(event, attempt=1), tmp_path / "parts" / "u.1")
    assert second.start_attempt(event, 0) == (replace(event, attempt=2), tmp_path / "parts" / "u.2")
    assert second.read_new_events() == [replace(event, attempt=1)]


def test_finished_chunks_pass_to_the_next_attempt(tmp_path: Path) -> None:
    make_store(tmp_path)
    store = open_store(tmp_path, "a")
    _, part = store.start_attempt(Event("started", "u"), 0)
    (part / "partial").mkdir()
    (part / "partial" / "chunk").write_text("x")
    (part / ".lock").write_text("1")
    store.start_attempt(Event("started", "u"), 1)  # an attempt that computed nothing
    (tmp_path / "parts" / "u.2" / "partial" / "chunk").unlink()
    (tmp_path / "parts" / "u.2" / "partial").rmdir()
    _, third = store.start_attempt(Event("started", "u"), 2)
    assert (third / "partial" / "chunk").read_text() == "x"
    assert not (third / ".lock").exists()


def test_only_parts_with_content_are_published(tmp_path: Path) -> None:
    make_store(tmp_path)
    store = open_store(tmp_path, "a")
    _, part = store.start_attempt(Event("started", "u"), 0)
    assert store.end_attempt(Event("done", "u", 1)).part == ""
    assert not part.exists()
    _, part = store.start_attempt(Event("started", "u"), 1)
    (part / "run.json").write_text("{}")
    assert store.end_attempt(Event("done", "u", 2)).part == "parts/u.2"
    assert store.find_part("parts/u.2") == part


def test_names_of_parts_lead_nowhere_else(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        FolderStore(tmp_path).find_part("parts/../../x.1")


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "sweep")
    (tmp_path / "elsewhere").mkdir()
    for name in ("journals", "claims", "parts", "logs"):
        (tmp_path / "sweep" / name).rmdir()
        (tmp_path / "sweep" / name).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(RunError, match="link"):
            FolderStore(tmp_path / "sweep").join("w")
        with pytest.raises(RunError, match="link"):
            store.create()
        (tmp_path / "sweep" / name).unlink()
        (tmp_path / "sweep" / name).mkdir()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_sweep_survives_its_file() -> None:
    first = make_unit("sleep", 1)
    second = make_unit("sleep", 2, needs=[first.id])
    last = make_unit("collect", 3, waits_for=[first.id, second.id])
    sweep = replace(make_sweep(first, second, last), executors={"slurm": {"cpus": 2}})
    assert decode_sweep(encode_sweep(sweep), "x") == sweep


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema":1,"name":"x","groups":[[]]}',
        '{"schema":1,"name":"x","groups":[[{"kind":"score"}]]}',
        '{"schema":1,"name":"x","groups":[[{"kind":"score","stage":{},"model":"m",'
        '"needs":[],"waits_for":[]}]]}',
        '{"schema":1,"name":"x","groups":[[{"kind":"score","stage":"s","model":"m","arguments":[],'
        '"needs":[],"waits_for":[]}]]}',
        '{"schema":[],"name":"x","groups":[]}',
        '{"schema":2,"name":"x","groups":[]}',
    ],
)
def test_a_damaged_sweep_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(RunError, match=r"sweep\.json: (damaged|has the schema 2)"):
        FolderStore(tmp_path).read_sweep()


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not the folder of a sweep"):
        FolderStore(tmp_path).read_sweep()
