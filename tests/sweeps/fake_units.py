"""Units that sleep, fail, score, or end their process, and a worker that carries them out.

python fake_units.py DIR --name NAME --retries N [--parent PID]    run a worker, as `antlm-bench
worker` does
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

from antlm_bench.errors import DataError
from antlm_bench.sweeps.store import FolderStore
from antlm_bench.sweeps.unit_kinds import UnitContext, UnitKind
from antlm_bench.sweeps.units import Sweep, Unit, UnitFiles, group_units
from antlm_bench.sweeps.worker import Worker, WorkerOptions, open_store, redirect_output


def sleep(unit: Unit, context: UnitContext) -> None:
    """Sleep `seconds`; write the unit's number to its part."""
    time.sleep(unit.arguments.get("seconds", 0))
    (context.part_dir / "number").write_text(str(unit.arguments["number"]))


def fail(unit: Unit, context: UnitContext) -> None:
    """Fail as long as the sweep's folder has no file `repaired`."""
    if not (context.sweep_dir / "repaired").exists():
        raise DataError("the data is bad", location=f"item {unit.arguments['number']}")
    sleep(unit, context)


def fail_once(unit: Unit, context: UnitContext) -> None:
    """Fail at the first attempt, which leaves a file in the part."""
    if not (context.part_dir / "first").exists():
        (context.part_dir / "first").write_text("x")
        raise ZeroDivisionError("division by zero")
    sleep(unit, context)


def fill(unit: Unit, context: UnitContext) -> None:
    """Write `size` bytes to the part, as `sleep` does."""
    (context.part_dir / "bytes").write_bytes(b"x" * unit.arguments["size"])
    sleep(unit, context)


def crash(unit: Unit, context: UnitContext) -> None:
    """Kill the process."""
    os.kill(os.getpid(), signal.SIGKILL)


def collect(unit: Unit, context: UnitContext) -> None:
    """Write the numbers of all parts to runs/all."""
    parts = context.find_parts(unit.arguments["parts"])
    numbers = sorted(int((part / "number").read_text()) for part in parts)
    (context.sweep_dir / "runs" / "all").write_text(" ".join(map(str, numbers)))


def score_suite(unit: Unit, context: UnitContext) -> None:
    """Score a checkpoint, as the kind `score` does."""
    from antlm_bench.commands.score import score

    limit = unit.arguments["limit"]
    score(unit.model, "nano", methods="causal", limit=limit, out=context.part_dir, device="cpu")


FAKE_FILES = {
    "fail": UnitFiles(reads=("repaired",)),
    "collect": UnitFiles(writes=("runs/all",)),
}
FAKE_KINDS = {
    name: UnitKind(name, function, list_files=lambda unit: FAKE_FILES.get(unit.kind, UnitFiles()))
    for function in (sleep, fill, fail, fail_once, crash, collect, score_suite)
    for name in [function.__name__]
}


def make_unit(kind: str, number: int, *, model: str = "m", **values: Any) -> Unit:
    """Make a unit; needs and waits_for are in `values`."""
    needs, waits_for = values.pop("needs", ()), values.pop("waits_for", ())
    return Unit(kind, kind, model, {"number": number, **values}, tuple(needs), tuple(waits_for))


def make_sweep(*units: Unit, max_size: int = 64) -> Sweep:
    return Sweep("fake", group_units(iter(units), max_size))


def make_store(folder: Path, *units: Unit, max_size: int = 64, heartbeat: float = 0.1):
    """Make the folder of a sweep."""
    store = FolderStore(folder, heartbeat)
    store.create()
    store.write_sweep(make_sweep(*units, max_size=max_size))
    return store


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--retries", type=int, default=1)
    parser.add_argument("--parent", type=int, default=0)
    parser.add_argument("--connections", default="")
    options = parser.parse_args()
    worker = Worker(
        open_store(options.folder, options.connections),
        options.name,
        FAKE_KINDS,
        WorkerOptions(options.retries, lambda: os._exit(75), options.parent),
    )

    def stop(signum: int, _frame: object) -> None:
        worker.leave()
        os._exit(75)

    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, stop)
    with redirect_output(worker.store.log_path(worker.name)):
        worker.run()


if __name__ == "__main__":
    main()
