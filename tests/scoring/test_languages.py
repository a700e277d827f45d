"""Tokens and words of many scripts, under tokenizers of every kind."""

from __future__ import annotations

import math
from itertools import pairwise
from unicodedata import normalize

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from multilingual_tokenizers import PIECES, SPACES, TOKENIZERS, train_byte_level
from tokenizers import processors
from transformers import GPT2Config, GPT2LMHeadModel

from antlm_bench import Scorer, surprisal
from antlm_bench.scoring.probes import mlm_l2r
from antlm_bench.scoring.text import Specials, TextEncoder
from antlm_bench.scoring.tokens import TextTokenizer
from antlm_bench.words import GRAPHEME, split_words

texts = st.lists(st.sampled_from([*PIECES, *SPACES]), min_size=1, max_size=7).map("".join)
pytestmark = pytest.mark.long


def hidden_tokens(kind: str, text: str, rule: str | None = None) -> list[list[str]]:
    """The tokens that mlm-l2r masks, for each token of a text in turn."""
    tokenizer = TOKENIZERS[kind]
    encoder = TextEncoder(tokenizer, Specials(), max_length=None, vocab_size=len(tokenizer) + 1)
    if rule:
        encoder = encoder.with_word_rule(rule)
    [encoded] = encoder.encode([text], [None]).batches
    probes = mlm_l2r(encoded, len(tokenizer))
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids[0].tolist())
    masked = probes.ids[probes.row] == len(tokenizer)
    return [[t for t, m in zip(tokens, row, strict=True) if m] for row in masked]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_character_is_masked_whole(kind):
    reader = TextTokenizer(TOKENIZERS[kind])

    @settings(max_examples=100, deadline=None)
    @given(texts)
    def check(text: str) -> None:
        tokens = reader.tokenize([text])
        [offsets], [first], [last] = tokens.offsets, tokens.words, tokens.last_words
        for match in GRAPHEME.finditer(text):
            if match[0].isspace() or "\u200b" in match[0]:
                continue
            inside = [
                index
                for index, (start, end) in enumerate(offsets)
                if start < match.end() and end > match.start()
            ]
            for left, right in pairwise(inside):
                assert first[right] <= last[left], (match[0], offsets, first, last)

    check()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_masked_words_are_equal_in_nfc_and_nfd(kind):
    """Tokenizers whose tokens span characters of NFC only are compared on other scripts."""
    reader = TextTokenizer(TOKENIZERS[kind])
    words_with_marks = ["naïve", "हिन्दी", "שָׁלוֹם", "Việt", "می‌خواهم", "한국어", "cat", "3", "."]
    marked = st.lists(st.sampled_from([*words_with_marks, " "]), min_size=1).map("".join)

    @settings(max_examples=100, deadline=None)
    @given(marked)
    def check(text: str) -> None:
        counts = []
        for form in ("NFC", "NFD"):
            tokens = reader.tokenize([normalize(form, text)])
            counts.append(max(tokens.last_words[0], default=-1))
            assert not tokens.flags["lost"].any() or kind == "word-piece"
        assert counts[0] == counts[1]

    check()


def test_the_rest_of_a_character_is_masked_in_chinese():
    assert hidden_tokens("byte-fallback", "中a") == [
        ["▁", "<0xE4>", "<0xB8>", "<0xAD>"],
        ["<0xE4>", "<0xB8>", "<0xAD>"],
        ["<0xB8>", "<0xAD>"],
        ["<0xAD>"],
        ["a"],
    ]
    assert hidden_tokens("word-piece", "我喜欢") == [["我"], ["喜"], ["欢"]]


def test_the_rest_of_a_chosen_word_is_masked():
    plain = hidden_tokens("word-piece", "我喜欢")
    assert hidden_tokens("word-piece", "我喜欢", "characters") == plain
    assert hidden_tokens("word-piece", "我喜欢", "spaces") == [
        ["我", "喜", "欢"],
        ["喜", "欢"],
        ["欢"],
    ]


def test_the_rest_of_a_hindi_word_is_masked():
    """Pre-tokenizers that split vowel signs from consonants do not end a word there."""
    assert [len(tokens) for tokens in hidden_tokens("byte-level", "हिन्दी")] == list(
        range(len(TOKENIZERS["byte-level"]("हिन्दी")["input_ids"]), 0, -1)
    )


def test_a_normalizer_that_composes_covers_the_marks():
    reader = TextTokenizer(TOKENIZERS["unigram"])
    tokens = reader.tokenize(["e\u0301a", "a\u1112\u1161\u11ab b", "e\u0323\u0302"])
    covered = [{i for s, e in offsets for i in range(s, e)} for offsets in tokens.offsets]
    assert covered == [{0, 1, 2}, {0, 1, 2, 3, 4, 5}, {0, 1, 2}]
    assert not tokens.flags["lost"].any()


@pytest.mark.parametrize("trims", [False, True])
def test_a_span_reads_the_tokens_whose_bytes_it_holds(trims):
    """Bytes of the tokens and of the text, from the byte alphabet, are the oracle."""
    tokenizer = train_byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trims)
    encoder = TextEncoder(tokenizer, Specials(), max_length=None, vocab_size=len(tokenizer))

    @settings(max_examples=100, deadline=None)
    @given(texts, st.data())
    def check(text: str, data: st.DataObject) -> None:
        borders = [0, *(end for _, end in split_words(text, "characters"))]
        two_borders = st.sets(st.sampled_from(borders), min_size=2, max_size=2)
        start, end = sorted(data.draw(two_borders))
        [encoded] = encoder.encode([text], [(start, end)]).batches
        lengths = list(map(len, tokenizer.convert_ids_to_tokens(encoded.ids[0].tolist())))
        ends = np.cumsum(lengths)
        first, last = (len(text[:index].encode()) for index in (start, end))
        overlaps = (ends > first) & (ends - lengths < last)
        assert encoded.score_mask[0].tolist() == overlaps.tolist()

    check()


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=600, n_positions=256, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).double().eval()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_words_add_up_to_the_sentence(kind, model):
    scorer = Scorer(model, TOKENIZERS[kind])
    some_texts = [
        "a 我喜欢猫。",
        "x हिन्दी में नमस्ते",
        "v naïve Vie\u0323\u0302t",
        "b 猫が魚を 👩‍👩‍👧🇩🇪",
        "t แมวกินปลา",
    ]
    [whole, by_character, by_space] = [
        surprisal(scorer, some_texts, by=by, words=words)
        for by, words in (("sentence", None), ("word", "characters"), ("word", "spaces"))
    ]
    tokens = [len(ids) for ids in TOKENIZERS[kind](some_texts, add_special_tokens=False).input_ids]
    assert [row["n_tokens"] for row in whole.rows] == tokens
    for table, rule in ((by_character, "characters"), (by_space, "spaces")):
        rows = table.rows
        assert len(rows) == sum(len(split_words(text, rule)) for text in some_texts)
        assert sum(row["n_tokens"] for row in rows) == sum(tokens)
        for number, text_row in enumerate(whole.rows, start=1):
            parts = [row for row in rows if row["item"] == str(number)]
            known = [row["surprisal_bits"] for row in parts if row["n_tokens"]]
            assert math.fsum(known) == pytest.approx(text_row["surprisal_bits"], abs=1e-9)
            assert all(row["surprisal_bits"] is None for row in parts if not row["n_tokens"])
