"""Facts about the machine that can change the rounding of a score."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from antlm_bench.runs.provenance import read_cpu_name


def describe_machine_kind(device: str) -> dict[str, Any]:
    """Return processor, libraries and threads: machines with equal facts compute equal bytes.

    device: that of the model, as "cpu" or "cuda:0".
    """
    facts: dict[str, Any] = {
        "cpu": read_cpu_name(),
        "device": torch.device(device).type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
    }
    if torch.device(device).type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda)
    return facts
