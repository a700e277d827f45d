"""Rows of token ids: special tokens, truncation and padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small_tokenizers
import torch
from finetuning_helpers import make_backbone, make_example
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build_model
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from antlm_bench.errors import CheckpointError, DataError, UsageError
from antlm_bench.finetuning.batches import pad_batch
from antlm_bench.finetuning.data import (
    encode_examples,
    encode_with_tokenizer,
    resolve_special_tokens,
    truncate_pair,
)
from antlm_bench.scoring.text import build_specials
from antlm_bench.training.corpus import SPECIAL_TOKENS, train_tokenizer
from antlm_bench.training.recipe import CorpusSpec, TokenizerSpec
from antlm_bench.types import Example


@pytest.fixture(scope="module")
def masked():
    return make_backbone(build_model("masked", 0), "masked")


@pytest.fixture(scope="module")
def causal():
    return make_backbone(build_model("causal", 0), "causal")


def slowly(first: int, second: int, room: int) -> tuple[int, int]:
    while first + second > room:
        first, second = (first - 1, second) if first > second else (first, second - 1)
    return first, second


@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 70))
def test_the_longer_text_loses_its_end_token_by_token(first, second, room):
    assert truncate_pair(first, second, room) == slowly(first, second, room)


def test_masked_rows_have_the_special_tokens_of_their_training(masked):
    row = encode_examples(masked, "full", [Example("e", "the cat", "a dog", 0)], 40).ids[0].tolist()
    ids = [
        masked.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("the cat", "a dog")
    ]
    assert row == [1, *ids[0], 2, *ids[1], 2]


def test_causal_rows_begin_with_bos_and_end_with_the_text(causal):
    row = encode_examples(causal, "causal", [Example("e", "the cat", "", 0)], 40).ids[0].tolist()
    assert row == [1, *causal.tokenizer("the cat", add_special_tokens=False)["input_ids"]]


def test_causal_rows_end_as_the_tokenizers_own_template_does():
    body = make_backbone(build_model("causal", 0), "causal")
    body.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert resolve_special_tokens(body, "causal").after == (2,)


@pytest.mark.parametrize(
    ("template", "between"), [("<s> $A </s> </s> $B </s>", (2, 2)), ("<s> $A $B </s>", (2,))]
)
def test_the_pair_template_goes_before_the_separator_token(template, between):
    body = make_backbone(build_model("masked", 0), "masked")
    body.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert resolve_special_tokens(body, "full").between == between


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("attention", ["causal", "full"])
def test_pairs_have_the_special_tokens_of_our_tokenizers(eos, attention):
    """Else a checkpoint of ours would be finetuned on other rows here than by the official code."""
    corpus = CorpusSpec(document="file", eos=eos)
    tokenizer = train_tokenizer(
        iter(["the cat sees a dog"] * 3), TokenizerSpec(vocabulary=300), corpus
    )
    body = make_backbone(
        build_model("masked" if attention == "full" else "causal", 0), "causal", both=True
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)
    around = {a: build_specials(wrapped, a, "auto") for a in ("causal", "full")}
    body = replace(body, tokenizer=wrapped, specials=around)
    pairs = [Example("e", "the cat", "a dog", 0), Example("f", "the cat sees", "", 1)]
    ours, theirs = (
        encode_examples(body, attention, pairs, 40),
        encode_with_tokenizer(body, pairs, 40),
    )
    assert [row.tolist() for row in ours.ids] == [row.tolist() for row in theirs.ids]
    assert ours.ids[0].tolist().count(2 if eos else 1) == 2


def test_without_separator_and_eos_a_line_end_separates():
    body = make_backbone(build_model("causal", 0), "causal", adds=False)
    assert resolve_special_tokens(body, "causal").between == (body.tokenizer.eos_token_id,)
    body.tokenizer.eos_token = None
    assert body.tokenizer.decode(resolve_special_tokens(body, "causal").between).strip(" ") == "\n"


def test_a_long_text_is_cut_and_its_characters_are_counted(masked):
    long = Example("e", "the cat sees " * 20, "a dog", 0)
    rows = encode_examples(masked, "full", [long, Example("f", "the cat", "a dog", 1)], 16)
    assert rows.truncated.tolist() == [True, False]
    assert rows.lengths.tolist() == [16, len(rows.ids[1])]
    whole = masked.tokenizer(long.first, add_special_tokens=False)["input_ids"]
    second = masked.tokenizer("a dog", add_special_tokens=False)["input_ids"]
    kept = 16 - 3 - len(second)
    assert rows.ids[0].tolist() == [1, *whole[:kept], 2, *second, 2]
    assert rows.characters_read[0] == len(masked.tokenizer.decode(whole[:kept]).strip()) + len(
        "a dog"
    )
    assert rows.characters_read[1] == len("the cat") + len("a dog")


def test_token_types_mark_the_second_text_and_padding_is_right(masked):
    rows = encode_examples(
        masked, "full", [Example("e", "the cat", "a dog", 0), Example("f", "no", "", 0)], 40
    )
    created = pad_batch(rows, np.array([0, 1]), 0, True, torch.device("cpu"))
    second = len(masked.tokenizer("a dog", add_special_tokens=False)["input_ids"]) + 1
    first = len(rows.ids[0]) - second
    assert created.token_type_ids[0].tolist() == [0] * first + [1] * second
    assert not created.token_type_ids[1].any() and created.has_padding
    assert created.ids[1, created.lengths[1] :].eq(0).all() and created.token_mask()[
        1
    ].sum() == len(rows.ids[1])


def test_every_paragraph_is_tokenised_once(masked, monkeypatch):
    seen = []
    plain = type(masked.tokenizer).__call__

    def spy(self, texts, *args, **more):
        seen.append(texts)
        return plain(self, texts, *args, **more)

    monkeypatch.setattr(type(masked.tokenizer), "__call__", spy)
    encode_examples(masked, "full", [Example(str(i), "the cat", f"a {i}", 0) for i in range(5)], 40)
    bulk = [texts for texts in seen if isinstance(texts, list)]
    assert len(bulk) == 1 and len(bulk[0]) == len(set(bulk[0])) == 6


def test_a_text_that_cannot_be_a_row_is_refused(masked):
    with pytest.raises(UsageError, match="no room for text"):
        encode_examples(masked, "full", [Example("e", "the cat", "a dog", 0)], 4)
    with pytest.raises(DataError, match="no token") as error:
        encode_examples(masked, "full", [make_example(1), Example("empty_7", "", "", 0)], 40)
    assert error.value.location == "empty_7"


def test_unknown_tokens_are_flagged_per_example(masked):
    losing, unknowing = (
        replace(masked, tokenizer=small_tokenizers.train_gemma_like()),
        replace(masked, tokenizer=small_tokenizers.build_unigram()),
    )
    examples = [Example("a", "the cat", "a dog", 0), Example("b", "the cat", "a ☕ dog", 0)]
    assert encode_examples(losing, "full", examples, 40).flags == ((), ("lost",))
    assert encode_examples(unknowing, "full", examples, 40).flags == ((), ("unk",))
    with pytest.raises(CheckpointError, match="cannot read 'a zebra'"):
        encode_examples(
            replace(masked, tokenizer=small_tokenizers.build_word_level()),
            "full",
            [Example("z", "the cat", "a zebra", 0)],
            40,
        )
