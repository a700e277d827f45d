"""Masking against plain loops and the originals' statistics, independent of the batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from antlm_bench.errors import DeclarationError
from antlm_bench.training.masking import (
    SPAN_LENGTH_DISTRIBUTIONS,
    Corruption,
    MaskableRows,
    apply_masking,
)

MASK, WORDS = 4, np.arange(5, 1005)


def plain(many: int, width: int) -> MaskableRows:
    """Rows of words without specials, each one document."""
    rows = np.random.default_rng(0).choice(WORDS, size=(many, width))
    return MaskableRows(rows, np.ones(rows.shape, np.bool_), np.zeros(rows.shape, np.int32))


def keys(many: int, seed: int = 42, step: int = 7) -> list[tuple[int, int, int]]:
    return [(seed, step, sample) for sample in range(many)]


def near(share: float, expected: float, n: int) -> bool:
    """Within 5 standard errors of a binomial share."""
    return abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_single_tokens_are_hidden_independently(rate: float) -> None:
    many, width = 400, 64
    _, chosen = apply_masking(plain(many, width), rate, keys(many), Corruption(MASK, WORDS))
    assert near(chosen.mean(), rate, many * width)
    spread = chosen.sum(1).var() / (width * rate * (1 - rate))
    assert 0.7 < spread < 1.3, "the counts of rows vary as a binomial does"


def overlapping_spans(
    dice: np.random.Generator, width: int, rate: float, least: int
) -> NDArray[np.bool_]:
    """LTG-BERT's law in a plain loop, for a row without specials."""
    hidden = [False] * width
    goal = max(least, sum(dice.random() < rate for _ in range(width)))
    while sum(hidden) < goal:
        length = dice.geometric(1 / 3) % 10
        if length == 0:
            continue
        begin = dice.integers(-(length - 1), width + length)
        for position in range(begin, begin + length):
            if 0 <= position < width:
                hidden[position] = True
    return np.array(hidden)


def lowest_spans(
    dice: np.random.Generator, width: int, rate: float, counts: list[int]
) -> NDArray[np.bool_]:
    """GPT-BERT's law in a plain loop, for a document without specials."""
    values: list[float] = []
    while len(values) < width:
        values += [dice.random()] * dice.integers(1, 4)
    weighted = [value * np.exp(count) for value, count in zip(values, counts, strict=False)]
    many = max(1, int(width * rate + dice.random()))
    return np.array([value <= sorted(weighted)[many - 1] for value in weighted])


def same_distribution(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> None:
    """Both (N, T): rate by position, and how many are hidden in a row, within 5 standard errors of
    a difference.
    """
    many = len(ours)
    pairs = [(ours.mean(0), theirs.mean(0))]
    pairs.append(
        tuple(np.bincount(x.sum(1), minlength=ours.shape[1] + 1) / many for x in (ours, theirs))
    )
    pairs.append(tuple((x[:, 1:] & x[:, :-1]).mean(0) for x in (ours, theirs)))
    for one, other in pairs:
        mean = (one + other) / 2
        assert (np.abs(one - other) <= 5 * np.sqrt(2 * mean * (1 - mean) / many) + 1e-9).all()


@pytest.mark.long
@pytest.mark.parametrize(("law", "least"), [("geometric", 1), ("geometric", 0), ("uniform", 1)])
@pytest.mark.parametrize(("width", "rate"), [(8, 0.15), (20, 0.3)])
def test_spans_follow_the_law_of_a_plain_loop(
    law: str, least: int, width: int, rate: float
) -> None:
    many, rng = 2000, np.random.default_rng(3)
    _, chosen = apply_masking(
        plain(many, width), rate, keys(many), Corruption(MASK, WORDS, law, min_masked=least)
    )
    if law == "geometric":
        expected = [overlapping_spans(rng, width, rate, least) for _ in range(many)]
    else:
        expected = [lowest_spans(rng, width, rate, [0] * width) for _ in range(many)]
    same_distribution(chosen, np.array(expected))


@pytest.mark.long
def test_less_often_hidden_tokens_are_hidden_next() -> None:
    many, width, passes, rng = 150, 16, 15, np.random.default_rng(5)
    counts, expected = np.zeros((many, width), np.int16), np.zeros((many, width), int)
    for number in range(passes):
        rows = plain(many, width)._replace(mask_counts=counts)
        counts += apply_masking(
            rows, 0.15, keys(many, step=number), Corruption(MASK, WORDS, "uniform")
        )[1]
        for row in expected:
            row += lowest_spans(rng, width, 0.15, row.tolist())
    assert counts.mean() == pytest.approx(expected.mean(), abs=0.05)
    assert counts.std() == pytest.approx(expected.std(), rel=0.1)
    independent = (passes * 0.15 * 0.85) ** 0.5
    assert counts.std() < 0.6 * independent


def records(cases_root: Path) -> dict[str, Any]:
    text = (cases_root / "original" / "training" / "masking.json").read_text(encoding="utf-8")
    return dict(json.loads(text)["laws"])


SPAN_LAWS = {"ltg-bert (babylm/train): span": "geometric", "elc-bert: span": "geometric",
             "gpt-bert": "uniform",
             "ltg-bert (BNC training): subword": "token"}  # fmt: skip
RATES = [f"{code}, {width} words" for code in SPAN_LAWS if code != "gpt-bert" for width in (8, 16,
                                                                                            32, 126)
         if "subword" not in code or width < 126]  # fmt: skip
RATES += [f"gpt-bert, rate {rate}, {width} words, never hidden before" for rate in (0.15, 0.3)
          for width in (8, 16, 32, 126)]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", RATES)
def test_hidden_shares_are_those_of_the_original_code(name: str, cases_root: Path) -> None:
    case, many = records(cases_root)[name], 1200 if "126" in name else 3000
    width, (first, last) = case["positions"], case["maskable"]
    rows = plain(many, width)
    rows.maskable[:, :first], rows.maskable[:, last + 1 :] = False, False
    law = next(law for code, law in SPAN_LAWS.items() if name.startswith(code))
    corruption = Corruption(
        MASK, WORDS, law, corrupt_whole_spans=law != "token", min_masked=0 if "elc" in name else 1
    )
    inputs, chosen = apply_masking(rows, case["mask_p"], keys(many), corruption)
    error = 5 * (1 / many + 1 / case["sequences"]) ** 0.5
    spread = chosen[:, first : last + 1].mean(1).std()
    assert (
        abs(chosen[:, first : last + 1].mean() - case["mean_rate_over_maskable"]) < error * spread
    )
    rates = np.array(case["rate_by_position"])
    assert (np.abs(chosen.mean(0) - rates) <= error * np.sqrt(rates * (1 - rates))).all()
    counted = np.bincount(chosen.sum(1), minlength=width + 1) / many
    recorded = np.array(
        [case["hidden_per_sequence"].get(str(number), 0.0) for number in range(width + 1)]
    )
    assert (
        np.abs(counted - recorded) <= error * np.sqrt(np.maximum(counted, recorded)) + 1 / many
    ).all()
    runs = lengths_of(chosen)
    for length in range(1, 6):
        share = case["runs_of_hidden_positions"].get(str(length), 0.0)
        assert (
            abs((runs == length).mean() - share)
            < 5 * (share / len(runs) + share / case["sequences"]) ** 0.5 + 1e-3
        )
    assert abs((inputs == MASK)[chosen].mean() - case["share_mask"]) < 0.04


def test_examples_of_the_original_code_follow_these_laws(cases_root: Path) -> None:
    """Their draws are torch's and cannot be repeated: what must hold of any draw does, and the same
    of ours.
    """
    text = (cases_root / "original" / "training" / "masking.json").read_text(encoding="utf-8")
    examples = {example["code"]: example for example in json.loads(text)["exact_examples"]}
    for code in ("ltg-bert (babylm/train)", "ltg-bert (BNC training)"):
        example = {key: np.array(examples[code][key]) for key in ("tokens", "inputs", "labels")}
        hidden = example["labels"] != -100
        assert np.array_equal(example["inputs"][~hidden], example["tokens"][~hidden])
        assert np.array_equal(example["labels"][hidden], example["tokens"][hidden])
    example = examples["gpt-bert"]
    values, tokens = np.array(example["hiding_order_of_values"]), np.array(example["tokens"])
    begins = np.append(True, np.diff(values) != 0)
    spans = np.split(np.arange(len(tokens)), np.nonzero(begins)[0][1:])
    assert max(map(len, spans)) <= 3 and values.max() * len(tokens) < 1
    replaced = np.array(example["replacement"])
    for span in spans:  # one fate for a whole span: the mask, random words, or the words themselves
        assert (replaced[span] == 4).all() or not (replaced[span] == 4).any()
        assert (
            np.array_equal(replaced[span], tokens[span])
            or not (replaced[span] == tokens[span]).any()
        )


@pytest.mark.long
@pytest.mark.parametrize("width", [16, 32])
def test_hiding_evens_out_as_in_the_original_code(width: int, cases_root: Path) -> None:
    case = records(cases_root)[f"gpt-bert, rate 0.15, {width} words, 40 passes with counts kept"]
    many, counts, rates = 200, np.zeros((200, width), np.int16), []
    for number in range(40):
        rows = plain(many, width)._replace(mask_counts=counts)
        chosen = apply_masking(
            rows, 0.15, keys(many, step=number), Corruption(MASK, WORDS, "uniform")
        )[1]
        counts += chosen
        rates.append(chosen.mean())
    expected = case["times_hidden_after_40_passes"]
    assert counts.mean() == pytest.approx(expected["mean"], abs=0.1)
    assert counts.std() == pytest.approx(expected["std_over_positions"], abs=0.05)
    assert abs(np.array(rates) - case["mean_rate_by_pass"]).max() < 0.012


@pytest.mark.long
@pytest.mark.parametrize("law", SPAN_LENGTH_DISTRIBUTIONS)
@pytest.mark.parametrize("by_span", [True, False])
def test_of_ten_chosen_eight_are_masked_one_random_one_kept(law: str, by_span: bool) -> None:
    many = 800
    inputs, chosen = apply_masking(
        plain(many, 64), 0.3, keys(many), Corruption(MASK, WORDS, law, corrupt_whole_spans=by_span)
    )
    rows = plain(many, 64).ids
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


def test_a_span_has_one_fate_or_each_token_its_own() -> None:
    many = 300
    for by_span in (True, False):
        corruption = Corruption(
            MASK, WORDS, "geometric", corrupt_whole_spans=by_span, mask_share=0.5, random_share=0.0
        )
        inputs, chosen = apply_masking(plain(many, 200), 0.02, keys(many), corruption)
        both = chosen[:, 1:] & chosen[:, :-1]  # neighbours are of one span, nearly always
        alike = ((inputs == MASK)[:, 1:] == (inputs == MASK)[:, :-1])[both].mean()
        assert alike > 0.93 if by_span else 0.4 < alike < 0.6


@pytest.mark.long
@settings(deadline=None, max_examples=80)
@given(
    data=st.data(),
    law=st.sampled_from(SPAN_LENGTH_DISTRIBUTIONS),
    rate=st.floats(0, 1),
    width=st.integers(1, 30),
)
def test_what_must_hold_for_any_row(data: st.DataObject, law: str, rate: float, width: int) -> None:
    many = data.draw(st.integers(1, 4))
    cells = st.lists(st.booleans(), min_size=many * width, max_size=many * width)
    maskable, fresh = (np.array(data.draw(cells)).reshape(many, width) for _ in range(2))
    rows = plain(many, width).ids
    before = rows.copy()
    segments = fresh.cumsum(1)
    corruption = Corruption(MASK, WORDS, law)
    inputs, chosen = apply_masking(
        MaskableRows(rows, maskable, segments), rate, keys(many), corruption
    )
    assert np.array_equal(rows, before), "the caller's rows stay"
    assert not (chosen & ~maskable).any() and np.array_equal(inputs[~chosen], rows[~chosen])
    if rate in (0, 1):
        assert np.array_equal(chosen, maskable & (rate == 1))

    pick = data.draw(st.permutations(range(many)))[: data.draw(st.integers(1, many))]
    pad = data.draw(st.integers(0, 5))
    wider = [np.pad(x[pick], ((0, 0), (0, pad))) for x in (rows, maskable, segments)]
    again, also = apply_masking(
        MaskableRows(*wider), rate, [keys(many)[i] for i in pick], corruption
    )
    assert np.array_equal(again[:, :width], inputs[pick]) and np.array_equal(
        also[:, :width], chosen[pick]
    )


def test_gpt_bert_hides_in_every_document_by_itself() -> None:
    many, width = 800, 40
    rows = plain(many, width)
    segments = np.arange(width)[None].repeat(many, 0) // 8
    _, chosen = apply_masking(
        rows._replace(document_ids=segments), 0.15, keys(many), Corruption(MASK, WORDS, "uniform")
    )
    _, alone = apply_masking(plain(many, 8), 0.15, keys(many), Corruption(MASK, WORDS, "uniform"))
    parts = chosen.reshape(many, 5, 8)
    assert (parts.sum(2) >= 1).all(), "at least one in each"
    for part in range(5):
        same_distribution(parts[:, part], alone)


def test_seed_step_and_sample_all_change_the_choice() -> None:
    rows = MaskableRows(*(x.repeat(4, 0) for x in plain(1, 100)[:3]))
    different = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)]
    for law in SPAN_LENGTH_DISTRIBUTIONS:
        _, chosen = apply_masking(rows, 0.3, different, Corruption(MASK, WORDS, law))
        assert len({row.tobytes() for row in chosen}) == 4


def test_every_position_is_as_likely_with_single_tokens() -> None:
    many = 4000
    _, chosen = apply_masking(plain(many, 10), 0.2, keys(many), Corruption(MASK, WORDS))
    assert all(near(share, 0.2, many) for share in chosen.mean(0))


def test_ids_keep_their_type() -> None:
    rows = plain(2, 9)
    for kind in (np.int32, np.int64, np.uint16):
        typed = rows._replace(ids=rows.ids.astype(kind))
        assert apply_masking(typed, 0.5, keys(2), Corruption(MASK, WORDS))[0].dtype == kind


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (
            {"span_length_distribution": "word"},
            r"masking\.spans: unknown span distribution 'word'",
        ),
        ({"mask_share": 0.8, "random_share": 0.3}, "masking: shares of 0.8 masked and 0.3 random"),
        ({"mask_share": -0.1}, "masking: shares of -0.1 masked"),
        ({"random_token_ids": WORDS[:0]}, r"masking\.random: there are no ids"),
    ],
)
def test_a_corruption_that_makes_no_sense_is_refused(change: dict[str, Any], place: str) -> None:
    with pytest.raises(DeclarationError, match=place):
        Corruption(**{"mask_id": MASK, "random_token_ids": WORDS, **change})


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(rate: float) -> None:
    with pytest.raises(DeclarationError, match=r"masking\.rate"):
        apply_masking(plain(1, 3), rate, keys(1), Corruption(MASK, WORDS))
