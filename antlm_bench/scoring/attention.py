"""Attention for packed rows (see scoring.plan), which replaces a model's attention function.

Linear layers process a batch's nodes as one long row. Only the attention function gathers the nodes
of each row. On a CPU it runs once per length of rows. On a GPU a call costs more than some padding,
so that rows of similar lengths are padded and computed together.

`LastLayer` saves work in the last layer, of which only the read positions are needed (a
pseudo-log-likelihood reads one position per row): all positions get keys and values there, and only
the read positions get queries, outputs and the feed-forward.
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

from antlm_bench.scoring.devices import to_device
from antlm_bench.scoring.plan import PackedBatch

PACKED_ATTENTION = "antlm_packed"  # name under which transformers knows packed_attention_forward
# Tokens of an attention call, padding included, per token without padding: at most.
MAX_PADDING = {"cpu": 1.0}
DEFAULT_MAX_PADDING = 2.0


class CannotPackError(Exception):
    """The model's attention has a feature that `packed_attention_forward` lacks. Never reaches a
    user.
    """


class BeyondWindowError(CannotPackError):
    """A row is longer than the model's local attention window. Shorter rows can be packed."""


class _KeysValuesStoredError(Exception):
    """Ends the first forward of the last layer, once keys and values are stored."""


@dataclass(slots=True)
class RowGroup:
    """The r rows of one attention call, padded on the right to the longest length t."""

    lengths: NDArray[np.int64]
    """(r,) ascending."""
    is_read: Tensor | None
    """(r, 1, 1, t) True where a key is no padding; None if there is none, or if attention is
    causal, so that no token sees the padding after it."""
    read_rows: Tensor | None = None
    """(h,) the row of each read position, in the last layer."""

    @property
    def shape(self) -> tuple[int, int]:
        """(r, t)."""
        return len(self.lengths), int(self.lengths[-1])


@dataclass(slots=True)
class PackedLayout:
    """The rows of a PackedBatch as tensors, and the state of one forward through its layers."""

    causal: bool
    groups: list[RowGroup]
    gather_index: Tensor | None
    """(m,) node at each position of the padded rows, group by group; None = arange(n)."""
    inverse_index: Tensor | None
    """(n,) a position in the padded rows of each node; None = arange(n)."""
    stage: Literal["all", "store", "read"] = "all"
    """all: compute all positions. In the last layer, first store: stop with the keys and values of
    all positions; then read: compute the read positions from them."""
    keys_values: tuple[Tensor, Tensor] | None = None
    """Keys and values, (1, m, heads, d) each, that the stage "store" stored."""
    attention_modules: list[nn.Module] = field(default_factory=list)
    """The modules that called `packed_attention_forward`, in order."""

    @classmethod
    def from_batch(
        cls, batch: PackedBatch, device: torch.device, max_padding: float | None = None
    ) -> PackedLayout:
        """Return the layout of a batch.

        max_padding: tokens with padding per token without, at most; None = that of the device.
        """
        if max_padding is None:
            max_padding = MAX_PADDING.get(device.type, DEFAULT_MAX_PADDING)
        is_causal = batch.attention == "causal"
        lengths_by_group = _group_lengths(batch.blocks, max_padding)
        indices = batch.gather_index, batch.inverse_index
        if any(lengths[0] != lengths[-1] for lengths in lengths_by_group):
            indices = _pad_rows(batch, lengths_by_group)
        gather_index, inverse_index = (
            None if index is None else to_device(index, device) for index in indices
        )
        groups = [RowGroup(ls, _key_mask(ls, is_causal, device)) for ls in lengths_by_group]
        return cls(is_causal, groups, gather_index, inverse_index)

    @property
    def longest(self) -> int:
        """The length of the longest row."""
        return max(length for _, length in (group.shape for group in self.groups))

    def split(self, x: Tensor) -> list[Tensor]:
        """Return x (1, m, heads, d) of all groups as (r, heads, t, d) of each."""
        shapes = [group.shape for group in self.groups]
        parts = x.split([rows * length for rows, length in shapes], dim=1) if shapes[1:] else [x]
        return [
            part.view(*shape, *x.shape[2:]).transpose(1, 2)
            for part, shape in zip(parts, shapes, strict=True)
        ]


def _group_lengths(
    blocks: Sequence[tuple[int, int]], max_padding: float
) -> list[NDArray[np.int64]]:
    """Return the lengths (r,) of the rows of each group, from (rows, length) of blocks whose
    lengths ascend.
    """
    groups: list[NDArray[np.int64]] = []
    for rows, length in blocks:
        block = np.full(rows, length, np.int64)
        if groups:
            merged = np.concatenate([groups[-1], block])
            if len(merged) * length <= max_padding * merged.sum():
                groups[-1] = merged
                continue
        groups.append(block)
    return groups


def _pad_rows(
    batch: PackedBatch, lengths_by_group: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return gather_index and inverse_index of PackedLayout for padded rows.

    Padding repeats the first node of a group, which no token reads.
    """
    n = batch.num_nodes
    gather_index = np.arange(n) if batch.gather_index is None else batch.gather_index
    inverse_index = np.arange(n) if batch.inverse_index is None else batch.inverse_index
    gathers, positions, start, padded_start = [], [], 0, 0
    for lengths in lengths_by_group:
        is_token = np.arange(lengths[-1]) < lengths[:, None]
        end = start + int(lengths.sum())
        padded = np.full(is_token.shape, gather_index[start], np.int64)
        padded[is_token] = gather_index[start:end]
        gathers.append(padded.ravel())
        positions.append(padded_start + np.flatnonzero(is_token))
        start, padded_start = end, padded_start + padded.size
    return np.concatenate(gathers), np.concatenate(positions)[inverse_index]


def _key_mask(lengths: NDArray[np.int64], is_causal: bool, device: torch.device) -> Tensor | None:
    """Return `is_read` of a RowGroup."""
    if is_causal or lengths[0] == lengths[-1]:
        return None
    is_token = np.arange(lengths[-1]) < lengths[:, None]
    return to_device(is_token[:, None, None, :], device)


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
    if window is not None and layout.longest > window:
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
    outputs = []
    for group, qs, ks, vs in zip(layout.groups, *map(layout.split, (q, k, v)), strict=True):
        out = scaled_dot_product_attention(
            qs, ks, vs, attn_mask=group.is_read, is_causal=layout.causal, scale=scaling
        )
        outputs.append(out.transpose(1, 2).reshape(1, -1, heads, out.shape[-1]))
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    if layout.inverse_index is not None:
        merged = merged.index_select(1, layout.inverse_index)
    return merged, None


def _attend_at_read_positions(layout: PackedLayout, query: Tensor, scaling: float | None) -> Tensor:
    """Attend from read positions (1, heads, h, d) to the stored keys and values of their rows."""
    assert layout.keys_values is not None
    outputs, start = [], 0
    by_position = query[0].transpose(0, 1).unsqueeze(2)
    for group, ks, vs in zip(layout.groups, *map(layout.split, layout.keys_values), strict=True):
        row, mask = group.read_rows, group.is_read
        assert row is not None
        end = start + len(row)
        out = scaled_dot_product_attention(
            by_position[start:end],
            ks.index_select(0, row),
            vs.index_select(0, row),
            attn_mask=None if mask is None else mask.index_select(0, row),
            scale=scaling,
        )
        outputs.append(out.squeeze(2))
        start = end
    return torch.cat(outputs).unsqueeze(0)


def _gather_rows(x: Tensor, gather_index: Tensor | None) -> Tensor:
    """Return x (1, heads, n, d) at gather_index (m,), as (1, m, heads, d)."""
    by_node = x.transpose(1, 2)
    return by_node if gather_index is None else by_node.index_select(1, gather_index)


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
        start = 0
        for group in layout.groups:
            ends = start + group.lengths.cumsum()
            in_group = read_nodes[(read_nodes >= start) & (read_nodes < ends[-1])]
            group.read_rows = to_device(np.searchsorted(ends, in_group, side="right"), device)
            start = int(ends[-1])
        num_nodes, positions = start, to_device(read_nodes, device)
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
