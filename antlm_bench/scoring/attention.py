"""Attention of packed rows, which replaces a model's own attention in the engine's forwards.

Linear layers see a batch's nodes as one long row; only here do nodes become the rows that they
belong to. `LastLayer` shortens the last layer: a pseudo-log-likelihood reads one position of a row,
so that beyond the last keys and values only the read positions need to be computed.
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

PACKED_ATTENTION = "antlm_packed"  # the name of `packed_attention_forward` in transformers


class CannotPackError(Exception):
    """The model's attention needs something that packed rows lack. Never reaches a user."""


class BeyondWindowError(CannotPackError):
    """A row is longer than the model's local attention window; shorter ones can be packed."""


class _KeysValuesStoredError(Exception):
    """Ends the forward of the last layer once its keys and values are stored."""


@dataclass(slots=True)
class PackedLayout:
    """The layout of a PackedBatch as tensors, for the attention function inside the model."""

    causal: bool
    blocks: tuple[tuple[int, int], ...]
    """See PackedBatch, as the next two."""
    gather_index: Tensor | None
    inverse_index: Tensor | None
    stage: Literal["all", "keep", "narrow"] = "all"
    """Compute all positions; in the last layer first keep the keys and values of all, then narrow
    to the read positions."""
    keys_values: tuple[Tensor, Tensor] | None = None
    """Those that the stage "keep" stored, (m, heads, d) each."""
    read_rows: Sequence[tuple[Tensor, int]] = ()
    """Per block, the row of each read position and the number of read positions."""
    attention_modules: list[nn.Module] = field(default_factory=list)
    """The modules that called, in the order of their calls."""

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

    Raises CannotPackError for what this does not compute (soft caps, sinks, local windows).
    """
    layout = current_layout.get()
    layout.attention_modules.append(module)
    if attention_mask is not None or any(
        extra.get(k) is not None for k in ("softcap", "s_aux", "position_bias")
    ):
        raise CannotPackError
    window = extra.get("sliding_window")
    if window is not None and max(t for _, t in layout.blocks) > window:
        raise BeyondWindowError

    heads = query.shape[1]
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    if layout.stage == "narrow":
        return _attend_at_read_positions(layout, query, scaling), None
    q, k, v = (_gather_rows(x, layout.gather_index) for x in (query, key, value))
    if layout.stage == "keep":
        layout.keys_values = (k, v)
        raise _KeysValuesStoredError
    outputs, top = [], 0
    for rows, length in layout.blocks:
        end = top + rows * length
        qs, ks, vs = (x[top:end].unflatten(0, (rows, length)).transpose(1, 2) for x in (q, k, v))
        out = scaled_dot_product_attention(qs, ks, vs, is_causal=layout.causal, scale=scaling)
        outputs.append(out.transpose(1, 2).reshape(rows * length, heads, -1))
        top = end
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    if layout.inverse_index is not None:
        merged = merged.index_select(0, layout.inverse_index)
    return merged.unsqueeze(0), None


def _attend_at_read_positions(layout: PackedLayout, query: Tensor, scaling: float | None) -> Tensor:
    """Attend from read positions (1, heads, h, d) to the kept keys and values of their rows."""
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
    """Gather (1, heads, n, d) as (m, heads, d)."""
    flat = x[0].transpose(0, 1)
    return flat if gather_index is None else flat.index_select(0, gather_index)


class LastLayer:
    """The block of a model that attends last, run twice: for the keys and values of all positions,
    then for the read positions only. All but attention works on single positions.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    @classmethod
    def from_model(cls, model: Any, attention_modules: Sequence[nn.Module]) -> LastLayer | None:
        """Find the block of the attention module that a forward called last; None where layers
        share their weights.
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
        """Within, a forward ends with the hidden states (1, h, d) of `read_nodes` (sorted) only."""
        layout.read_rows, top = [], 0
        for rows, length in layout.blocks:
            end = top + rows * length
            inside = read_nodes[(read_nodes >= top) & (read_nodes < end)]
            layout.read_rows.append(
                (torch.from_numpy((inside - top) // length).to(device), len(inside))
            )
            top = end
        num_nodes, positions = top, torch.from_numpy(read_nodes).to(device)
        forward = self.block.forward

        def twice(*args: Any, **inputs: Any) -> Any:
            layout.stage = "keep"
            try:
                forward(*args, **inputs)
            except _KeysValuesStoredError:
                layout.stage = "narrow"
            args = _select_positions(args, num_nodes, positions)
            return forward(*args, **_select_positions(inputs, num_nodes, positions))

        self.block.forward = twice
        try:
            yield
        finally:
            del self.block.forward


def _select_positions(value: Any, num_positions: int, positions: Tensor) -> Any:
    """Select positions in every (1, num_positions, ...) tensor of a block's arguments (hidden
    states, rotary angles).
    """
    if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == num_positions:
        return value.index_select(1, positions)
    if isinstance(value, tuple):
        return tuple(_select_positions(v, num_positions, positions) for v in value)
    if isinstance(value, dict):
        return {k: _select_positions(v, num_positions, positions) for k, v in value.items()}
    return value
