"""Workers, drivers, nodes and disks of a Slurm that fail at random moments: nothing is lost, and
nothing counts twice.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeps.slurm_cluster import NODES, SlurmCluster
from sweeps.slurm_sweeps import (
    TIMEOUT,
    WORKER,
    check_result,
    list_events,
    list_tasks,
    make_folder,
    read_logs,
    start_cluster,
    start_driver,
    wait_until,
)

from antlm_bench.sweeps.executors import EXECUTORS, ExecutorSettings


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with start_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def check_end(folder: Path, units: list, driver: subprocess.Popen, cluster: SlurmCluster) -> None:
    """Check the result of a driver that goes on by itself, and that nothing is left behind."""
    assert driver.wait(3 * TIMEOUT) == 0, read_logs(folder)
    check_result(folder, units)
    live = [task for task, state in list_tasks(cluster) if state in ("PENDING", "RUNNING")]
    assert not live


def list_worker_processes(folder: Path) -> list[int]:
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and any(word.endswith(b"fake_units.py") for word in words):
            processes.append(int(path.parent.name))
    return processes


def kill_workers(folder: Path, cluster: SlurmCluster, kills: int, seed: int) -> None:
    units = make_folder(folder, number=60, seconds=0.15)
    rng = random.Random(seed)
    driver = start_driver(folder)
    for _ in range(kills):
        time.sleep(rng.uniform(0.05, 1))
        wait_until(lambda: list_worker_processes(folder), "a worker runs")
        os.kill(rng.choice(list_worker_processes(folder)), signal.SIGKILL)
    assert driver.poll() is None  # the last kill hit a running sweep
    check_end(folder, units, driver, cluster)


@pytest.mark.long
def test_a_killed_worker_is_replaced(cluster: SlurmCluster, tmp_path: Path) -> None:
    kill_workers(tmp_path, cluster, 1, 0)
    assert (tmp_path / "journals" / "r1-2.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_workers_killed_at_random_moments(cluster: SlurmCluster, tmp_path: Path, seed: int) -> None:
    kill_workers(tmp_path, cluster, 4, seed)


def kill_drivers(folder: Path, cluster: SlurmCluster, kills: int, seed: int) -> None:
    units = make_folder(folder, number=60, seconds=0.3)
    rng = random.Random(seed)
    for _ in range(kills):
        driver = start_driver(folder)
        time.sleep(rng.uniform(0.1, 2))
        assert driver.poll() is None
        driver.kill()
        driver.wait()
    check_end(folder, units, start_driver(folder), cluster)
    jobs = {task.partition("_")[0] for task, _ in list_tasks(cluster)}
    assert len(jobs) <= 2  # workers were submitted once; a kill may come between two submissions


@pytest.mark.long
def test_workers_outlive_a_killed_driver(cluster: SlurmCluster, tmp_path: Path) -> None:
    units = make_folder(tmp_path, number=20, seconds=0.3)
    driver = start_driver(tmp_path)
    wait_until(lambda: list_events(tmp_path, "done"), "a unit is done")
    driver.kill()
    driver.wait()
    check_end(tmp_path, units, start_driver(tmp_path), cluster)
    workers = {event["worker"] for event in list_events(tmp_path, "started")}
    assert workers == {"r1-0", "r1-1"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_drivers_killed_at_random_moments(cluster: SlurmCluster, tmp_path: Path, seed: int) -> None:
    kill_drivers(tmp_path, cluster, 4, seed)


def kill_node(folder: Path, cluster: SlurmCluster, seed: int, comes_back: bool) -> None:
    """Kill a node while it carries out a unit."""
    units = make_folder(folder, number=50, seconds=0.2)
    rng = random.Random(seed)
    driver = start_driver(folder)
    wait_until(
        lambda: {event["node"] for event in list_events(folder, "started")} == set(NODES),
        "both nodes work",
    )
    time.sleep(rng.uniform(0, 1))
    node = rng.choice(list(NODES))
    cluster.kill_node(node)
    if comes_back:
        time.sleep(rng.uniform(0, 2))
        cluster.start_node(node)
    check_end(folder, units, driver, cluster)


@pytest.mark.long
def test_units_of_a_lost_node_are_carried_out_elsewhere(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    kill_node(tmp_path, cluster, 0, comes_back=False)


@pytest.mark.slow
@pytest.mark.parametrize("comes_back", [False, True])
@pytest.mark.parametrize("seed", range(1, 11))
def test_nodes_killed_at_random_moments(
    cluster: SlurmCluster, tmp_path: Path, seed: int, comes_back: bool
) -> None:
    kill_node(tmp_path, cluster, seed, comes_back)


@pytest.mark.long
def test_a_dead_node_does_not_keep_the_driver(
    cluster: SlurmCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Slurm notices a dead node after minutes, and shows its jobs as completing until then."""
    monkeypatch.setattr("antlm_bench.sweeps.slurm.STOP_SECONDS", 2)
    make_folder(tmp_path, number=1, seconds=60)
    options = {"poll_seconds": 0.2}
    settings = ExecutorSettings(tmp_path, num_workers=1, options=options, worker_command=WORKER)
    executor = EXECUTORS["slurm"].open(settings)
    executor.start(["w-0"])
    wait_until(lambda: list_events(tmp_path, "started"), "the worker has a unit")
    cluster.kill_node(list_events(tmp_path, "started")[0]["node"])
    executor.stop()
    assert "cancelled; its node may be down" in capsys.readouterr().err
    assert not list_worker_processes(tmp_path)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(cluster: SlurmCluster, tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        units = make_folder(tmp_path, number=40, seconds=0)
        (tmp_path / "filler").write_bytes(b"x" * 180_000)
        assert start_driver(tmp_path).wait(TIMEOUT) != 0
        (tmp_path / "filler").unlink()
        check_end(tmp_path, units, start_driver(tmp_path), cluster)
    finally:
        cluster.run("scancel", "--me")
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
