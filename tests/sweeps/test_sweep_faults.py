"""Workers, drivers and disks that fail at random moments: nothing is lost, nothing counts twice."""

from __future__ import annotations

import collections
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeps.fake_units import make_store, make_sweep, make_unit

from antlm_bench.commands.sweep import read_sweep_status
from antlm_bench.sweeps.status import SweepState
from antlm_bench.sweeps.store import FolderStore
from antlm_bench.sweeps.units import Unit

HERE = Path(__file__).parent
TIMEOUT = 120
"""Seconds after which a process that should have ended fails the test."""


@pytest.fixture(autouse=True)
def _quick_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTLM_BENCH_HEARTBEAT", "0.1")


def start_worker(folder: Path, name: str, **kwargs) -> subprocess.Popen:
    with (folder / f"{name}.out").open("wb") as out:
        return subprocess.Popen(
            [sys.executable, str(HERE / "fake_units.py"), str(folder), "--name", name],
            stdout=out,
            stderr=out,
            **kwargs,
        )


def start_driver(folder: Path, workers: int = 2) -> subprocess.Popen:
    with (folder / "driver.out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, str(HERE / "fake_driver.py"), str(folder), str(workers)],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def list_worker_processes(folder: Path) -> list[int]:
    """Return the processes that work on a sweep's folder."""
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and any(b"fake_units" in word for word in words):
            processes.append(int(path.parent.name))
    return processes


def make_folder(folder: Path, number: int = 40, seconds: float = 0.02, max_size: int = 4):
    """Make a sweep of short units and one that collects them all."""
    folder.mkdir(exist_ok=True)
    units = [make_unit("sleep", index, model="m", seconds=seconds) for index in range(number)]
    ids = [unit.id for unit in units]
    last = make_unit("collect", 0, model="", parts=ids, waits_for=ids)
    make_store(folder, *units, last, max_size=max_size)
    return [*units, last]


def check_result(folder: Path, units: list[Unit]) -> None:
    """Check that each unit counts once, and that the collected result has each exactly once."""
    status = read_sweep_status(folder)
    assert status.is_complete, (status.counts, status.failed)
    assert status.count("done") == len(units)
    numbers = (folder / "runs" / "all").read_text().split()
    assert numbers == [str(index) for index in range(len(units) - 1)]


def count_events(folder: Path, name: str) -> collections.Counter[str]:
    lines = [
        line for path in (folder / "journals").iterdir() for line in path.read_text().splitlines()
    ]
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return collections.Counter(each["unit"] for each in events if each["event"] == name)


# ---- kills


def kill_workers(folder: Path, kills: int, seed: int) -> None:
    """Kill workers of a driver, each some time after it has begun its first unit or before."""
    units = make_folder(folder, number=60, seconds=0.03)
    rng = random.Random(seed)
    driver = start_driver(folder)
    num_killed = 0
    while num_killed < kills and driver.poll() is None:
        time.sleep(rng.uniform(0.05, 0.5))
        processes = list_worker_processes(folder)
        if processes:
            os.kill(rng.choice(processes), signal.SIGKILL)
            num_killed += 1
    assert num_killed == kills
    assert driver.wait(TIMEOUT) == 0, (folder / "driver.out").read_text()
    check_result(folder, units)
    assert not list_worker_processes(folder)


def test_killed_workers_are_replaced(tmp_path: Path) -> None:
    kill_workers(tmp_path, 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_workers_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    kill_workers(tmp_path, 4, seed)


def kill_drivers(folder: Path, kills: int, seed: int) -> None:
    units = make_folder(folder, number=60)
    rng = random.Random(seed)
    for _ in range(kills):
        driver = start_driver(folder)
        time.sleep(rng.uniform(0.1, 1.2))
        driver.kill()
        driver.wait()
    driver = start_driver(folder)
    assert driver.wait(TIMEOUT) == 0, (folder / "driver.out").read_text()
    check_result(folder, units)
    wait_until(lambda: not list_worker_processes(folder), "workers without driver end")


def test_a_killed_driver_is_resumed(tmp_path: Path) -> None:
    kill_drivers(tmp_path, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_drivers_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    kill_drivers(tmp_path, 4, seed)


def test_workers_end_when_their_driver_is_killed(tmp_path: Path) -> None:
    make_folder(tmp_path, number=2, seconds=60, max_size=1)
    driver = start_driver(tmp_path)
    wait_until(lambda: len(count_events(tmp_path, "started")) == 2, "both workers have a unit")
    driver.kill()
    driver.wait()
    wait_until(lambda: not list_worker_processes(tmp_path), "workers without driver end")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_driver_stops_its_workers(tmp_path: Path, signum: int, code: int) -> None:
    units = make_folder(tmp_path, number=2, seconds=30, max_size=1)
    driver = start_driver(tmp_path)
    wait_until(lambda: len(count_events(tmp_path, "started")) == 2, "both workers have a unit")
    driver.send_signal(signum)
    assert driver.wait(TIMEOUT) == code
    assert not list_worker_processes(tmp_path)
    assert "the same command continues" in (tmp_path / "driver.out").read_text()
    assert sum(count_events(tmp_path, "stopped").values()) == 2
    status = read_sweep_status(tmp_path)
    assert status.counts["sleep"] == {"waiting": 2}  # neither lost nor failed
    assert len(units) == status.count()


@pytest.mark.slow
def test_scoring_that_is_killed_at_random_moments_ends_with_the_same_bytes(
    tmp_path: Path, make_checkpoint
) -> None:
    from antlm_bench.commands.score import score

    checkpoint, limits, kills = make_checkpoint(), range(500, 506), 20
    units = [
        make_unit("score_suite", limit, model=str(checkpoint), limit=limit) for limit in limits
    ]
    folder = tmp_path / "sweep"
    folder.mkdir()
    make_store(folder, *units)
    rng = random.Random(0)
    driver, killed = start_driver(folder, workers=1), set()
    while len(killed) < kills:
        running = [event for event in list_started(folder) if event["pid"] not in killed]
        if running and driver.poll() is None:
            time.sleep(rng.uniform(0, 0.5))
            killed.add(running[-1]["pid"])
            os.kill(running[-1]["pid"], signal.SIGKILL)
        elif driver.poll() is not None:
            driver = start_driver(folder, workers=1)  # units that were lost three times are failed
        time.sleep(0.05)
    while driver.wait(TIMEOUT) != 0:
        driver = start_driver(folder, workers=1)
    state = SweepState(make_sweep(*units))
    state.apply(FolderStore(folder).read_new_events())
    for unit in units:
        limit = unit.arguments["limit"]
        [run] = score(
            str(checkpoint), "nano", methods="causal", limit=limit, out=tmp_path / "o", device="cpu"
        )
        part = folder / state.units[unit.id].done_event.part
        [file] = (part / "predictions").iterdir()
        assert file.read_bytes() == (Path(run.path) / next(iter(run)).file).read_bytes()
        assert not (part / "partial").exists()


def list_started(folder: Path) -> list[dict]:
    """Return the attempts that have started, oldest first, of workers that may be dead."""
    lines = [
        line for path in (folder / "journals").iterdir() for line in path.read_text().splitlines()
    ]
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return sorted((e for e in events if e["event"] == "started"), key=lambda e: e["time"])


# ---- several at once


def test_of_many_workers_one_gets_each_group(tmp_path: Path) -> None:
    units = make_folder(tmp_path, number=30, seconds=0.01, max_size=1)
    workers = [start_worker(tmp_path, f"w-{index}") for index in range(4)]
    assert [worker.wait(TIMEOUT) for worker in workers] == [0] * 4
    check_result(tmp_path, units)
    assert set(count_events(tmp_path, "started").values()) == {1}


CLAIM_SCRIPT = """
import sys, time
from pathlib import Path
from antlm_bench.sweeps.store import FolderStore
store = FolderStore(Path(sys.argv[1]), 100)
name = store.join("w-" + sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
claims = [claim.id for number in range(20) if (claim := store.claim(f"g{number}"))]
print(*claims, flush=True)
sys.stdin.readline()
"""


def race_for_claims(folder: Path, count: int) -> None:
    """Let processes claim the same groups at the same moment."""
    make_store(folder)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM_SCRIPT, str(folder), str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for index in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
        claims = [claim for process in processes for claim in process.stdout.readline().split()]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert sorted(claims) == sorted(f"g{number}.1" for number in range(20))


def test_processes_that_claim_at_once_get_different_groups(tmp_path: Path) -> None:
    race_for_claims(tmp_path, 4)


@pytest.mark.slow
def test_of_fifty_processes_one_gets_each_group(tmp_path: Path) -> None:
    race_for_claims(tmp_path, 50)


def test_one_of_two_drivers_goes_on(tmp_path: Path) -> None:
    units = make_folder(tmp_path)
    drivers = [start_driver(tmp_path), start_driver(tmp_path)]
    assert sorted(driver.wait(TIMEOUT) for driver in drivers) == [0, 3]
    assert "another process carries out this sweep" in (tmp_path / "driver.out").read_text()
    check_result(tmp_path, units)


# ---- pauses


def test_a_paused_owner_that_wakes_up_gives_way(tmp_path: Path) -> None:
    units = make_folder(tmp_path, number=3, seconds=0.4, max_size=4)
    paused = start_worker(tmp_path, "paused")
    wait_until(lambda: bool(count_events(tmp_path, "started")), "a unit has begun")
    paused.send_signal(signal.SIGSTOP)
    other = start_worker(tmp_path, "other")
    wait_until(
        lambda: any("done" in line for line in read_lines(tmp_path, "other")), "the other goes on"
    )
    paused.send_signal(signal.SIGCONT)
    assert paused.wait(TIMEOUT) in (0, 75)
    assert other.wait(TIMEOUT) == 0
    check_result(tmp_path, units)


def read_lines(folder: Path, worker: str) -> list[str]:
    path = folder / "journals" / f"{worker}.jsonl"
    return path.read_text().splitlines() if path.exists() else []


# ---- disks


def limit_file_size() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does; writes fail with EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))


def test_a_worker_with_a_full_disk_leaves_the_rest_to_others(tmp_path: Path) -> None:
    units = make_folder(tmp_path, number=20, seconds=0)
    command = [sys.executable, str(HERE / "fake_units.py"), str(tmp_path), "--name", "full"]
    worker = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_file_size)
    assert worker.returncode == 1
    assert "RunError" in worker.stderr
    assert "File too large" in worker.stderr
    assert not read_sweep_status(tmp_path).is_complete
    assert start_worker(tmp_path, "w-1").wait(TIMEOUT) == 0
    check_result(tmp_path, units)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        units = make_folder(tmp_path, number=40, seconds=0)
        (tmp_path / "filler").write_bytes(b"x" * 120_000)
        driver = start_driver(tmp_path)
        assert driver.wait(TIMEOUT) != 0
        (tmp_path / "filler").unlink()
        assert start_driver(tmp_path).wait(TIMEOUT) == 0
        check_result(tmp_path, units)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_torn_journals_of_dead_workers_do_no_harm(tmp_path: Path) -> None:
    units = make_folder(tmp_path, number=4, seconds=0)
    torn = b'{"event":"done","unit":"' + units[0].id.encode()
    (tmp_path / "journals" / "w-0.jsonl").write_bytes(torn)
    assert start_worker(tmp_path, "w-0").wait(TIMEOUT) == 0
    check_result(tmp_path, units)
    assert (tmp_path / "journals" / "w-0.jsonl").read_bytes() == torn
