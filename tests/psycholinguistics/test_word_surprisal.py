"""Surprisal of stretches of texts beside minicons' word scores; the beginning-of-word correction
too.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.errors import MethodNotSupported
from antlm_bench.scoring import peers
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.surprisal import single_part, span_logprobs
from antlm_bench.scoring.text import word_start_ids
from antlm_bench.types import Option

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own

TEXTS = [
    "the cat sees some dogs near the house.",
    "who never sleeps?",
    "unbelievably old boys see naïve cats",
]


def words(text):
    ends = [i + len(w) for w, i in zip(text.split(), _starts(text), strict=True)]
    return [Option(text, span) for span in zip([0, *ends[:-1]], ends, strict=True)]


def _starts(text):
    at, found = 0, []
    for word in text.split():
        at = text.index(word, at)
        found.append(at)
        at += len(word)
    return found


def ours(folder, method="causal", correct=None, **options):
    model = open_checkpoint(str(folder), OpenOptions(device="cpu", **options))
    if correct is not None:
        model.engine.set_word_start_ids(correct)
    read = [
        span_logprobs(model, words(text), METHODS[method], bow_correction=correct is not None)
        for text in TEXTS
    ]
    return model, read


def peer(folder, kind):
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    return peers.make_minicons_scorer(
        kind, model, transformers.AutoTokenizer.from_pretrained(folder)
    )


def their_words(scorer, **options):
    """minicons' token scores added up to words: a token that begins with its space begins a word."""
    found = []
    for text, scored in zip(TEXTS, scorer.token_score(TEXTS, **options), strict=True):
        tokens, sums = scorer.tokenizer.tokenize(text), []
        for token, (_, score) in zip(tokens, scored[-len(tokens) :], strict=True):
            if token.startswith("Ġ"):
                sums.append(0.0)
            sums[-1] += score
        found.append(sums)
    return found


def test_causal_words_are_minicons_words_in_bits(make_checkpoint):
    folder = make_checkpoint("causal", adds=True)
    _, read = ours(folder)
    theirs = their_words(peer(folder, "causal"), surprisal=True, base_two=True)
    for mine, other in zip(read, theirs, strict=True):
        assert -mine.logp / math.log(2) == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(
    ("method", "metric"), [("mlm", "original"), ("mlm-l2r", "within_word_l2r")]
)
def test_masked_words_are_minicons_words(make_checkpoint, method, metric):
    folder = make_checkpoint("masked", adds=True)
    _, read = ours(folder, method)
    for mine, other in zip(
        read, their_words(peer(folder, "masked"), PLL_metric=metric), strict=True
    ):
        assert mine.logp == pytest.approx(other, abs=1e-4)


def test_the_correction_is_minicons_where_the_beginnings_are(make_checkpoint):
    """minicons counts no end of text among what may follow a word; given its ids, the numbers are
    the same.
    """
    folder = make_checkpoint("causal", adds=True)
    scorer = peer(folder, "causal")
    _, plain = ours(folder)
    _, read = ours(folder, correct=np.array(scorer.bow_subword_idx))
    for mine, before, other in zip(
        read, plain, their_words(scorer, bow_correction=True), strict=True
    ):
        assert mine.logp == pytest.approx(other, abs=1e-4)
        assert np.abs(mine.logp - before.logp).max() > 1e-2


def test_the_correction_is_its_formula_with_the_end_of_text_among_the_beginnings(make_checkpoint):
    folder = make_checkpoint("causal", adds=True)
    scorer = peer(folder, "causal")
    tokenizer = scorer.tokenizer
    begins = word_start_ids(tokenizer)
    spelled = set(tokenizer.convert_ids_to_tokens(begins.tolist()))
    assert {"Ġ", "Ġthe", "Ċ", "</s>"} <= spelled and not {"t", ".", "<s>"} & spelled
    _, read = ours(folder, correct=begins)
    for text, mine in zip(TEXTS, read, strict=True):
        ids = tokenizer(text)["input_ids"]
        with torch.inference_mode():
            logp = scorer.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        starts = [
            i for i, t in enumerate(tokenizer.convert_ids_to_tokens(ids)) if t.startswith("Ġ")
        ] + [len(ids)]
        for number, (start, end) in enumerate(pairwise(starts)):
            expected = sum(logp[i - 1, ids[i]].item() for i in range(start, end))
            expected += logp[end - 1, begins].logsumexp(-1).item()
            expected -= logp[start - 1, begins].logsumexp(-1).item() if number else 0
            assert mine.logp[number] == pytest.approx(expected, abs=1e-4)


def test_the_words_of_a_text_add_up_to_it(make_checkpoint):
    for kind, method in (("causal", "causal"), ("masked", "mlm"), ("masked", "mntp")):
        model, read = ours(make_checkpoint(kind, adds=True), method)
        whole = span_logprobs(model, [Option(text) for text in TEXTS], METHODS[method])
        assert [r.logp.sum() for r in read] == pytest.approx(list(whole.logp), abs=1e-4)
        assert [r.token_counts.sum() for r in read] == list(whole.token_counts)


def test_a_first_word_without_bos_has_no_number_and_the_others_do(make_checkpoint):
    _, read = ours(make_checkpoint("causal", adds=False), bos="never")
    for mine in read:
        assert np.isnan(mine.logp[0]) and mine.token_counts[0] > 0
        assert np.isfinite(mine.logp[1:]).all()


def test_what_does_not_fit_has_no_number(make_checkpoint):
    _, read = ours(make_checkpoint("causal", adds=True), max_length=8)
    assert read[0].too_long.all() and np.isnan(read[0].logp).all()


def test_an_empty_stretch_has_log_probability_zero(make_checkpoint):
    model, _ = ours(make_checkpoint("causal", adds=True))
    read = span_logprobs(
        model, [Option("the cat", (3, 3)), Option("the cat", (0, 0))], METHODS["causal"]
    )
    assert read.logp.tolist() == [0, 0]


def test_the_words_of_a_sentence_share_one_row(make_checkpoint):
    """No forward per word: what is computed is at most each token once, corrected or not."""
    folder = make_checkpoint("causal", adds=True)
    tokenizer = peer(folder, "causal").tokenizer
    asked = [word for text in TEXTS for word in words(text)]
    for correct in (False, True):
        model = open_checkpoint(str(folder), OpenOptions(device="cpu"))
        model.engine.set_word_start_ids(word_start_ids(tokenizer))
        span_logprobs(model, asked, METHODS["causal"], bow_correction=correct)
        assert model.engine.nodes_computed <= sum(
            len(tokenizer(text)["input_ids"]) for text in TEXTS
        )


def test_batches_move_nothing(make_checkpoint):
    folder = make_checkpoint("causal", adds=True)
    begins = word_start_ids(peer(folder, "causal").tokenizer)
    for a, b in zip(
        ours(folder, correct=begins)[1],
        ours(folder, correct=begins, batch_tokens=3)[1],
        strict=True,
    ):
        assert a.logp == pytest.approx(b.logp, abs=1e-5)


def test_fused_is_refused_and_so_is_a_tokenizer_without_marks():
    with pytest.raises(MethodNotSupported, match="product of two predictions"):
        single_part(METHODS["fused"])

    class WordPiece:
        def __call__(self, text, add_special_tokens):
            return {"input_ids": [5, 5]}

        def convert_ids_to_tokens(self, ids):
            return ["a", "a"]

    with pytest.raises(MethodNotSupported, match="does not mark where words begin"):
        word_start_ids(WordPiece())
