"""The executor `slurm` on a real Slurm of two nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeps.fake_units import make_unit
from sweeps.slurm_cluster import SlurmCluster
from sweeps.slurm_sweeps import (
    check_result,
    count_units,
    list_events,
    list_tasks,
    make_folder,
    read_logs,
    run_on_slurm,
    start_cluster,
    start_driver,
    wait_until,
)

from antlm_bench.commands.sweep import read_sweep_status
from antlm_bench.errors import RunError, UsageError

TIMEOUT = 120


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with start_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def test_a_sweep_runs_on_two_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    folder = tmp_path / "a sweep, 100%"
    units = make_folder(folder, number=30, seconds=0.2)
    status = run_on_slurm(folder, *units, max_size=4, workers=4)
    check_result(folder, units)
    assert status.is_complete
    assert {event["node"] for event in list_events(folder, "done")} == {"n0", "n1"}
    assert set(count_units(folder, "started").values()) == {1}
    assert not [task for task in list_tasks(cluster) if task[1] in ("PENDING", "RUNNING")]


def test_running_units_show_their_node(cluster: SlurmCluster, tmp_path: Path) -> None:
    make_folder(tmp_path, number=4, seconds=60, max_size=1)
    driver = start_driver(tmp_path, workers=4)
    wait_until(lambda: len(read_sweep_status(tmp_path).running) == 2, "both nodes have a unit")
    status = read_sweep_status(tmp_path)
    assert {row.node for row in status.running} == {"n0", "n1"}
    states = sorted(state for _, state in list_tasks(cluster) if state in ("PENDING", "RUNNING"))
    assert states == ["PENDING", "PENDING", "RUNNING", "RUNNING"]
    driver.send_signal(signal.SIGINT)
    assert driver.wait(TIMEOUT) == 130
    assert read_sweep_status(tmp_path).counts["sleep"] == {"waiting": 4}
    assert len(list_events(tmp_path, "stopped")) == 2
    assert not [task for task in list_tasks(cluster) if task[1] in ("PENDING", "RUNNING")]
