"""The plan: rows of token ids in, batches without repetition out. No torch, no Python loop per
token.

Rows are sorted so that equal beginnings stand together. Causal rows then form a tree: a prefix that
many rows share is computed once, whatever pair, paradigm or method they come from. Rows that attend
fully share only if they are equal. A batch is a flat list of tree nodes; linear layers run on
nodes, attention on rows gathered from them (`Batch.rows`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antlm_bench.types import Attention, Bools, Ints, Probes

# A row may be gathered for attention many times over (entity tracking: five options on one long
# prefix); attention on rows costs little beside the linear layers on nodes, but its memory must
# stay in proportion to the budget.
MAX_ROW_TOKENS_PER_NODE = 4

IndexArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Nodes (n,) and how they hang together; every array is an index, nothing is padded.

    ids, positions (n,): token and its place in its row. pieces: the (rows, length) of each block of
    equal-length rows. gather (m,): the node of each row position, blocks one after the other, or
    None if that is arange(n). take (n,): for each node one place in the gathered rows that holds
    it, or None likewise. heads (h,): nodes whose next-token distribution is needed. head, target,
    text (k,): one entry per read.
    """

    attention: Attention
    ids: Ints
    positions: IndexArray
    blocks: tuple[tuple[int, int], ...]
    gather_index: IndexArray | None
    inverse_index: IndexArray | None
    read_nodes: IndexArray
    read_index: IndexArray
    target: IndexArray
    text: IndexArray


class Plan:
    """All rows of one attention, sorted and ready to be cut into batches of about `budget` nodes.

    `Plan(probes)` then `batch, start = plan.cut(start, budget)` until start == len(plan).
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
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        self._read_order = np.argsort(place[row], kind="stable")
        self._read_row = place[row][self._read_order]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_nodes(self) -> int:
        """How many tokens the model will compute, if one batch held everything."""
        return int(self._new_lengths.sum())

    def next_batch(self, start: int, budget: int) -> tuple[PackedBatch, int]:
        """The batch of rows from `start` on that costs at most `budget` nodes (one row at least),
        and where it ends.
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
        # Number the new nodes row by row; a shared one has the number last given in its column.
        number = np.where(new, np.cumsum(new).reshape(new.shape) - 1, -1)
        node = np.maximum.accumulate(number, axis=0)
        blocks = []
        keep = new.any(1)
        for length in np.unique(lengths[keep]):
            blocks.append(node[keep & (lengths == length), :length])
        gather = np.concatenate([block.ravel() for block in blocks])
        n = int(new.sum())
        identity = len(gather) == n and bool((gather == np.arange(n)).all())
        take = np.empty(n, np.int64)
        take[gather[::-1]] = np.arange(len(gather))[::-1]
        low, high = np.searchsorted(self._read_row, [start, end])
        reads = self._read_order[low:high]
        heads, head = np.unique(
            node[self._read_row[low:high] - start, self._at[reads]], return_inverse=True
        )
        return PackedBatch(
            attention=self.attention,
            ids=rows[new],
            positions=np.nonzero(new)[1],
            blocks=tuple((block.shape[0], block.shape[1]) for block in blocks),
            gather_index=None if identity else gather,
            inverse_index=None if identity else take,
            read_nodes=heads,
            read_index=head,
            target=self._target[reads],
            text=self._text[reads],
        )


def _lexicographic_order(rows: Ints, lengths: IndexArray | None) -> IndexArray:
    """Stable lexicographic order of (r, t) rows padded with -1, by length first if lengths are
    given.

    Big-endian bytes compare like the numbers they hold, so that one byte-string sort does the work
    of t sorts.
    """
    table = (rows.astype(np.int64) + 1).astype(">u4")
    if lengths is not None:
        table = np.concatenate([lengths.astype(">u4")[:, None], table], axis=1)
    keys = np.ascontiguousarray(table).view(f"S{4 * table.shape[1]}").ravel()
    return np.argsort(keys, kind="stable").astype(np.int64)


def build_plans(probes: Sequence[Probes]) -> list[Plan]:
    """One plan per attention that the probes ask for."""
    kinds = sorted({p.attention for p in probes})
    return [Plan([p for p in probes if p.attention == kind]) for kind in kinds]
