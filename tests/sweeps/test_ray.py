"""The executor `ray` on a real Ray of two nodes: sweeps, options, faults."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sweeps.fake_units import make_store, make_sweep, make_unit
from sweeps.ray_cluster import RayCluster, can_hide_folders, start_cluster

from antlm_bench.commands.sweep import RunSweepOptions, read_sweep_status, run_sweep
from antlm_bench.declarations import list_declarations
from antlm_bench.errors import BenchError, DeclarationError, RunError, UsageError
from antlm_bench.sweeps.executors import EXECUTORS, ExecutorSettings
from antlm_bench.sweeps.status import SweepStatus
from antlm_bench.sweeps.units import Sweep, Unit, group_units

HERE = Path(__file__).parent
WORKER = (sys.executable, str(HERE / "fake_units.py"))
TIMEOUT = 180
"""Seconds after which a process that should have ended fails the test."""


@pytest.fixture(autouse=True)
def _quick_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTLM_BENCH_HEARTBEAT", "0.2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with start_cluster(num_nodes=2) as cluster:
        yield cluster


def run(cluster: RayCluster, sweep: Sweep, folder: Path, **options: Any) -> SweepStatus:
    """Carry out a sweep of fake units. options: of the executor."""
    options = {"address": cluster.address, "scratch": str(folder.parent / "scratch"), **options}
    return run_sweep(
        sweep, folder, RunSweepOptions("ray", executor_options=options, worker_command=WORKER)
    )


def make_units(number: int = 40, seconds: float = 0.02) -> list[Unit]:
    """Make short units and one that collects them all."""
    units = [make_unit("sleep", n, model=f"m{n // 4}", seconds=seconds) for n in range(number)]
    ids = [unit.id for unit in units]
    return [*units, make_unit("collect", 0, model="", parts=ids, waits_for=ids)]


def check_result(folder: Path, number: int = 40) -> None:
    """Check that all units are done, and that each counts once in the collected result."""
    status = read_sweep_status(folder)
    assert status.is_complete, (status.counts, status.failed)
    assert (folder / "runs" / "all").read_text().split() == list(map(str, range(number)))
    assert not list(folder.glob("parts/.*"))


# ---- options


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_gpu": 1}, DeclarationError, "unknown key 'num_gpu'.*num_gpus"),
        ({"num_cpus": -1}, DeclarationError, "num_cpus"),
        ({"address": "ray://host:10001"}, UsageError, "ray job submit"),
    ],
)
def test_wrong_options_are_refused_without_a_cluster(
    tmp_path: Path, options: dict[str, Any], error: type[BenchError], text: str
) -> None:
    with pytest.raises(error, match=text):
        EXECUTORS["ray"].open(ExecutorSettings(tmp_path, options=options))


def test_devices_are_rays_choice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Ray chooses the GPUs"):
        EXECUTORS["ray"].open(ExecutorSettings(tmp_path, devices=("0",)))


def test_a_missing_ray_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'antlm-bench\[ray\]'"):
        EXECUTORS["ray"].open(ExecutorSettings(tmp_path))


def test_a_cluster_that_cannot_be_reached_is_a_run_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))  # no other cluster is found there
    with pytest.raises(RunError, match="no Ray cluster can be reached"):
        EXECUTORS["ray"].open(ExecutorSettings(tmp_path))


def test_workers_that_fit_on_no_node_are_refused(cluster: RayCluster, tmp_path: Path) -> None:
    import ray

    with pytest.raises(UsageError, match=r"no node .* \(CPU 1, GPU 1\)"):
        run(cluster, make_sweep(make_unit("sleep", 1)), tmp_path / "sweep", num_gpus=1)
    ray.shutdown()
    assert not (tmp_path / "sweep").exists()


# ---- sweeps


@pytest.mark.parametrize("shared", [True, False])
def test_two_nodes_carry_out_a_sweep(cluster: RayCluster, tmp_path: Path, shared: bool) -> None:
    sweep = make_sweep(*make_units(), bad := make_unit("fail", 7), max_size=4)
    folder = tmp_path / "sweep"
    status = run(cluster, sweep, folder, shared=shared)
    [row] = status.failed
    assert (row.unit, row.error, row.attempts) == (bad, "item 7: the data is bad", 2)
    assert "item 7: the data is bad" in (folder / row.log).read_text()
    (folder / "repaired").touch()
    assert run(cluster, sweep, folder, shared=shared).is_complete
    check_result(folder)
    assert list((tmp_path / "scratch").glob("*")) == []  # nothing stays on the nodes


def score_with_ray(
    cluster: RayCluster, folder: Path, model: Path, pairs: Path, page: str = "", **options: Any
) -> Path:
    """Score a generated suite and a user's file, in two shards each, and report on them.

    page: file of the report; "" = no report. Return the run folder.
    """
    settings = {"device": "cpu", "limit": 200}
    units = [
        Unit(
            "score",
            "score",
            str(model),
            {"suite": suite, "methods": ["causal"], "options": settings, "shard": f"{n}/2"},
        )
        for suite in ("mine", str(pairs))
        for n in (1, 2)
    ]
    ids = tuple(unit.id for unit in units)
    last = Unit("collect", "collect", str(model), {"out": "runs/model"}, waits_for=ids)
    report = Unit("report", "report", "", {"html": page}, waits_for=(last.id,))
    options = {"address": cluster.address, **options}
    status = run_sweep(
        Sweep("real", group_units(iter([*units, last, *([report] if page else [])]))),
        folder,
        RunSweepOptions("ray", workers=1, executor_options=options),
    )
    assert status.is_complete, status.failed
    assert not page or "model" in (folder / page).read_text()
    return folder / "runs" / "model"


def read_run(folder: Path) -> dict[str, Any]:
    """Return the content of a run folder, without the time at which it was made."""
    document = json.loads((folder / "run.json").read_text())
    assert document["manifest"].pop("created")
    files = {path.name: path.read_bytes() for path in (folder / "predictions").iterdir()}
    return {"run.json": document, **files}


@pytest.fixture
def inputs(make_checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A checkpoint and a file of pairs, in the folder of the driver, which also has the declaration
    of a suite `mine`.
    """
    driver_dir = tmp_path / "driver"
    model, pairs = driver_dir / "model", driver_dir / "mine.csv"
    shutil.copytree(make_checkpoint(), model)
    rows = [f"The dog sees it {n}.,The dog see it {n}." for n in range(150)]
    pairs.write_text("\n".join(["good,bad", *rows]))
    suite = driver_dir / "declarations" / "tasks" / "mine.toml"
    suite.parent.mkdir(parents=True)
    text = list_declarations("tasks")["nano"].read_text()
    suite.write_text(text.replace('name = "nano"', 'name = "mine"'))
    monkeypatch.setenv("ANTLM_BENCH_PATH", str(driver_dir / "declarations"))
    return model, pairs


@pytest.mark.long
@pytest.mark.parametrize("page", ["", pytest.param("report.html", marks=pytest.mark.slow)])
def test_a_node_without_the_drivers_files_scores_as_score_does(
    cluster: RayCluster, tmp_path: Path, inputs: tuple[Path, Path], page: str
) -> None:
    if not can_hide_folders():
        pytest.skip("mount namespaces are not permitted here")
    from antlm_bench.commands.score import score

    driver_dir, scratch = tmp_path / "driver", tmp_path / "scratch"
    resource = f"hides {driver_dir}"
    cluster.add_node_with_mount(driver_dir, resource, "1m")
    options = {"resources": {resource: 1}, "shared": False, "scratch": str(scratch)}
    run_dir = score_with_ray(cluster, driver_dir / "sweep", *inputs, page, **options)
    suites = ["mine", str(inputs[1])]
    score(str(inputs[0]), suites, methods="causal", out=tmp_path / "one", limit=200, device="cpu")
    assert read_run(run_dir) == read_run(tmp_path / "one")
    # provenance.json states the worker's own command; no other file names its node's folders.
    written = set((driver_dir / "sweep").rglob("*.json"))
    written -= set((driver_dir / "sweep").rglob("provenance.json"))
    assert str(scratch) not in "".join(path.read_text() for path in written)
    assert list(scratch.glob("*")) == []


@pytest.mark.slow
def test_nodes_with_a_shared_folder_score_as_score_does(
    cluster: RayCluster, tmp_path: Path, inputs: tuple[Path, Path]
) -> None:
    from antlm_bench.commands.score import score

    run_dir = score_with_ray(cluster, tmp_path / "driver" / "sweep", *inputs)
    suites = ["mine", str(inputs[1])]
    score(str(inputs[0]), suites, methods="causal", out=tmp_path / "one", limit=200, device="cpu")
    assert read_run(run_dir) == read_run(tmp_path / "one")


# ---- faults


def start_driver(cluster: RayCluster, folder: Path, shared: bool) -> subprocess.Popen:
    options = {
        "address": cluster.address,
        "shared": shared,
        "scratch": str(folder.parent / "scratch"),
    }
    command = [sys.executable, str(HERE / "fake_driver.py"), str(folder), "2", "0", "ray"]
    with (folder / "driver.out").open("ab") as out:
        return subprocess.Popen(
            [*command, json.dumps(options)], stdout=out, stderr=out, start_new_session=True
        )


def list_workers(folder: Path) -> list[int]:
    """Return the processes of workers of a sweep, and the Ray tasks that started them."""
    processes = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        is_here = any(word.startswith(str(folder.parent)) for word in words)
        if is_here and WORKER[1] in words:
            processes |= {int(path.parent.name), parent} - {1}
    return sorted(processes)


def wait_for_workers(folder: Path, driver: subprocess.Popen) -> list[int]:
    deadline = time.monotonic() + TIMEOUT
    while not (processes := list_workers(folder)) and driver.poll() is None:
        assert time.monotonic() < deadline, (folder / "driver.out").read_text()
        time.sleep(0.05)
    return processes


def make_folder(folder: Path, number: int, seconds: float) -> None:
    folder.mkdir()
    make_store(folder, *make_units(number, seconds), max_size=4)


def finish(driver: subprocess.Popen, folder: Path, number: int) -> None:
    assert driver.wait(TIMEOUT) == 0, (folder / "driver.out").read_text()
    check_result(folder, number)
    assert list((folder.parent / "scratch").glob("*/*/*/sweep/parts/*")) == []


def kill_workers(cluster: RayCluster, folder: Path, kills: int, shared: bool, seed: int) -> None:
    """Kill workers, or the Ray tasks that started them, at random moments."""
    number = 20 + 20 * kills
    make_folder(folder, number, seconds=0.1)
    rng = random.Random(seed)
    driver, num_killed = start_driver(cluster, folder, shared), 0
    while num_killed < kills and driver.poll() is None:
        wait_for_workers(folder, driver)
        time.sleep(rng.uniform(0, 0.7))
        if processes := list_workers(folder):
            os.kill(rng.choice(processes), signal.SIGKILL)
            num_killed += 1
    assert num_killed == kills
    finish(driver, folder, number)


@pytest.mark.long
def test_killed_workers_are_replaced(cluster: RayCluster, tmp_path: Path) -> None:
    kill_workers(cluster, tmp_path / "sweep", 1, False, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_workers_killed_at_random_moments(cluster: RayCluster, tmp_path: Path, seed: int) -> None:
    kill_workers(cluster, tmp_path / "sweep", 2, seed % 2 == 0, seed)


def kill_drivers(cluster: RayCluster, folder: Path, kills: int, shared: bool, seed: int) -> None:
    number = 20 + 20 * kills
    make_folder(folder, number, seconds=0.1)
    rng = random.Random(seed)
    for _ in range(kills):
        driver = start_driver(cluster, folder, shared)
        wait_for_workers(folder, driver)
        time.sleep(rng.uniform(0, 1.5))
        driver.kill()
        driver.wait()
    finish(start_driver(cluster, folder, shared), folder, number)
    deadline = time.monotonic() + TIMEOUT
    while list_workers(folder):
        assert time.monotonic() < deadline, "workers do not end without their driver"
        time.sleep(0.1)


@pytest.mark.long
def test_a_killed_driver_is_resumed(cluster: RayCluster, tmp_path: Path) -> None:
    kill_drivers(cluster, tmp_path / "sweep", 1, True, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_drivers_killed_at_random_moments(cluster: RayCluster, tmp_path: Path, seed: int) -> None:
    kill_drivers(cluster, tmp_path / "sweep", 2, seed % 2 == 0, seed)


def kill_nodes(cluster: RayCluster, folder: Path, kills: int, shared: bool, seed: int) -> None:
    """Kill nodes at random moments, and add another one for each."""
    number = 20 + 20 * kills
    make_folder(folder, number, seconds=0.1)
    rng = random.Random(seed)
    driver = start_driver(cluster, folder, shared)
    for _ in range(kills):
        wait_for_workers(folder, driver)
        time.sleep(rng.uniform(0, 1))
        cluster.kill_node(rng.randrange(len(cluster.nodes)))
        cluster.add_node()
    finish(driver, folder, number)


@pytest.mark.long
def test_the_work_of_a_killed_node_is_done_again(cluster: RayCluster, tmp_path: Path) -> None:
    kill_nodes(cluster, tmp_path / "sweep", 1, False, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_nodes_killed_at_random_moments(cluster: RayCluster, tmp_path: Path, seed: int) -> None:
    kill_nodes(cluster, tmp_path / "sweep", 2, seed % 2 == 0, seed)


@pytest.mark.long
@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stopped_driver_stops_its_workers(
    cluster: RayCluster, tmp_path: Path, shared: bool
) -> None:
    folder = tmp_path / "sweep"
    make_folder(folder, number=2, seconds=100)
    driver = start_driver(cluster, folder, shared)
    deadline = time.monotonic() + TIMEOUT
    while read_sweep_status(folder).count("running") == 0:
        assert time.monotonic() < deadline, (folder / "driver.out").read_text()
        time.sleep(0.05)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(TIMEOUT) == 75, (folder / "driver.out").read_text()
    assert not list_workers(folder)
    assert read_sweep_status(folder).counts["sleep"] == {"waiting": 2}  # neither lost nor failed
    assert "stopped" in "".join(path.read_text() for path in folder.glob("journals/*"))


@pytest.mark.slow
def test_the_store_at_the_driver_is_started_again(cluster: RayCluster, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    make_folder(folder, 40, seconds=0.1)
    driver = start_driver(cluster, folder, shared=False)
    wait_for_workers(folder, driver)
    time.sleep(1)
    actors = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if path.read_bytes().startswith(b"ray::StoreActor")
    ]
    for process in actors:
        os.kill(process, signal.SIGKILL)
    assert actors
    finish(driver, folder, 40)


@pytest.mark.slow
def test_the_work_of_a_node_with_a_full_disk_is_done_elsewhere(
    cluster: RayCluster, tmp_path: Path
) -> None:
    if not can_hide_folders():
        pytest.skip("mount namespaces are not permitted here")
    folder, scratch = tmp_path / "sweep", tmp_path / "scratch"
    scratch.mkdir()
    cluster.add_node_with_mount(scratch, "full", "100k")
    units = [make_unit("fill", n, size=300_000, seconds=0.5) for n in range(12)]
    ids = [unit.id for unit in units]
    last = make_unit("collect", 0, parts=ids, waits_for=ids)
    status = run(cluster, make_sweep(*units, last, max_size=1), folder, shared=False)
    assert status.is_complete, status.failed  # a full disk is no failed attempt
    check_result(folder, 12)
    assert "the disk is full" in "".join(path.read_text() for path in folder.glob("logs/*"))


def test_a_node_without_the_folder_names_the_setting(tmp_path: Path) -> None:
    from antlm_bench.sweeps.ray_executor import RayOptions, WorkerTask, supervise_worker

    settings = ExecutorSettings(tmp_path / "absent", worker_command=WORKER)
    task = WorkerTask("w-0", settings, tmp_path, {}, RayOptions(), "x")
    with pytest.raises(RunError, match="shared=false"):
        supervise_worker(task, None)
