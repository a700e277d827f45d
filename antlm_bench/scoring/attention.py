"""Attention of packed rows: what takes the place of a model's own attention while the engine reads
it.

Linear layers see a batch's nodes as one long row; here, and only here, nodes become the rows that
they belong to. The last layer has a shorter way: pseudo-log-likelihood reads one position of a row,
so that past the last keys and values only the read positions need to be computed (`LastLayer`).
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

from antlm_bench.scoring.plan import PackedBatch

PACKED_ATTENTION = (
    "antlm_packed"  # the name under which `attend` is registered with the model's library
)


class CannotPackError(Exception):
    """The model's attention needs something that packed rows do not give; never reaches a user."""


class BeyondWindowError(CannotPackError):
    """This row is longer than the model's local attention; shorter ones can be packed."""


class _KeysValuesStoredError(Exception):
    """The last layer's keys and values are there; its forward need not go on."""


@dataclass(slots=True)
class PackedLayout:
    """A Batch's geometry as tensors, for the attention function that runs inside the model.

    pieces, gather, take: see plan.Batch. stage: "all" positions, or in the last layer "keep" the
    keys and values of all and then "narrow" to the read ones. reads: per piece, the row of each
    read position, and how many there are.
    """

    causal: bool
    blocks: tuple[tuple[int, int], ...]
    gather_index: Tensor | None
    inverse_index: Tensor | None
    stage: Literal["all", "keep", "narrow"] = "all"
    keys_values: tuple[Tensor, Tensor] | None = None
    read_rows: Sequence[tuple[Tensor, int]] = ()
    attention_modules: list[nn.Module] = field(default_factory=list)

    @classmethod
    def from_batch(cls, batch: PackedBatch, device: torch.device) -> PackedLayout:
        gather, take = (
            None if i is None else torch.from_numpy(i).to(device)
            for i in (batch.gather_index, batch.inverse_index)
        )
        return cls(batch.attention == "causal", batch.blocks, gather, take)


current_layout: ContextVar[PackedLayout] = ContextVar("packing")


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention of packed nodes: (1, heads, n, d) in, (1, n, heads, d) out; each row attends to
    itself alone.

    Raises CannotPackError where the architecture asks for what this does not do (soft caps, sinks,
    local windows).
    """
    packing = current_layout.get()
    packing.attention_modules.append(module)
    if attention_mask is not None or any(
        extra.get(k) is not None for k in ("softcap", "s_aux", "position_bias")
    ):
        raise CannotPackError
    window = extra.get("sliding_window")
    if window is not None and max(t for _, t in packing.blocks) > window:
        raise BeyondWindowError

    heads = query.shape[1]
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    if packing.stage == "narrow":
        return _attend_at_read_positions(packing, query, scaling), None
    q, k, v = (_gather_rows(x, packing.gather_index) for x in (query, key, value))
    if packing.stage == "keep":
        packing.keys_values = (k, v)
        raise _KeysValuesStoredError
    outputs, top = [], 0
    for rows, length in packing.blocks:
        end = top + rows * length
        qs, ks, vs = (x[top:end].unflatten(0, (rows, length)).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(qs, ks, vs, is_causal=packing.causal, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(rows * length, heads, -1))
        top = end
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if packing.inverse_index is not None:
        merged = merged.index_select(0, packing.inverse_index)
    return merged.unsqueeze(0), None


def _attend_at_read_positions(layout: PackedLayout, query: Tensor, scaling: float | None) -> Tensor:
    """Each read position (1, heads, h, d) attends to the kept keys and values of its own row."""
    assert layout.keys_values is not None
    q = _gather_rows(query, None)
    outputs, top, first = [], 0, 0
    for (rows, length), (row, count) in zip(layout.blocks, layout.read_rows, strict=True):
        end, last = top + rows * length, first + count
        ks, vs = (
            x[top:end].unflatten(0, (rows, length)).index_select(0, row).transpose(1, 2)
            for x in layout.keys_values
        )
        qs = q[first:last].unsqueeze(2)
        outputs.append(scaled_dot_product_attention(qs, ks, vs, scale=scaling).squeeze(2))
        top, first = end, last
    return torch.cat(outputs).unsqueeze(0)


def _gather_rows(x: Tensor, gather_index: Tensor | None) -> Tensor:
    """(1, heads, n, d) -> (m, heads, d)."""
    flat = x[0].transpose(0, 1)
    return flat if gather_index is None else flat.index_select(0, gather_index)


class LastLayer:
    """The block of a model that attends last, run twice: for everybody's keys and values, then for
    the read positions.

    Everything else in a block works on positions one by one, so that the second run may see the
    read ones alone.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    @classmethod
    def from_model(cls, model: Any, attention_modules: Sequence[nn.Module]) -> LastLayer | None:
        """From the attention modules in the order in which a forward called them; None where layers
        are shared.
        """
        if not attention_modules or attention_modules.count(attention_modules[-1]) > 1:
            return None
        path = next(
            name for name, module in model.named_modules() if module is attention_modules[-1]
        )
        parts = path.split(".")
        for depth in range(len(parts), 0, -1):
            if isinstance(model.get_submodule(".".join(parts[: depth - 1])), nn.ModuleList):
                return cls(model.get_submodule(".".join(parts[:depth])))
        return None

    @contextmanager
    def at_positions(
        self, layout: PackedLayout, read_nodes: NDArray[np.int64], device: torch.device
    ) -> Iterator[None]:
        """Within: a forward ends with hidden states of `heads` (sorted nodes) only, (1, h, d)."""
        layout.read_rows, top = [], 0
        for rows, length in layout.blocks:
            end = top + rows * length
            inside = read_nodes[(read_nodes >= top) & (read_nodes < end)]
            layout.read_rows.append(
                (torch.from_numpy((inside - top) // length).to(device), len(inside))
            )
            top = end
        nodes, chosen = top, torch.from_numpy(read_nodes).to(device)
        whole = self.block.forward

        def twice(*args: Any, **inputs: Any) -> Any:
            layout.stage = "keep"
            try:
                whole(*args, **inputs)
            except _KeysValuesStoredError:
                layout.stage = "narrow"
            return whole(
                *_select_positions(args, nodes, chosen), **_select_positions(inputs, nodes, chosen)
            )

        self.block.forward = twice
        try:
            yield
        finally:
            del self.block.forward


def _select_positions(value: Any, num_positions: int, positions: Tensor) -> Any:
    """Every (1, nodes, ...) tensor in a block's arguments (hidden states, rotary angles), at the
    chosen nodes only.
    """
    if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == num_positions:
        return value.index_select(1, positions)
    if isinstance(value, tuple):
        return tuple(_select_positions(v, num_positions, positions) for v in value)
    if isinstance(value, dict):
        return {k: _select_positions(v, num_positions, positions) for k, v in value.items()}
    return value
