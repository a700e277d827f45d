"""Attention within the rows of a batch (see scoring.plan): it replaces the attention function of a
model.

The model's input has one of two forms:

- Rows: if no prefix is shared and the rows have nearly one length, they are padded on the right to
  one shape (r, t). Nothing is gathered, and no token attends to padding.
- Packed: a batch's nodes are one long row (1, n), which linear layers process without padding. Only
  the attention function gathers the nodes of each row. On a CPU it runs once per length of rows. On
  a GPU a call costs more than some padding, so that rows of similar lengths are computed together.

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

from antlm_bench.scoring.plan import NO_PADDING, IndexArray, PackedBatch, PaddingLimits

PACKED_ATTENTION = "antlm_packed"  # name under which transformers knows packed_attention_forward
# On a GPU, an operator call takes as long as some thousand tokens of a small model.
GPU_PADDING = PaddingLimits(inputs=1.1, free_tokens=8192, attention=2.0)


def padding_limits(device: torch.device) -> PaddingLimits | None:
    """Return how much rows may be padded on a device. None = not at all: rows of several lengths
    are packed.
    """
    return None if device.type == "cpu" else GPU_PADDING


class CannotPackError(Exception):
    """The model's attention has a feature that `packed_attention_forward` lacks. Never reaches a
    user.
    """


class BeyondWindowError(CannotPackError):
    """A row is longer than the model's local attention window. Shorter rows can be packed."""


class _KeysValuesStoredError(Exception):
    """Ends the first forward of the last layer as soon as its keys and values are stored."""


# ---- rows of a batch -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the nodes of a PackedBatch are in the model's input and in attention calls."""

    causal: bool
    input_shape: tuple[int, int]
    """(1, n) packed, or (r, t) rows."""
    groups: list[tuple[int, int]]
    """(rows, length) of each attention call, padding included."""
    read_positions: IndexArray
    """(h,) sorted indices into the positions of the input: those of the batch's `read_nodes`."""
    input_nodes: IndexArray | None = None
    """Node at each position of the input; padding repeats a node. None = arange(n)."""
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Arrays that the device needs. A key is absent if its array would change nothing.

    gather_index (m,): node at each position of the groups; padding repeats a node.
    inverse_index (n,): for each node, one of its positions in the groups.
    is_token (r, 1, 1, t): False at padding, for padded rows with full attention.
    read_rows (h,): for each read position, the index of its row within its group, for the last
    layer.
    """
    reads_per_group: list[int] = field(default_factory=list)
    """Number of read positions of each group, for the last layer."""

    @classmethod
    def from_batch(
        cls,
        batch: PackedBatch,
        padding: PaddingLimits | None,
        last_layer_at_reads: bool = False,
        batch_tokens: float = np.inf,
    ) -> PackedLayout:
        """Return the layout of a batch.

        padding: how much rows may be padded; None = not at all. last_layer_at_reads: also find the
        rows of the read positions, for LastLayer; the batch must have no shared nodes.
        batch_tokens: as of `PaddingLimits.allows_rows`.
        """
        limits = padding or NO_PADDING
        causal, n = batch.attention == "causal", batch.num_nodes
        rows, longest = sum(rows for rows, _ in batch.blocks), batch.blocks[-1][1]
        arrays: dict[str, NDArray[Any]] = {}
        if batch.gather_index is None and limits.allows_rows(rows * longest, n, batch_tokens):
            shape, groups = (rows, longest), [(rows, longest)]
            input_nodes, read_positions = None, batch.read_nodes
            if rows * longest > n:
                is_token = np.arange(longest) < _row_lengths(batch.blocks)[:, None]
                input_nodes = is_token.cumsum() - 1  # padding repeats the token before it
                read_positions = np.flatnonzero(is_token)[read_positions]
                if not causal:  # no token sees the padding after it
                    arrays["is_token"] = is_token[:, None, None, :]
        else:
            shape, input_nodes, read_positions = (1, n), None, batch.read_nodes
            blocks_by_group = _group_blocks(batch.blocks, limits.attention if causal else 1.0)
            groups = [(sum(r for r, _ in blocks), blocks[-1][1]) for blocks in blocks_by_group]
            arrays |= _gather_arrays(batch, blocks_by_group)
        reads_per_group: list[int] = []
        if last_layer_at_reads:
            arrays["read_rows"], reads_per_group = _find_read_rows(batch, groups)
        return cls(causal, shape, groups, read_positions, input_nodes, arrays, reads_per_group)

    @property
    def is_packed(self) -> bool:
        """Whether attention gathers its rows from one long row."""
        return [self.input_shape] != self.groups

    @property
    def longest(self) -> int:
        """The length of the longest row."""
        return max(length for _, length in self.groups)

    def arrange(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values (n,) of the nodes as an input (r, t) of the model."""
        inputs = values if self.input_nodes is None else values[self.input_nodes]
        return inputs.reshape(self.input_shape)


def _row_lengths(blocks: Sequence[tuple[int, int]]) -> IndexArray:
    """Return the length of each row of blocks (rows, length)."""
    rows, lengths = np.array(blocks).T
    return np.repeat(lengths, rows)


def _group_blocks(
    blocks: Sequence[tuple[int, int]], max_padding: float
) -> list[list[tuple[int, int]]]:
    """Group blocks (rows, length) of ascending length: the blocks of a group share a call.

    max_padding: tokens of a group, padding included, per token without padding: at most.
    """
    groups: list[list[tuple[int, int]]] = []
    for block in blocks:
        if groups:
            lengths = _row_lengths([*groups[-1], block])
            if len(lengths) * block[1] <= max_padding * lengths.sum():
                groups[-1].append(block)
                continue
        groups.append([block])
    return groups


def _gather_arrays(
    batch: PackedBatch, blocks_by_group: Sequence[Sequence[tuple[int, int]]]
) -> dict[str, IndexArray]:
    """Return gather_index and inverse_index of PackedLayout.

    Padding repeats the first node of its group. No token attends to it, because it is on the right,
    and only rows with causal attention are padded here.
    """
    if all(len(blocks) == 1 for blocks in blocks_by_group):
        if batch.gather_index is None or batch.inverse_index is None:
            return {}
        return {"gather_index": batch.gather_index, "inverse_index": batch.inverse_index}
    n = batch.num_nodes
    gather_index = np.arange(n) if batch.gather_index is None else batch.gather_index
    inverse_index = np.arange(n) if batch.inverse_index is None else batch.inverse_index
    gathers, positions, start, padded_start = [], [], 0, 0
    for lengths in map(_row_lengths, blocks_by_group):
        is_token = np.arange(lengths[-1]) < lengths[:, None]
        end = start + int(lengths.sum())
        padded = np.full(is_token.shape, gather_index[start], np.int64)
        padded[is_token] = gather_index[start:end]
        gathers.append(padded.ravel())
        positions.append(padded_start + np.flatnonzero(is_token))
        start, padded_start = end, padded_start + padded.size
    return {
        "gather_index": np.concatenate(gathers),
        "inverse_index": np.concatenate(positions)[inverse_index],
    }


def _find_read_rows(
    batch: PackedBatch, groups: Sequence[tuple[int, int]]
) -> tuple[IndexArray, list[int]]:
    """Return read_rows and reads_per_group of PackedLayout."""
    ends = _row_lengths(batch.blocks).cumsum()
    row = np.searchsorted(ends, batch.read_nodes, side="right")
    first_rows = np.cumsum([0, *(rows for rows, _ in groups)])
    reads_per_group = np.diff(np.searchsorted(row, first_rows))
    return row - np.repeat(first_rows[:-1], reads_per_group), reads_per_group.tolist()


# ---- attention -----------------------------------------------------------------------------------


@dataclass(slots=True)
class PackedForward:
    """The state of one forward, which its attention calls share."""

    layout: PackedLayout
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The layout's `arrays` on the device."""
    stage: Literal["all", "store", "read"] = "all"
    """all: compute all positions. The last layer has two stages instead: "store" computes the keys
    and values of all positions and stops; "read" computes the read positions from them."""
    keys_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values (r, heads, t, d) of each group, from the stage "store"."""
    attention_modules: list[nn.Module] = field(default_factory=list)
    """The modules that called `packed_attention_forward`, in order."""
    is_token: Tensor | None = None
    """(r, 1, 1, t) False at padding, to which no token may attend; None = all may be seen."""

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Receive the layout's arrays on the device."""
        self.tensors = tensors
        if "is_token" in tensors:
            self.is_token = tensors["is_token"].bool()

    def split(self, x: Tensor) -> list[Tensor]:
        """Split x of all nodes, (1, heads, n, d) packed or (r, heads, t, d) rows, into one tensor
        (r, heads, t, d) per group.
        """
        if not self.layout.is_packed:
            return [x]
        nodes = x.transpose(1, 2)
        if "gather_index" in self.tensors:
            nodes = nodes.index_select(1, self.tensors["gather_index"])
        _, _, heads, d = nodes.shape
        _, node_stride, head_stride, stride = nodes.stride()
        parts, start = [], nodes.storage_offset()
        for rows, t in self.layout.groups:
            strides = (t * node_stride, head_stride, node_stride, stride)
            parts.append(nodes.as_strided((rows, heads, t, d), strides, start))
            start += rows * t * node_stride
        return parts

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """Join the outputs (r, t, heads, d) of all groups: (1, n, heads, d) of all nodes if the
        input is packed, else (r, t, heads, d).
        """
        if not self.layout.is_packed:
            return outputs[0].contiguous()
        nodes = [output.reshape(1, -1, *output.shape[2:]) for output in outputs]
        joined = nodes[0] if len(nodes) == 1 else torch.cat(nodes, dim=1)
        if "inverse_index" in self.tensors:
            joined = joined.index_select(1, self.tensors["inverse_index"])
        return joined

    def attend_at_reads(self, query: Tensor, scaling: float | None) -> Tensor:
        """Attend from read positions (1, heads, h, d) to the stored keys and values of their rows.
        Return (1, h, heads, d).
        """
        counts, outputs = self.layout.reads_per_group, []
        by_position, rows = query.transpose(0, 2), self.tensors["read_rows"]
        has_several_groups = len(counts) > 1
        queries = by_position.split(counts) if has_several_groups else [by_position]
        rows_by_group = rows.split(counts) if has_several_groups else [rows]
        for q, (k, v), row in zip(queries, self.keys_values, rows_by_group, strict=True):
            mask = None if self.is_token is None else self.is_token.index_select(0, row)
            keys, values = k.index_select(0, row), v.index_select(0, row)
            outputs.append(
                scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scaling)
            )
        joined = torch.cat(outputs) if has_several_groups else outputs[0]
        return joined.permute(2, 0, 1, 3)


current_forward: ContextVar[PackedForward] = ContextVar("current_forward")
"""The forward that runs in this thread."""


def packed_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attend within each row of the current forward: query (1, heads, n, d) to output (1, n, heads,
    d), or query (r, heads, t, d) to output (r, t, heads, d).

    Raises CannotPackError for an attention with a mask, soft cap, sinks or position bias, and
    BeyondWindowError for a local window that is shorter than a row.
    """
    forward = current_forward.get()
    forward.attention_modules.append(module)
    unsupported = (attention_mask, *map(extra.get, ("softcap", "s_aux", "position_bias")))
    if any(value is not None for value in unsupported):
        raise CannotPackError
    window = extra.get("sliding_window")
    if window is not None and forward.layout.longest > window:
        raise BeyondWindowError

    heads = query.shape[1]
    if key.shape[1] != heads:
        key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    if forward.stage == "read":
        return forward.attend_at_reads(query, scaling), None
    if forward.stage == "store":
        forward.keys_values = [*zip(forward.split(key), forward.split(value), strict=True)]
        raise _KeysValuesStoredError
    outputs = [
        scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=forward.is_token,
            is_causal=forward.layout.causal,
            scale=scaling,
        ).transpose(1, 2)
        for q, k, v in zip(*map(forward.split, (query, key, value)), strict=True)
    ]
    return forward.join(outputs), None


# ---- the last layer ------------------------------------------------------------------------------


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
    def at_reads(self, state: PackedForward) -> Iterator[None]:
        """Within the context, a forward returns hidden states (1, h, d) of only the read positions.
        Its layout must have been made with `last_layer_at_reads`.
        """
        forward = self.block.forward

        def forward_twice(*args: Any, **inputs: Any) -> Any:
            state.stage = "store"
            try:
                forward(*args, **inputs)
            except _KeysValuesStoredError:
                state.stage = "read"
            shape, positions = state.layout.input_shape, state.tensors["read_positions"]
            args = _select_positions(args, shape, positions)
            return forward(*args, **_select_positions(inputs, shape, positions))

        self.block.forward = forward_twice
        try:
            yield
        finally:
            del self.block.forward


def _select_positions(value: Any, shape: tuple[int, int], positions: Tensor) -> Any:
    """Select positions (h,) in every tensor (r, t, ...) of this shape among a layer's arguments
    (hidden states, rotary angles), which may be nested. They become tensors (1, h, ...).
    """
    if isinstance(value, Tensor) and value.shape[:2] == shape:
        return value.flatten(0, 1).index_select(0, positions).unsqueeze(0)
    if isinstance(value, tuple):
        return tuple(_select_positions(v, shape, positions) for v in value)
    if isinstance(value, dict):
        return {k: _select_positions(v, shape, positions) for k, v in value.items()}
    return value
