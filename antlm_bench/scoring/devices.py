"""Copy data between the host and the device of a model, so that neither waits for the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def copy_together(arrays: Mapping[str, NDArray[Any]], device: torch.device) -> dict[str, Tensor]:
    """Copy arrays of integers or booleans to a device in one transfer, as int64. Return them by
    name.
    """
    joined = np.concatenate([array.ravel() for array in arrays.values()], dtype=np.int64)
    parts = to_device(joined, device).split([array.size for array in arrays.values()])
    return {
        name: part if array.ndim == 1 else part.view(array.shape)
        for (name, array), part in zip(arrays.items(), parts, strict=True)
    }


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
