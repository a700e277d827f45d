"""Masking: counts, shares and spans as published, borders kept, nothing that depends on the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from antlm_bench.errors import DeclarationError
from antlm_bench.training.masking import SPANS, Corruption, hide

MASK, WORDS = 4, np.arange(5, 1005)


def plain(many: int, width: int) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[Any]]:
    """Rows of words without specials, each one document."""
    rows = np.random.default_rng(0).choice(WORDS, size=(many, width))
    return rows, np.ones(rows.shape, np.bool_), np.zeros(rows.shape, np.int32)


def keys(many: int, seed: int = 42, step: int = 7) -> list[tuple[int, int, int]]:
    return [(seed, step, sample) for sample in range(many)]


def near(share: float, expected: float, n: int) -> bool:
    """Within 5 standard errors of a binomial share."""
    return abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5


@pytest.mark.parametrize("law", SPANS)
@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_the_number_of_chosen_tokens_is_binomial(law: str, rate: float) -> None:
    many, width = 400, 64
    _, chosen = hide(*plain(many, width), rate, keys(many), Corruption(MASK, WORDS, law))
    assert near(chosen.mean(), rate, many * width)
    spread = chosen.sum(1).var() / (width * rate * (1 - rate))
    assert 0.7 < spread < 1.3, "the counts of rows vary as a binomial does"


@pytest.mark.parametrize("law", SPANS)
@pytest.mark.parametrize("by_span", [True, False])
def test_of_ten_chosen_eight_are_masked_one_random_one_kept(law: str, by_span: bool) -> None:
    many = 800
    rows, maskable, segments = plain(many, 64)
    inputs, chosen = hide(rows, maskable, segments, 0.3, keys(many), Corruption(MASK, WORDS, law, by_span=by_span))
    n = chosen.sum() / (3 if by_span else 1)  # decisions, fewer than tokens
    assert near((inputs == MASK)[chosen].mean(), 0.8, n)
    assert near((inputs == rows)[chosen].mean(), 0.1, n)
    assert np.array_equal(inputs[~chosen], rows[~chosen])
    replaced = inputs[chosen & (inputs != MASK) & (inputs != rows)]
    assert np.isin(replaced, WORDS).all() and len(np.unique(replaced)) > 0.7 * len(WORDS)


def lengths_of(chosen: NDArray[np.bool_]) -> NDArray[Any]:
    """Lengths of the runs of True in each row."""
    edges = np.diff(np.pad(chosen.astype(int), ((0, 0), (1, 1))), axis=1)
    return np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]


def published(law: str, random: np.random.Generator, n: int) -> NDArray[Any]:
    """Lengths as the papers draw them; a length of 0 hides nothing."""
    if law == "geometric":
        drawn = random.geometric(1 / 3, size=2 * n) % 10
        return drawn[drawn > 0][:n]
    return random.integers(1, 4, size=n) if law == "uniform" else np.ones(n, int)


@pytest.mark.parametrize("law", SPANS)
def test_spans_have_the_published_lengths(law: str) -> None:
    many, width = 3000, 1000  # so few chosen that spans hardly meet, and a last span is cut rarely
    rows, maskable, segments = plain(many, width)
    _, chosen = hide(rows, maskable, segments, 0.02, keys(many), Corruption(MASK, WORDS, law))
    whole = chosen[chosen.sum(1) >= 10]
    ours, theirs = lengths_of(whole), published(law, np.random.default_rng(1), 20_000)
    assert abs(ours.mean() / theirs.mean() - 1) < 0.1
    if law != "token":
        shares = [np.bincount(x, minlength=10)[1:4] / len(x) for x in (ours, theirs)]
        np.testing.assert_allclose(*shares, atol=0.06)


def test_a_span_has_one_fate_or_each_token_its_own() -> None:
    many = 300
    for by_span in (True, False):
        rows, maskable, segments = plain(many, 200)
        corruption = Corruption(MASK, WORDS, "geometric", by_span=by_span, masked=0.5, random=0.0)
        inputs, chosen = hide(rows, maskable, segments, 0.02, keys(many), corruption)
        both = chosen[:, 1:] & chosen[:, :-1]  # neighbours are of one span, nearly always
        alike = ((inputs == MASK)[:, 1:] == (inputs == MASK)[:, :-1])[both].mean()
        assert alike > 0.93 if by_span else 0.4 < alike < 0.6


@settings(deadline=None, max_examples=80)
@given(data=st.data(), law=st.sampled_from(sorted(SPANS)), rate=st.floats(0, 1), width=st.integers(1, 30))
def test_what_must_hold_for_any_row(data: st.DataObject, law: str, rate: float, width: int) -> None:
    many = data.draw(st.integers(1, 4))
    cells = st.lists(st.booleans(), min_size=many * width, max_size=many * width)
    maskable, fresh = (np.array(data.draw(cells)).reshape(many, width) for _ in range(2))
    rows, _, _ = plain(many, width)
    before = rows.copy()
    segments = fresh.cumsum(1)
    corruption = Corruption(MASK, WORDS, law)
    inputs, chosen = hide(rows, maskable, segments, rate, keys(many), corruption)
    assert np.array_equal(rows, before), "the caller's rows stay"
    assert not (chosen & ~maskable).any() and np.array_equal(inputs[~chosen], rows[~chosen])
    if rate in (0, 1):
        assert np.array_equal(chosen, maskable & (rate == 1))

    pick = data.draw(st.permutations(range(many)))[: data.draw(st.integers(1, many))]
    pad = data.draw(st.integers(0, 5))
    wider = [np.pad(x[pick], ((0, 0), (0, pad))) for x in (rows, maskable, segments)]
    again, also = hide(*wider, rate, [keys(many)[i] for i in pick], corruption)
    assert np.array_equal(again[:, :width], inputs[pick]) and np.array_equal(also[:, :width], chosen[pick])


def test_spans_end_where_their_document_ends() -> None:
    many, width = 2000, 40
    rows, maskable, _ = plain(many, width)
    segments = np.arange(width)[None].repeat(many, 0) // 2  # documents of two tokens
    corruption = Corruption(MASK, WORDS, "uniform", masked=0.5, random=0.0)
    inputs, chosen = hide(rows, maskable, segments, 0.1, keys(many), corruption)
    hidden, both = inputs == MASK, chosen[:, 1:] & chosen[:, :-1]
    alike = hidden[:, 1:] == hidden[:, :-1]
    assert alike[:, 0::2][both[:, 0::2]].mean() > 0.85, "within a document: mostly one span, one fate"
    assert 0.4 < alike[:, 1::2][both[:, 1::2]].mean() < 0.6, "across a border: two spans, two fates"


def test_seed_step_and_sample_all_change_the_choice() -> None:
    rows, maskable, segments = (x.repeat(4, 0) for x in plain(1, 100))
    different = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]
    _, chosen = hide(rows, maskable, segments, 0.3, different, Corruption(MASK, WORDS))
    assert len({row.tobytes() for row in chosen}) == 4


def test_every_position_is_as_likely_with_single_tokens() -> None:
    many = 4000
    _, chosen = hide(*plain(many, 10), 0.2, keys(many), Corruption(MASK, WORDS))
    assert all(near(share, 0.2, many) for share in chosen.mean(0))


def test_ids_keep_their_type() -> None:
    rows, maskable, segments = plain(2, 9)
    for kind in (np.int32, np.int64, np.uint16):
        assert hide(rows.astype(kind), maskable, segments, 0.5, keys(2), Corruption(MASK, WORDS))[0].dtype == kind


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"spans": "word"}, r"masking\.spans: unknown law of spans 'word'"),
        ({"masked": 0.8, "random": 0.3}, "masking: 0.8 masked and 0.3 random"),
        ({"masked": -0.1}, "masking: -0.1 masked"),
        ({"words": WORDS[:0]}, r"masking\.random: no words"),
    ],
)
def test_a_corruption_that_makes_no_sense_is_refused(change: dict[str, Any], place: str) -> None:
    with pytest.raises(DeclarationError, match=place):
        Corruption(**{"mask_id": MASK, "words": WORDS, **change})


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(rate: float) -> None:
    with pytest.raises(DeclarationError, match=r"masking\.rate"):
        hide(*plain(1, 3), rate, keys(1), Corruption(MASK, WORDS))
