"""Strange texts through tokenizers and models: an error of ours, or the numbers of a plain loop
over the library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from prediction_rows import predict_rows
from tiny_models import train_tokenizer
from transformers import AutoTokenizer, ByT5Tokenizer, CanineTokenizer

from antlm_bench.checkpoints import Checkpoint, OpenOptions, open_checkpoint
from antlm_bench.errors import BenchError, CheckpointError, DataError
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.text import Specials, TextEncoder
from antlm_bench.types import Item, Option

Make = Callable[..., Path]
Span = tuple[int, int] | None

SPELLED = ["<s>", "</s>", "<mask>", "<pad>", "<unk>", "[MASK]", "Ġ", "▁", "##", "�", "﻿", "‍", "​"]
ODD = [
    "\x00",
    "\x7f",
    "\x1b[31m",
    "\r\n",
    "\u2028",
    "\u200b",
    "\ufeff",
    "İ",
    "ß",
    "ǆ",
    "ﬁ",
    "🏳️‍🌈",
    "🧑🏽‍🚀",
    "न्",
    "\u0301",
    "𝔘",
]
BASIS = [" ", "  ", "\t", "\n", "the cat", " sleeps", ".", "naïve", "ab", "12,5"]
WORD = st.sampled_from(SPELLED + ODD + BASIS) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=6
)
TEXT = st.lists(WORD, max_size=8).map("".join)
SPAN = st.none() | st.tuples(st.integers(0, 20), st.integers(0, 20)).map(
    lambda ends: (min(ends), max(ends))
)
PAIRS = st.lists(st.tuples(TEXT, TEXT, SPAN), min_size=1, max_size=4)
FUZZ = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def opened(folder: Path, **options: Any) -> Checkpoint:
    return open_checkpoint(str(folder), OpenOptions(device="cpu", **options))


def items(pairs: list[tuple[str, str, Span]]) -> list[Item]:
    return [
        Item(f"x_{n}", (Option(a, span), Option(b, span)), 0)
        for n, (a, b, span) in enumerate(pairs)
    ]


def plain(
    model: Checkpoint, tokenizer: Any, text: str, span: Span, masked: bool, bos: bool
) -> tuple[float, int]:
    """(score, tokens) of one text by the library's own forward, in rows of one length; raises
    KeyError if it is too long.

    The text's tokens stand after exactly one BOS, and masked ones before an EOS; a text that spells
    its BOS out gets no second one. A token counts iff it ends after the span's start and begins
    before its end.
    """
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(found["input_ids"]), list(found["offset_mapping"])
    if bos and ids[:1] == [tokenizer.bos_token_id]:
        ids, offsets = ids[1:], offsets[1:]
    counts = [span is None or (end > span[0] and start < span[1]) for start, end in offsets]
    row = [tokenizer.bos_token_id] * bos + ids + [tokenizer.eos_token_id] * (masked and bos)
    counts = [False] * bos + counts + [False] * (masked and bos)
    if len(row) > 64:
        raise KeyError(text)
    library = model.engine.model
    library.set_attn_implementation("eager")
    positions = [at for at, counted in enumerate(counts) if counted and (masked or at > 0)]
    if not positions:
        return 0.0, 0
    shown = torch.tensor([row] * (len(positions) if masked else 1))
    if masked:
        shown[range(len(positions)), positions] = tokenizer.mask_token_id
    with torch.inference_mode():
        logprobs = library(input_ids=shown).logits.log_softmax(-1)
    return sum(
        logprobs[(n, at) if masked else (0, at - 1)][row[at]].item()
        for n, at in enumerate(positions)
    ), len(positions)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "method", "bos"),
    [
        ("causal", "causal", True),
        ("causal", "causal", False),
        ("masked", "mlm", True),
        ("masked", "mlm", False),
    ],
)
def test_any_texts_give_the_numbers_of_a_plain_loop_or_an_error(
    make_checkpoint: Make, kind: str, method: str, bos: bool
) -> None:
    folder = make_checkpoint(kind, adds=False)
    model, twin = (opened(folder, bos="auto" if bos else "never") for _ in range(2))
    tokenizer, masked = AutoTokenizer.from_pretrained(folder), method == "mlm"

    @FUZZ
    @given(pairs=PAIRS)
    def check(pairs: list[tuple[str, str, Span]]) -> None:
        if masked:
            pairs = [(a[:30], b[:30], span) for a, b, span in pairs[:2]]
        expected = {}
        for a, b, span in pairs:
            for text in (a, b):
                try:
                    expected[text, span] = plain(twin, tokenizer, text, span, masked, bos)
                except KeyError:
                    expected[text, span] = None
        fits = [all(expected[text, span] is not None for text in (a, b)) for a, b, span in pairs]
        try:
            [predictions] = predict_rows(model, items(pairs), [METHODS[method]])
        except DataError as error:
            number = int(error.location.removeprefix("item x_"))
            a, b, span = pairs[number]
            assert fits[number] and 0 in (expected[a, span][1], expected[b, span][1])
            return
        for (a, b, span), fit, prediction in zip(pairs, fits, predictions, strict=True):
            assert ("too-long" in prediction.flags) == (not fit)
            if fit:
                sums, counts = zip(expected[a, span], expected[b, span], strict=True)
                assert prediction.tokens == counts and 0 not in counts
                assert np.isfinite(prediction.scores).all()
                assert prediction.scores == pytest.approx(sums, abs=2e-4, rel=1e-5)

    check()


@pytest.mark.long
@pytest.mark.parametrize("method", ["mlm-l2r", "mntp", "fused"])
def test_any_texts_through_the_other_methods_are_finite_or_an_error(
    make_checkpoint: Make, method: str
) -> None:
    model = opened(make_checkpoint())

    @FUZZ
    @given(pairs=PAIRS)
    def check(pairs: list[tuple[str, str, Span]]) -> None:
        try:
            [predictions] = predict_rows(model, items(pairs), [METHODS[method]])
        except BenchError as error:
            assert error.message and (error.location or error.hint)
            return
        assert all(np.isfinite(p.scores).all() for p in predictions)

    check()


@pytest.mark.long
def test_a_slow_tokenizer_through_a_model_gives_the_numbers_of_a_plain_loop(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    """ByT5: bytes, no BOS; its EOS stands for one."""
    folder = tmp_path / "slow"
    for file in make_checkpoint().iterdir():
        if "token" not in file.name:
            folder.mkdir(exist_ok=True)
            (folder / file.name).write_bytes(file.read_bytes())
    ByT5Tokenizer().save_pretrained(folder)
    model, tokenizer = opened(folder), AutoTokenizer.from_pretrained(folder)
    assert not tokenizer.is_fast and model.metadata["specials"]["causal"] == "</s> ..."
    library = opened(folder).engine.model
    library.set_attn_implementation("eager")

    @FUZZ
    @given(pairs=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
    def check(pairs: list[tuple[str, str]]) -> None:
        try:
            [predictions] = predict_rows(
                model, items([(a, b, None) for a, b in pairs]), [METHODS["causal"]]
            )
        except DataError:
            assert any(
                tokenizer(t, add_special_tokens=False)["input_ids"] in ([], [1])
                for pair in pairs
                for t in pair
            )
            return
        for pair, prediction in zip(pairs, predictions, strict=True):
            if "too-long" in prediction.flags:
                continue
            for text, score in zip(pair, prediction.scores, strict=True):
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                row = torch.tensor([ids if ids[0] == 1 else [1, *ids]])
                with torch.inference_mode():
                    logp = library(input_ids=row).logits[0].log_softmax(-1)
                assert score == pytest.approx(
                    logp[:-1].gather(1, row[0, 1:, None]).sum().item(), abs=2e-4, rel=1e-5
                )

    check()


# ---- spans against offsets
# ---------------------------------------------------------------------------------------


def scored(tokenizer: Any, text: str, span: tuple[int, int]) -> list[bool]:
    encoder = TextEncoder(tokenizer, Specials(), max_length=None, vocab_size=0x110000)
    return [
        bool(c) for encoded in encoder.encode([text], [span]).batches for c in encoded.score_mask[0]
    ]


@pytest.mark.long
@settings(max_examples=600, deadline=None)
@given(text=TEXT, ends=st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_spans_of_a_fast_tokenizer_are_those_of_its_offsets(
    text: str, ends: tuple[int, int]
) -> None:
    tokenizer, span = FAST, (min(ends), max(ends))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    assert scored(tokenizer, text, span) == [
        end > span[0] and start < span[1] for start, end in offsets
    ]


FAST = train_tokenizer("causal", adds=True)


def characters(text: str) -> list[tuple[int, int]]:
    """Canine has a token for every character, ..."""
    return [(i, i + 1) for i in range(len(text))]


def octets(text: str) -> list[tuple[int, int]]:
    """... ByT5 one for every byte."""
    return [(i, i + 1) for i, character in enumerate(text) for _ in character.encode()]


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "places"), [(CanineTokenizer, characters), (ByT5Tokenizer, octets)]
)
def test_spans_of_a_slow_tokenizer_are_those_of_its_characters(
    make: Callable[[], Any], places: Callable[[str], list[tuple[int, int]]]
) -> None:
    tokenizer = make()

    @settings(max_examples=600, deadline=None)
    @given(text=TEXT, ends=st.tuples(st.integers(0, 40), st.integers(0, 40)))
    def check(text: str, ends: tuple[int, int]) -> None:
        assume(
            len(tokenizer(text, add_special_tokens=False)["input_ids"]) == len(places(text))
        )  # no special in it
        span = (min(ends), max(ends))
        try:
            found = scored(tokenizer, text, span)
        except CheckpointError as error:
            assert "does not decode" in error.message
            return
        assert found == [end > span[0] and start < span[1] for start, end in places(text)]

    check()
