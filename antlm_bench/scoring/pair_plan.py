"""Plan batches of an encoder-decoder: rows of the decoder, each after a source. Numpy only.

Equal pairs of source and row are computed once, and a source that several rows share is encoded
once per batch. Pairs of similar lengths are neighbours, and are padded to the longest of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antlm_bench.scoring.plan import MAX_ROW_TOKENS_PER_NODE, IndexArray
from antlm_bench.types import Attention, Ints, Probes

PADDING = -1
"""Fills short rows in a batch; the engine puts the model's padding token in its place."""


@dataclass(frozen=True, slots=True)
class PairBatch:
    """r rows of the decoder, the u sources before them, and the k log-probabilities to read."""

    source_ids: Ints
    """(u, s) different sources, padded on the right with PADDING."""
    source_index: IndexArray
    """(r,) the source of each row."""
    decoder_ids: Ints
    """(r, t) rows of the decoder, padded on the right with PADDING."""
    read_nodes: IndexArray
    """(h,) sorted indices into the r * t positions, those whose logits are needed."""
    read_index: IndexArray
    """(k,) index into `read_nodes` of each log-probability; ascending."""
    target: IndexArray
    """(k,) token id whose log-probability is read."""
    text_index: IndexArray
    """(k,) index of the text whose score the log-probability adds to."""

    @property
    def num_nodes(self) -> int:
        """Number of tokens that encoder and decoder read, padding included."""
        return self.source_ids.size + self.decoder_ids.size


class PairPlan:
    """All pairs of probes with sources, sorted, from which batches are taken as from a Plan."""

    attention: Attention = "cross"

    def __init__(
        self,
        probes: Sequence[Probes],
        *,
        padded: bool = True,
        batched: bool = True,
        max_decoder_tokens: int | None = None,
    ) -> None:
        """Sort the pairs.

        padded: put rows of several lengths into a batch. batched: put several rows into a batch.
        max_decoder_tokens: of a batch, padding included; None = as many as fit.
        """
        self._padded, self._batched = padded, batched
        self._max_decoder_tokens = max_decoder_tokens
        num_rows = [len(p.ids) for p in probes]
        first_row = np.cumsum([0, *num_rows])
        read_row, self._position, self._target, self._text_index = (
            np.concatenate(columns).astype(np.int64)
            for columns in zip(
                *(
                    (p.row + start, p.position, p.target, p.text_index)
                    for p, start in zip(probes, first_row, strict=False)
                ),
                strict=True,
            )
        )
        # A row ends at its last read, because a decoder sees nothing behind it.
        row_lengths = np.zeros(first_row[-1], np.int64)
        np.maximum.at(row_lengths, read_row, self._position + 1)
        sources, source_lengths = _stack([_sources_of(p) for p in probes])
        rows, _ = _stack([p.ids for p in probes])
        rows[np.arange(rows.shape[1]) >= row_lengths[:, None]] = PADDING
        lengths = np.stack([source_lengths, row_lengths], axis=1)
        # Sort by lengths, and rows of the same source after each other: a padded batch may hold
        # several row lengths, so that the source decides before them.
        order = (0, 2, 1, 3) if padded else (0, 1, 2, 3)
        columns = [lengths[:, :1], lengths[:, 1:], sources, rows]
        table = np.concatenate([columns[i] for i in order], axis=1)
        # Big-endian bytes sort as the numbers do; + 1 makes PADDING 0.
        keys = (table + 1).astype(">u4").view(f"S{4 * table.shape[1]}").ravel()
        read_rows, read_row = np.unique(read_row, return_inverse=True)  # drops rows without reads
        sources, rows = sources[read_rows], rows[read_rows]
        source_lengths, row_lengths = source_lengths[read_rows], row_lengths[read_rows]
        _, first, pair_of_row = np.unique(keys[read_rows], return_index=True, return_inverse=True)
        self._sources, self._rows = sources[first], rows[first]
        self._source_lengths, self._row_lengths = source_lengths[first], row_lengths[first]
        pair = pair_of_row.ravel()[read_row]
        self._read_order = np.argsort(pair, kind="stable")
        self._read_pair = pair[self._read_order]
        differs = (self._sources[1:] != self._sources[:-1]).any(1)
        self._is_new_source = np.concatenate([[True], differs])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_nodes(self) -> int:
        """Number of tokens of all pairs, a shared source counted once."""
        sources = int(self._source_lengths[self._is_new_source].sum())
        return sources + int(self._row_lengths.sum())

    def next_batch(self, start: int, batch_tokens: int) -> tuple[PairBatch, int]:
        """Return (batch, next start): the pairs from `start` on that have at most `batch_tokens`
        tokens with padding, but at least one pair.
        """
        window = slice(start, start + batch_tokens + 1 if self._batched else start + 1)
        rows, sources = self._row_lengths[window], self._source_lengths[window]
        number = np.arange(1, len(rows) + 1)
        num_sources = np.cumsum(self._is_new_source[window])
        num_sources += not self._is_new_source[start]
        decoder_tokens = number * np.maximum.accumulate(rows)
        longest_source = np.maximum.accumulate(sources)
        fits = decoder_tokens + num_sources * longest_source <= batch_tokens
        # Cross-attention copies a source for every row that reads it.
        fits &= number * longest_source <= MAX_ROW_TOKENS_PER_NODE * batch_tokens
        if self._max_decoder_tokens is not None:
            fits &= decoder_tokens <= self._max_decoder_tokens
        if not self._padded:
            fits &= (rows == rows[0]) & (sources == sources[0])
        count = int(fits.argmin()) if not fits.all() else len(fits)
        end = start + max(1, count)
        return self._build_batch(start, end), end

    def _build_batch(self, start: int, end: int) -> PairBatch:
        is_new = self._is_new_source[start:end].copy()
        is_new[0] = True
        sources = self._sources[start:end][is_new, : self._source_lengths[start:end].max()]
        rows = self._rows[start:end, : self._row_lengths[start:end].max()]
        low, high = np.searchsorted(self._read_pair, [start, end])
        reads = self._read_order[low:high]
        nodes = (self._read_pair[low:high] - start) * rows.shape[1] + self._position[reads]
        by_node = np.argsort(nodes, kind="stable")
        reads = reads[by_node]
        read_nodes, read_index = np.unique(nodes[by_node], return_inverse=True)
        return PairBatch(
            source_ids=sources,
            source_index=np.cumsum(is_new) - 1,
            decoder_ids=rows,
            read_nodes=read_nodes,
            read_index=read_index,
            target=self._target[reads],
            text_index=self._text_index[reads],
        )


def _sources_of(probes: Probes) -> Ints:
    assert probes.source_ids is not None  # probe functions for "cross" set it
    return probes.source_ids


def _stack(arrays: Sequence[Ints]) -> tuple[Ints, NDArray[np.int64]]:
    """Return the rows of all arrays (r, t), padded on the right with PADDING, and their lengths."""
    width = max(array.shape[1] for array in arrays)
    stacked = np.full((sum(map(len, arrays)), width), PADDING, np.int32)
    lengths = np.empty(len(stacked), np.int64)
    start = 0
    for array in arrays:
        stacked[start : start + len(array), : array.shape[1]] = array
        lengths[start : start + len(array)] = array.shape[1]
        start += len(array)
    return stacked, lengths
