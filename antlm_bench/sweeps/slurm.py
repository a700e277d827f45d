"""The executor `slurm`: workers are tasks of job arrays, which outlive the command `run`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antlm_bench.errors import RunError, UsageError
from antlm_bench.runs.folder_io import make_folder
from antlm_bench.runs.provenance import EXECUTOR_VARIABLE
from antlm_bench.sweeps import slurm_script
from antlm_bench.sweeps.executors import ExecutorRecord, ExecutorSettings, WorkerStatus

ENDED_STATES = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
)
WAITING_STATES = (
    "PENDING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
)
STOP_SECONDS = 45.0
"""How long cancelled jobs may take to end: Slurm kills them after its KillWait, 30 by default."""
NAME_PLACEHOLDER = "NAME-OF-THE-WORKER"


@dataclass(frozen=True, slots=True)
class SlurmTask:
    """A task of a job array, as squeue shows it."""

    id: str
    """12_0, or 12 for a job without an array."""
    state: str
    reason: str

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED_STATES

    @property
    def can_go_on(self) -> bool:
        """Whether it waits or runs, and is not about to end."""
        return not self.has_ended and self.state != "COMPLETING"


class SlurmExecutor:
    """Workers are tasks of job arrays that run the script slurm.sh of the sweep's folder.

    Tasks that an earlier `run` has left behind are used before new ones are submitted. They are
    found by the name of the job, which only this sweep has.
    """

    def __init__(self, settings: ExecutorSettings) -> None:
        """Raises DeclarationError, UsageError, or RunError if Slurm is not installed here."""
        self.settings = settings
        self.options = slurm_script.read_settings(settings.options, slurm_script.SlurmSettings)
        if settings.devices:
            raise UsageError(
                "Slurm chooses the devices of its jobs",
                location="--devices",
                hint="--executor-option gres=gpu:1 gives each worker a GPU",
            )
        if settings.num_workers is None:
            raise UsageError(
                "the executor slurm needs the number of workers",
                location="--workers",
                hint="each worker is a job of an array, e.g. --workers 8",
            )
        slurm_script.check_slurm_is_installed()
        self.num_workers = settings.num_workers
        self.script = settings.sweep_dir / "slurm.sh"
        self.job_name = slurm_script.name_job("antlm", settings.sweep_dir)
        self._task_ids: dict[str, str] = {}
        """Worker -> id of its task."""
        self._statuses: dict[str, WorkerStatus] = {}
        self._last_poll = 0.0

    def start(self, workers: Sequence[str]) -> None:
        """Use tasks that no worker has, and submit an array for the others.

        Raises UsageError for a script that was edited, and RunError if sbatch refuses it.
        """
        tasks = self._query_tasks()
        unused_ids = [
            task.id
            for task in sorted(tasks or (), key=lambda task: task.state in WAITING_STATES)
            if task.can_go_on and task.id not in self._task_ids.values()
        ]
        adopted = dict(zip(workers, unused_ids, strict=False))
        if adopted:
            names = ", ".join(adopted.values())
            print(f"Slurm: workers of an earlier run go on: {names}", file=sys.stderr)
        new_workers = list(workers[len(adopted) :])
        self._task_ids.update(adopted)
        if new_workers:
            make_folder(self.script.parent / "logs")
            slurm_script.write_script(self.script, self._build_script())
            job = slurm_script.submit_script(
                self.script, new_workers, array=f"0-{len(new_workers) - 1}"
            )
            self._task_ids |= {name: f"{job}_{index}" for index, name in enumerate(new_workers)}
            print(f"Slurm: job {job} has {len(new_workers):,} workers", file=sys.stderr)
        self._statuses |= {worker: WorkerStatus("waiting") for worker in workers}
        self._last_poll = 0.0

    def poll(self) -> Mapping[str, WorkerStatus]:
        """Return the state of every worker, at most `poll_seconds` old if Slurm answers."""
        if time.monotonic() - self._last_poll >= self.options.poll_seconds:
            tasks = self._query_tasks()
            self._last_poll = time.monotonic()
            if tasks is not None:
                tasks_by_id = {task.id: task for task in tasks}
                for worker, task_id in self._task_ids.items():
                    if self._statuses[worker].state != "ended":
                        self._statuses[worker] = describe_task(tasks_by_id.get(task_id))
        return dict(self._statuses)

    def stop(self) -> None:
        """Cancel all tasks of the sweep and wait for their end, except on nodes that are down.

        Raises RunError if tasks go on, or if Slurm does not answer.
        """
        deadline = time.monotonic() + STOP_SECONDS
        cancelled: set[str] = set()
        while True:
            tasks = self._query_tasks()
            live = {task.id: task for task in tasks or () if not task.has_ended}
            if tasks is not None and not live:
                break
            if new := live.keys() - cancelled:
                slurm_script.run_slurm_command("scancel", *sorted(new))
                cancelled |= new
            if time.monotonic() > deadline:
                names = ", ".join(live) or self.job_name
                if tasks is None or any(task.can_go_on for task in live.values()):
                    raise RunError(
                        "Slurm does not answer" if tasks is None else "the workers do not end",
                        location=f"Slurm job {names}",
                        hint=f"look at them: squeue --me --name={self.job_name}",
                    )
                print(f"Slurm: {names} cancelled; its node may be down", file=sys.stderr)
                break
            time.sleep(min(1.0, self.options.poll_seconds))
        self._last_poll = 0.0

    def log_location(self, worker: str) -> str:
        """Return the file with the output of the script that runs a worker."""
        task_id = self._task_ids.get(worker, "*")
        return str(self.settings.sweep_dir / "logs" / f"slurm-{task_id}.out")

    def _query_tasks(self) -> list[SlurmTask] | None:
        """Return the tasks of the sweep, ended ones for some minutes; None if Slurm does not
        answer.
        """
        options = ["--me", f"--name={self.job_name}", "--array", "--states=all", "--noheader"]
        output = slurm_script.run_slurm_command("squeue", *options, "--format=%i|%T|%r")
        if output is None:
            return None
        return [
            SlurmTask(*map(str.strip, line.split("|")))
            for line in output.splitlines()
            if line.count("|") == 2
        ]

    def _build_script(self) -> list[str]:
        settings, options = self.settings, self.options
        output = settings.sweep_dir / "logs" / "slurm-%A_%a.out"
        cpus = options.cpus or settings.threads or 1
        directives = slurm_script.list_directives(
            options, self.job_name, output, ntasks=1, cpus_per_task=cpus
        )
        command = shlex.join(settings.build_command(NAME_PLACEHOLDER))
        return [
            "#!/bin/bash",
            "# The workers of a sweep: each task of a job array is one. You may change this file:",
            "# the next `antlm-bench run` then uses it. To start four more workers by hand:",
            f"#   {shlex.join(['sbatch', '--array=0-3', str(self.script)])}",
            *directives,
            "",
            *options.setup,
            f"export OMP_NUM_THREADS={settings.threads or cpus} {EXECUTOR_VARIABLE}=slurm",
            'names=("$@")',
            "name=${names[${SLURM_ARRAY_TASK_ID:-0}]:-slurm-$SLURM_JOB_ID}",
            "",
            *slurm_script.list_run_lines(
                command.replace(NAME_PLACEHOLDER, '"$name"'), "The worker"
            ),
        ]


def describe_task(task: SlurmTask | None) -> WorkerStatus:
    """Return the state of a worker by its task; None = Slurm has forgotten it."""
    if task is None:
        return WorkerStatus("ended", "it has left the queue of Slurm")
    text = task.state if task.reason in ("", "None") else f"{task.state} ({task.reason})"
    if task.has_ended:
        return WorkerStatus("ended", "" if task.state == "COMPLETED" else f"Slurm says {text}")
    return WorkerStatus("waiting" if task.state in WAITING_STATES else "running", text)


def _check_options(options: Mapping[str, Any], location: str) -> None:
    slurm_script.read_settings(options, slurm_script.SlurmSettings, location)


SLURM = ExecutorRecord(
    "slurm",
    "tasks of a job array of Slurm",
    SlurmExecutor,
    _check_options,
    workers_outlive_driver=True,
)
