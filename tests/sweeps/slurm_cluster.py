"""A real Slurm with two nodes on this machine, for tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

NODES = ("n0", "n1")
REQUEUE_SECONDS = 5
"""How long a job that was put back waits in the queue: the least that Slurm takes."""
CONFIGURATION = """\
ClusterName=antlm
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire={requeue_seconds},socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
SlurmdTimeout=10
JobRequeue=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
{nodes}
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={names} MaxTime=INFINITE State=UP PriorityTier=9
"""


def missing_reason() -> str:
    """Return why no Slurm can be started here, or ""."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not _find(name)]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "starting Slurm needs root"


class SlurmCluster:
    """slurmctld and two slurmd with one CPU each. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        """Name of a daemon or node -> its process."""
        self._exit_stack = ExitStack()

    @property
    def environment(self) -> dict[str, str]:
        """Environment in which sbatch, squeue and scontrol reach this cluster."""
        return {**os.environ, "SLURM_CONF": str(self.config)}

    def __enter__(self) -> SlurmCluster:
        with ExitStack() as stack:
            stack.callback(self._stop)
            self._write_configuration()
            self._start_munge()
            self._start("slurmctld", ["slurmctld", "-D", "-f", str(self.config)])
            for node in NODES:
                self.start_node(node)
            self._wait_until_idle()
            self._exit_stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit_stack.close()

    def start_node(self, name: str) -> None:
        self._start(name, ["slurmd", "-D", "-f", str(self.config), "-N", name])

    def kill_node(self, name: str) -> None:
        """Kill a node as a power cut would: its slurmd and every process of its jobs."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        _kill(self._list_job_processes(name))
        daemon.wait()

    def run(self, *command: str) -> str:
        """Run a command of Slurm, and return its output."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout

    def _list_job_processes(self, node: str) -> list[int]:
        """Return the processes of a node's jobs. Those of Slurm, which would report the end of the
        others, come first: they are children of init, and have the log of the node open.
        """
        slurm_processes, programs = [], []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                variables = (process / "environ").read_bytes().split(b"\0")
                if f"SLURM_CONF={self.config}".encode() not in variables:
                    continue
                files = {os.path.realpath(each) for each in (process / "fd").iterdir()}
                if os.path.realpath(self.folder / f"{node}.log") in files:
                    slurm_processes.append(int(process.name))
                elif f"SLURMD_NODENAME={node}".encode() in variables:
                    programs.append(int(process.name))
        return [*slurm_processes, *programs]

    def _write_configuration(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        host = socket.gethostname().partition(".")[0]
        gres = "\n".join(f"NodeName={name} Name=gpu File=/dev/null" for name in NODES)
        (self.folder / "gres.conf").write_text(f"{gres}\n")
        port, *node_ports = _find_free_ports(1 + len(NODES))
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} CPUs=1"
            " RealMemory=4000 Gres=gpu:1"
            for name, node_port in zip(NODES, node_ports, strict=True)
        ]
        self.config.write_text(
            CONFIGURATION.format(
                host=host,
                port=port,
                folder=self.folder,
                requeue_seconds=REQUEUE_SECONDS,
                nodes="\n".join(lines),
                names=",".join(NODES),
            )
        )

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [
            f"--key-file={key}",
            f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge.seed",
        ]
        self._start("munged", ["munged", "--foreground", "--force", *files])
        _wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")

    def _start(self, name: str, command: list[str]) -> None:
        executable = _find(command[0])
        assert executable is not None, missing_reason()
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                [executable, *command[1:]],
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _wait_until_idle(self) -> None:
        def is_idle() -> bool:
            with suppress(subprocess.CalledProcessError):
                states = self.run("sinfo", "--noheader", "--Node", "--format=%t").split()
                return set(states) == {"idle"}
            return False

        _wait_for(is_idle, f"two idle nodes; see {self.folder}/slurmctld.log")

    def _stop(self) -> None:
        with suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--user=root", "--quiet")
        for name in [*NODES, "slurmctld", "munged"]:
            if daemon := self.daemons.pop(name, None):
                children = _descendants(daemon.pid)
                daemon.terminate()
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()
                _kill(children)
            _kill(self._list_job_processes(name))


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _find_free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _wait_for(condition: object, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


def _descendants(pid: int) -> list[int]:
    """Return the processes below a process, children first."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = list(parents.get(pid, ()))
    for child in found:
        found += parents.get(child, ())
    return found
