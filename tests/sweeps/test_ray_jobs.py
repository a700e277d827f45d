"""`ray job submit` of a sweep, on a real cluster with Ray's dashboard, which runs the jobs."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from antlm_bench.sweeps.status import build_status, load_state
from antlm_bench.sweeps.store import FolderStore

SECONDS = 300
MISSING = [
    name
    for name in ("ray", "aiohttp_cors", "opencensus", "colorful", "virtualenv")
    if importlib.util.find_spec(name) is None
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"pip install 'ray[default]': {', '.join(MISSING)}"),
]
SWEEP = """
out = "{out}"
[[score]]
models = ["{model}"]
suites = ["nano"]
options = {{ limit = {limit}, device = "cpu" }}
"""


class JobServer:
    """A head whose dashboard takes jobs."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as first, socket.socket() as second:
            for each in (first, second):
                each.bind(("127.0.0.1", 0))
            port, self.port = first.getsockname()[1], second.getsockname()[1]
        ports = [f"--port={port}", f"--dashboard-port={self.port}", "--min-worker-port=0"]
        ports.append("--max-worker-port=0")
        command = self.build_command("start", "--head", *ports, "--include-dashboard=true")
        options = ["--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}", "--block"]
        self.environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        )

    @staticmethod
    def build_command(*words: str) -> list[str]:
        return [sys.executable, "-m", "ray.scripts.scripts", *words]

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + SECONDS
        while self.call("list")[0]:
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.5)

    def call(self, action: str, *words: str) -> tuple[int, str]:
        """Run `ray job ACTION`. Return its exit code and output."""
        command = self.build_command("job", action, f"--address=http://127.0.0.1:{self.port}")
        finished = subprocess.run(
            [*command, *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=self.environment,
        )
        return finished.returncode, finished.stdout + finished.stderr

    def submit(self, sweep: Path, *options: str) -> tuple[int, str]:
        words = [sys.executable, "-m", "antlm_bench", "run", str(sweep), "--executor", "ray"]
        return self.call("submit", *options, "--", *words)

    def shut_down(self) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def jobs() -> Iterator[JobServer]:
    # Ray's sockets need a short path. Its processes may still write when they are removed.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        server = JobServer(Path(folder))
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.shut_down()


def write_sweep(folder: Path, model: Path, limit: int = 1) -> Path:
    path = folder / "sweep.toml"
    path.write_text(SWEEP.format(out=folder / "out", model=model, limit=limit))
    return path


def read_events(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "out" / "journals").iterdir())


def test_a_job_carries_out_a_sweep(
    jobs: JobServer, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    code, output = jobs.submit(write_sweep(tmp_path, make_checkpoint()))

    assert code == 0, output
    assert "succeeded" in output
    store = FolderStore(tmp_path / "out")
    assert build_status(store, load_state(store)).is_complete


def test_a_job_with_a_failed_unit_fails(
    jobs: JobServer, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_sweep(tmp_path, make_checkpoint())
    path.write_text(path.read_text().replace('["nano"]', '["nano", "pairs.csv"]'))
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("good,bad\n,\n")
    path.write_text(path.read_text().replace("pairs.csv", str(pairs)))

    code, output = jobs.submit(path)

    assert code != 0
    assert "failed with exit code" in output


def test_a_stopped_job_stops_its_workers(
    jobs: JobServer, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_sweep(tmp_path, make_checkpoint("masked"), limit=1000)
    assert jobs.submit(path, "--no-wait", "--submission-id=stopped")[0] == 0
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "out").exists() or '"started"' not in read_events(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.2)

    code, output = jobs.call("stop", "stopped")

    assert code == 0, output
    events = read_events(tmp_path)
    assert '"event":"stopped"' in events or '"event":"done"' in events
    assert '"event":"ended"' in events
