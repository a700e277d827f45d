"""Attention of padded rows, packed or not, equals attention of each row alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from antlm_bench.scoring import attention
from antlm_bench.scoring.devices import copy_together
from antlm_bench.scoring.plan import PackedBatch, PaddingLimits, Plan
from antlm_bench.types import Attention, Probes

HEADS, DIM, VOCABULARY, LONGEST = 2, 4, 30, 20
CPU = torch.device("cpu")
generator = torch.Generator().manual_seed(0)
EMBEDDINGS, POSITIONS, WEIGHTS = (
    torch.randn(*shape, generator=generator, dtype=torch.float64)
    for shape in [(VOCABULARY, HEADS, DIM), (LONGEST, HEADS, DIM), (3, DIM, DIM)]
)


class Block(nn.Module):
    """A layer with attention only: (r, t, 3 * HEADS * DIM) to (r, t, HEADS, DIM)."""

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.unflatten(-1, (3, HEADS, DIM)).permute(2, 0, 3, 1, 4)
        return attention.packed_attention_forward(self, q, k, v, None)[0]


def project(ids: np.ndarray, positions: np.ndarray) -> Tensor:
    """Return queries, keys and values (r, t, 3, heads, d) of tokens (r, t)."""
    x = EMBEDDINGS[torch.as_tensor(ids).long()] + POSITIONS[torch.as_tensor(positions)]
    return torch.stack([x @ weight for weight in WEIGHTS], dim=2)


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


def attend(batch: PackedBatch, padding: PaddingLimits | None, at_reads: bool) -> Tensor:
    """Return the outputs (h, heads, d) at the read nodes of a batch."""
    layout = attention.PackedLayout.from_batch(batch, padding, at_reads)
    forward = attention.PackedForward(layout)
    arrays = {"read_positions": layout.read_positions, **layout.arrays}
    forward.set_tensors(copy_together(arrays, CPU))
    qkv = project(layout.arrange(batch.ids), layout.arrange(batch.positions)).flatten(2)
    block, token = Block(), attention.current_forward.set(forward)
    try:
        if at_reads:
            with attention.LastLayer(block).at_reads(forward):
                return block.forward(qkv)[0]
        return block(qkv).flatten(0, 1)[torch.from_numpy(layout.read_positions)]
    finally:
        attention.current_forward.reset(token)


PADDINGS = {
    "none": None,
    "rows of similar lengths": PaddingLimits(inputs=1.2, free_tokens=0, attention=1.5),
    "rows of any length": PaddingLimits(inputs=1.1, free_tokens=10_000, attention=100.0),
    "packed rows only": PaddingLimits(inputs=0.0, free_tokens=0, attention=2.0),
}


@pytest.mark.parametrize("name", PADDINGS)
@pytest.mark.parametrize("kind", ["causal", "full"])
def test_padded_rows_equal_single_rows(kind: Attention, name: str) -> None:
    rng, num_at_reads, padding = np.random.default_rng(0), 0, PADDINGS[name]
    forms: set[str] = set()
    for _ in range(15):
        probes, reads = make_probes(rng, kind)
        outputs = torch.full((len(reads), HEADS, DIM), torch.nan, dtype=torch.float64)
        plan, start = Plan(probes, None if name == "packed rows only" else padding), 0
        while start < len(plan):
            batch, start = plan.next_batch(start, int(rng.choice([1, 30, 1000])))
            at_reads = kind == "full" and batch.gather_index is None and len(batch.read_nodes) > 0
            num_at_reads += at_reads
            forms.add(name_form(attention.PackedLayout.from_batch(batch, padding)))
            values = attend(batch, padding, at_reads)
            outputs[torch.from_numpy(batch.text_index).long()] = values[batch.read_index]
        for output, (ids, position) in zip(outputs, reads, strict=True):
            qkv = project(ids[None], np.arange(len(ids))[None])
            q, k, v = qkv[0].permute(1, 2, 0, 3)
            expected = scaled_dot_product_attention(q, k, v, is_causal=kind == "causal")
            torch.testing.assert_close(output, expected[:, position], rtol=1e-9, atol=1e-9)
    assert kind == "causal" or num_at_reads > 10
    are_padded = kind == "full" and name in ("rows of similar lengths", "rows of any length")
    assert forms >= ({"rows", "padded rows"} if are_padded else {"packed"})
    assert not are_padded or "packed" not in forms


def name_form(layout: attention.PackedLayout) -> str:
    """Return how the rows of a layout are put into the model."""
    if layout.is_packed:
        return "packed"
    return "rows" if layout.input_nodes is None else "padded rows"


def test_rows_of_full_attention_are_padded_within_the_limits() -> None:
    rng, num_padded = np.random.default_rng(0), 0
    for _ in range(100):
        probes, _ = make_probes(rng, "full")
        free_tokens, batch_tokens = rng.choice([0, 20, 60]), int(rng.choice([10, 40, 1000]))
        padding = PaddingLimits(inputs=1.15, free_tokens=free_tokens, attention=2.0)
        plan, start = Plan(probes, padding), 0
        while start < len(plan):
            batch, start = plan.next_batch(start, batch_tokens)
            layout = attention.PackedLayout.from_batch(batch, padding)
            rows, length = layout.input_shape
            assert not layout.is_packed
            num_padded += rows * length > batch.num_nodes
            limit = max(1.15 * batch.num_nodes, min(free_tokens, batch_tokens))
            assert rows * length <= limit
    assert num_padded > 20


def test_causal_rows_are_not_padded_beyond_the_tokens_of_a_batch() -> None:
    one, many = np.ones(1, np.int32), np.arange(15, dtype=np.int32)
    short = np.repeat(many[:, None], 5, axis=1)  # no two rows share a prefix
    long = np.full((1, 500), 99, np.int32)
    probes = [
        Probes(short, "causal", many, many * 0, many.astype(np.int64), many),
        Probes(long, "causal", one * 0, one, one.astype(np.int64), one * 15),
    ]
    batch, _ = Plan(probes).next_batch(0, 600)
    padding = attention.GPU_PADDING

    assert batch.num_nodes == 575
    assert attention.PackedLayout.from_batch(batch, padding).input_shape == (16, 500)
    assert attention.PackedLayout.from_batch(batch, padding, batch_tokens=600).is_packed
