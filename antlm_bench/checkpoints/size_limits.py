"""Limits on what a checkpoint's config.json can make transformers build.

The numbers in config.json decide how many layers and parameters are built. They may be wrong, or
chosen by a stranger to use up time and memory. So sizes are checked before anything is built, and
the building itself stops when it needs more parameters than the files of weights can hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from antlm_bench.checkpoints.resolve import TRAINING_KEY
from antlm_bench.errors import CheckpointError
from antlm_bench.safe_files import read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.weight_files import MAX_JSON_BYTES, WeightSet, read_tensor_headers

MAX_LAYERS = 10_000
MAX_SIZE = 100_000_000
"""Largest width, vocabulary, number of heads or of positions. The largest known number of positions
is 10,485,760 (Llama 4)."""
LAYER_KEY = re.compile(r"(^|_)(n_)?(layers?|blocks|depth|stages)$|num_hidden_layers|num_layers")
SIZE_KEY = re.compile(
    r"size|dim$|hidden|heads|(^|_)(positions?|embd|ctx|inner|model|ff|ffn|experts|rank|vocab|labels)"
    r"(_|$)|embeddings$|width|window"
)
# What a file of b bytes with t tensors can need, with room for tied, random and packed tensors.
FREE_PARAMETERS, PARAMETERS_PER_BYTE = 50_000_000, 2
FREE_MODULES, MODULES_PER_TENSOR = 10_000, 20
FREE_BUFFER_BYTES = 1 << 30
EPS_KEY = re.compile(r"(^|_)(eps|epsilon)$")
TEXT_KEYS = ("model_type", "_attn_implementation", "attn_implementation")
RESTORE_HINT = "restore the file that was saved with the weights"


def check_config_file(folder: Path) -> None:
    """Check the sizes in config.json before transformers reads them.

    Raises CheckpointError for a file that is not a JSON object, and for a size that no model has,
    with its key.
    """
    path = folder / "config.json"
    try:
        content = parse_json(read_regular_file(path, MAX_JSON_BYTES), allow_nan=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"cannot read the configuration: {reason}", location=str(path), hint=RESTORE_HINT
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            "cannot read the configuration: it is not an object",
            location=str(path),
            hint=RESTORE_HINT,
        )
    for keys, value in _iter_values(content):
        if expected := _describe_expected(keys.rpartition(".")[2], value):
            is_bool = isinstance(value, bool)
            shown = f"{value:,}" if isinstance(value, int) and not is_bool else f"{value!r:.40}"
            raise CheckpointError(
                f"{keys} is {shown}, and should be {expected}",
                location=str(path),
                hint=RESTORE_HINT,
            )


def _describe_expected(key: str, value: Any) -> str:
    """Return what a value of config.json should be, "" if it may be right."""
    if key in TEXT_KEYS:
        # Models of several modalities have an attention for each, as an object.
        is_name = value is None or isinstance(value, str)
        is_table = isinstance(value, dict) and key != "model_type"
        return "" if is_name or is_table else "a name"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number:
        return ""
    if EPS_KEY.search(key):
        return "" if value >= 0 else "a number from 0 on"
    limit = MAX_LAYERS if LAYER_KEY.search(key) else MAX_SIZE if SIZE_KEY.search(key) else None
    if limit is None or not isinstance(value, int) or -1 <= value <= limit:
        return ""
    return f"from 0 to {limit:,}"


def _iter_values(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (keys, value) of the values in a table and its subtables."""
    for key, value in table.items():
        if isinstance(value, dict) and key != TRAINING_KEY and key not in TEXT_KEYS:
            yield from _iter_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@contextmanager
def limit_model_size(config_file: Path, weights: WeightSet | None) -> Iterator[None]:
    """Raise CheckpointError in this block when more is built than the weights can hold.

    PyTorch reports every new module, parameter and buffer. transformers builds on the meta device,
    so that nothing is allocated before it is counted.
    """
    num_bytes = (
        sum(file.stat().st_size for file in weights.files if file.exists()) if weights else 0
    )
    try:
        num_tensors = len(read_tensor_headers(weights)) if weights else 0
    except CheckpointError:  # torch reads some pickles that `read_tensor_headers` cannot
        num_tensors = num_bytes // 100
    limits = {
        "parameters": FREE_PARAMETERS + PARAMETERS_PER_BYTE * num_bytes,
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
