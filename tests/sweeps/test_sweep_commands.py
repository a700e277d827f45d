"""The commands `run`, `resume`, `status` and `worker`: output, exit codes, signals."""

from __future__ import annotations

import datetime
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sweeps.fake_units import make_store, make_sweep, make_unit

from antlm_bench.cli.app import run as run_command_line
from antlm_bench.commands import sweep as sweep_commands
from antlm_bench.errors import RunError, UsageError
from antlm_bench.reporting.sweep_table import build_sweep_table
from antlm_bench.reporting.writers import FORMATS
from antlm_bench.sweeps.executors import (
    EXECUTORS,
    ExecutorRecord,
    ExecutorSettings,
    LocalExecutor,
    WorkerStatus,
    describe_exit,
    list_gpus,
    start_worker_process,
    stop_worker_processes,
)
from antlm_bench.sweeps.journal import Event
from antlm_bench.sweeps.process_identity import read_start_time
from antlm_bench.sweeps.status import SweepState, build_status
from antlm_bench.sweeps.store import FolderStore
from antlm_bench.sweeps.unit_kinds import describe_unit

WORKER = (sys.executable, str(Path(__file__).with_name("fake_units.py")))


@pytest.fixture(autouse=True)
def _fake_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTLM_BENCH_HEARTBEAT", "0.2")
    options = functools.partial(sweep_commands.RunSweepOptions, worker_command=WORKER)
    monkeypatch.setattr(sweep_commands, "RunSweepOptions", options)


# ---- run


def test_a_complete_sweep_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_store(tmp_path, make_unit("sleep", 1))
    assert run_command_line(["run", str(tmp_path), "--workers", "1"]) == 0
    assert "1" in capsys.readouterr().out
    assert run_command_line(["resume", str(tmp_path)]) == 0


def test_a_failed_unit_ends_with_5_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = make_unit("fail", 7)
    make_store(tmp_path, bad, make_unit("sleep", 1, model="x", needs=[bad.id]))
    assert run_command_line(["run", str(tmp_path), "--workers", "1", "--retries", "0"]) == 5
    out, err = capsys.readouterr()
    assert "item 7: the data is bad" in out
    assert "logs/r1-0.log" in out
    assert "of 2 units, 1 failed, 1 need a failed one" in err


def test_wrong_options_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    make_store(tmp_path, make_unit("sleep", 1))
    for options, text in (
        (["--executor", "slrm"], "unknown executor 'slrm'"),
        (["--executor-option", "partition=gpu"], "no option 'partition'"),
        (["--executor-option", "partition"], "'partition' is not KEY=VALUE"),
        (["--no-wait"], "end with the command that starts them"),
        (["--devices", "0,1", "--workers", "3"], "3 workers on 2 devices"),
        (["--devices", "0,7"], "there is no GPU '7' here"),
    ):
        assert run_command_line(["run", str(tmp_path), *options]) == 2, options
        assert text in capsys.readouterr().err
    assert not list((tmp_path / "journals").iterdir())


SWEEP = """
out = "{out}"
[[score]]
models = ["{model}"]
suites = ["nano"]
{more}
"""


@pytest.mark.parametrize("command", [["plan"], ["run"], ["run", "--dry-run"]], ids=" ".join)
@pytest.mark.parametrize(
    ("out", "more", "code", "text"),
    [
        ("new", '[executor.slurm]\ntme = "1"', 2, "executor.slurm: unknown key 'tme'"),
        ("new", "[executor.slurm]\ncpus = 0", 2, "executor.slurm: cpus: 0 is not more than 0"),
        ("new", '[executor.ray]\nnum_gpus = "x"', 2, "executor.ray: num_gpus: "),
        ("new", '[executor.ray]\naddress = "ray://h"', 2, "executor.ray: address ray://h"),
        ("new", "[executor.local]\nworkers = 2", 2, "executor.local: the executor local has no"),
        ("new", "[executor.slrum]", 2, "unknown executor 'slrum'"),
        ("file", "", 3, "cannot be written: this is a file, not a folder"),
        ("file/below", "", 3, "cannot be created: a part of the path is a file"),
        ("old", "", 3, "cannot be written: this is a link"),
        ("s3://bucket/x", "", 2, "s3://bucket/x is not a folder"),
        ("new\\u0000", "", 3, "the name has a NUL character"),
    ],
)
def test_plan_and_run_refuse_the_same_sweeps(
    tmp_path: Path,
    make_checkpoint: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    out: str,
    more: str,
    code: int,
    text: str,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "logs").symlink_to(tmp_path)
    out = out if ":" in out else f"{tmp_path}/{out}"
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP.format(out=out, model=make_checkpoint(), more=more))
    name, *options = command

    assert run_command_line([name, str(path), *options]) == code

    output, error = capsys.readouterr()
    assert text in " ".join(error.split())
    assert not output
    assert {each.name for each in tmp_path.iterdir()} == {"file", "old", "sweep.toml"}


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, which may become another user")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    """In a child that gives up its rights: root may write everywhere."""
    tmp_path.chmod(0o500)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            FolderStore(tmp_path / "new").check_is_writable()
        except RunError as error:
            os._exit(0 if "permission denied" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_dry_run_checks_the_options_of_run(
    tmp_path: Path, make_checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text(SWEEP.format(out=tmp_path / "new", model=make_checkpoint(), more=""))
    for options, text in (
        (["--no-wait"], "end with the command that starts them"),
        (["--executor-option", "x=1"], "no option 'x'"),
        (["--executor", "slurm"], "needs the number of workers"),
    ):
        assert run_command_line(["run", str(path), "--dry-run", *options]) == 2
        assert text in capsys.readouterr().err

    assert run_command_line(["run", str(path), "--dry-run"]) == 0
    assert "total" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_a_folder_has_the_settings_of_its_executors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The TOML's, of which --executor-option replaces some."""
    opened: list[ExecutorSettings] = []
    monkeypatch.setattr(EXECUTORS, "_targets", dict(EXECUTORS._targets))
    monkeypatch.setattr(EXECUTORS, "_records", {})

    def open_executor(settings: ExecutorSettings) -> LocalExecutor:
        opened.append(settings)
        return LocalExecutor(replace(settings, options={}))

    EXECUTORS.add(ExecutorRecord("hand", "by hand", open_executor))
    store = make_store(tmp_path)
    executors = {"hand": {"partition": "a", "time": datetime.time(4)}, "other": {"x": 1}}
    store.write_sweep(replace(make_sweep(make_unit("sleep", 1)), executors=executors))

    command = ["run", str(tmp_path), "--executor", "hand", "--workers", "1"]
    assert run_command_line([*command, "--executor-option", "partition=b"]) == 0
    assert run_command_line(command) == 0

    assert [dict(settings.options) for settings in opened] == [
        {"partition": "b", "time": "04:00:00"},
        {"partition": "a", "time": "04:00:00"},
    ]


@pytest.mark.parametrize("command", ["run", "status", "worker"])
@pytest.mark.parametrize("kind", ["needs", "waits_for"])
@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ([("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")], "depends on itself"),
        ([("a", "a")], "depends on itself"),
        ([("a", "b"), ("b", "x")], "depends on 'x', which is not in the sweep"),
    ],
    ids=["a circle", "itself", "an absent unit"],
)
def test_a_sweep_that_could_never_end_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    kind: str,
    pairs: list[tuple[str, str]],
    text: str,
) -> None:
    """The file of a person: an id is a hash of the unit's content."""
    ids = {name: make_unit("sleep", 0, model=name).id for name in "abcd"}
    needs = {name: [other for each, other in pairs if each == name] for name in "abcd"}
    units = [
        make_unit("sleep", 0, model=name, **{kind: [ids.get(other, other) for other in others]})
        for name, others in needs.items()
    ]
    make_store(tmp_path, *units)

    assert run_command_line([command, str(tmp_path)]) == 3

    assert text in " ".join(capsys.readouterr().err.split())
    assert not list((tmp_path / "journals").iterdir())


# ---- status


def test_the_status_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, lost, done = make_unit("fail", 1), make_unit("sleep", 2), make_unit("sleep", 3)
    store = make_store(tmp_path, bad, lost, done, make_unit("sleep", 4))
    worker = store.join("w-0")
    claim = store.claim("g")
    assert claim
    started = {"worker": worker, "node": "n1", "claim": claim.id, "time": time.time() - 5}
    for event in (
        Event(
            "failed", bad.id, 1, error="the data is bad", final=True, node="n1", log="logs/w.log"
        ),
        Event("started", lost.id, 1, **started),
        Event("done", done.id, 1, seconds=2.0),
        Event("ended", worker=worker),
    ):
        store.append_event(event)
    assert run_command_line(["status", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"]["stages"]["sleep"] == {"lost": 1, "done": 1, "waiting": 1}
    [failed], [running] = document["failed"], document["running"]
    assert (failed["unit"], failed["error"], failed["node"]) == (bad.id, "the data is bad", "n1")
    assert (running["state"], running["model"]) == ("lost", "m")
    assert 5 <= running["seconds"] < 60


def test_a_claim_that_stands_still_is_lost_in_the_status(tmp_path: Path) -> None:
    unit = make_unit("sleep", 1)
    store = make_store(tmp_path, unit, heartbeat=10)
    store.join("w-0")
    claim = store.claim("g")
    store.append_event(Event("started", unit.id, 1, worker="w-0", claim=claim.id))
    state = SweepState(store.read_sweep())
    state.apply([Event("started", unit.id, 1, worker="w-0", claim=claim.id)])
    assert build_status(store, state).counts["sleep"] == {"running": 1}
    an_hour_ago = time.time() - 3600
    os.utime(tmp_path / "claims" / claim.id, (an_hour_ago, an_hour_ago))
    assert build_status(store, state).counts["sleep"] == {"lost": 1}


def test_the_status_of_a_toml_is_that_of_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    make_store(folder, make_unit("sleep", 1))
    toml = tmp_path / "x.toml"
    toml.write_text(f'out = "{folder}"\n[[score]]\nmodels = ["m"]\nsuites = ["nano"]\n')
    assert run_command_line(["status", str(toml), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["total"]["waiting"] == 1


@pytest.mark.parametrize("command", ["run", "resume", "status", "worker"])
def test_a_folder_without_a_sweep_is_one_clear_error(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line([command, str(tmp_path)]) == 3
    assert "not the folder of a sweep" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_has_no_hint_on_writing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    toml = tmp_path / "x.toml"
    toml.write_text(SWEEP.format(out=tmp_path / "file" / "x", model="m", more=""))
    assert run_command_line(["status", str(toml)]) == 3
    assert "hint: a part of the path is a file: check the path" in capsys.readouterr().err


def test_long_lists_of_failed_units_are_cut_in_tables(tmp_path: Path) -> None:
    units = [make_unit("fail", number) for number in range(60)]
    store = make_store(tmp_path, *units)
    state = SweepState(store.read_sweep())
    state.apply(Event("failed", unit.id, 1, final=True) for unit in units)
    table = build_sweep_table(build_status(store, state))
    [failed] = table.parts
    assert len(failed.rows) == 50
    assert failed.legend == ("10 more: antlm-bench status --json",)
    assert len(json.loads(FORMATS["json"].write(table))["failed"]) == 60


def test_the_arguments_of_a_unit_are_described_in_a_few_words() -> None:
    unit = make_unit("x", 1, suite="blimp", methods=["mlm", "mntp"], options={"a": 1}, shard="")
    assert describe_unit(unit) == "number 1, suite blimp, methods mlm, mntp"


# ---- worker


def start_worker_command(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "antlm_bench", "worker", str(folder), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_worker_command_writes_its_log(tmp_path: Path) -> None:
    make_store(tmp_path, make_unit("no such kind", 1))
    with start_worker_command(tmp_path, "--name", "w-5", "--retries", "0") as worker:
        out, err = worker.communicate(timeout=60)
    assert (worker.returncode, out) == (0, "")
    assert "worker w-5: 0 units done, 1 failed" in err
    assert "unknown unit kind" in (tmp_path / "logs" / "w-5.log").read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stopped_worker_command_ends_as_documented(
    tmp_path: Path, signum: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_HEARTBEAT", "100")
    store = make_store(tmp_path, make_unit("sleep", 0))
    store.join("other")
    assert store.claim(store.read_sweep().groups[0].id)  # so that the worker waits
    with start_worker_command(tmp_path, "--name", "w") as worker:
        assert worker.stderr
        assert "output in" in worker.stderr.readline()
        worker.send_signal(signum)
        _, err = worker.communicate(timeout=60)
    assert worker.returncode == code
    # The signal comes before or after the output is redirected.
    log = tmp_path / "logs" / "w.log"
    assert "the same command continues" in err + (log.read_text() if log.exists() else "")


def test_names_of_workers_cannot_leave_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path, make_unit("sleep", 1))
    assert run_command_line(["worker", str(tmp_path), "--name", "../x"]) == 2
    assert "'../x' is not a name of a worker" in capsys.readouterr().err


# ---- executors


def test_local_workers_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)

    def open_local(**settings) -> tuple[int, int]:
        executor = LocalExecutor(ExecutorSettings(tmp_path, **settings))
        return executor.num_workers, executor.threads

    assert open_local() == (16, 1)
    assert open_local(threads=4) == (4, 4)
    assert open_local(num_workers=3) == (3, 5)
    assert open_local(num_workers=3, threads=2) == (3, 2)


def test_gpus_are_refused_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="no GPU '0' here"):
        LocalExecutor(ExecutorSettings(tmp_path, devices=("0",)))


def test_each_local_worker_has_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    (tmp_path / "logs").mkdir()
    settings = ExecutorSettings(
        tmp_path, devices=("0", "1"), threads=3, worker_command=(sys.executable, "-c", code)
    )
    executor = LocalExecutor(settings)
    assert executor.num_workers == 2
    executor.start(["a", "b"])
    deadline = time.monotonic() + 60
    while any(each.state != "ended" for each in executor.poll().values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (tmp_path / "logs" / "a.log").read_text() == "0 3\n"
    assert (tmp_path / "logs" / "b.log").read_text() == "1 3\n"
    executor.start(["c"])  # in place of the first
    executor.stop()
    assert executor.poll()["c"].state == "ended"


def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-5a")
    assert list_gpus() == ["2", "GPU-5a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert list_gpus() == []


def test_exits_are_described() -> None:
    assert describe_exit(None) == WorkerStatus("running")
    assert describe_exit(0) == WorkerStatus("ended")
    assert describe_exit(3) == WorkerStatus("ended", "exit code 3")
    assert describe_exit(-9) == WorkerStatus("ended", "killed by SIGKILL")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_that_does_not_stop_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antlm_bench.sweeps.executors.STOP_SECONDS", 0.2)
    script = "trap '' TERM; sleep 600 & echo $! > child.new; mv child.new child; wait"
    process = start_worker_process(["bash", "-c", script], tmp_path / "log", os.environ, tmp_path)
    wait_until((tmp_path / "child").exists)
    child = int((tmp_path / "child").read_text())
    stop_worker_processes([process])
    assert process.returncode == -signal.SIGKILL
    wait_until(lambda: read_start_time(child) in ("", "zombie"))


def test_a_strangers_executor_carries_out_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that are started by hand, as a scheduler does: no --parent, another log."""

    class Hand:
        num_workers = 2

        def __init__(self, settings: ExecutorSettings) -> None:
            self.settings, self.processes = settings, {}

        def start(self, workers):
            for worker in workers:
                command = self.settings.build_command(worker)
                self.processes[worker] = subprocess.Popen(command, stderr=subprocess.DEVNULL)

        def poll(self):
            return {name: describe_exit(each.poll()) for name, each in self.processes.items()}

        def stop(self):
            for process in self.processes.values():
                process.kill()
                process.wait()

        def log_location(self, worker):
            return "nowhere"

    monkeypatch.setattr(EXECUTORS, "_targets", dict(EXECUTORS._targets))
    monkeypatch.setattr(EXECUTORS, "_records", {})
    EXECUTORS.add(ExecutorRecord("hand", "by hand", Hand))
    make_store(tmp_path, *(make_unit("sleep", number, model=f"m{number}") for number in range(4)))
    assert run_command_line(["run", str(tmp_path), "--executor", "hand"]) == 0
