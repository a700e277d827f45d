"""Sweeps at scale: 100,000 units of a fake kind that sleeps for 10 ms.

    python benchmarks/scale.py [--units 100000] [--run-units 2000] [--ray]

Prints, with the limit of each:

- plan: seconds and memory of `antlm-bench plan` on a sweep of that many finetunings, 5 tasks of 20
  checkpoints, when its texts have to be counted and when they are in the cache;
- status: seconds of `antlm-bench status` over a sweep of which half is done;
- driver: peak memory of `run` on that sweep, and the seconds until it starts a worker;
- local: overhead per unit with two workers of this machine, measured on --run-units units with
  groups of 64 and of 1. It is the wall time of the workers, without their start, minus the time
  that they slept, per unit of a worker;
- with --ray, that on a Ray of this machine instead, with and without a shared folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from antlm_bench.commands.sweep import RunSweepOptions, run_sweep
from antlm_bench.runs.provenance import peak_memory_bytes
from antlm_bench.sweeps.calibration import save_random_model
from antlm_bench.sweeps.journal import Event, encode_event
from antlm_bench.sweeps.store import FolderStore
from antlm_bench.sweeps.unit_kinds import UnitContext, UnitKind
from antlm_bench.sweeps.units import Sweep, Unit, group_units
from antlm_bench.sweeps.worker import Worker, open_store

SLEEP_SECONDS = 0.01
MAX_PLAN_SECONDS, MAX_PLAN_MEGABYTES = 10.0, 500
MAX_STATUS_SECONDS, MAX_DRIVER_MEGABYTES, MAX_OVERHEAD_MILLISECONDS = 3.0, 500, 20
NUM_WORKERS = 2


def sleep(unit: Unit, context: UnitContext) -> None:
    """Carry out a unit of the fake kind."""
    del unit
    time.sleep(SLEEP_SECONDS)
    (context.part_dir / "result").write_bytes(b"1")


KINDS = {"fake": UnitKind("fake", sleep)}


def make_sweep(num_units: int, group_size: int = 64) -> Sweep:
    """Make a sweep: 1,000 units per checkpoint (at most), and one that collects each checkpoint."""

    def make_units() -> Iterator[Unit]:
        for start in range(0, num_units, 1000):
            model = f"org/model@chck_{start}M"
            units = [
                Unit("fake", "score", model, {"task": f"task-{n}", "methods": ["mlm"]})
                for n in range(start, min(start + 1000, num_units))
            ]
            yield from units
            ids = tuple(unit.id for unit in units)
            yield Unit("fake", "collect", model, {"out": model}, waits_for=ids)

    return Sweep("scale", group_units(make_units(), group_size))


def write_half_done(folder: Path, sweep: Sweep, num_workers: int = 100) -> None:
    """Write the folder of a sweep of which 100 workers have finished a half."""
    store = FolderStore(folder)
    store.create()
    store.write_sweep(sweep)
    units = list(sweep.units)
    half = units[: len(units) // 2]
    for number in range(num_workers):
        lines = []
        for unit in half[number::num_workers]:
            started = Event(
                "started",
                unit.id,
                1,
                time.time(),
                0.0,
                f"r1-{number}",
                "node",
                1,
                f"{unit.id}-64.1",
            )
            lines.append(encode_event(started))
            done = Event(
                "done", unit.id, 1, time.time(), 1.0, f"r1-{number}", "node", 1, "", "parts/x.1"
            )
            lines.append(encode_event(done))
        (folder / "journals" / f"r1-{number}.jsonl").write_bytes(b"".join(lines))


def write_plan(folder: Path, num_units: int, num_models: int = 20, num_tasks: int = 5) -> Path:
    """Write a sweep of finetunings, with its checkpoints and texts. Return its TOML."""
    save_random_model(folder / "models" / "0", hidden=64, layers=1)
    for number in range(1, num_models):
        shutil.copytree(folder / "models" / "0", folder / "models" / str(number))
    seeds = list(range(num_units // (num_models * num_tasks)))
    tables = []
    for task in range(num_tasks):
        texts = folder / f"task{task}.csv"
        rows = (f"the cat sleeps {task} {'here ' * (n % 5)},{n % 2}\n" for n in range(1000))
        texts.write_text("text,label\n" + "".join(rows))
        tables.append(
            f"[[finetune]]\nname = 'task{task}'\nmodels = ['{folder}/models/*']\n"
            f"suites = ['{texts}']\nseeds = {seeds}\noptions = {{ valid = '{texts}' }}\n"
        )
    path = folder / "plan.toml"
    path.write_text("".join(tables))
    return path


def measure_plan(path: Path, cache: Path) -> tuple[float, float]:
    """Return the seconds of `antlm-bench plan`, and the memory in MB of its largest process."""
    program = (
        "import resource, subprocess, sys\n"  # small, because ru_maxrss counts the parent, too
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    command = [
        sys.executable,
        "-c",
        program,
        sys.executable,
        "-m",
        "antlm_bench",
        "plan",
        str(path),
    ]
    environment = {**os.environ, "ANTLM_BENCH_CACHE": str(cache)}
    start_time = time.perf_counter()
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    return time.perf_counter() - start_time, float(out)


def measure_status(folder: Path) -> float:
    """Return the seconds of `antlm-bench status`, with the start of the process."""
    start_time = time.perf_counter()
    command = [sys.executable, "-m", "antlm_bench", "status", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start_time


def measure_driver(folder: Path) -> tuple[float, float]:
    """Return the peak memory of a driver in MB, and the seconds until it starts its workers.

    Runs in a process of its own. The workers end at once: what counts is what the driver holds.
    """
    start_time = time.perf_counter()
    sweep = FolderStore(folder).read_sweep()
    read_seconds = time.perf_counter() - start_time
    command = (sys.executable, "-c", "print(1)")
    start_time = time.time()
    run_sweep(sweep, folder, RunSweepOptions(workers=1, worker_command=command))
    first_log = min((folder / "logs").iterdir(), key=lambda path: path.stat().st_mtime)
    start_seconds = first_log.stat().st_mtime - start_time
    return peak_memory_bytes() / 2**20, read_seconds + start_seconds


def measure_overhead(
    folder: Path,
    num_units: int,
    group_size: int,
    executor: str = "local",
    executor_options: Mapping[str, Any] = MappingProxyType({}),
) -> float:
    """Return the milliseconds of overhead per unit with two workers."""
    sweep = make_sweep(num_units, group_size)
    command = (sys.executable, __file__, "--worker")
    options = RunSweepOptions(
        executor,
        workers=NUM_WORKERS,
        executor_options=executor_options,
        worker_command=command,
    )
    status = run_sweep(sweep, folder, options)
    assert status.is_complete, status
    events = list_events(folder)
    num_done = sum(event.event == "done" for event in events)
    times = [event.time for event in events if event.event in ("started", "done")]
    wall_seconds = max(times) - min(times)
    return 1000 * (wall_seconds * NUM_WORKERS / num_done - SLEEP_SECONDS)


@contextmanager
def start_ray() -> Iterator[str]:
    """Start a Ray of one node with a CPU per worker. Yield its address."""
    from ray.cluster_utils import Cluster

    resources = {"num_cpus": NUM_WORKERS, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    try:
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def list_events(folder: Path) -> list[Event]:
    return FolderStore(folder).read_new_events()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=100_000)
    parser.add_argument("--run-units", type=int, default=2000)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--driver", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.driver:
        print(*measure_driver(options.driver))
        return 0
    failures = 0

    def report(name: str, value: float, unit: str, limit: float) -> None:
        nonlocal failures
        failures += value > limit
        verdict = "ok" if value <= limit else "TOO MUCH"
        print(f"{name:<60} {value:10.2f} {unit:<4} limit {limit:g} {verdict}", flush=True)

    with tempfile.TemporaryDirectory() as root:
        if options.ray:
            with start_ray() as address:
                for shared, group_size in ((True, 64), (True, 1), (False, 64), (False, 1)):
                    folder = Path(root) / f"run-{shared}-{group_size}"
                    settings = {"address": address, "shared": shared, "scratch": root}
                    overhead = measure_overhead(
                        folder, options.run_units, group_size, "ray", settings
                    )
                    name = f"Ray, {'' if shared else 'not '}shared, groups of {group_size}"
                    report(name, overhead, "ms", MAX_OVERHEAD_MILLISECONDS)
            return 1 if failures else 0
        path = write_plan(Path(root), options.units)
        for state in ("counting", "counted before"):
            seconds, megabytes = measure_plan(path, Path(root) / "cache")
            name = f"plan of {options.units:,} units, {state}"
            report(name, seconds, "s", MAX_PLAN_SECONDS)
            report(f"memory of the {name}", megabytes, "MB", MAX_PLAN_MEGABYTES)
        folder = Path(root) / "sweep"
        write_half_done(folder, make_sweep(options.units))
        seconds = min(measure_status(folder) for _ in range(3))
        report(f"status of {options.units:,} units", seconds, "s", MAX_STATUS_SECONDS)
        command = [sys.executable, __file__, "--driver", str(folder)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        megabytes, start_seconds = map(float, out.split())
        report(f"memory of the driver of {options.units:,}", megabytes, "MB", MAX_DRIVER_MEGABYTES)
        print(f"  it reads the folder and starts its first worker in {start_seconds:.2f} s")
        for group_size in (64, 1):
            folder = Path(root) / f"run-{group_size}"
            overhead = measure_overhead(folder, options.run_units, group_size)
            name = f"overhead per unit ({options.run_units:,} units, groups of {group_size})"
            report(name, overhead, "ms", MAX_OVERHEAD_MILLISECONDS)
    return 1 if failures else 0


def run_fake_worker(arguments: list[str]) -> None:
    """Run a worker with the fake kind, given the arguments of `antlm-bench worker`."""
    folder, name = Path(arguments[0]), arguments[arguments.index("--name") + 1]
    has_connections = "--connections" in arguments
    connections = arguments[arguments.index("--connections") + 1] if has_connections else ""
    Worker(open_store(folder, connections), name, KINDS).run()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        run_fake_worker(sys.argv[2:])
    else:
        sys.exit(main())
