"""Text to ids: specials as policies say, spans by character, slow tokenizers like fast ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import train_tokenizer
from transformers import ByT5Tokenizer

from antlm_bench.errors import CheckpointError
from antlm_bench.scoring.text import Specials, TextEncoder, build_specials, detect_template

FAST = train_tokenizer("causal", adds=True)
SLOW = ByT5Tokenizer()
BOS = Specials((1,))


def encoder(tokenizer=FAST, around=BOS, max_length=None, vocabulary=400):
    return TextEncoder(tokenizer, around, max_length=max_length, vocab_size=vocabulary)


def rows(encodings):
    """text number -> (ids, scored, words)."""
    return {
        int(text): (e.ids[n].tolist(), e.score_mask[n].tolist(), e.word_ids[n].tolist())
        for e in encodings.batches
        for n, text in enumerate(e.text_index)
    }


odd_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.mark.long
@settings(max_examples=500, deadline=None)
@given(text=odd_text, span=st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted))
def test_a_token_counts_iff_it_overlaps_the_span(text, span):
    found = rows(encoder().encode([text], [tuple(span)]))
    reference = FAST(text, add_special_tokens=False, return_offsets_mapping=True)
    if not reference["input_ids"]:
        assert found == {}
        return
    ids, scored, _ = found[0]
    assert ids == [1, *reference["input_ids"]]
    assert scored == [
        False,
        *(end > span[0] and start < span[1] for start, end in reference["offset_mapping"]),
    ]


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(texts=st.lists(odd_text, min_size=1, max_size=6))
def test_a_bulk_of_texts_gives_what_each_gives_alone(texts):
    together = rows(encoder().encode(texts, [None] * len(texts)))
    for number, text in enumerate(texts):
        assert together.get(number) == rows(encoder().encode([text], [None])).get(0)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(text=odd_text)
def test_a_slow_tokenizer_gives_its_own_ids(text):
    slow = encoder(SLOW, Specials((), (1,)), vocabulary=len(SLOW))
    found = rows(slow.encode([text], [None]))
    assert found.get(0, ([1],))[0] == [*SLOW(text, add_special_tokens=False)["input_ids"], 1]


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), min_size=1),
    data=st.data(),
)
def test_spans_of_a_slow_tokenizer_are_those_of_its_characters(text, data):
    """ByT5 reads ASCII as one token per character, so that the right answer is known."""
    start = data.draw(st.integers(0, len(text)))
    slow = encoder(SLOW, Specials(), vocabulary=len(SLOW))
    try:
        found = rows(slow.encode([text], [(start, len(text))]))
    except CheckpointError as error:
        assert text != text.rstrip() and "slow tokenizer" in str(error)
        return
    assert [
        text[i] for i, counts in enumerate(found[0][1]) if counts and not text[i].isspace()
    ] == [c for c in text[start:] if not c.isspace()]


def test_words_are_those_of_the_pre_tokenizer():
    ids, _, words = rows(encoder().encode(["unbelievable cats."], [None]))[0]
    pieces = FAST.convert_ids_to_tokens(ids)
    assert words[0] == -1
    assert [p for p, w in zip(pieces, words, strict=True) if w == 1] == ["Ġcats"]
    assert len([p for p, w in zip(pieces, words, strict=True) if w == 0]) > 1


def test_the_template_is_detected_and_altered_text_refused():
    assert detect_template(FAST) == Specials((1,))
    assert detect_template(train_tokenizer("masked", adds=True)) == Specials((1,), (2,))
    assert detect_template(train_tokenizer("causal", adds=False)) == Specials()

    class Altering:
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [9, 9, 9] if add_special_tokens else [5, 6]}

    with pytest.raises(CheckpointError, match="with special tokens and as"):
        detect_template(Altering())


@pytest.mark.parametrize(
    ("adds", "bos", "causal", "full"),
    [
        (True, "auto", Specials((1,)), Specials((1,), (2,))),
        (False, "auto", Specials((1,)), Specials((1,), (2,))),
        (True, "never", Specials(), Specials()),
        (False, "tokenizer", Specials(), Specials()),
        (True, "tokenizer", Specials((1,)), Specials((1,), (2,))),
    ],
)
def test_policies_for_a_tokenizer_that_knows_cls_and_sep(adds, bos, causal, full):
    tokenizer = train_tokenizer("masked", adds)
    assert build_specials(tokenizer, "full", bos) == full
    assert build_specials(tokenizer, "causal", bos) == causal


def test_an_unknown_token_is_told():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    found = encoder(tokenizer, Specials()).encode(["the cat", "the dog"], [None, None])
    assert found.unk.tolist() == [False, True]
