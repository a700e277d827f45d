"""Copy data between the host and the device of a model, so that neither waits for the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antlm_bench.types import Floats


def to_device(array: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Copy an array to a device. The copy to a GPU is queued, so that the host does not wait."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def read_scalars(values: Sequence[Tensor]) -> list[float]:
    """Copy scalars of one device to the host in one transfer; wait until they are computed."""
    scalars: list[float] = torch.stack(list(values)).tolist()
    return scalars


def read_back(values: Sequence[Tensor]) -> list[Floats]:
    """Copy tensors (k, ...) to the host in one transfer, in fp64; wait until they are computed."""
    if not values:
        return []
    joined: Floats = torch.cat(list(values)).cpu().double().numpy()
    return np.split(joined, np.cumsum([len(value) for value in values])[:-1])
