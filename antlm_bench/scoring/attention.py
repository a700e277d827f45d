"""Attention of packed rows: what takes the place of a model's own attention while the engine reads it.

Linear layers see a batch's nodes as one long row; here, and only here, nodes become the rows that they belong to. The
last layer has a shorter way: pseudo-log-likelihood reads one position of a row, so that past the last keys and values
only the read positions need to be computed (`LastLayer`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from antlm_bench.scoring.plan import Batch

PACKED = "antlm_packed"  # the name under which `attend` is registered with the model's library


class CannotPackError(Exception):
    """The model's attention needs something that packed rows do not give; never reaches a user."""


class BeyondWindowError(CannotPackError):
    """This row is longer than the model's local attention; shorter ones can be packed."""


class _KeptError(Exception):
    """The last layer's keys and values are there; its forward need not go on."""


@dataclass(slots=True)
class Packing:
    """A Batch's geometry as tensors, for the attention function that runs inside the model.

    pieces, gather, take: see plan.Batch. stage: "all" positions, or in the last layer "keep" the keys and values of all
    and then "narrow" to the read ones. reads: per piece, the row of each read position, and how many there are.
    """

    causal: bool
    pieces: tuple[tuple[int, int], ...]
    gather: Tensor | None
    take: Tensor | None
    stage: Literal["all", "keep", "narrow"] = "all"
    kept: tuple[Tensor, Tensor] | None = None
    reads: Sequence[tuple[Tensor, int]] = ()
    callers: list[nn.Module] = field(default_factory=list)

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Packing:
        gather, take = (None if i is None else torch.from_numpy(i).to(device) for i in (batch.gather, batch.take))
        return cls(batch.attention == "causal", batch.pieces, gather, take)


current: ContextVar[Packing] = ContextVar("packing")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention of packed nodes: (1, heads, n, d) in, (1, n, heads, d) out; each row attends to itself alone.

    Raises CannotPackError where the architecture asks for what this does not do (soft caps, sinks, local windows).
    """
    packing = current.get()
    packing.callers.append(module)
    if attention_mask is not None or any(extra.get(k) is not None for k in ("softcap", "s_aux", "position_bias")):
        raise CannotPackError
    window = extra.get("sliding_window")
    if window is not None and max(t for _, t in packing.pieces) > window:
        raise BeyondWindowError

    heads = query.shape[1]
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    if packing.stage == "narrow":
        return _narrow(packing, query, scaling), None
    q, k, v = (_rows(x, packing.gather) for x in (query, key, value))
    if packing.stage == "keep":
        packing.kept = (k, v)
        raise _KeptError
    outputs, top = [], 0
    for rows, length in packing.pieces:
        end = top + rows * length
        qs, ks, vs = (x[top:end].unflatten(0, (rows, length)).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(qs, ks, vs, is_causal=packing.causal, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(rows * length, heads, -1))
        top = end
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if packing.take is not None:
        merged = merged.index_select(0, packing.take)
    return merged.unsqueeze(0), None


def _narrow(packing: Packing, query: Tensor, scaling: float | None) -> Tensor:
    """Each read position (1, heads, h, d) attends to the kept keys and values of its own row."""
    assert packing.kept is not None
    q = _rows(query, None)
    outputs, top, first = [], 0, 0
    for (rows, length), (row, count) in zip(packing.pieces, packing.reads, strict=True):
        end, last = top + rows * length, first + count
        ks, vs = (x[top:end].unflatten(0, (rows, length)).index_select(0, row).transpose(1, 2) for x in packing.kept)
        qs = q[first:last].unsqueeze(2)
        outputs.append(scaled_dot_product_attention(qs, ks, vs, scale=scaling).squeeze(2))
        top, first = end, last
    return torch.cat(outputs).unsqueeze(0)


def _rows(x: Tensor, gather: Tensor | None) -> Tensor:
    """(1, heads, n, d) -> (m, heads, d)."""
    flat = x[0].transpose(0, 1)
    return flat if gather is None else flat.index_select(0, gather)


class LastLayer:
    """The block of a model that attends last, run twice: for everybody's keys and values, then for the read positions.

    Everything else in a block works on positions one by one, so that the second run may see the read ones alone.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    @classmethod
    def of(cls, model: Any, callers: Sequence[nn.Module]) -> LastLayer | None:
        """From the attention modules in the order in which a forward called them; None where layers are shared."""
        if not callers or callers.count(callers[-1]) > 1:
            return None
        path = next(name for name, module in model.named_modules() if module is callers[-1])
        parts = path.split(".")
        for depth in range(len(parts), 0, -1):
            if isinstance(model.get_submodule(".".join(parts[: depth - 1])), nn.ModuleList):
                return cls(model.get_submodule(".".join(parts[:depth])))
        return None

    @contextmanager
    def only(self, packing: Packing, heads: NDArray[np.int64], device: torch.device) -> Iterator[None]:
        """Within: a forward ends with hidden states of `heads` (sorted nodes) only, (1, h, d)."""
        packing.reads, top = [], 0
        for rows, length in packing.pieces:
            end = top + rows * length
            inside = heads[(heads >= top) & (heads < end)]
            packing.reads.append((torch.from_numpy((inside - top) // length).to(device), len(inside)))
            top = end
        nodes, chosen = top, torch.from_numpy(heads).to(device)
        whole = self.block.forward

        def twice(*args: Any, **inputs: Any) -> Any:
            packing.stage = "keep"
            try:
                whole(*args, **inputs)
            except _KeptError:
                packing.stage = "narrow"
            return whole(*_picked(args, nodes, chosen), **_picked(inputs, nodes, chosen))

        self.block.forward = twice
        try:
            yield
        finally:
            del self.block.forward


def _picked(value: Any, nodes: int, chosen: Tensor) -> Any:
    """Every (1, nodes, ...) tensor in a block's arguments (hidden states, rotary angles), at the chosen nodes only."""
    if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == nodes:
        return value.index_select(1, chosen)
    if isinstance(value, tuple):
        return tuple(_picked(v, nodes, chosen) for v in value)
    if isinstance(value, dict):
        return {k: _picked(v, nodes, chosen) for k, v in value.items()}
    return value
