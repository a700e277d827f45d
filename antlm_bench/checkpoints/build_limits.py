"""A limit on the model that transformers builds from a configuration.

The building stops when it needs more parameters than the files of weights can hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from antlm_bench.errors import CheckpointError
from antlm_bench.weight_files import WeightSet, read_tensor_headers

# What a file of b bytes with t tensors can need, with room for tied, random and packed tensors.
FREE_PARAMETERS, PARAMETERS_PER_BYTE = 50_000_000, 2
FREE_MODULES, MODULES_PER_TENSOR = 10_000, 20
FREE_BUFFER_BYTES = 1 << 30
RESTORE_HINT = "restore the file that was saved with the weights"


@contextmanager
def limit_model_size(
    config_file: Path, weights: WeightSet | None, parameters_per_byte: int = PARAMETERS_PER_BYTE
) -> Iterator[None]:
    """Raise CheckpointError in this block when more is built than the weights can hold.

    parameters_per_byte: at most, of the files' types, with room for tied weights. PyTorch reports
    every new module, parameter and buffer. transformers builds on the meta device, so that nothing
    is allocated before it is counted.
    """
    num_bytes = (
        sum(file.stat().st_size for file in weights.files if file.exists()) if weights else 0
    )
    try:
        num_tensors = len(read_tensor_headers(weights)) if weights else 0
    except CheckpointError:  # torch reads some pickles that `read_tensor_headers` cannot
        num_tensors = num_bytes // 100
    limits = {
        "parameters": FREE_PARAMETERS + parameters_per_byte * num_bytes,
        "modules": FREE_MODULES + MODULES_PER_TENSOR * num_tensors,
        "bytes of buffers": FREE_BUFFER_BYTES + num_bytes,
    }
    totals = dict.fromkeys(limits, 0)
    counted: set[tuple[int, str]] = set()

    def count(noun: str, module: torch.nn.Module, name: str, amount: int) -> None:
        if (id(module), name) in counted:  # loading replaces what was built
            return
        counted.add((id(module), name))
        totals[noun] += amount
        if totals[noun] > limits[noun]:
            raise CheckpointError(
                f"{config_file.name} describes a model of more than {limits[noun]:,} {noun}, and "
                f"the files of weights have {num_bytes:,} bytes",
                location=str(config_file),
                hint=RESTORE_HINT,
            )

    def count_parameter(module: torch.nn.Module, name: str, value: Any) -> None:
        count("parameters", module, name, 0 if value is None else value.numel())

    def count_buffer(module: torch.nn.Module, name: str, value: Any) -> None:
        size = 0 if value is None else value.numel() * value.element_size()
        count("bytes of buffers", module, name, size)

    def count_module(module: torch.nn.Module, name: str, _: Any) -> None:
        count("modules", module, name, 1)

    handles = [
        torch_module.register_module_parameter_registration_hook(count_parameter),
        torch_module.register_module_buffer_registration_hook(count_buffer),
        torch_module.register_module_module_registration_hook(count_module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
