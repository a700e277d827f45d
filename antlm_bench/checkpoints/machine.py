"""Facts about the machine that computes: host, processor, libraries, threads."""

from __future__ import annotations

import platform
import socket
from pathlib import Path
from typing import Any

import torch
import transformers


def describe_machine(device: str) -> dict[str, Any]:
    """Return what can change the rounding of a score, and the name of the host.

    device: that of the model, as "cpu" or "cuda:0".
    """
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "cpu": _read_cpu_name(),
        "device": torch.device(device).type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda)
    return facts


def _read_cpu_name() -> str:
    """Return the model of the processor; its architecture where the system does not tell."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
