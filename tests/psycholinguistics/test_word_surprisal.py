"""Surprisal of spans against the word scores of minicons."""

from __future__ import annotations

import math

import numpy as np
import pytest

from antlm_bench.checkpoints import Checkpoint, OpenOptions, open_checkpoint
from antlm_bench.commands.surprisal import surprisal
from antlm_bench.errors import MethodNotSupported
from antlm_bench.scorer import Scorer
from antlm_bench.scoring import peers
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.surprisal import single_part, span_logprobs
from antlm_bench.types import Option

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers

TEXTS = [
    "the cat sees some dogs near the house.",
    "who never sleeps?",
    "unbelievably old boys see naïve cats",
]


def word_options(text):
    ends = [i + len(w) for w, i in zip(text.split(), _word_starts(text), strict=True)]
    return [Option(text, span) for span in zip([0, *ends[:-1]], ends, strict=True)]


def _word_starts(text):
    position, starts = 0, []
    for word in text.split():
        position = text.index(word, position)
        starts.append(position)
        position += len(word)
    return starts


def score_words(folder, method="causal", **options):
    model = open_checkpoint(str(folder), OpenOptions(device="cpu", **options))
    results = [span_logprobs(model, word_options(text), METHODS[method]) for text in TEXTS]
    return model, results


def load_minicons(folder, kind):
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()
    return peers.make_minicons_scorer(
        kind, model, transformers.AutoTokenizer.from_pretrained(folder)
    )


def minicons_word_scores(scorer, **options):
    """Sum the token scores of minicons over words; a token with a leading space starts a word."""
    scores_by_text = []
    for text, scored in zip(TEXTS, scorer.token_score(TEXTS, **options), strict=True):
        tokens, sums = scorer.tokenizer.tokenize(text), []
        for token, (_, score) in zip(tokens, scored[-len(tokens) :], strict=True):
            if token.startswith("Ġ"):
                sums.append(0.0)
            sums[-1] += score
        scores_by_text.append(sums)
    return scores_by_text


def test_causal_words_are_minicons_words_in_bits(make_checkpoint):
    folder = make_checkpoint("causal", adds=True)
    _, results = score_words(folder)
    minicons_scores = minicons_word_scores(
        load_minicons(folder, "causal"), surprisal=True, base_two=True
    )
    for ours, theirs in zip(results, minicons_scores, strict=True):
        assert -ours.logp / math.log(2) == pytest.approx(theirs, abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "metric"), [("mlm", "original"), ("mlm-l2r", "within_word_l2r")]
)
def test_masked_words_are_minicons_words(make_checkpoint, method, metric):
    folder = make_checkpoint("masked", adds=True)
    _, results = score_words(folder, method)
    for ours, theirs in zip(
        results,
        minicons_word_scores(load_minicons(folder, "masked"), PLL_metric=metric),
        strict=True,
    ):
        assert ours.logp == pytest.approx(theirs, abs=1e-4)


@pytest.mark.long
def test_the_words_of_a_text_add_up_to_it(make_checkpoint):
    for kind, method in (("causal", "causal"), ("masked", "mlm"), ("masked", "mntp")):
        model, results = score_words(make_checkpoint(kind, adds=True), method)
        whole = span_logprobs(model, [Option(text) for text in TEXTS], METHODS[method])
        assert [r.logp.sum() for r in results] == pytest.approx(list(whole.logp), abs=1e-4)
        assert [r.token_counts.sum() for r in results] == list(whole.token_counts)


def test_a_first_word_without_bos_has_no_number(make_checkpoint):
    _, results = score_words(make_checkpoint("causal", adds=False), bos="never")
    for ours in results:
        assert np.isnan(ours.logp[0]) and ours.token_counts[0] > 0
        assert np.isfinite(ours.logp[1:]).all()


def test_a_text_that_is_too_long_has_no_number(make_checkpoint):
    _, results = score_words(make_checkpoint("causal", adds=True), max_length=8)
    assert results[0].too_long.all() and np.isnan(results[0].logp).all()


def test_an_empty_span_has_log_probability_zero(make_checkpoint):
    model, _ = score_words(make_checkpoint("causal", adds=True))
    results = span_logprobs(
        model, [Option("the cat", (3, 3)), Option("the cat", (0, 0))], METHODS["causal"]
    )
    assert results.logp.tolist() == [0, 0]


@pytest.mark.long
def test_the_words_of_a_sentence_share_one_row(make_checkpoint):
    """Each token is computed at most once: no forward per word."""
    folder = make_checkpoint("causal", adds=True)
    tokenizer = load_minicons(folder, "causal").tokenizer
    options = [word for text in TEXTS for word in word_options(text)]
    model = open_checkpoint(str(folder), OpenOptions(device="cpu"))
    span_logprobs(model, options, METHODS["causal"])
    assert model.engine.nodes_computed <= sum(len(tokenizer(text)["input_ids"]) for text in TEXTS)


@pytest.mark.long
def test_batch_size_does_not_change_scores(make_checkpoint):
    folder = make_checkpoint("causal", adds=True)
    for a, b in zip(score_words(folder)[1], score_words(folder, batch_tokens=3)[1], strict=True):
        assert a.logp == pytest.approx(b.logp, abs=1e-5)


def test_fused_is_refused():
    with pytest.raises(MethodNotSupported, match="product of two predictions"):
        single_part(METHODS["fused"])


def test_an_open_scorer_is_tested_on_longer_texts_only(make_checkpoint, monkeypatch) -> None:
    scorer = Scorer(make_checkpoint("causal"), device="cpu")
    lengths: list[int] = []
    run_self_test = Checkpoint.run_self_test

    def count(checkpoint, texts, methods):
        lengths.append(max(map(len, texts)))
        return run_self_test(checkpoint, texts, methods)

    monkeypatch.setattr(Checkpoint, "run_self_test", count)
    first = surprisal(scorer, ["the dog sleeps"])
    assert surprisal(scorer, ["the dog sleeps"]).rows == first.rows
    surprisal(scorer, ["the old dog sleeps"])
    assert lengths == [14, 18]
