"""Plan batches of rows in which shared prefixes are computed once. Numpy only.

Rows are sorted, so that rows with a common prefix are neighbours. Causal rows then form a prefix
tree, whose nodes are tokens after their prefix: a prefix is computed once, whatever pair, paradigm
or method its rows come from. Rows with full attention are computed once only if they are equal.

A batch is packed: a flat list of nodes without padding. Linear layers run on nodes, attention on
rows that are gathered from them (scoring.attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antlm_bench.types import Attention, Bools, Ints, Probes

# Attention copies a node into every row that contains it (in entity tracking, five options share a
# long prefix). This limits the memory of attention: row tokens per batch_tokens.
MAX_ROW_TOKENS_PER_NODE = 4

IndexArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PaddingLimits:
    """How much padding is accepted, because it costs less than more operator calls."""

    inputs: float
    """Largest ratio of tokens with padding to tokens without, in a batch of padded rows."""
    free_tokens: int
    """Number of tokens, padding included, up to which a batch of padded rows is always accepted."""
    attention: float
    """The same ratio as `inputs`, in an attention call with rows gathered from packed nodes."""

    def allows_rows(self, num_padded: Any, num_tokens: Any, batch_tokens: float = np.inf) -> Any:
        """Return whether rows may be padded from `num_tokens` tokens in all to `num_padded`.

        Both are numbers, or arrays of the same shape. batch_tokens: limits `free_tokens`, because
        so many tokens are known to fit into memory.
        """
        free_tokens = min(self.free_tokens, batch_tokens)
        return num_padded <= np.maximum(self.inputs * num_tokens, free_tokens)


NO_PADDING = PaddingLimits(inputs=1.0, free_tokens=0, attention=1.0)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """n nodes, the rows that they form, and the k log-probabilities to read."""

    attention: Attention
    ids: Ints
    """(n,) token ids."""
    positions: IndexArray
    """(n,) position of each node in its row."""
    blocks: tuple[tuple[int, int], ...]
    """(number of rows, length) of each block of rows of one length."""
    gather_index: IndexArray | None
    """(m,) node at each position of the rows, concatenated block by block; None = arange(n)."""
    inverse_index: IndexArray | None
    """(n,) a position in the concatenated rows of each node; None = arange(n)."""
    read_nodes: IndexArray
    """(h,) sorted nodes whose logits are needed."""
    read_index: IndexArray
    """(k,) index into `read_nodes` of each log-probability; ascending."""
    target: IndexArray
    """(k,) token id whose log-probability is read; negative = a set of tokens."""
    text_index: IndexArray
    """(k,) index of the text to whose score the log-probability is added."""

    @property
    def num_nodes(self) -> int:
        """The number of nodes."""
        return len(self.ids)


class Plan:
    """All rows of one attention, sorted, from which batches are taken.

    Call `batch, start = plan.next_batch(start, batch_tokens)` until start == len(plan).
    """

    def __init__(self, probes: Sequence[Probes], padding: PaddingLimits | None = None) -> None:
        """Sort the rows.

        padding: limits for rows with full attention, padded to the longest of a batch: a batch ends
        before its rows exceed them. None = a batch may have rows of any lengths.
        """
        self.attention: Attention = probes[0].attention
        self._padding = padding if self.attention == "full" else None
        width = max(p.ids.shape[1] for p in probes)
        rows = np.full((sum(len(p.ids) for p in probes), width), -1, np.int32)
        lengths = np.empty(len(rows), np.int64)
        columns, start = [], 0
        for p in probes:
            end = start + len(p.ids)
            rows[start:end, : p.ids.shape[1]] = p.ids
            lengths[start:end] = p.ids.shape[1]
            columns.append((p.row + np.int64(start), p.position, p.target, p.text_index))
            start = end
        unsorted_row, self._position, self._target, self._text_index = (
            np.concatenate(column).astype(np.int64) for column in zip(*columns, strict=True)
        )
        order = _lexicographic_order(rows, lengths if self.attention == "full" else None)
        self._rows, self._lengths = rows[order], lengths[order]
        self._shared_lengths = self._shared_prefix_lengths()
        self._new_lengths = self._lengths - self._shared_lengths
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        row = rank[unsorted_row]
        self._read_order = np.argsort(row, kind="stable")
        """(k,) the log-probabilities in the order of their rows."""
        self._read_row = row[self._read_order]
        """(k,) the row of each log-probability, in that order."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_nodes(self) -> int:
        """Number of nodes of all rows in one batch."""
        return int(self._new_lengths.sum())

    def next_batch(self, start: int, batch_tokens: int) -> tuple[PackedBatch, int]:
        """Return (batch, next start): the rows from `start` on that have at most `batch_tokens`
        nodes, but at least one row.
        """
        max_row_tokens = MAX_ROW_TOKENS_PER_NODE * batch_tokens
        window = slice(start, start + max_row_tokens + 1)
        lengths, num_nodes = self._lengths[window], self._new_lengths[window].copy()
        num_nodes[0] = lengths[0]  # the prefix that it shares is in an earlier batch
        fits = (np.cumsum(num_nodes) <= batch_tokens) & (np.cumsum(lengths) <= max_row_tokens)
        count = max(1, int(fits.sum()))
        if self._padding is not None:  # rows with full attention ascend in length
            nodes = num_nodes[:count]
            padded = np.cumsum(nodes > 0) * lengths[:count]
            is_allowed = self._padding.allows_rows(padded, np.cumsum(nodes), batch_tokens)
            count = 1 + int(np.flatnonzero(is_allowed)[-1])
        return self._build_batch(start, start + count), start + count

    def _shared_prefix_lengths(self) -> IndexArray:
        """Return how many leading tokens each sorted row shares with the row before it; with full
        attention, all or none.
        """
        differs = self._rows[1:] != self._rows[:-1]
        first_difference = np.where(differs.any(1), differs.argmax(1), self._rows.shape[1])
        shared = np.concatenate([[0], np.minimum(first_difference, self._lengths[1:])])
        if self.attention == "full":
            shared[shared < self._lengths] = 0
        return shared

    def _build_batch(self, start: int, end: int) -> PackedBatch:
        """Return the batch of the sorted rows start..end-1."""
        lengths, shared = self._lengths[start:end], self._shared_lengths[start:end].copy()
        shared[0] = 0
        rows = self._rows[start:end, : lengths.max()]
        column = np.arange(rows.shape[1])
        is_new: Bools = (column >= shared[:, None]) & (column < lengths[:, None])
        # New nodes are numbered row by row. A shared node is the last new node in its column.
        new_node = np.where(is_new, np.cumsum(is_new).reshape(is_new.shape) - 1, -1)
        node = np.maximum.accumulate(new_node, axis=0)
        # A row without new nodes equals the row before it, whose nodes it shares.
        has_new = is_new.any(1)
        blocks = [
            node[has_new & (lengths == length), :length] for length in np.unique(lengths[has_new])
        ]
        gather_index = np.concatenate([block.ravel() for block in blocks])
        n = int(is_new.sum())
        is_identity = len(gather_index) == n and bool((gather_index == np.arange(n)).all())
        inverse_index = np.empty(n, np.int64)
        inverse_index[gather_index[::-1]] = np.arange(len(gather_index))[::-1]
        low, high = np.searchsorted(self._read_row, [start, end])
        logprobs = self._read_order[low:high]
        nodes = node[self._read_row[low:high] - start, self._position[logprobs]]
        by_node = np.argsort(nodes, kind="stable")
        logprobs = logprobs[by_node]
        read_nodes, read_index = np.unique(nodes[by_node], return_inverse=True)
        return PackedBatch(
            attention=self.attention,
            ids=rows[is_new],
            positions=np.nonzero(is_new)[1],
            blocks=tuple((block.shape[0], block.shape[1]) for block in blocks),
            gather_index=None if is_identity else gather_index,
            inverse_index=None if is_identity else inverse_index,
            read_nodes=read_nodes,
            read_index=read_index,
            target=self._target[logprobs],
            text_index=self._text_index[logprobs],
        )


def _lexicographic_order(rows: Ints, lengths: IndexArray | None) -> IndexArray:
    """Return the stable lexicographic order (r,) of rows (r, t), which are padded with -1.

    lengths (r,): sort by length first. Rows are sorted as strings of big-endian bytes, which have
    the same order as the numbers: one sort instead of t.
    """
    table = (rows.astype(np.int64) + 1).astype(">u4")
    if lengths is not None:
        table = np.concatenate([lengths.astype(">u4")[:, None], table], axis=1)
    keys = np.ascontiguousarray(table).view(f"S{4 * table.shape[1]}").ravel()
    return np.argsort(keys, kind="stable").astype(np.int64)


def build_plans(probes: Sequence[Probes], padding: PaddingLimits | None = None) -> list[Plan]:
    """Return one plan per attention of the probes. padding: see Plan."""
    attentions = sorted({p.attention for p in probes})
    return [
        Plan([p for p in probes if p.attention == attention], padding) for attention in attentions
    ]
