"""Attention for packed rows (see scoring.plan), which replaces a model's attention function.

Linear layers process a batch's nodes as one long row. Only the attention function gathers the nodes
of each row. `LastLayer` saves work in the last layer, of which only the read positions are needed
(a pseudo-log-likelihood reads one position per row): all positions get keys and values there, and
only the read positions get queries, outputs and the feed-forward.
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

PACKED_ATTENTION = "antlm_packed"  # name under which transformers knows packed_attention_forward


class CannotPackError(Exception):
    """The model's attention has a feature that `packed_attention_forward` lacks. Never reaches a
    user.
    """


class BeyondWindowError(CannotPackError):
    """A row is longer than the model's local attention window. Shorter rows can be packed."""


class _KeysValuesStoredError(Exception):
    """Ends the first forward of the last layer, once keys and values are stored."""


@dataclass(slots=True)
class PackedLayout:
    """The rows of a PackedBatch as tensors, and the state of one forward through its layers."""

    causal: bool
    blocks: tuple[tuple[int, int], ...]
    """As in PackedBatch."""
    gather_index: Tensor | None
    """As in PackedBatch."""
    inverse_index: Tensor | None
    """As in PackedBatch."""
    stage: Literal["all", "store", "read"] = "all"
    """all: compute all positions. In the last layer, first store: stop with the keys and values of
    all positions; then read: compute the read positions from them."""
    keys_values: tuple[Tensor, Tensor] | None = None
    """Keys and values, (m, heads, d) each, that the stage "store" stored."""
    read_rows: Sequence[Tensor] = ()
    """Per block, the row in the block of each read position."""
    attention_modules: list[nn.Module] = field(default_factory=list)
    """The modules that called `packed_attention_forward`, in order."""

    @classmethod
    def from_batch(cls, batch: PackedBatch, device: torch.device) -> PackedLayout:
        gather_index, inverse_index = (
            None if index is None else torch.from_numpy(index).to(device)
            for index in (batch.gather_index, batch.inverse_index)
        )
        return cls(batch.attention == "causal", batch.blocks, gather_index, inverse_index)


current_layout: ContextVar[PackedLayout] = ContextVar("current_layout")
"""The layout of the forward that runs in this thread."""


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attend within each row of packed nodes: query (1, heads, n, d) to output (1, n, heads, d).

    Raises CannotPackError for an attention with a mask, soft cap, sinks or position bias, and
    BeyondWindowError for a local window that is shorter than a row.
    """
    layout = current_layout.get()
    layout.attention_modules.append(module)
    unsupported = (attention_mask, *map(extra.get, ("softcap", "s_aux", "position_bias")))
    if any(value is not None for value in unsupported):
        raise CannotPackError
    window = extra.get("sliding_window")
    if window is not None and max(length for _, length in layout.blocks) > window:
        raise BeyondWindowError

    heads = query.shape[1]
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    if layout.stage == "read":
        return _attend_at_read_positions(layout, query, scaling), None
    q, k, v = (_gather_rows(x, layout.gather_index) for x in (query, key, value))
    if layout.stage == "store":
        layout.keys_values = (k, v)
        raise _KeysValuesStoredError
    outputs, start = [], 0
    for rows, length in layout.blocks:
        end = start + rows * length
        qs, ks, vs = (x[start:end].unflatten(0, (rows, length)).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(qs, ks, vs, is_causal=layout.causal, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(rows * length, heads, -1))
        start = end
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if layout.inverse_index is not None:
        merged = merged.index_select(0, layout.inverse_index)
    return merged.unsqueeze(0), None


def _attend_at_read_positions(layout: PackedLayout, query: Tensor, scaling: float | None) -> Tensor:
    """Attend from read positions (1, heads, h, d) to the stored keys and values of their rows."""
    assert layout.keys_values is not None
    q = _gather_rows(query, None)
    outputs, start, first_read = [], 0, 0
    for (rows, length), row in zip(layout.blocks, layout.read_rows, strict=True):
        end, end_read = start + rows * length, first_read + len(row)
        ks, vs = (
            x[start:end].unflatten(0, (rows, length)).index_select(0, row).transpose(1, 2)
            for x in layout.keys_values
        )
        qs = q[first_read:end_read].unsqueeze(2)
        outputs.append(scaled_dot_product_attention(qs, ks, vs, scale=scaling).squeeze(2))
        start, first_read = end, end_read
    return torch.cat(outputs).unsqueeze(0)


def _gather_rows(x: Tensor, gather_index: Tensor | None) -> Tensor:
    """Return x (1, heads, n, d) at gather_index (m,), as (m, heads, d)."""
    by_node = x[0].transpose(0, 1)
    return by_node if gather_index is None else by_node.index_select(0, gather_index)


class LastLayer:
    """The last layer (transformer block) of a model, which can run only at the read positions.

    Its forward then runs twice: for the keys and values of all positions, and for the rest at the
    read positions. That is possible because all but attention works on single positions.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    @classmethod
    def from_model(cls, model: Any, attention_modules: Sequence[nn.Module]) -> LastLayer | None:
        """Return the layer whose attention module a forward called last; None if it has no
        ModuleList of layers, or if layers share weights.
        """
        if not attention_modules:
            return None
        last = attention_modules[-1]
        if attention_modules.count(last) > 1:
            return None
        path = next(name for name, module in model.named_modules() if module is last).split(".")
        for depth in range(len(path), 0, -1):
            parent = model.get_submodule(".".join(path[: depth - 1]))
            if isinstance(parent, nn.ModuleList):
                return cls(model.get_submodule(".".join(path[:depth])))
        return None

    @contextmanager
    def at_positions(
        self, layout: PackedLayout, read_nodes: NDArray[np.int64], device: torch.device
    ) -> Iterator[None]:
        """Within the context, a forward returns hidden states (1, h, d) of only `read_nodes` (h,),
        which are sorted.
        """
        layout.read_rows, start = [], 0
        for rows, length in layout.blocks:
            end = start + rows * length
            in_block = read_nodes[(read_nodes >= start) & (read_nodes < end)]
            layout.read_rows.append(torch.from_numpy((in_block - start) // length).to(device))
            start = end
        num_nodes, positions = start, torch.from_numpy(read_nodes).to(device)
        forward = self.block.forward

        def forward_twice(*args: Any, **inputs: Any) -> Any:
            layout.stage = "store"
            try:
                forward(*args, **inputs)
            except _KeysValuesStoredError:
                layout.stage = "read"
            args = _select_positions(args, num_nodes, positions)
            return forward(*args, **_select_positions(inputs, num_nodes, positions))

        self.block.forward = forward_twice
        try:
            yield
        finally:
            del self.block.forward


def _select_positions(value: Any, num_positions: int, positions: Tensor) -> Any:
    """Select positions in every tensor (1, num_positions, ...) among a layer's arguments (hidden
    states, rotary angles), which may be nested.
    """
    if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == num_positions:
        return value.index_select(1, positions)
    if isinstance(value, tuple):
        return tuple(_select_positions(v, num_positions, positions) for v in value)
    if isinstance(value, dict):
        return {k: _select_positions(v, num_positions, positions) for k, v in value.items()}
    return value
