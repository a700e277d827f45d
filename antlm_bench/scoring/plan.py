"""The plan: rows of token ids in, batches without repetition out. No torch, no Python loop per
token.

Rows are sorted so that equal beginnings stand together. Causal rows then form a prefix tree: a
prefix that many rows share is computed once, whatever pair, paradigm or method they come from. Rows
that attend in full are shared only if they are equal. A batch is a flat list of tree nodes; linear
layers run on nodes, attention on rows gathered from them (scoring.attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antlm_bench.types import Attention, Bools, Ints, Probes

# A node may be gathered for attention many times (entity tracking: five options on one long
# prefix). Attention on rows costs little beside linear layers on nodes, but its memory must stay in
# proportion to the budget.
MAX_ROW_TOKENS_PER_NODE = 4

IndexArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """n nodes, the rows that they form, and k reads; nothing is padded."""

    attention: Attention
    ids: Ints
    """(n,) token ids."""
    positions: IndexArray
    """(n,) position of each node in its row."""
    blocks: tuple[tuple[int, int], ...]
    """(rows, length) of each block of rows of one length."""
    gather_index: IndexArray | None
    """(m,) the node at each row position, blocks one after the other; None = arange(n)."""
    inverse_index: IndexArray | None
    """(n,) for each node one of the m row positions that hold it; None = arange(n)."""
    read_nodes: IndexArray
    """(h,) sorted nodes whose next-token distribution is needed."""
    read_index: IndexArray
    """(k,) which of `read_nodes` each read is at."""
    target: IndexArray
    """(k,) the token id whose log-probability is read."""
    text: IndexArray
    """(k,) the text that it adds to."""


class Plan:
    """All rows of one attention, sorted, to be cut into batches of about `budget` nodes.

    `batch, start = plan.next_batch(start, budget)` until start == len(plan).
    """

    def __init__(self, probes: Sequence[Probes]) -> None:
        self.attention: Attention = probes[0].attention
        width = max(p.ids.shape[1] for p in probes)
        rows = np.full((sum(len(p.ids) for p in probes), width), -1, np.int32)
        lengths = np.empty(len(rows), np.int64)
        reads, top = [], 0
        for p in probes:
            rows[top : top + len(p.ids), : p.ids.shape[1]] = p.ids
            lengths[top : top + len(p.ids)] = p.ids.shape[1]
            reads.append((p.row + np.int64(top), p.position, p.target, p.text_index))
            top += len(p.ids)
        row, self._at, self._target, self._text = (
            np.concatenate(part).astype(np.int64) for part in zip(*reads, strict=True)
        )
        order = _lexicographic_order(rows, lengths if self.attention == "full" else None)
        self._rows, self._lengths = rows[order], lengths[order]
        self._shared_lengths = self._shared_prefix_lengths()
        self._new_lengths = self._lengths - self._shared_lengths
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        self._read_order = np.argsort(rank[row], kind="stable")
        self._read_row = rank[row][self._read_order]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_nodes(self) -> int:
        """How many tokens the model would compute if one batch held everything."""
        return int(self._new_lengths.sum())

    def next_batch(self, start: int, budget: int) -> tuple[PackedBatch, int]:
        """Return the batch of rows from `start` on that costs at most `budget` nodes (at least one
        row), and the row after it.
        """
        window = slice(start, start + MAX_ROW_TOKENS_PER_NODE * budget + 1)
        lengths, cost = self._lengths[window], self._new_lengths[window].copy()
        cost[0] = lengths[0]  # what it shares lies in an earlier batch
        fits = (np.cumsum(cost) <= budget) & (
            np.cumsum(lengths) <= MAX_ROW_TOKENS_PER_NODE * budget
        )
        end = start + max(1, int(fits.sum()))
        return self._build_batch(start, end), end

    def _shared_prefix_lengths(self) -> IndexArray:
        """How many leading tokens each sorted row shares with the row before it (full: all or
        none).
        """
        differs = self._rows[1:] != self._rows[:-1]
        first = np.where(differs.any(1), differs.argmax(1), self._rows.shape[1])
        shared = np.concatenate([[0], np.minimum(first, self._lengths[1:])])
        if self.attention == "full":
            shared[shared < self._lengths] = 0
        return shared

    def _build_batch(self, start: int, end: int) -> PackedBatch:
        lengths, shared = self._lengths[start:end], self._shared_lengths[start:end].copy()
        shared[0] = 0
        rows = self._rows[start:end, : lengths.max()]
        column = np.arange(rows.shape[1])
        new: Bools = (column >= shared[:, None]) & (column < lengths[:, None])
        # New nodes are numbered row by row; a shared node has the last number given in its column.
        number = np.where(new, np.cumsum(new).reshape(new.shape) - 1, -1)
        node = np.maximum.accumulate(number, axis=0)
        blocks = []
        keep = new.any(1)
        for length in np.unique(lengths[keep]):
            blocks.append(node[keep & (lengths == length), :length])
        gather_index = np.concatenate([block.ravel() for block in blocks])
        n = int(new.sum())
        is_identity = len(gather_index) == n and bool((gather_index == np.arange(n)).all())
        inverse_index = np.empty(n, np.int64)
        inverse_index[gather_index[::-1]] = np.arange(len(gather_index))[::-1]
        low, high = np.searchsorted(self._read_row, [start, end])
        reads = self._read_order[low:high]
        read_nodes, read_index = np.unique(
            node[self._read_row[low:high] - start, self._at[reads]], return_inverse=True
        )
        return PackedBatch(
            attention=self.attention,
            ids=rows[new],
            positions=np.nonzero(new)[1],
            blocks=tuple((block.shape[0], block.shape[1]) for block in blocks),
            gather_index=None if is_identity else gather_index,
            inverse_index=None if is_identity else inverse_index,
            read_nodes=read_nodes,
            read_index=read_index,
            target=self._target[reads],
            text=self._text[reads],
        )


def _lexicographic_order(rows: Ints, lengths: IndexArray | None) -> IndexArray:
    """Return the stable lexicographic order (r,) of rows (r, t) padded with -1, by length first if
    lengths are given.

    Big-endian bytes compare like the numbers they hold: one byte-string sort replaces t sorts.
    """
    table = (rows.astype(np.int64) + 1).astype(">u4")
    if lengths is not None:
        table = np.concatenate([lengths.astype(">u4")[:, None], table], axis=1)
    keys = np.ascontiguousarray(table).view(f"S{4 * table.shape[1]}").ravel()
    return np.argsort(keys, kind="stable").astype(np.int64)


def build_plans(probes: Sequence[Probes]) -> list[Plan]:
    """Return one plan per attention of the probes."""
    attentions = sorted({p.attention for p in probes})
    return [Plan([p for p in probes if p.attention == attention]) for attention in attentions]
