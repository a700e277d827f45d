"""Executors start and stop the workers of a sweep, and know nothing of units.

An executor is an object with four methods. Packages add executors through the entry point group
`antlm_bench.executors`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from antlm_bench.errors import RunError, UsageError
from antlm_bench.registry import RecordType, Registry
from antlm_bench.runs.provenance import EXECUTOR_VARIABLE
from antlm_bench.safe_files import open_for_writing

EXECUTOR_OPTION = "--executor-option"
STOP_SECONDS = 30.0
"""How long a worker that was asked to stop may take, e.g. to finish a training step."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What an executor knows about a worker."""

    state: Literal["waiting", "running", "ended"]
    """waiting: the scheduler has not started it yet."""
    detail: str = ""
    """Why it ended or waits, for people; "" = it has done its work."""


@dataclass(frozen=True)
class ExecutorSettings:
    """What an executor is told about a sweep."""

    sweep_dir: Path
    """The sweep's folder, absolute."""
    num_workers: int | None = None
    """None = the executor decides (`Executor.num_workers`)."""
    devices: tuple[str, ...] = ()
    """GPUs by number or id, one worker for each. () = all, or the CPU."""
    threads: int | None = None
    """CPU threads of a worker; None = the cores divided by the workers."""
    retries: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of this executor, e.g. the partition of Slurm."""
    worker_command: tuple[str, ...] = (sys.executable, "-m", "antlm_bench", "worker")
    """The command that runs a worker, without its arguments."""

    def log_path(self, worker: str) -> Path:
        """Return the file with the output of a worker."""
        return self.sweep_dir / "logs" / f"{worker}.log"

    def build_command(self, worker: str) -> list[str]:
        """Return the command line of a worker."""
        arguments = [str(self.sweep_dir), "--name", worker, "--retries", str(self.retries)]
        return [*self.worker_command, *arguments]


class Executor(Protocol):
    """Starts and stops workers.

    A worker is a process that runs the command of `ExecutorSettings.build_command`, on a machine
    that sees the sweep's folder. It ends by itself when all units are settled.
    """

    num_workers: int
    """Number of workers to start."""

    def start(self, workers: Sequence[str]) -> None:
        """Start workers with these names. Called again with new names for workers that died."""
        ...

    def poll(self) -> Mapping[str, WorkerStatus]:
        """Return the state of every worker that was started."""
        ...

    def stop(self) -> None:
        """Stop all workers and wait until they have ended. May be called when all have ended."""
        ...

    def log_location(self, worker: str) -> str:
        """Return where the output of a worker is found, for people."""
        ...


@dataclass(frozen=True, slots=True)
class ExecutorRecord:
    """An executor, as it is registered."""

    name: str
    """The value of `--executor`."""
    summary: str
    """What it is, for lists."""
    open: Callable[[ExecutorSettings], Executor]
    """Check the settings and prepare; start nothing. Raises UsageError or RunError."""
    check_options: Callable[[Mapping[str, Any], str], object] | None = None
    """Check options of this executor on any machine: `plan` runs where no cluster is. Arguments:
    the options, and where they stand, for errors. Raises UsageError or DeclarationError. None = any
    options are accepted until the executor is opened.
    """
    workers_outlive_driver: bool = False
    """Whether workers go on when the command `run` ends, so that it need not wait for them."""


EXECUTORS: Registry[ExecutorRecord] = Registry(
    "executor",
    "antlm_bench.executors",
    {
        "local": "antlm_bench.sweeps.executors:LOCAL",
        "slurm": "antlm_bench.sweeps.slurm:SLURM",
        "ray": "antlm_bench.sweeps.ray_executor:RAY",
    },
    record_type=RecordType(ExecutorRecord),
)


class LocalExecutor:
    """Workers are processes of this machine: one per GPU, or several that share the CPU's cores."""

    def __init__(self, settings: ExecutorSettings) -> None:
        """Raises UsageError for GPUs that are not here, and for more workers than devices."""
        _check_local_options(settings.options, EXECUTOR_OPTION)
        self.settings = settings
        gpus = list_gpus()
        _check_gpus(settings.devices, gpus)
        self.devices = settings.devices or tuple(gpus)
        num_cores = count_cores()
        default = len(self.devices) or max(num_cores // (settings.threads or 1), 1)
        self.num_workers = settings.num_workers or default
        if self.devices and self.num_workers > len(self.devices):
            raise UsageError(
                f"{self.num_workers} workers on {len(self.devices)} devices",
                location="--workers",
                hint="one worker per device; name a device several times to share it",
            )
        self.threads = settings.threads or max(num_cores // self.num_workers, 1)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._device_indices: dict[str, int] = {}

    def start(self, workers: Sequence[str]) -> None:
        """Start processes with these names. Raises RunError."""
        for worker in workers:
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": str(self.threads),
                EXECUTOR_VARIABLE: LOCAL.name,
            }
            if self.devices:
                index = self._choose_device()
                self._device_indices[worker] = index
                environment["CUDA_VISIBLE_DEVICES"] = self.devices[index]
            command = [*self.settings.build_command(worker), "--parent", str(os.getpid())]
            log = self.settings.log_path(worker)
            self._processes[worker] = start_worker_process(command, log, environment)

    def poll(self) -> Mapping[str, WorkerStatus]:
        """Return the state of every worker."""
        return {
            worker: describe_exit(process.poll()) for worker, process in self._processes.items()
        }

    def stop(self) -> None:
        """Stop all workers with SIGTERM, and with SIGKILL those that do not end."""
        stop_worker_processes(list(self._processes.values()))

    def log_location(self, worker: str) -> str:
        """Return the file with the output of a worker."""
        return str(self.settings.log_path(worker))

    def _choose_device(self) -> int:
        """Return the index of the device with the fewest running workers; of several, the one that
        was used the least.
        """
        used = list(self._device_indices.values())
        running = [
            self._device_indices[worker]
            for worker, process in self._processes.items()
            if worker in self._device_indices and process.poll() is None
        ]
        return min(
            range(len(self.devices)),
            key=lambda index: (running.count(index), used.count(index), index),
        )


def _check_local_options(options: Mapping[str, Any], location: str) -> None:
    if options:
        raise UsageError(
            f"the executor local has no option {next(iter(options))!r}",
            location=location,
            hint="number, devices and threads of its workers: --workers, --devices, --threads",
        )


LOCAL = ExecutorRecord(
    "local", "processes of this machine, per GPU or CPU core", LocalExecutor, _check_local_options
)


def describe_exit(code: int | None) -> WorkerStatus:
    """Return the state of a worker by the exit code of its process; None = it runs."""
    if code is None:
        return WorkerStatus("running")
    if code < 0:
        with suppress(ValueError):
            return WorkerStatus("ended", f"killed by {signal.Signals(-code).name}")
    return WorkerStatus("ended", f"exit code {code}" if code else "")


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def list_gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES lists, else the numbers of the GPUs of this machine."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each.strip() for each in visible.split(",") if each.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        listing = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    num_gpus = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    return [str(index) for index in range(num_gpus)]


def _check_gpus(devices: Sequence[str], gpus: Sequence[str]) -> None:
    """Raise UsageError for devices that are not here: a worker would use the CPU instead.

    A device that is named by its UUID is not checked if there is any GPU.
    """
    absent = [each for each in devices if not gpus or (each.isdecimal() and each not in gpus)]
    if absent:
        raise UsageError(
            f"there is no GPU {absent[0]!r} here",
            location="--devices",
            hint=f"one of {', '.join(gpus)}"
            if gpus
            else "without --devices, workers use the CPU; "
            "a GPU that nvidia-smi does not list is named by CUDA_VISIBLE_DEVICES",
        )


def start_worker_process(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    directory: Path | None = None,
    file_descriptors: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a worker whose output is appended to a log.

    It has a session of its own, so that Ctrl-C in the terminal reaches the driver only, which stops
    the workers. directory: its working directory; None = this process' one. file_descriptors: open
    ones that it inherits. Raises RunError.
    """
    try:
        output = open_for_writing(log, os.O_WRONLY | os.O_APPEND)
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=directory,
                pass_fds=file_descriptors,
                start_new_session=True,
            )
        finally:
            os.close(output)
    except OSError as error:
        raise RunError(
            f"a worker cannot be started: {error.strerror or error}", location=str(log)
        ) from error


def stop_worker_processes(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop workers with SIGTERM; with SIGKILL, and with the processes that they have started, those
    that do not end within STOP_SECONDS.
    """
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it leads the processes of its session
            process.wait()
