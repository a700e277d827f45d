"""How the cells of a run came about: command, machine, resources. Kept beside run.json.

    DIR/provenance.json    {"schema": 1, "records": [{"key": ..., "command": ..., ...}, ...]}

No number depends on it, and run.json stays the same on every machine. The file may be deleted.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import socket
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from antlm_bench import __version__, safe_files
from antlm_bench.configuration import describe_used_configuration
from antlm_bench.runs.object_stores import locate_copy
from antlm_bench.safe_json import parse_json

PROVENANCE_FILE = "provenance.json"
PROVENANCE_SCHEMA_VERSION = 1
MAX_PROVENANCE_BYTES = 64_000_000
RECORDED_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scipy")
"""Packages whose versions the manifest of a run names, too."""
PEER_PACKAGES = ("lm-eval", "minicons")
EXECUTOR_VARIABLE = "ANTLM_BENCH_EXECUTOR"
"""Environment variable of a worker: name of the executor that started it."""
ATTEMPT_VARIABLE = "ANTLM_BENCH_ATTEMPT"
"""Environment variable of a worker: number of the attempt at its unit, from 1."""
NVIDIA_DIR = Path("/proc/driver/nvidia")


@dataclass
class ResourceMeter:
    """Wall-clock seconds, CPU seconds and peak memory of this process from its creation on."""

    started: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)

    def build_record(self, key: str, **facts: Any) -> dict[str, Any]:
        """Return the record of the cell with this content key, computed since the meter started.

        facts: further JSON values, e.g. the device.
        """
        # The command line does not show what a configuration file set.
        configuration = describe_used_configuration()
        return {
            "key": key,
            "command": _describe_command(sys.argv),
            "started": self.started.isoformat(timespec="seconds"),
            "wall_seconds": round(time.perf_counter() - self._wall, 3),
            "cpu_seconds": round(time.process_time() - self._cpu, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "executor": os.environ.get(EXECUTOR_VARIABLE, ""),
            "attempt": _read_attempt(),
            **({"configuration": configuration} if configuration else {}),
            **describe_machine(),
            **facts,
        }


@cache
def describe_machine() -> dict[str, Any]:
    """Return facts about this machine and its software, as JSON values."""
    return {
        "node": socket.gethostname(),
        "os": platform.platform(),
        "cpu": read_cpu_name(),
        "cores": os.cpu_count() or 0,
        "gpus": _read_gpu_names(),
        "driver": _read_driver_version(),
        "python": platform.python_version(),
        "packages": {"antlm-bench": __version__, **_read_package_versions()},
        "commit": read_commit(Path(__file__).parent),
    }


def read_commit(folder: Path) -> str:
    """Return the commit that is checked out in the git repository around a folder, or "".

    Files of the repository are read; git itself is not run, because a repository can configure
    programs that git starts.
    """
    for parent in (folder, *folder.parents):
        git_dir = parent / ".git"
        with suppress(OSError, UnicodeDecodeError):
            if git_dir.is_file():  # a worktree: "gitdir: PATH"
                git_dir = parent / git_dir.read_text().partition(":")[2].strip()
            if (git_dir / "HEAD").is_file():
                return _resolve_head(git_dir)
    return ""


def _resolve_head(git_dir: Path) -> str:
    head = (git_dir / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    folders = [git_dir]
    with suppress(OSError):  # a worktree keeps its branches in the main repository
        folders.append(git_dir / (git_dir / "commondir").read_text().strip())
    for folder in folders:
        with suppress(OSError):
            return (folder / name).read_text().strip()
        with suppress(OSError):
            for line in (folder / "packed-refs").read_text().splitlines():
                if line.endswith(f" {name}"):
                    return line.partition(" ")[0]
    return ""


def read_provenance(run_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Return content key of a cell -> its record; {} for a folder without records.

    A damaged file, or one of a newer version, has no records: no result depends on them.
    """
    with suppress(OSError, ValueError):
        file = locate_copy(run_dir) / PROVENANCE_FILE
        document = parse_json(safe_files.read_regular_file(file, MAX_PROVENANCE_BYTES))
        if isinstance(document, dict) and document.get("schema") == PROVENANCE_SCHEMA_VERSION:
            records = document.get("records")
            return {
                str(record["key"]): record
                for record in (records if isinstance(records, list) else ())
                if isinstance(record, dict) and isinstance(record.get("key"), str)
            }
    return {}


def combine_records(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the record of a cell whose shards have these records, which it lists.

    The seconds are summed; the memory is the largest; other fields are those of the first shard.
    """
    first, *others = records
    if not others:
        return dict(first)

    def list_numbers(field_name: str) -> list[float]:
        values = [record.get(field_name) for record in records]
        return [value for value in values if isinstance(value, int | float)]

    return {
        **first,
        "started": min(str(record.get("started", "")) for record in records),
        "wall_seconds": round(sum(list_numbers("wall_seconds")), 3),
        "cpu_seconds": round(sum(list_numbers("cpu_seconds")), 3),
        "peak_memory_bytes": max(list_numbers("peak_memory_bytes"), default=0),
        "shards": [dict(record) for record in records],
    }


def encode_provenance(
    run_dir: Path, records: Iterable[Mapping[str, Any]], keys: Collection[str]
) -> bytes:
    """Return the new bytes of a folder's provenance.json: its records, and new ones.

    keys: content keys of the folder's cells. Records of other cells are dropped.
    """
    by_key = read_provenance(run_dir) | {str(record["key"]): record for record in records}
    kept = [record for key, record in by_key.items() if key in keys]
    document = {"schema": PROVENANCE_SCHEMA_VERSION, "records": kept}
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _describe_command(argv: Sequence[str]) -> str:
    """Return the command line, with the program's name instead of its path."""
    program = Path(argv[0]).name if argv else ""
    program = "antlm-bench" if program == "__main__.py" else program
    return shlex.join([program, *argv[1:]])


def peak_memory_bytes() -> int:
    """Return the largest resident memory that this process has had; 0 where it is not known."""
    # Linux counts in ru_maxrss what the process that started this one had at its start.
    with suppress(OSError):
        match = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
        if match:
            return int(match[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _read_attempt() -> int:
    text = os.environ.get(ATTEMPT_VARIABLE, "")
    return int(text) if text.isdecimal() else 1


def read_cpu_name() -> str:
    """Return the model of the processor; its architecture where the system does not tell."""
    with suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _read_gpu_names() -> list[str]:
    names = []
    for file in sorted(NVIDIA_DIR.glob("gpus/*/information")):
        with suppress(OSError):
            match = re.search(r"^Model:\s*(.+)$", file.read_text(), re.M)
            names.append(match[1].strip() if match else "unknown")
    return names


def _read_driver_version() -> str:
    with suppress(OSError):
        match = re.search(r"Kernel Module\D*([\d.]+)", (NVIDIA_DIR / "version").read_text())
        return match[1] if match else ""
    return ""


def _read_package_versions() -> dict[str, str]:
    versions = {}
    for name in (*RECORDED_PACKAGES, *PEER_PACKAGES):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
