"""Each method on one hand-made sentence: what is hidden, where it is read, what is wanted."""

from __future__ import annotations

import numpy as np
import pytest

from antlm_bench.errors import MethodNotSupported, UsageError
from antlm_bench.scoring import methods, probes
from antlm_bench.types import EncodedBatch

MASK = 99
# <s> the un+likely cat </s>: ids 1 5 6 7 8 2, words -1 0 1 1 2 -1
SENTENCE = EncodedBatch(
    ids=np.array([[1, 5, 6, 7, 8, 2]], np.int32),
    score_mask=np.array([[False, True, True, True, True, False]]),
    word_ids=np.array([[-1, 0, 1, 1, 2, -1]], np.int32),
    text_index=np.array([4], np.int32),
)


def rows(made):
    return [
        (made.ids[r].tolist(), int(a), int(t), int(x))
        for r, a, t, x in zip(made.row, made.position, made.target, made.text_index, strict=True)
    ]


def test_causal_reads_before_each_token_and_hides_the_last():
    context = [1, 5, 6, 7, 8]
    assert rows(probes.causal(SENTENCE)) == [
        (context, 0, 5, 4),
        (context, 1, 6, 4),
        (context, 2, 7, 4),
        (context, 3, 8, 4),
    ]


def test_causal_skips_a_first_token_without_context():
    bare = EncodedBatch(
        SENTENCE.ids[:, 1:],
        SENTENCE.score_mask[:, 1:],
        SENTENCE.word_ids[:, 1:],
        SENTENCE.text_index,
    )
    assert [target for _, _, target, _ in rows(probes.causal(bare))] == [6, 7, 8]


def test_mlm_hides_one_token_at_a_time():
    assert rows(probes.mlm(SENTENCE, MASK)) == [
        ([1, MASK, 6, 7, 8, 2], 1, 5, 4),
        ([1, 5, MASK, 7, 8, 2], 2, 6, 4),
        ([1, 5, 6, MASK, 8, 2], 3, 7, 4),
        ([1, 5, 6, 7, MASK, 2], 4, 8, 4),
    ]


def test_mlm_l2r_also_hides_the_rest_of_the_word():
    assert rows(probes.mlm_l2r(SENTENCE, MASK))[1] == ([1, 5, MASK, MASK, 8, 2], 2, 6, 4)
    assert rows(probes.mlm_l2r(SENTENCE, MASK))[2] == ([1, 5, 6, MASK, 8, 2], 3, 7, 4)


def test_mntp_reads_one_position_to_the_left():
    assert rows(probes.mntp(SENTENCE, MASK))[0] == ([1, MASK, 6, 7, 8, 2], 0, 5, 4)


def test_mntp_skips_a_first_token_that_has_no_left():
    bare = EncodedBatch(
        SENTENCE.ids[:, 1:],
        SENTENCE.score_mask[:, 1:],
        SENTENCE.word_ids[:, 1:],
        SENTENCE.text_index,
    )
    assert [target for _, _, target, _ in rows(probes.mntp(bare, MASK))] == [6, 7, 8]


def test_words_that_a_tokenizer_cannot_tell_are_an_error_for_l2r():
    blind = EncodedBatch(
        SENTENCE.ids, SENTENCE.score_mask, np.full_like(SENTENCE.word_ids, -1), SENTENCE.text_index
    )
    with pytest.raises(MethodNotSupported, match="which word a token belongs to"):
        probes.mlm_l2r(blind, MASK)


class Fake:
    name, no_mask_reason = "fake", "its tokenizer has no mask token"

    def __init__(self, attentions, mask_id):
        self.attentions, self.mask_id = frozenset(attentions), mask_id


def test_a_model_is_only_asked_what_it_can_answer():
    assert methods.supported_methods(Fake({"causal"}, None)) == ["causal"]
    assert methods.supported_methods(Fake({"full"}, 3)) == ["mlm", "mlm-l2r", "mntp"]
    decoder_only = ["causal", "mlm", "mlm-l2r", "mntp", "fused"]
    assert methods.supported_methods(Fake({"causal", "full"}, 3)) == decoder_only
    assert methods.supported_methods(Fake({"cross", "denoising"}, 3)) == ["seq2seq", "infill"]
    assert methods.supported_methods(Fake({"cross"}, None)) == ["seq2seq"]
    with pytest.raises(MethodNotSupported, match="does not run with causal attention"):
        methods.resolve_method("fused", Fake({"full"}, 3))
    with pytest.raises(MethodNotSupported, match="no mask token"):
        methods.resolve_method("mlm", Fake({"full"}, None))
    with pytest.raises(UsageError, match="unknown method 'plm'"):
        methods.resolve_method("plm", Fake({"full"}, 3))
