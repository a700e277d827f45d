"""The executor `ray`: each worker is the child of a Ray task, which starts and stops it.

Ray chooses the node and the GPUs, and ends the task, and with it the worker, when the driver ends.
On nodes that do not see the sweep's folder (`shared = false`), the task passes on what its worker
asks of an actor on the driver's node (`store_server`).
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import antlm_bench
from antlm_bench.declarations import (
    USER_FOLDERS_VARIABLE,
    Declaration,
    list_user_folders,
    validate_tables,
)
from antlm_bench.errors import RunError, UsageError
from antlm_bench.packages import require_packages
from antlm_bench.runs.provenance import EXECUTOR_VARIABLE
from antlm_bench.sweeps.executors import (
    EXECUTOR_OPTION,
    STOP_SECONDS,
    ExecutorRecord,
    ExecutorSettings,
    WorkerStatus,
    describe_exit,
    start_worker_process,
    stop_worker_processes,
)
from antlm_bench.sweeps.input_files import DATA_DIR, FILES_DIR, SWEEP_DIR
from antlm_bench.sweeps.process_identity import (
    ProcessIdentity,
    host_identity,
    node_name,
    read_start_time,
)
from antlm_bench.sweeps.scratch_folders import open_worker_folder
from antlm_bench.sweeps.store_server import StoreServer
from antlm_bench.sweeps.worker import describe_failure

NUM_CONNECTIONS = 4
"""Of a worker to its task: for the unit, its heartbeat, what is sent meanwhile, and a signal."""
MAX_SERVED_CALLS = 16
"""Calls that the store's actor carries out at the same time."""
POLL_SECONDS, LOG_SECONDS = 0.1, 1.0
ENVIRONMENT_PREFIXES = ("ANTLM_BENCH_", "HF_", "TRANSFORMERS_")
"""Variables of the driver that workers get, too, apart from tokens."""

Amount = Annotated[float, Field(ge=0)]


class RayOptions(Declaration):
    """The table [executor.ray]."""

    address: str = "auto"
    """Address of the cluster; "auto" = that of this node, or of RAY_ADDRESS."""
    num_cpus: Amount | None = None
    """CPUs of a worker; None = `--threads`, else 1."""
    num_gpus: Amount | None = None
    """GPUs of a worker; None = 1 if the cluster has any."""
    resources: dict[str, Amount] = {}  # noqa: RUF012  (pydantic copies it)
    """Further resources of a worker, as the nodes declare them."""
    shared: bool = True
    """Whether all nodes see the sweep's folder, under the same path."""
    scratch: str = ""
    """Folder on each node for temporary files, if `shared` is false; "" = its TMPDIR."""


def read_options(options: Mapping[str, Any], location: str) -> RayOptions:
    """Check options of the executor and return them. location: where they stand, for errors.

    Raises DeclarationError for an unknown option or a wrong value, and UsageError for the address
    of a Ray Client.
    """
    checked = validate_tables(dict(options), RayOptions, Path(location))
    if checked.address.startswith("ray://"):
        raise UsageError(
            "the sweep is carried out on a node of the cluster, not through Ray Client",
            location=f"{location}: address {checked.address}",
            hint="ray job submit -- antlm-bench run ... --executor ray",
        )
    return checked


@dataclass(frozen=True)
class WorkerTask:
    """What a Ray task needs to start a worker."""

    name: str
    settings: ExecutorSettings
    working_dir: Path
    """Working directory of the driver."""
    environment: Mapping[str, str]
    options: RayOptions
    store_id: str
    """Name for temporary files of this driver on the nodes."""


class RayExecutor:
    """Workers are processes of the nodes of a Ray cluster."""

    def __init__(self, settings: ExecutorSettings) -> None:
        """Connect to the cluster. Raises UsageError, DeclarationError or RunError."""
        self.options = options = read_options(settings.options, EXECUTOR_OPTION)
        if settings.devices:
            raise UsageError(
                "Ray chooses the GPUs of its workers",
                location="--devices",
                hint=f"{EXECUTOR_OPTION} num_gpus=1",
            )
        self.settings = settings
        self.ray = _import_ray()
        self._is_connected_here = connect(self.ray, options.address)
        self.resources = _choose_resources(self.ray, options, settings)
        num_slots = count_slots(self.ray.nodes(), self.resources)
        if not num_slots and not settings.num_workers:
            needs = ", ".join(f"{name} {amount:g}" for name, amount in self.resources.items())
            raise UsageError(
                f"no node of the Ray cluster has the resources of a worker ({needs})",
                location=EXECUTOR_OPTION,
                hint="ask for less; or, if nodes are started on demand, give --workers",
            )
        self.num_workers = settings.num_workers or num_slots
        self._store_id = uuid.uuid4().hex[:12]
        self._server: Any = None
        self._refs: dict[str, Any] = {}
        self._ended: dict[str, WorkerStatus] = {}

    def start(self, workers: Sequence[str]) -> None:
        """Start tasks for workers with these names. They wait for free resources."""
        if not self.options.shared and self._server is None:
            self._server = self._start_server()
        other = {k: v for k, v in self.resources.items() if k not in ("CPU", "GPU")}
        remote = self.ray.remote(supervise_worker).options(
            num_cpus=self.resources.get("CPU", 0),
            num_gpus=self.resources.get("GPU", 0),
            resources=other,
            max_retries=0,  # the driver starts a worker with another name
            scheduling_strategy="SPREAD",
        )
        for worker in workers:
            task = WorkerTask(
                worker,
                self.settings,
                Path.cwd(),
                self._select_environment(),
                self.options,
                self._store_id,
            )
            self._refs[worker] = remote.remote(task, self._server)

    def poll(self) -> Mapping[str, WorkerStatus]:
        """Return the state of every worker."""
        pending = {ref: worker for worker, ref in self._refs.items() if worker not in self._ended}
        if pending:
            refs = list(pending)
            for ref in self.ray.wait(refs, num_returns=len(refs), timeout=0)[0]:
                self._ended[pending[ref]] = self._describe_end(ref)
        return {
            worker: self._ended.get(worker) or self._describe_open(worker) for worker in self._refs
        }

    def stop(self) -> None:
        """Stop all workers: by a signal, and those that do not end by force. Leave the cluster."""
        refs = [ref for worker, ref in self._refs.items() if worker not in self._ended]
        for is_forced in (False, True):
            for ref in refs:
                with suppress(ValueError):  # it has ended by itself
                    # Not the task's calls of the store: by them its worker releases its claim.
                    self.ray.cancel(ref, force=is_forced, recursive=False)
            if refs:
                seconds = STOP_SECONDS + 5
                refs = self.ray.wait(refs, num_returns=len(refs), timeout=seconds)[1]
        self.poll()
        if self._server is not None:
            self.ray.kill(self._server)
            self._server = None
        if self._is_connected_here:
            self.ray.shutdown()
            self._is_connected_here = False

    def log_location(self, worker: str) -> str:
        """Return the file with the output of a worker; it is on the driver's machine."""
        return str(self.settings.log_path(worker))

    def _start_server(self) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = self.ray.get_runtime_context().get_node_id()
        actor = self.ray.remote(StoreActor).options(
            num_cpus=0,
            max_concurrency=MAX_SERVED_CALLS,
            max_restarts=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        names = (name for name in os.environ if name.startswith("ANTLM_BENCH_"))
        environment = {name: os.environ[name] for name in names}
        return actor.remote(self.settings.sweep_dir, Path.cwd(), environment)

    def _select_environment(self) -> dict[str, str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(ENVIRONMENT_PREFIXES)
            and "TOKEN" not in name
            and (self.options.shared or not value.startswith(("/", "~")))
        }
        threads = max(math.floor(self.resources.get("CPU", 1)), 1)
        environment["OMP_NUM_THREADS"] = str(self.settings.threads or threads)
        if folders := list_user_folders():
            environment[USER_FOLDERS_VARIABLE] = os.pathsep.join(str(f.absolute()) for f in folders)
        return environment | {EXECUTOR_VARIABLE: RAY.name}

    def _describe_open(self, worker: str) -> WorkerStatus:
        """Return whether a task has begun: its worker then has a journal."""
        journal = self.settings.sweep_dir / "journals" / f"{worker}.jsonl"
        return WorkerStatus("running" if journal.exists() else "waiting")

    def _describe_end(self, ref: Any) -> WorkerStatus:
        try:
            return describe_exit(self.ray.get(ref))
        except self.ray.exceptions.TaskCancelledError:
            return WorkerStatus("ended", "stopped")
        except self.ray.exceptions.RayError as error:  # of the task itself, or of its node
            return WorkerStatus("ended", describe_failure(getattr(error, "cause", None) or error))


RAY = ExecutorRecord("ray", "tasks of a Ray cluster", RayExecutor, read_options)


class StoreActor(StoreServer):
    """The actor on the driver's node that has the sweep's folder."""

    def __init__(self, folder: Path, working_dir: Path, environment: Mapping[str, str]) -> None:
        os.chdir(working_dir)
        os.environ.update(environment)
        super().__init__(folder)


def _import_ray() -> Any:
    with require_packages("--executor ray"):
        import ray
        import ray.exceptions
    return ray


def connect(ray: Any, address: str) -> bool:
    """Connect this process to a cluster, unless it is connected. Return whether it was not.

    Raises RunError if there is none.
    """
    if ray.is_initialized():
        return False
    signals = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in signals}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise RunError(
            f"no Ray cluster can be reached: {str(error).partition(chr(10))[0]}",
            location=f"address {address}",
            hint="start one on this machine (ray start --head), or use ray job submit",
        ) from error
    finally:
        for number, handler in handlers.items():  # those of Ray would end this process
            signal.signal(number, handler)
    return True


def _choose_resources(
    ray: Any, options: RayOptions, settings: ExecutorSettings
) -> dict[str, float]:
    """Return resource -> amount of a worker, without zeros."""
    has_gpus = any(each["Resources"].get("GPU") for each in ray.nodes() if each["Alive"])
    num_gpus = options.num_gpus
    num_cpus = options.num_cpus
    resources = {
        "CPU": float(settings.threads or 1) if num_cpus is None else num_cpus,
        "GPU": float(has_gpus) if num_gpus is None else num_gpus,
        **options.resources,
    }
    return {name: amount for name, amount in resources.items() if amount}


def count_slots(nodes: Sequence[Mapping[str, Any]], resources: Mapping[str, float]) -> int:
    """Return how many workers fit onto the nodes; of workers without needs, one per node."""
    count = 0
    for node in nodes:
        if node["Alive"]:
            available = node["Resources"]
            fits = [available.get(name, 0) / amount for name, amount in resources.items()]
            count += math.floor(min(fits, default=1))
    return count


# ---- in a Ray task


def supervise_worker(task: WorkerTask, server: Any) -> int:
    """Run a worker and return its exit code. It ends with this process, or when Ray cancels it.

    server: the actor with the sweep's folder; None = this node sees it. Raises RunError.
    """
    package_dir = str(Path(antlm_bench.__file__).resolve().parents[1])
    python_path = os.pathsep.join(filter(None, [package_dir, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": python_path, **task.environment}
    if server is not None:
        return _supervise_remote_worker(task, server, environment)
    sweep_dir, log = task.settings.sweep_dir, task.settings.log_path(task.name)
    if not log.parent.is_dir():
        raise RunError(
            f"the node {node_name()} does not see the sweep's folder; if nodes share none, use "
            f"{EXECUTOR_OPTION} shared=false",
            location=str(sweep_dir),
        )
    directory = task.working_dir if task.working_dir.is_dir() else Path.cwd()
    with _start_worker(task, sweep_dir, log, environment, directory) as process:
        return _wait(process)


def _supervise_remote_worker(task: WorkerTask, server: Any, environment: dict[str, str]) -> int:
    import ray

    scratch = Path(task.options.scratch or tempfile.gettempdir())
    node = f"{task.store_id}-{ray.get_runtime_context().get_node_id()[:12]}"
    with open_worker_folder(scratch, node, task.name) as root:
        directory = Path(f"{root / FILES_DIR}{task.working_dir}")
        sweep_dir = root / SWEEP_DIR
        log = sweep_dir / "logs" / f"{task.name}.log"
        for folder in (directory, log.parent, root / DATA_DIR):
            folder.mkdir(parents=True, exist_ok=True)
        environment["ANTLM_BENCH_DATA"] = str(root / DATA_DIR)
        if folders := task.environment.get(USER_FOLDERS_VARIABLE):
            copies = [f"{root / FILES_DIR}{folder}" for folder in folders.split(os.pathsep)]
            environment[USER_FOLDERS_VARIABLE] = os.pathsep.join(copies)
        pairs = [socket.socketpair() for _ in range(NUM_CONNECTIONS)]
        worker_ends = [pair[1].fileno() for pair in pairs]
        with (
            _start_worker(task, sweep_dir, log, environment, directory, worker_ends) as process,
            _forward_logs(log.parent, lambda *part: ray.get(server.append_log.remote(*part))),
        ):
            identity = ProcessIdentity(host_identity(), process.pid, read_start_time(process.pid))
            ray.get(server.open_session.remote(task.name, identity))
            for task_end, worker_end in pairs:
                worker_end.close()
                connection = Connection(task_end.detach())
                threading.Thread(
                    target=_serve, args=(connection, task.name, server), daemon=True
                ).start()
            code = _wait(process)
        with suppress(ray.exceptions.RayError):
            ray.get(server.close_session.remote(task.name))
        return code


@contextmanager
def _start_worker(
    task: WorkerTask,
    sweep_dir: Path,
    log: Path,
    environment: Mapping[str, str],
    directory: Path,
    connections: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker's process, and stop it at the end of the context. Raises RunError."""
    words = replace(task.settings, sweep_dir=sweep_dir).build_command(task.name)
    if shutil.which(words[0]) is None:  # the driver's Python; nodes may have it elsewhere
        words[0] = sys.executable
    words += ["--parent", str(os.getpid())]
    if connections:
        words += ["--connections", ",".join(map(str, connections))]
    process = start_worker_process(words, log, environment, directory, connections)
    try:
        yield process
    finally:
        stop_worker_processes([process])


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of a process. Ray interrupts this with a KeyboardInterrupt."""
    while (code := process.poll()) is None:
        time.sleep(POLL_SECONDS)
    return code


def _serve(connection: Connection, session: str, server: Any) -> None:
    """Pass on the calls of a worker until it ends."""
    import ray

    with suppress(EOFError, OSError):
        while True:
            calls = connection.recv()
            try:
                answer = ray.get(server.call.remote(session, calls))
            except ray.exceptions.RayError as error:
                answer = False, RunError(f"the driver's store has ended: {type(error).__name__}")
            connection.send(answer)


@contextmanager
def _forward_logs(folder: Path, append: Callable[[str, bytes], None]) -> Iterator[None]:
    """Send what is appended to the logs in a folder, now and then and at the end."""
    positions: dict[Path, int] = {}
    ended = threading.Event()

    def forward() -> None:
        for path in folder.glob("*.log"):
            with path.open("rb") as file:
                file.seek(positions.get(path, 0))
                while data := file.read(2**20):
                    append(path.stem, data)
                    positions[path] = file.tell()

    def run() -> None:
        while not ended.wait(LOG_SECONDS):
            with suppress(Exception):  # the driver's disk is full, or it has ended
                forward()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(Exception):
            forward()
