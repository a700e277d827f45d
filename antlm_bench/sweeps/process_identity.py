"""Which process on which machine owns a claim, and whether it still runs."""

from __future__ import annotations

import os
import socket
import subprocess
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, told apart from an earlier one of the same number."""

    host: str
    """The machine since its last start, and its namespace of processes. Not only the name of the
    machine: containers and cloned machines share names."""
    pid: int
    start_time: str
    """When the process started, in a form that only this machine understands; "" = not known."""

    def has_ended(self) -> bool:
        """Return whether the process is surely gone. False for processes of other machines."""
        if self.host != host_identity():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        start_time = read_start_time(self.pid)
        return bool(self.start_time and start_time and start_time != self.start_time)


def decode_process(record: Any) -> ProcessIdentity:
    """Return the process that a record of its fields describes, as a claim has it.

    Raises TypeError or KeyError for another record.
    """
    host, pid, start_time = record["host"], record["pid"], record["start_time"]
    if [type(host), type(pid), type(start_time)] != [str, int, str]:
        raise TypeError("the fields of a process have wrong types")
    return ProcessIdentity(host, pid, start_time)


def current_process() -> ProcessIdentity:
    """Return the identity of this process."""
    return ProcessIdentity(host_identity(), os.getpid(), read_start_time(os.getpid()))


def describe_process(process: ProcessIdentity) -> str:
    """Return the number of a process and its machine, for people."""
    return f"pid {process.pid} on {process.host.partition(' ')[0]}"


def node_name() -> str:
    """Return the name of this machine, for people."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


@cache
def host_identity() -> str:
    """Return a name of this machine that no other machine, container or later start of it has."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115  (its target is no path)
    except OSError:  # not Linux
        boot, namespace = f"{uuid.getnode():x}", ""
    return f"{node_name()} {boot} {namespace}".strip()


def read_start_time(pid: int) -> str:
    """Return when a process of this machine started; "" if that is not known.

    A zombie (it has ended, and its parent has not noticed) has the start time "zombie".
    """
    with suppress(OSError, IndexError):
        # Fields after the name of the program, which may contain anything: state, ..., start time.
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "zombie" if numbers[0] == "Z" else numbers[19]
    if not Path("/proc/self/stat").exists():
        with suppress(OSError, subprocess.SubprocessError):
            command = ["ps", "-o", "lstart=", "-p", str(pid)]
            return subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    return ""
