"""Objectives against batches written by hand, and rules checked token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antlm_bench.training.corpus import BOS_ID, EOS_ID, FIRST_REGULAR_ID, MASK_ID, PAD_ID, Int64
from antlm_bench.training.objectives import (
    IGNORE_INDEX,
    StepMasking,
    TrainingBatch,
    make_clm_batch,
    make_masked_batch,
    truncate_rows,
)
from antlm_bench.training.recipe import ObjectiveSpec

NO = IGNORE_INDEX
VOCABULARY = 50
ALL = ObjectiveSpec(rate=1.0, corrupt=(1.0, 0.0, 0.0))


def array(*rows: list[int]) -> Int64:
    return np.array(rows, dtype=np.int64)


def hidden(
    ids: Int64, segments: Int64, rate: float = 1.0, seed: tuple[int, int] = (1, 2), **spec: Any
) -> TrainingBatch:
    samples = np.arange(len(ids))
    return make_masked_batch(
        ids, segments, samples, StepMasking(ALL.model_copy(update=spec), rate, seed, VOCABULARY)
    )


@st.composite
def rows(draw: st.DrawFn) -> tuple[Int64, Int64]:
    """Ids with specials among them, and documents that begin anywhere."""
    many, width = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    ids = rng.integers(0, VOCABULARY, (many, width))
    ids[rng.random((many, width)) < 0.2] = BOS_ID
    return ids, 7 + np.cumsum(rng.random((many, width)) < 0.2, axis=1)


def test_causal_rows_ask_for_the_next_token_of_the_document() -> None:
    batch = make_clm_batch(
        array([1, 10, 11, 1, 12, 13], [9, 8, 7, 6, 5, 9]),
        array([3, 3, 3, 4, 4, 4], [5] * 6),
        np.arange(2),
    )
    assert batch.targets.tolist() == [[10, 11, NO, 12, 13, NO], [8, 7, 6, 5, 9, NO]]
    assert batch.input_ids.tolist() == [[1, 10, 11, 1, 12, 13], [9, 8, 7, 6, 5, 9]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert batch.causal and batch.objective == "clm" and batch.num_targets == 9 and len(batch) == 2
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_masked_rows_ask_at_the_place() -> None:
    batch = hidden(array([1, 10, 11, 1, 12, 2]), array([0, 0, 0, 1, 1, 1]))
    assert batch.input_ids.tolist() == [[1, MASK_ID, MASK_ID, 1, MASK_ID, 2]]
    assert batch.targets.tolist() == [[NO, 10, 11, NO, 12, NO]]
    assert not batch.causal and batch.objective == "mlm" and batch.num_targets == 3


def test_mntp_targets_stand_one_before_and_skip_document_starts() -> None:
    batch = hidden(array([1, 10, 11, 12, 13, 2], [10, 11, 1, 12, 13, 14]),
                   array([0, 0, 0, 1, 1, 1], [0] * 6),
                   masked="mntp")  # fmt: skip
    assert batch.input_ids.tolist() == [
        [1, MASK_ID, MASK_ID, 12, MASK_ID, 2],
        [10, MASK_ID, 1, MASK_ID, MASK_ID, MASK_ID],
    ]
    assert batch.targets.tolist() == [[10, 11, NO, 13, NO, NO], [11, NO, 12, 13, 14, NO]]
    assert batch.objective == "mntp"


@given(rows())
def test_a_causal_target_is_the_next_token_of_its_document(
    given_rows: tuple[Int64, Int64],
) -> None:
    ids, segments = given_rows
    targets = make_clm_batch(ids, segments, np.arange(len(ids))).targets
    for row, position in np.ndindex(*ids.shape):
        inside = (
            position + 1 < ids.shape[1] and segments[row, position] == segments[row, position + 1]
        )
        inside = inside and ids[row, position + 1] != PAD_ID
        assert targets[row, position] == (ids[row, position + 1] if inside else NO)


@given(
    rows(),
    st.sampled_from(["mlm", "mntp"]),
    st.sampled_from(["token", "geometric", "uniform"]),
    st.floats(0, 1),
)
@settings(deadline=None)
def test_a_target_is_hidden_text_of_the_same_document(
    given_rows: tuple[Int64, Int64], objective: str, spans: str, rate: float
) -> None:
    ids, segments = given_rows
    batch = hidden(ids, segments, rate, masked=objective, spans=spans, corrupt=(1.0, 0.0, 0.0))
    shift = int(objective == "mntp")
    has_target = set()
    for row, position in zip(*np.nonzero(batch.targets != NO), strict=True):
        at = position + shift
        assert batch.targets[row, position] == ids[row, at] >= FIRST_REGULAR_ID, (
            "text, the true one"
        )
        assert batch.input_ids[row, at] == MASK_ID, "that the input does not show"
        assert segments[row, position] == segments[row, at]
        has_target.add((row, at))
    untouched = [position for position in np.ndindex(*ids.shape) if position not in has_target]
    assert all(batch.input_ids[position] == ids[position] for position in untouched)


def test_at_rate_one_everything_is_asked_but_specials() -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (20, 16))
    batch = hidden(ids, np.zeros_like(ids))
    assert np.array_equal(batch.targets != NO, ids >= FIRST_REGULAR_ID)
    assert set(np.unique(ids[batch.targets == NO])) == set(range(FIRST_REGULAR_ID))


def test_targets_are_masked_random_or_kept_80_10_10() -> None:
    ids = np.random.default_rng(0).integers(FIRST_REGULAR_ID, VOCABULARY, (300, 32))
    batch = hidden(ids, np.zeros_like(ids), 0.5, corrupt=(0.8, 0.1, 0.1))
    chosen = batch.targets != NO
    seen = batch.input_ids[chosen]
    assert chosen.mean() == pytest.approx(0.5, abs=0.02)
    assert (seen == MASK_ID).mean() == pytest.approx(0.8, abs=0.02)
    assert (seen == ids[chosen]).mean() == pytest.approx(
        0.1 + 0.1 / (VOCABULARY - FIRST_REGULAR_ID), abs=0.015
    )
    assert set(np.unique(seen)) == {MASK_ID, *range(FIRST_REGULAR_ID, VOCABULARY)}, (
        "a random word is no special"
    )


def test_what_is_hidden_depends_on_seed_step_and_sample_alone() -> None:
    ids = np.random.default_rng(0).integers(FIRST_REGULAR_ID, VOCABULARY, (6, 32))
    segments = np.zeros_like(ids)
    whole = hidden(ids, segments, 0.3)
    spec = ALL
    for sample in range(6):
        law = StepMasking(spec, 0.3, (1, 2), VOCABULARY)
        alone = make_masked_batch(ids[[sample]], segments[[sample]], np.array([sample]), law)
        assert np.array_equal(alone.input_ids[0], whole.input_ids[sample])
    assert not np.array_equal(hidden(ids, segments, 0.3, seed=(1, 3)).input_ids, whole.input_ids)
    assert not np.array_equal(hidden(ids, segments, 0.3, seed=(2, 2)).input_ids, whole.input_ids)
    same = np.repeat(ids[:1], 6, 0)
    assert len({row.tobytes() for row in hidden(same, segments, 0.3).input_ids}) == 6, (
        "each sample has its own"
    )


@given(rows(), st.booleans())
def test_attention_stays_in_the_document_and_causal_looks_back(
    given_rows: tuple[Int64, Int64], causal: bool
) -> None:
    ids, segments = given_rows
    batch = (
        make_clm_batch(ids, segments, np.arange(len(ids))) if causal else hidden(ids, segments, 0.3)
    )
    mask = batch.attention_mask()
    many, width = ids.shape
    expected = np.zeros((many, 1, width, width), bool)
    for row, query, key in np.ndindex(many, width, width):
        expected[row, 0, query, key] = segments[row, query] == segments[row, key] and (
            not causal or key <= query
        )
    if mask is None:  # nothing to say but the direction
        direction = (
            np.tril(np.ones((width, width), bool)) if causal else np.ones((width, width), bool)
        )
        assert (expected == direction).all()
    else:
        assert np.array_equal(mask.numpy(), expected)
        assert (segments != segments[:, :1]).any()


@given(rows())
def test_positions_count_from_the_beginning_of_the_document(
    given_rows: tuple[Int64, Int64],
) -> None:
    ids, segments = given_rows
    positions = make_clm_batch(ids, segments, np.arange(len(ids))).position_ids
    for row, position in np.ndindex(*ids.shape):
        begins = position == 0 or segments[row, position] != segments[row, position - 1]
        assert positions[row, position] == (0 if begins else positions[row, position - 1] + 1)


def test_a_slice_keeps_what_belongs_to_its_rows() -> None:
    batch = make_clm_batch(
        array([1, 7, 8], [1, 9, EOS_ID], [5, 1, 6]),
        array([0, 0, 0], [1, 1, 1], [1, 2, 2]),
        np.array([4, 6, 8]),
    )
    part = batch[1:3]
    assert (
        part.row_indices.tolist() == [6, 8]
        and part.num_targets == 3
        and part.objective == "clm"
        and part.causal
    )
    assert part.targets.tolist() == [[9, EOS_ID, NO], [NO, 6, NO]]
    assert batch[1:2].attention_mask() is None and batch[2:3].attention_mask() is not None


@given(rows(), st.sampled_from(["mlm", "mntp"]))
def test_a_batch_knows_what_was_hidden(given_rows: tuple[Int64, Int64], objective: str) -> None:
    batch = hidden(*given_rows, 0.4, masked=objective, corrupt=(1.0, 0.0, 0.0))
    assert np.array_equal(
        batch.chosen_positions, (batch.input_ids == MASK_ID) & (given_rows[0] != MASK_ID)
    )


def test_a_short_row_ends_in_padding_that_text_ignores() -> None:
    ids, segments = array([1, 10, 11, 12, 13], [1, 14, 15, 16, 17]), np.zeros((2, 5), np.int64)
    cut, documents = truncate_rows(ids, segments, np.array([3, 5]))
    assert cut.tolist() == [[1, 10, 11, 0, 0], [1, 14, 15, 16, 17]]
    causal = make_clm_batch(cut, documents, np.arange(2))
    assert causal.targets.tolist() == [[10, 11, NO, NO, NO], [14, 15, 16, 17, NO]]
    mask = causal.attention_mask()
    assert mask is not None and not mask[0, 0, 2, 3:].any() and mask[1, 0, 4].all()
    both = hidden(cut, documents)
    assert both.targets.tolist() == [[NO, 10, 11, NO, NO], [NO, 14, 15, 16, 17]]


def test_gpt_bert_s_rows_are_read_as_in_the_original_code(cases_root: Path) -> None:
    """Ours asks nothing of a row's last position: rows are windows of T tokens, the original's of T
    + 1.
    """
    text = (cases_root / "original" / "training" / "masking.json").read_text(encoding="utf-8")
    for name, kind in json.loads(text)["gpt_bert_dataset_rows"].items():
        for row in kind["rows"] if name in ("masked", "causal") else ():
            ids = np.array([row["input_ids"]])
            segments = np.cumsum(
                (ids == 1) | (ids == 3), axis=1
            )  # there 1 begins a document and 3 is padding
            batch = make_clm_batch(np.where(ids == 3, PAD_ID, ids), segments, np.arange(1))
            look = batch.attention_mask()
            square = np.tril(np.ones((16, 16), bool)) if look is None else look[0, 0].numpy()
            recorded = np.array(
                [[int(cell) for cell in line] for line in row["may_attend_rows"]], bool
            )
            text_only = ids[0] != 3
            if name == "causal":
                assert batch.targets[0, :-1].tolist() == row["target_ids"][:-1]
                assert (square[text_only] == recorded[text_only]).all()
            else:
                assert ((square | square.T)[text_only] == recorded[text_only]).all()
                target_ids = np.array(row["target_ids"])
                has_target = np.nonzero(target_ids >= 0)[0]
                assert all(segments[0, at] == segments[0, at + 1] for at in has_target if at < 15)


def test_no_rows_make_an_empty_batch() -> None:
    """A process may get none of a step's rows."""
    none = np.empty((0, 8), np.int64)
    for batch in (
        make_clm_batch(none, none, np.arange(0)),
        hidden(none, none),
        hidden(none, none, masked="mntp"),
    ):
        assert len(batch) == batch.num_targets == 0
