"""Describe this installation, for `doctor`: versions of packages, and what torch can use."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from antlm_bench import __version__
from antlm_bench.errors import MissingPackage
from antlm_bench.packages import missing_package, require_packages
from antlm_bench.runs.provenance import read_cpu_name

PACKAGES = {"transformers": "transformers", "minicons": "minicons", "lm-eval": "lm_eval"}
"""Packages with a row of their own -> their modules."""
NVIDIA_DEVICE = Path("/dev/nvidia0")


def describe_installation() -> dict[str, object]:
    """Return the versions of Python and packages, and the build, devices and threads of torch."""
    facts: dict[str, object] = {"antlm-bench": __version__, "python": platform.python_version()}
    try:
        with require_packages():
            import torch
    except MissingPackage as error:
        is_absent = isinstance(error.__cause__, ModuleNotFoundError)
        facts["torch"] = f"{'not installed' if is_absent else error.message} ({error.hint})"
    else:
        facts |= describe_torch(torch)
    for package, module in PACKAGES.items():
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = f"not installed ({missing_package(module).hint})"
    return facts


def describe_torch(torch: Any) -> dict[str, object]:
    """Return the version of torch, what it was built for, the devices it finds, and its threads."""
    gpus = [
        f"cuda:{index} ({torch.cuda.get_device_name(index)}, "
        f"{torch.cuda.get_device_properties(index).total_memory / 2**30:.0f} GiB)"
        for index in range(torch.cuda.device_count())
    ]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    cpu = f"cpu ({read_cpu_name()}, {os.cpu_count()} cores)"
    facts = {
        "torch": torch.__version__,
        "torch build": _describe_build(torch),
        "devices": "\n".join([*gpus, *mps, cpu]),
        "torch threads": torch.get_num_threads(),
    }
    is_gpu_build = bool(torch.version.cuda or torch.version.hip)
    if is_gpu_build and not gpus:
        facts["note"] = "this build of torch finds no GPU; does nvidia-smi find one?"
    elif not is_gpu_build and NVIDIA_DEVICE.exists():
        facts["note"] = "there is an NVIDIA GPU, which a CPU build of torch cannot use"
    return facts


def _describe_build(torch: Any) -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return "CPU and Metal" if torch.backends.mps.is_built() else "CPU"
