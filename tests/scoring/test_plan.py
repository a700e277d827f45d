"""The plan against brute force: whatever it shares, every read must see exactly the row it asked
for.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antlm_bench.scoring.plan import MAX_ROW_TOKENS_PER_NODE, Plan
from antlm_bench.types import Probes


def probes(rows: list[list[int]], attention: str) -> list[Probes]:
    """One Probes per length, reading every position of every row; text = number of the row, target
    = 1000 row + at.
    """
    made = []
    for length in sorted({len(r) for r in rows}):
        numbers = [n for n, r in enumerate(rows) if len(r) == length]
        ids = np.array([rows[n] for n in numbers], np.int32)
        row, at = (
            x.ravel().astype(np.int32)
            for x in np.meshgrid(range(len(ids)), range(length), indexing="ij")
        )
        text = np.array(numbers, np.int32)[row]
        made.append(Probes(ids, attention, row, at, text * 1000 + at, text))
    return made


def batches(plan: Plan, budget: int):
    start = 0
    while start < len(plan):
        batch, end = plan.next_batch(start, budget)
        assert end > start
        yield batch
        start = end


rows_of_few_tokens = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=7), min_size=1, max_size=25
)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(
    rows=rows_of_few_tokens,
    budget=st.integers(1, 60),
    attention=st.sampled_from(["causal", "full"]),
)
def test_every_read_sees_its_own_row_and_nothing_else(rows, budget, attention):
    seen = []
    for batch in batches(Plan(probes(rows, attention)), budget):
        gather = np.arange(len(batch.ids)) if batch.gather_index is None else batch.gather_index
        take = np.arange(len(batch.ids)) if batch.inverse_index is None else batch.inverse_index
        assert (gather[take] == np.arange(len(batch.ids))).all()
        flat, places, top = [], [], 0
        for count, length in batch.blocks:
            for _ in range(count):
                flat.append(gather[top : top + length])
                places += [(len(flat) - 1, at) for at in range(length)]
                top += length
        assert top == len(gather)
        for head, target, text in zip(
            batch.read_index, batch.target, batch.text_index, strict=True
        ):
            node = batch.read_nodes[head]
            in_row, at = places[take[node]]
            context = batch.ids[flat[in_row]].tolist()
            assert target == text * 1000 + at and batch.positions[node] == at
            if attention == "causal":
                assert context[: at + 1] == rows[text][: at + 1]
            else:
                assert context == rows[text]
            seen.append((int(text), int(target)))
    assert sorted(seen) == [
        (n, n * 1000 + at) for n, row in enumerate(rows) for at in range(len(row))
    ]


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(rows=rows_of_few_tokens)
def test_one_batch_computes_each_prefix_once(rows):
    plan = Plan(probes(rows, "causal"))
    prefixes = {tuple(row[: at + 1]) for row in rows for at in range(len(row))}
    assert plan.num_nodes == len(prefixes)
    full = Plan(probes(rows, "full"))
    assert full.num_nodes == sum(len(row) for row in {tuple(row) for row in rows})


@pytest.mark.long
@settings(max_examples=200, deadline=None)
@given(rows=rows_of_few_tokens, budget=st.integers(1, 40))
def test_a_batch_stays_within_its_budget_unless_one_row_is_larger(rows, budget):
    for batch in batches(Plan(probes(rows, "causal")), budget):
        single = len(batch.blocks) == 1 and batch.blocks[0][0] == 1
        assert single or len(batch.ids) <= budget
        gathered = sum(count * length for count, length in batch.blocks)
        assert single or gathered <= MAX_ROW_TOKENS_PER_NODE * budget


def test_a_plan_is_cut_without_a_call_per_token():
    rng = np.random.default_rng(0)
    rows = np.sort(rng.integers(0, 40, (6_000, 12)), axis=1).astype(np.int32)
    order = np.arange(len(rows), dtype=np.int32)
    plan_probes = [Probes(rows, "causal", order, np.full_like(order, 11), order, order)]
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(1) if event.endswith("call") else None)
    try:
        total = sum(len(b.ids) for b in batches(Plan(plan_probes), 1024))
    finally:
        sys.setprofile(None)
    assert total < rows.size
    assert len(calls) < total
