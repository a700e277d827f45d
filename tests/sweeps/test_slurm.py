"""The executor `slurm` on a real Slurm of two nodes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sweeps.fake_units import make_unit
from sweeps.slurm_cluster import SlurmCluster
from sweeps.slurm_sweeps import (
    TIMEOUT,
    check_result,
    count_units,
    list_events,
    list_tasks,
    make_folder,
    run_on_slurm,
    start_cluster,
    start_driver,
    wait_until,
)

from antlm_bench.cli.app import run as run_command_line
from antlm_bench.commands.sweep import read_sweep_status
from antlm_bench.errors import BenchError, RunError
from antlm_bench.sweeps.executors import EXECUTORS, ExecutorSettings
from antlm_bench.sweeps.slurm import SlurmTask, describe_task


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with start_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def list_live_tasks(cluster: SlurmCluster) -> list[str]:
    ended = ("COMPLETED", "CANCELLED", "FAILED")
    return sorted(task for task, state in list_tasks(cluster) if state not in ended)


# ---- what a sweep does


@pytest.mark.long
def test_a_sweep_runs_on_two_nodes(cluster: SlurmCluster, tmp_path: Path) -> None:
    folder = tmp_path / "a sweep, 100%"
    units = make_folder(folder, number=30, seconds=0.1)
    status = run_on_slurm(folder, *units, max_size=4, workers=4)
    assert status.is_complete
    check_result(folder, units)
    assert {event["node"] for event in list_events(folder, "done")} == {"n0", "n1"}
    assert set(count_units(folder, "started").values()) == {1}
    assert not list_live_tasks(cluster)


@pytest.mark.long
def test_workers_wait_in_the_queue_and_ctrl_c_cancels_all(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    make_folder(tmp_path, number=4, seconds=60, max_size=1)
    driver = start_driver(tmp_path, workers=4)
    wait_until(lambda: len(read_sweep_status(tmp_path).running) == 2, "both nodes have a unit")
    assert {row.node for row in read_sweep_status(tmp_path).running} == {"n0", "n1"}
    states = sorted(state for _, state in list_tasks(cluster) if state in ("PENDING", "RUNNING"))
    assert states == ["PENDING", "PENDING", "RUNNING", "RUNNING"]
    driver.send_signal(signal.SIGINT)
    assert driver.wait(TIMEOUT) == 130
    assert read_sweep_status(tmp_path).counts["sleep"] == {"waiting": 4}
    assert len(list_events(tmp_path, "stopped")) == 2
    assert not list_live_tasks(cluster)


@pytest.mark.long
def test_failed_units_name_their_node_and_log(cluster: SlurmCluster, tmp_path: Path) -> None:
    del cluster
    status = run_on_slurm(tmp_path, make_unit("fail", 1), make_unit("sleep", 2), retries=0)
    [row] = status.failed
    assert row.node in ("n0", "n1")
    assert "item 1: the data is bad" in (tmp_path / row.log).read_text()


@pytest.mark.long
def test_workers_outlive_the_command_that_starts_them(
    cluster: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = make_folder(tmp_path, number=12, seconds=0.1)
    assert not run_on_slurm(tmp_path, *units, max_size=4, wait=False).is_complete
    assert "Slurm: job" in capsys.readouterr().err
    wait_until(lambda: not list_live_tasks(cluster), "the workers end by themselves")
    check_result(tmp_path, units)


@pytest.mark.long
def test_a_second_run_uses_the_workers_of_the_first(
    cluster: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = make_folder(tmp_path, number=30, seconds=0.2)
    run_on_slurm(tmp_path, *units, max_size=4, wait=False)
    first = list_live_tasks(cluster)
    run_on_slurm(tmp_path, *units, max_size=4, workers=2)
    assert "workers of an earlier run go on" in capsys.readouterr().err
    check_result(tmp_path, units)
    assert {name.partition("_")[0] for name, _ in list_tasks(cluster)} >= {first[0].split("_")[0]}
    assert not list_live_tasks(cluster)
    workers = {event["worker"] for event in list_events(tmp_path, "started")}
    assert workers <= {"r1-0", "r1-1"}


# ---- interruptions


def interrupt_worker(
    folder: Path, cluster: SlurmCluster, interrupt: Callable[[str, str], object]
) -> None:
    """Interrupt the only worker of a sweep, and check that it goes on after a time in the queue.

    interrupt: (task, node) -> ...
    """
    units = make_folder(folder, number=12, seconds=0.2)
    driver = start_driver(folder, workers=1)
    wait_until(lambda: list_events(folder, "done"), "a unit is done")
    [task] = list_live_tasks(cluster)
    interrupt(task, list_events(folder, "done")[0]["node"])
    assert driver.wait(TIMEOUT) == 0
    check_result(folder, units)
    assert len(list_events(folder, "stopped")) == 1
    journals = {path.name for path in (folder / "journals").iterdir()}
    assert journals == {"driver.jsonl", "r1-0.jsonl", "r1-0.2.jsonl"}  # no worker was replaced


@pytest.mark.long
def test_a_warned_worker_returns_to_the_queue(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Slurm warns before the time limit as `scancel --batch --signal=USR1` does."""
    interrupt_worker(
        tmp_path,
        cluster,
        lambda task, _: cluster.run("scancel", "--batch", "--signal=USR1", task),
    )


@pytest.mark.slow
def test_a_requeued_worker_goes_on(cluster: SlurmCluster, tmp_path: Path) -> None:
    interrupt_worker(tmp_path, cluster, lambda task, _: cluster.run("scontrol", "requeue", task))


@pytest.mark.long
def test_a_preempted_worker_goes_on(cluster: SlurmCluster, tmp_path: Path) -> None:
    urgent = ("--partition=urgent", f"--output={tmp_path}/urgent.out", "--wrap=hostname")
    interrupt_worker(
        tmp_path, cluster, lambda _, node: cluster.run("sbatch", f"--nodelist={node}", *urgent)
    )
    assert (tmp_path / "urgent.out").read_text()


@pytest.mark.slow
def test_a_worker_at_its_time_limit_returns_to_the_queue(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    del cluster
    units = make_folder(tmp_path, number=100, seconds=1)
    options = {"time": 1, "lines": ["--signal=B:USR1@40"]}
    run_on_slurm(tmp_path, *units, max_size=4, executor_options=options)
    check_result(tmp_path, units)
    assert (tmp_path / "journals" / "r1-0.2.jsonl").exists()
    assert not (tmp_path / "journals" / "r1-2.jsonl").exists()


@pytest.mark.long
def test_of_two_drivers_one_goes_on(cluster: SlurmCluster, tmp_path: Path) -> None:
    units = make_folder(tmp_path)
    drivers = [start_driver(tmp_path), start_driver(tmp_path)]
    assert sorted(driver.wait(TIMEOUT) for driver in drivers) == [0, 3]
    assert "another process carries out this sweep" in (tmp_path / "driver.out").read_text()
    check_result(tmp_path, units)
    assert not list_live_tasks(cluster)


@pytest.mark.long
def test_a_full_disk_on_one_node_leaves_the_units_to_the_other(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    del cluster
    units = make_folder(tmp_path, number=40, seconds=0.05)
    limit = 'if [ "$SLURMD_NODENAME" = n0 ]; then ulimit -f 2; fi'
    run_on_slurm(tmp_path, *units, max_size=4, executor_options={"setup": [limit]})
    check_result(tmp_path, units)
    logs = "".join(path.read_text() for path in (tmp_path / "logs").glob("slurm-*.out"))
    assert "File too large" in logs


# ---- the script


@pytest.mark.long
def test_an_edited_script_is_kept(cluster: SlurmCluster, tmp_path: Path) -> None:
    del cluster
    script = tmp_path / "slurm.sh"
    units = make_folder(tmp_path, number=2, seconds=0)
    run_on_slurm(tmp_path, *units)
    script.write_text(script.read_text().replace("\nexport", "\ntouch edited\nexport", 1))
    script.write_text(script.read_text().replace("--chdir=", f"--chdir={tmp_path} #"))
    more = make_folder(tmp_path, number=3, seconds=0)
    run_on_slurm(tmp_path, *more)
    assert (tmp_path / "edited").exists()
    many = make_folder(tmp_path, number=4, seconds=0)
    with pytest.raises(BenchError, match=r"slurm\.sh: the script was edited, and .* settings"):
        run_on_slurm(tmp_path, *many, retries=7)
    lines = [line for line in script.read_text().splitlines() if "digest" not in line]
    script.write_text("\n".join(lines) + "\n")
    (tmp_path / "edited").unlink()
    run_on_slurm(tmp_path, *many, retries=7)
    assert (tmp_path / "edited").exists()
    check_result(tmp_path, many)


@pytest.mark.long
def test_an_unedited_script_follows_the_settings(cluster: SlurmCluster, tmp_path: Path) -> None:
    del cluster
    units = make_folder(tmp_path, number=2, seconds=0)
    run_on_slurm(tmp_path, *units)
    more = make_folder(tmp_path, number=3, seconds=0)
    options = {"partition": "urgent", "gres": "gpu:1", "mem": "100M", "time": "00:10:00", "cpus": 1}
    run_on_slurm(tmp_path, *more, executor_options=options)
    check_result(tmp_path, more)
    lines = (tmp_path / "slurm.sh").read_text().splitlines()
    for name, value in {**options, "cpus-per-task": options.pop("cpus")}.items():
        assert name == "cpus" or f"#SBATCH --{name}={value}" in lines


@pytest.mark.long
def test_a_person_can_start_more_workers(cluster: SlurmCluster, tmp_path: Path) -> None:
    units = make_folder(tmp_path, number=2, seconds=0)
    run_on_slurm(tmp_path, *units)
    more = make_folder(tmp_path, number=8, seconds=0.1)
    cluster.run("sbatch", "--array=0-1", str(tmp_path / "slurm.sh"))
    wait_until(lambda: not list_live_tasks(cluster), "the workers end")
    check_result(tmp_path, more)


# ---- errors


@pytest.mark.long
def test_a_refusal_of_sbatch_is_shown(
    cluster: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del cluster
    make_folder(tmp_path)
    command = ["run", str(tmp_path), "--executor", "slurm", "--workers", "2"]
    assert run_command_line([*command, "--executor-option", "partition=nowhere"]) == 3
    error = capsys.readouterr().err
    assert "sbatch refused the job: invalid partition specified: nowhere" in error
    assert error.count("error:") == 1


def test_slurm_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="not installed here: sbatch, squeue, scancel"):
        EXECUTORS["slurm"].open(ExecutorSettings(tmp_path, num_workers=1))


@pytest.mark.parametrize(
    ("squeue_code", "message"),
    [(0, "sbatch refused the job: no such account"), (1, "Slurm does not answer: no such acc")],
)
def test_a_refusal_is_told_from_a_slurm_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue_code: int, message: str
) -> None:
    programs = {"sbatch": "echo 'sbatch: error: no such account' >&2; exit 1"}
    programs |= {"squeue": f"exit {squeue_code}", "scancel": "exit 0"}
    for name, command in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    executor = EXECUTORS["slurm"].open(ExecutorSettings(tmp_path / "sweep", num_workers=1))

    with pytest.raises(RunError, match=message) as error:
        executor.start(["w-0"])

    assert ("scontrol ping" in error.value.hint) == bool(squeue_code)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": None}, r"--workers: the executor slurm needs the number of workers"),
        ({"devices": ("0",)}, r"--devices: Slurm chooses the devices"),
        ({"options": {"partitoin": "x"}}, r"unknown key 'partitoin': did you mean 'partition'\?"),
        ({"options": {"cpus": "many"}}, r"executor slurm: cpus: .*integer"),
        ({"options": {"cpus": 0}}, r"executor slurm: cpus: 0 is not more than 0"),
        (
            {"options": {"lines": "constraint=a100"}},
            "'constraint=a100' is not an option",
        ),
        ({"options": {"account": "a\nb"}}, r"executor slurm: account: the value has a line break"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(BenchError, match=message) as error:
        EXECUTORS["slurm"].open(ExecutorSettings(tmp_path, **{"num_workers": 1, **settings}))
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("task", "state", "detail"),
    [
        (SlurmTask("1_0", "PENDING", "Resources"), "waiting", "PENDING (Resources)"),
        (SlurmTask("1_0", "COMPLETING", "None"), "running", "COMPLETING"),
        (SlurmTask("1_0", "COMPLETED", "None"), "ended", ""),
        (SlurmTask("1_0", "TIMEOUT", "TimeLimit"), "ended", "Slurm says TIMEOUT (TimeLimit)"),
        (None, "ended", "it has left the queue of Slurm"),
    ],
)
def test_states_of_slurm_are_translated(task: SlurmTask | None, state: str, detail: str) -> None:
    assert describe_task(task).state == state
    assert describe_task(task).detail == detail


@pytest.mark.long
def test_a_slurm_that_does_not_answer_changes_no_state(
    cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path, number=1, seconds=60)
    command = (sys.executable, str(Path(__file__).with_name("fake_units.py")))
    settings = ExecutorSettings(
        tmp_path, num_workers=1, options={"poll_seconds": 0.1}, worker_command=command
    )
    executor = EXECUTORS["slurm"].open(settings)
    executor.start(["w-0"])
    wait_until(lambda: executor.poll()["w-0"].state == "running", "the worker runs")
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        time.sleep(0.2)
        assert executor.poll()["w-0"].state == "running"
    executor.stop()
    assert executor.poll()["w-0"].state == "ended"
    assert not list_live_tasks(cluster)
