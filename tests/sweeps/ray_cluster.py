"""A Ray cluster of processes of this machine. Skips tests where it cannot be started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 90


class RayCluster:
    """A head without CPUs, on which drivers run, and nodes with one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else Ray warns at each start
        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.address = str(self._cluster.address)
        self.nodes: list[Any] = []
        self._hidden: list[subprocess.Popen[bytes]] = []

    def add_node(self) -> None:
        self.nodes.append(self._cluster.add_node(num_cpus=1))

    def kill_node(self, index: int) -> None:
        """Kill a node, as if its machine had lost power."""
        self._cluster.remove_node(self.nodes.pop(index), allow_graceful=False)

    def add_node_with_mount(self, folder: Path, resource: str, size: str) -> None:
        """Start a node that sees an empty file system of this size in the place of a folder.

        resource: of this node, 2 of it. size: as of `mount -t tmpfs`.
        """
        ray = Path(sys.executable).with_name("ray")
        start = (
            f"{ray} start --address={self.address} --num-cpus=1 --disable-usage-stats --block "
            f"--resources='{{\"{resource}\": 2}}'"
        )
        script = f"mount -t tmpfs -o size={size} none {folder} && exec {start}"
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._hidden.append(process)
        deadline = time.monotonic() + START_SECONDS
        while not self.has_resource(resource):
            assert process.poll() is None and time.monotonic() < deadline, (
                "the node has not started"
            )
            time.sleep(0.2)

    def has_resource(self, name: str) -> bool:
        import ray

        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        try:
            return any(node["Alive"] and node["Resources"].get(name) for node in ray.nodes())
        finally:
            ray.shutdown()

    def shut_down(self) -> None:
        for process in self._hidden:
            process.terminate()
            process.wait()
        self._cluster.shutdown()


@contextmanager
def start_cluster(num_nodes: int) -> Iterator[RayCluster]:
    """Start a cluster for the tests inside this context."""
    pytest.importorskip("ray", reason="ray is not installed")
    cluster = RayCluster()
    try:
        for _ in range(num_nodes):
            cluster.add_node()
        yield cluster
    finally:
        cluster.shut_down()


def can_hide_folders() -> bool:
    """Return whether this process may start others with mounts of their own."""
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
