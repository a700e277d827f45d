"""The driver and its local workers, as processes."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from sweeps.fake_units import make_sweep, make_unit

from antlm_bench.commands.sweep import (
    RunSweepOptions,
    _Driver,
    claim_driver,
    read_sweep_status,
    run_sweep,
)
from antlm_bench.errors import RunError, UsageError
from antlm_bench.sweeps.executors import ExecutorRecord, ExecutorSettings, WorkerStatus
from antlm_bench.sweeps.store import FolderStore

WORKER = (sys.executable, str(Path(__file__).with_name("fake_units.py")))


@pytest.fixture(autouse=True)
def _quick_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTLM_BENCH_HEARTBEAT", "0.2")


def run(folder: Path, *units, max_size: int = 64, workers: int = 1, retries: int = 0):
    options = RunSweepOptions(workers=workers, retries=retries, worker_command=WORKER)
    return run_sweep(make_sweep(*units, max_size=max_size), folder, options)


def test_two_workers_carry_out_a_sweep(tmp_path: Path) -> None:
    units = [make_unit("sleep", number, model=f"m{number}", seconds=0.02) for number in range(20)]
    last = make_unit("collect", 0, waits_for=[u.id for u in units], parts=[u.id for u in units])
    status = run(tmp_path, *units, last, workers=2)
    assert status.is_complete
    assert status.counts == {"sleep": {"done": 20}, "collect": {"done": 1}}
    assert (tmp_path / "runs" / "all").read_text() == " ".join(map(str, range(20)))
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"r1-0.log", "r1-1.log"}


def test_failed_units_are_named_and_tried_again(tmp_path: Path) -> None:
    bad, good = make_unit("fail", 1), make_unit("sleep", 2)
    last = make_unit("collect", 0, waits_for=[bad.id, good.id], parts=[bad.id, good.id])
    status = run(tmp_path, bad, good, last, retries=1)
    [row] = status.failed
    assert (row.unit, row.attempts, row.error) == (bad, 2, "item 1: the data is bad")
    assert "item 1: the data is bad" in (tmp_path / row.log).read_text()
    assert (tmp_path / "runs" / "all").read_text() == "2"
    (tmp_path / "repaired").touch()
    assert run(tmp_path, bad, good, last).is_complete
    assert (tmp_path / "runs" / "all").read_text() == "1 2"


def test_workers_that_die_are_started_again(tmp_path: Path) -> None:
    bad = make_unit("crash", 1)
    good = [make_unit("sleep", number) for number in range(3)]
    status = run(tmp_path, bad, *good)
    assert status.counts == {"crash": {"failed": 1}, "sleep": {"done": 3}}
    assert status.failed[0].error == "its worker died 3 times"


def test_workers_that_cannot_work_are_not_started_for_ever(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = RunSweepOptions(workers=2, worker_command=(sys.executable, "-c", "exit(7)"))
    status = run_sweep(make_sweep(make_unit("sleep", 1), max_size=1), tmp_path, options)
    assert status.counts == {"sleep": {"waiting": 1}}
    assert "exit code 7" in capsys.readouterr().err


def test_a_damaged_sweep_file_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"schema":1,"na')
    assert run(tmp_path, make_unit("sleep", 1)).is_complete
    assert read_sweep_status(tmp_path).is_complete


def test_results_that_are_gone_are_computed_again_if_needed(tmp_path: Path) -> None:
    old, new = make_unit("sleep", 1), make_unit("sleep", 2)
    last = make_unit("collect", 0, waits_for=[old.id], parts=[old.id])
    assert run(tmp_path, old, last).is_complete
    shutil.rmtree(tmp_path / "parts" / f"{old.id}.1")
    assert run(tmp_path, old, last).is_complete
    assert not list((tmp_path / "parts").iterdir())  # no unit needs the results any more
    grown = make_unit("collect", 1, waits_for=[old.id, new.id], parts=[old.id, new.id])
    assert run(tmp_path, old, new, grown).is_complete
    assert (tmp_path / "runs" / "all").read_text() == "1 2"


class WorkersOfAScheduler:
    """Workers that outlive the driver: none ever starts."""

    num_workers = 1

    def __init__(self, settings: ExecutorSettings) -> None:
        self.num_stops = 0

    def start(self, workers: Sequence[str]) -> None:
        pass

    def poll(self) -> dict[str, WorkerStatus]:
        return {"r1-0": WorkerStatus("waiting")}

    def stop(self) -> None:
        self.num_stops += 1

    def log_location(self, worker: str) -> str:
        return ""


@pytest.mark.parametrize(("outlive", "num_stops"), [(True, 0), (False, 1)])
def test_a_driver_that_was_paused_leaves_the_workers_of_the_next_one(
    tmp_path: Path, outlive: bool, num_stops: int
) -> None:
    executor = WorkersOfAScheduler(ExecutorSettings(tmp_path))
    executor.start = lambda workers: (tmp_path / "claims" / "driver.2").touch()  # type: ignore
    record = ExecutorRecord("s", "", lambda _: executor, workers_outlive_driver=outlive)
    store = FolderStore(tmp_path)
    store.create()
    driver = _Driver(store, executor, record, RunSweepOptions())
    with pytest.raises(RunError, match="another process took over"):
        driver.run(make_sweep(make_unit("sleep", 1)))
    assert executor.num_stops == num_stops


def test_a_failed_start_leaves_the_workers_of_a_scheduler(tmp_path: Path) -> None:
    executor = WorkersOfAScheduler(ExecutorSettings(tmp_path))

    def fail(workers: Sequence[str]) -> None:
        raise RunError("sbatch refused the job")

    executor.start = fail  # type: ignore
    record = ExecutorRecord("s", "", lambda _: executor, workers_outlive_driver=True)
    store = FolderStore(tmp_path)
    store.create()
    with pytest.raises(RunError, match="sbatch refused"):
        _Driver(store, executor, record, RunSweepOptions()).run(make_sweep(make_unit("sleep", 1)))
    assert executor.num_stops == 0


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    import subprocess

    store = FolderStore(tmp_path, 100)
    store.create()
    code = (
        "from pathlib import Path; from antlm_bench.commands.sweep import claim_driver;"
        "from antlm_bench.sweeps.store import FolderStore;"
        f"claim_driver(FolderStore(Path({str(tmp_path)!r}))); print('claimed', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout and first.stdout.readline() == b"claimed\n"
        with pytest.raises(RunError, match=f"another process .*pid {first.pid}"):
            run(tmp_path, make_unit("sleep", 1))
        first.kill()
    assert run(tmp_path, make_unit("sleep", 1)).is_complete


def test_a_living_driver_with_a_damaged_claim_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path, 100)
    store.create()
    (tmp_path / "claims" / "driver.1").touch()
    silences = iter([0.0, 5.0, 1.0])  # it gave a sign of life between the last two looks
    monkeypatch.setattr(store, "seconds_since_heartbeat", lambda _: next(silences))
    monkeypatch.setattr(store, "claim", lambda _: None)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(RunError, match=r"another process carries out this sweep \(unknown\)"):
        claim_driver(store)


def test_only_schedulers_need_no_driver(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--no-wait"):
        run_sweep(make_sweep(), tmp_path, RunSweepOptions(wait=False))


def test_the_status_needs_no_driver(tmp_path: Path) -> None:
    run(tmp_path, make_unit("fail", 1), make_unit("sleep", 2))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    status = read_sweep_status(tmp_path)
    assert status.counts == {"fail": {"failed": 1}, "sleep": {"done": 1}}
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
