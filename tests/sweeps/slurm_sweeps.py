"""Sweeps on a real Slurm: drivers, workers and results, for tests."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sweeps.fake_units import make_store, make_sweep, make_unit
from sweeps.slurm_cluster import SlurmCluster, missing_reason

from antlm_bench.commands.sweep import RunSweepOptions, read_sweep_status, run_sweep
from antlm_bench.sweeps.units import Unit

HERE = Path(__file__).parent
WORKER = (sys.executable, str(HERE / "fake_units.py"))
TIMEOUT = 60
drivers: list[subprocess.Popen[bytes]] = []
"""All that were started: those that still run are killed at the end."""


@contextmanager
def start_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Start a Slurm, and let this process and its children use it. Skips the test without Slurm."""
    if reason := missing_reason():
        pytest.skip(reason)
    with SlurmCluster(folder) as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.config))
        patch.setenv("ANTLM_BENCH_HEARTBEAT", "0.3")
        patch.setenv("PYTHONPATH", str(HERE.parents[1]))
        yield cluster
        cluster.run("scancel", "--me")
        for driver in drivers:
            driver.kill()
            driver.wait()


def run_on_slurm(folder: Path, *units: Unit, max_size: int = 64, workers: int = 2, **options):
    """Carry out a sweep with fake units. options: of RunSweepOptions."""
    executor_options = {"poll_seconds": 0.2, **options.pop("executor_options", {})}
    all_options = RunSweepOptions(
        executor="slurm",
        workers=workers,
        worker_command=options.pop("worker_command", WORKER),
        executor_options=executor_options,
        **options,
    )
    return run_sweep(make_sweep(*units, max_size=max_size), folder, all_options)


def start_driver(folder: Path, workers: int = 2) -> subprocess.Popen[bytes]:
    with (folder / "driver.out").open("ab") as out:
        driver = subprocess.Popen(
            [sys.executable, str(HERE / "fake_driver.py"), str(folder), str(workers), "0", "slurm"],
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    drivers.append(driver)
    return driver


def make_folder(
    folder: Path, number: int = 40, seconds: float = 0.02, max_size: int = 4
) -> list[Unit]:
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
    assert status.is_complete, (status.counts, status.failed, read_logs(folder))
    assert status.count("done") == len(units)
    assert not status.running
    numbers = (folder / "runs" / "all").read_text().split()
    assert numbers == [str(index) for index in range(len(units) - 1)]


def read_logs(folder: Path) -> str:
    paths = [*folder.glob("driver.out"), *sorted(folder.glob("logs/slurm-*.out"))]
    return "\n".join(f"== {path.name}\n{path.read_text()[-2000:]}" for path in paths)


def list_events(folder: Path, name: str) -> list[dict]:
    """Return the events of a kind in all journals, oldest first."""
    lines = [
        line for path in (folder / "journals").iterdir() for line in path.read_text().splitlines()
    ]
    events = [json.loads(line) for line in lines if line.endswith("}")]
    return sorted((each for each in events if each["event"] == name), key=lambda e: e["time"])


def count_units(folder: Path, name: str) -> collections.Counter[str]:
    return collections.Counter(event["unit"] for event in list_events(folder, name))


def list_tasks(cluster: SlurmCluster, states: str = "all") -> list[tuple[str, str]]:
    """Return (id, state) of the tasks that Slurm has."""
    output = cluster.run("squeue", "--array", f"--states={states}", "--noheader", "--format=%i %T")
    return [(task, state) for task, state in map(str.split, output.splitlines())]


def wait_until(condition: Callable[[], object], what: str, seconds: float = TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)
