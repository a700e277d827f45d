"""Any tokenizer, any text: words, lost characters, unknown tokens, and errors that name the
text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ByT5Tokenizer

from antlm_bench.checkpoints.pretrained import load_tokenizer
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.errors import BenchError, CheckpointError, DataError
from antlm_bench.scoring.probes import mlm_l2r
from antlm_bench.scoring.text import (
    Specials,
    TextEncoder,
    build_specials,
    check_specials,
    detect_template,
    find_mask_token,
)
from antlm_bench.scoring.tokens import TextTokenizer, word_index_per_character
from antlm_bench.types import EncodedBatch

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
UNTOLD = {
    "byte-level": small_tokenizers.train_byte_level(split=False),
    "byte-level with prefix": small_tokenizers.train_byte_level(split=False, prefix=True),
    "metaspace": small_tokenizers.train_metaspace(split=False),
    "gemma": small_tokenizers.train_gemma_like(),
    "superword": small_tokenizers.train_superword(),
}
TOLD = {
    "byte-level": small_tokenizers.train_byte_level(),
    "metaspace": small_tokenizers.train_metaspace(),
    "word-piece": small_tokenizers.train_word_piece(),
    "unigram": small_tokenizers.build_unigram(),
}
plain_text = st.text(
    st.sampled_from("the cat sod.,;' n"), min_size=1, max_size=30
)  # every vocabulary has these
# Characters on whose kind all versions of Unicode agree.
old = st.characters(
    max_codepoint=0x2FF, exclude_categories=["M", "Cc", "Cf", "Cn"]
) | st.sampled_from("漢字あ한☕😀½²\n\t")
odd_text = st.text(old, max_size=40)


def oracle_words(text: str) -> list[int]:
    """Per character its word, by the tokenizers library; -1 = white space."""
    words = [-1] * len(text)
    for number, (_, (start, end)) in enumerate(GPT2.pre_tokenize_str(text)):
        for at in range(start, end):
            words[at] = -1 if text[at].isspace() else number
    return words


@pytest.mark.long
@settings(max_examples=500, deadline=None)
@given(odd_text | plain_text)
def test_words_by_characters_are_those_of_gpt2(text: str) -> None:
    ours, theirs = word_index_per_character(text), oracle_words(text)
    assert [a == -1 for a in ours] == [b == -1 for b in theirs]
    joined = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != -1]
    assert len({a for a, _ in joined}) == len({b for _, b in joined}) == len(set(joined))


def test_combining_marks_stay_in_their_word() -> None:
    assert word_index_per_character("हिन्दी e\u0301t") == [0] * 6 + [-1] + [1] * 3


def hidden_by_hand(text: str, offsets: list[tuple[int, int]], target: int) -> set[int]:
    """The tokens from the target on that share a word with it."""
    words = oracle_words(text)

    def words_of(start: int, end: int) -> set[int]:
        own = {word for word in words[start:end] if word >= 0}
        following = [word for word in words[start:] if word >= 0]
        return own or ({following[0]} if following else {-2})

    wanted = words_of(*offsets[target])
    return {at for at in range(target, len(offsets)) if words_of(*offsets[at]) & wanted}


@pytest.mark.long
@pytest.mark.parametrize("kind", UNTOLD)
def test_the_rest_of_a_word_is_hidden_without_word_ids(kind: str) -> None:
    tokenizer, mask = UNTOLD[kind], 3
    assert not TextTokenizer(tokenizer).has_word_ids
    encoder = TextEncoder(
        tokenizer, Specials((1,), (2,)), max_length=None, vocab_size=len(tokenizer)
    )

    @settings(max_examples=150, deadline=None)
    @given(plain_text)
    def check(text: str) -> None:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        for encoded in encoder.encode([text], [None]).batches:
            found = mlm_l2r(encoded, mask)
            for row, at in zip(found.row, found.position, strict=True):
                hidden = set((found.ids[row] != encoded.ids[0]).nonzero()[0] - 1)
                assert hidden == hidden_by_hand(text, offsets, int(at) - 1)

    check()


@pytest.mark.parametrize("kind", TOLD)
def test_words_that_a_tokenizer_tells_are_kept(kind: str) -> None:
    tokenizer = TOLD[kind]
    assert TextTokenizer(tokenizer).has_word_ids
    texts = ["the cat, of the dog.", "can't sit", "the  mat", "catdogcat sat"]
    found = TextTokenizer(tokenizer).tokenize(texts)
    told = tokenizer(texts, add_special_tokens=False).encodings
    assert found.words == found.last_words == [encoding.word_ids for encoding in told]
    assert not found.flags["spans-words"].any()


def test_tokens_that_span_words_are_flagged() -> None:
    found = TextTokenizer(small_tokenizers.train_gemma_like()).tokenize(
        ["the cat sat on the mat .", "zcat", "m."]
    )
    assert len(found.ids[0]) == 1 and found.flags["spans-words"].tolist() == [True, False, False]


def test_the_rest_of_both_words_of_a_spanning_token_is_hidden() -> None:
    ids = np.array(
        [[1, 10, 11, 12, 13, 2]], np.int32
    )  # un | like the | re | . with words 0, 0-1, 1, 2
    words, last = (
        np.array([row], np.int32) for row in ([-1, 0, 0, 1, 2, -1], [-1, 0, 1, 1, 2, -1])
    )
    found = mlm_l2r(EncodedBatch(ids, words >= 0, words, np.zeros(1, np.int32), last), 3)
    assert (found.ids == 3).tolist() == [
        [False, True, True, False, False, False],
        [False, False, True, True, False, False],
        [False, False, False, True, False, False],
        [False, False, False, False, True, False],
    ]


def test_spans_after_a_dropped_character_are_where_they_should_be() -> None:
    tokenizer = small_tokenizers.train_metaspace(split=False)
    encoder = TextEncoder(tokenizer, Specials(), max_length=None, vocab_size=len(tokenizer))
    for text in ("☕☕☕ the zz cat", "the z☕z cat", "\u200b☕a cat"):
        [encoded] = encoder.encode([text], [(text.index("cat"), len(text))]).batches
        read = tokenizer.convert_ids_to_tokens(encoded.ids[0][encoded.score_mask[0]].tolist())
        left = tokenizer.convert_ids_to_tokens(encoded.ids[0][~encoded.score_mask[0]].tolist())
        assert "cat" in "".join(read) and not set("".join(left)) & set("c"), text


def test_a_dropped_character_is_flagged_as_lost() -> None:
    found = TextTokenizer(small_tokenizers.train_gemma_like()).tokenize(
        ["the cat", "☕ cat", "☕   ", "cat ☕", "the\u200bcat"]
    )
    assert found.flags["lost"].tolist() == [False, True, True, True, False]
    assert not found.flags["unk"].any()


def test_half_a_character_is_lost_without_its_byte() -> None:
    partial = small_tokenizers.train_byte_level(
        alphabet=[symbol for symbol in small_tokenizers.BYTES if symbol != "¶"]
    )  # byte 0xB6
    found = TextTokenizer(partial).tokenize(["é", "ö", "cat"])
    assert found.ids[1] and found.flags["lost"].tolist() == [False, True, False]
    whole = TextTokenizer(small_tokenizers.train_byte_level()).tokenize(["é", "ö", "☕"])
    assert not whole.flags["lost"].any()


def test_an_unknown_token_of_the_vocabulary_is_flagged() -> None:
    unnamed = small_tokenizers.build_unigram()
    assert unnamed.unk_token_id is None
    found = TextTokenizer(unnamed).tokenize(["the cat", "the ☕"])
    assert found.flags["unk"].tolist() == [False, True] and not found.flags["lost"].any()


def test_a_slow_tokenizer_that_drops_characters_is_told() -> None:
    class Dropping(ByT5Tokenizer):
        def _tokenize(self, text):
            return [token for token in super()._tokenize(text) if token != "q"]

    found = TextTokenizer(Dropping()).tokenize(["the cat", "the queen"])
    assert found.flags["lost"].tolist() == [False, True]


def test_bpe_dropout_is_off(tmp_path: Path) -> None:
    tokenizer = small_tokenizers.train_byte_level()
    [ids] = TextTokenizer(tokenizer).tokenize(["the cat sat on"]).ids
    tokenizer.backend_tokenizer.model.dropout = 0.9
    tokenizer.save_pretrained(tmp_path)
    reader = TextTokenizer(load_tokenizer(tmp_path, OpenOptions()))
    assert all(reader.tokenize(["the cat sat on"]).ids == [ids] for _ in range(20))


def test_a_text_that_the_tokenizer_cannot_read_is_named() -> None:
    reader = TextTokenizer(small_tokenizers.build_word_level())
    with pytest.raises(CheckpointError, match=r"cannot read 'the zebra'.*UNK") as error:
        reader.tokenize(["the cat", "the zebra", "a lion"])
    assert "unknown token" in str(error.value)
    with pytest.raises(CheckpointError, match="cannot read"):
        TextTokenizer(small_tokenizers.build_unigram(unk=False)).tokenize(["the ☕"])
    with pytest.raises(DataError, match="surrogate"):
        reader.tokenize(["the cat", "half \ud83d"])


@pytest.mark.parametrize("kind", ["raises", "drops"])
def test_the_template_is_found_where_the_probe_cannot_be_read(kind: str) -> None:
    drops = small_tokenizers.wrap_tokenizer(
        Tokenizer(models.BPE({"é": 0, "<s>": 1}, [])), bos_token="<s>"
    )
    tokenizer = small_tokenizers.build_word_level() if kind == "raises" else drops
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    assert detect_template(tokenizer) == Specials((bos,))


def test_a_tokenizer_that_reads_nothing_is_refused() -> None:
    with pytest.raises(CheckpointError, match="reads neither"):
        detect_template(small_tokenizers.wrap_tokenizer(Tokenizer(models.BPE({}, []))))


def test_specials_without_an_embedding_are_refused() -> None:
    tokenizer = small_tokenizers.build_word_level()
    tokenizer.add_special_tokens({"bos_token": "[BOS]", "mask_token": "[HIDE]"})
    vocabulary = len(tokenizer) - 2
    with pytest.raises(
        CheckpointError, match=rf"'\[BOS\]' has the id {vocabulary}, and the model has {vocabulary}"
    ):
        check_specials(tokenizer, build_specials(tokenizer, "causal", "auto"), vocabulary)
    assert find_mask_token(tokenizer, vocabulary)[0] is None
    assert f"'[HIDE]' has the id {vocabulary + 1}" in find_mask_token(tokenizer, vocabulary)[1]
    assert find_mask_token(tokenizer, vocabulary + 2) == (vocabulary + 1, "")
    assert find_mask_token(small_tokenizers.build_word_level(), 99) == (
        None,
        "its tokenizer has no mask token",
    )


KINDS = {
    "byte-level": lambda unk: small_tokenizers.train_byte_level(prefix=unk),
    "byte-level without split": lambda unk: small_tokenizers.train_byte_level(
        split=False, prefix=unk
    ),
    "byte-level, few bytes": lambda unk: small_tokenizers.train_byte_level(
        alphabet=small_tokenizers.BYTES[:60] if unk else []
    ),
    "word-piece": lambda unk: small_tokenizers.train_word_piece("[UNK]" if unk else "<none>"),
    "unigram": small_tokenizers.build_unigram,
    "unigram without split": lambda unk: small_tokenizers.build_unigram(unk, split=False),
    "word-level": lambda unk: small_tokenizers.build_word_level("<unk>" if unk else None),
    "metaspace": lambda unk: small_tokenizers.train_metaspace(unk="<unk>" if unk else None),
    "gemma": lambda unk: small_tokenizers.train_gemma_like("<unk>" if unk else None),
}
ANY = st.text(st.characters() | st.sampled_from("the cat <s>mask."), max_size=30)


@pytest.mark.long
@pytest.mark.parametrize("unk", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_is_encoded_or_refused_by_an_error_of_ours(kind: str, unk: bool) -> None:
    made = {added: KINDS[kind](unk) for added in ("", "at s", "☕")}
    sizes = {added: len(tokenizer) for added, tokenizer in made.items()}
    for added, tokenizer in made.items():
        if added:
            tokenizer.add_tokens([added], special_tokens=added == "☕")

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(ANY, min_size=1, max_size=4), st.sampled_from(list(made)), st.booleans(), st.data()
    )
    def check(texts: list[str], added: str, resized: bool, data: st.DataObject) -> None:
        tokenizer = made[added]
        vocabulary = len(tokenizer) if resized else sizes[added]
        ends = [sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2))) for text in texts]
        spans = [data.draw(st.sampled_from([None, tuple(pair)])) for pair in ends]
        try:
            around = build_specials(tokenizer, "full", "auto")
            check_specials(tokenizer, around, vocabulary)
            found = TextEncoder(tokenizer, around, max_length=20, vocab_size=vocabulary).encode(
                texts, spans
            )
        except BenchError as error:
            assert error.hint and error.exit_code != 70
            return
        lost, seen = found.flags["lost"], set()
        for encoded in found.batches:
            seen.update(encoded.text_index.tolist())
            assert (
                encoded.ids.min() >= 0
                and encoded.ids.max() < vocabulary
                and encoded.ids.shape[1] <= 20
            )
            inner = slice(len(around.before), encoded.ids.shape[1] - len(around.after))
            assert (encoded.word_ids[:, inner] >= 0).all() and (
                encoded.last_word_ids >= encoded.word_ids
            ).all()
            for row, number in enumerate(encoded.text_index):
                text, span = texts[number], spans[number]
                scored = encoded.score_mask[row]
                assert not scored[: inner.start].any() and not scored[inner.stop :].any()
                visible = [c for c in (text if span is None else text[slice(*span)]) if c.isalnum()]
                assert scored.any() or not visible or lost[number]
        for number, text in enumerate(texts):
            if number not in seen and not found.too_long[number]:
                assert lost[number] or not any(c.isalnum() for c in text) or text.startswith("<s>")

    check()
