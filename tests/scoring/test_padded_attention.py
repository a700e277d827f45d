"""Attention of padded groups of packed rows equals attention of each row alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from antlm_bench.scoring import attention
from antlm_bench.scoring.plan import PackedBatch, Plan
from antlm_bench.types import Attention, Probes

HEADS, DIM, VOCABULARY, LONGEST = 2, 4, 30, 20
CPU = torch.device("cpu")
generator = torch.Generator().manual_seed(0)
EMBEDDINGS, POSITIONS, WEIGHTS = (
    torch.randn(*shape, generator=generator, dtype=torch.float64)
    for shape in [(VOCABULARY, HEADS, DIM), (LONGEST, HEADS, DIM), (3, DIM, DIM)]
)


class Block(nn.Module):
    """A layer with attention only: (1, n, 3 * HEADS * DIM) to (1, n, HEADS, DIM)."""

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.view(1, -1, 3, HEADS, DIM).permute(2, 0, 3, 1, 4)
        return attention.packed_attention_forward(self, q, k, v, None)[0]


def project(ids: np.ndarray, positions: np.ndarray) -> Tensor:
    """Return queries, keys and values (3, heads, n, d) of tokens."""
    x = EMBEDDINGS[torch.as_tensor(ids).long()] + POSITIONS[torch.as_tensor(positions)]
    return torch.stack([(x @ weight).transpose(0, 1) for weight in WEIGHTS])


def make_probes(rng: np.random.Generator, kind: Attention) -> tuple[list[Probes], list]:
    """Return probes of random rows, some with a shared prefix or repeated, and (row, position) of
    each read.
    """
    probes, reads = [], []
    vocabulary, prefix = rng.choice([2, 3, VOCABULARY]), rng.integers(0, 2, LONGEST)
    for length in rng.choice(np.arange(1, LONGEST), rng.integers(1, 6), replace=False):
        ids = rng.integers(0, vocabulary, (rng.integers(1, 5), length)).astype(np.int32)
        num_shared = rng.integers(0, length + 1)
        ids[:, :num_shared] = prefix[:num_shared]
        ids[-1] = ids[0]
        num_reads = rng.integers(1, 6)
        row, position = rng.integers(0, len(ids), num_reads), rng.integers(0, length, num_reads)
        text_index = (len(reads) + np.arange(num_reads)).astype(np.int32)
        probes.append(Probes(ids, kind, row, position, np.zeros(num_reads, np.int64), text_index))
        reads += [(ids[r], p) for r, p in zip(row, position, strict=True)]
    return probes, reads


def attend(batch: PackedBatch, max_padding: float, at_reads: bool) -> Tensor:
    """Return the outputs (h, heads, d) at the read nodes of a batch."""
    layout = attention.PackedLayout.from_batch(batch, CPU, max_padding)
    for rows, length, tokens in ((*group.shape, group.lengths.sum()) for group in layout.groups):
        assert rows * length <= max_padding * tokens
    qkv = project(batch.ids, batch.positions).permute(2, 0, 1, 3).reshape(1, batch.num_nodes, -1)
    block, token = Block(), attention.current_layout.set(layout)
    try:
        if not at_reads:
            return block(qkv)[0, torch.from_numpy(batch.read_nodes)]
        with attention.LastLayer(block).at_positions(layout, batch.read_nodes, CPU):
            return block.forward(qkv)[0]
    finally:
        attention.current_layout.reset(token)


@pytest.mark.parametrize("max_padding", [1.0, 1.2, 2.0, 5.0, 100.0])
@pytest.mark.parametrize("kind", ["causal", "full"])
def test_padded_rows_equal_single_rows(kind: Attention, max_padding: float) -> None:
    rng, num_at_reads = np.random.default_rng(0), 0
    for _ in range(15):
        probes, reads = make_probes(rng, kind)
        outputs = torch.full((len(reads), HEADS, DIM), torch.nan, dtype=torch.float64)
        plan, start = Plan(probes), 0
        while start < len(plan):
            batch, start = plan.next_batch(start, int(rng.choice([1, 30, 1000])))
            at_reads = kind == "full" and batch.gather_index is None and len(batch.read_nodes) > 0
            num_at_reads += at_reads
            values = attend(batch, max_padding, at_reads)
            outputs[torch.from_numpy(batch.text_index).long()] = values[batch.read_index]
        for output, (ids, position) in zip(outputs, reads, strict=True):
            q, k, v = project(ids, np.arange(len(ids)))
            expected = scaled_dot_product_attention(q, k, v, is_causal=kind == "causal")
            torch.testing.assert_close(output, expected[:, position], rtol=1e-9, atol=1e-9)
    assert kind == "causal" or num_at_reads > 10
