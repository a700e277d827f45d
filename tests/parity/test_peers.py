"""Our scores against minicons, lm-eval and a plain loop: equal where the conventions agree."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from peer_helpers import load_transformers, sum_logprobs

from antlm_bench.scoring import peers

TOLERANCE = 1e-4

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers


def score_with_minicons(folder, kind, texts, **options):
    model, tokenizer = load_transformers(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peers.score_with_minicons(
            peers.make_minicons_scorer(kind, model, tokenizer), texts, 8, **options
        )


def score_with_lm_eval(folder, texts):
    model, tokenizer = load_transformers(folder)
    return peers.score_with_lm_eval(model, tokenizer, texts, 8)


def all_close(a, b):
    return np.abs(np.array(a) - np.array(b)).max() <= TOLERANCE


@pytest.mark.long
def test_causal_with_a_bos_in_the_tokenizer_equals_both_peers(make_checkpoint, sentences):
    folder = make_checkpoint("causal", adds=True)
    scores = sum_logprobs(folder, sentences, "causal")
    assert all_close(scores, score_with_minicons(folder, "causal", sentences))
    assert all_close(scores, score_with_lm_eval(folder, sentences))


@pytest.mark.long
def test_causal_without_a_tokenizer_bos_equals_lm_eval(make_checkpoint, sentences):
    folder = make_checkpoint("causal", adds=False)
    assert all_close(
        sum_logprobs(folder, sentences, "causal"), score_with_lm_eval(folder, sentences)
    )


@pytest.mark.long
def test_bos_tokenizer_leaves_the_first_token_unscored(make_checkpoint, sentences):
    folder = make_checkpoint("causal", adds=False)
    theirs = score_with_minicons(folder, "causal", sentences)
    assert all_close(sum_logprobs(folder, sentences, "causal", bos="tokenizer"), theirs)
    assert not all_close(sum_logprobs(folder, sentences, "causal"), theirs)


@pytest.mark.long
def test_the_bos_option_of_minicons_may_double_the_bos(make_checkpoint, sentences):
    folder = make_checkpoint("causal", adds=True)
    doubled = score_with_minicons(folder, "causal", sentences, bos_token=True)
    assert not all_close(sum_logprobs(folder, sentences, "causal", bos="always"), doubled)
    bare = make_checkpoint("causal", adds=False)
    assert all_close(
        sum_logprobs(bare, sentences, "causal", bos="always"),
        score_with_minicons(bare, "causal", sentences, bos_token=True),
    )


@pytest.mark.long
@pytest.mark.parametrize("adds", [True, False])
def test_pseudo_log_likelihood_equals_minicons_original(make_checkpoint, sentences, adds):
    folder = make_checkpoint("masked", adds=adds)
    policy = "auto" if adds else "tokenizer"
    scores = sum_logprobs(folder, sentences, "mlm", bos=policy)
    assert all_close(
        scores, score_with_minicons(folder, "masked", sentences, PLL_metric="original")
    )


@pytest.mark.long
def test_within_word_pseudo_log_likelihood_equals_minicons(make_checkpoint, sentences):
    folder = make_checkpoint("masked", adds=True)
    theirs = score_with_minicons(folder, "masked", sentences, PLL_metric="within_word_l2r")
    assert all_close(sum_logprobs(folder, sentences, "mlm-l2r"), theirs)
    assert not all_close(sum_logprobs(folder, sentences, "mlm"), theirs)


def sum_logprobs_in_loop(folder, text, hide, read, span_start=0):
    """Loop over BabyLM's definition; `hide` and `read` are offsets from the scored token."""
    model, tokenizer = load_transformers(folder)
    encoding = tokenizer(text, return_offsets_mapping=True)
    total = 0.0
    for position, (token, (_, end)) in enumerate(
        zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ):
        if end <= span_start or position + read < 0:
            continue
        ids = torch.tensor([encoding["input_ids"]])
        if hide is not None:
            ids[0, position] = tokenizer.mask_token_id
        with torch.inference_mode():
            total += model(input_ids=ids).logits[0, position + read].log_softmax(-1)[token].item()
    return total


@pytest.mark.long
@pytest.mark.parametrize(("name", "read"), [("mlm", 0), ("mntp", -1)])
def test_masked_methods_equal_a_loop_over_babylm_2025(make_checkpoint, sentences, name, read):
    folder = make_checkpoint("masked", adds=True)
    texts = sentences[:6] + sentences[-4:]
    assert all_close(
        sum_logprobs(folder, texts, name),
        [sum_logprobs_in_loop(folder, text, 0, read) for text in texts],
    )


@pytest.mark.long
def test_a_span_counts_the_tokens_that_end_in_it(make_checkpoint, sentences):
    folder = make_checkpoint("causal", adds=True)
    texts = [text for text in sentences if " " in text][:20]
    # The completion begins with its space, as in EWoK.
    starts = [text.index(" ") for text in texts]
    spans = [(start, len(text)) for start, text in zip(starts, texts, strict=True)]
    theirs = [
        sum_logprobs_in_loop(folder, text, None, -1, start)
        for text, start in zip(texts, starts, strict=True)
    ]
    assert all_close(sum_logprobs(folder, texts, "causal", spans), theirs)


@pytest.mark.long
def test_fused_is_the_sum_of_its_parts(make_checkpoint, sentences):
    folder = make_checkpoint("causal", adds=True)
    causal, mntp, fused = (
        np.array(sum_logprobs(folder, sentences, name)) for name in ("causal", "mntp", "fused")
    )
    assert np.abs(causal + mntp - fused).max() <= 1e-5


def test_full_attention_on_a_causal_checkpoint(make_checkpoint):
    """A 4-D mask of zeros makes the Llama of transformers attend both ways; ours agrees with it."""
    folder = make_checkpoint("causal", adds=True)
    model, tokenizer = load_transformers(folder)
    text = "the cat sees some dogs near the house."
    ids = tokenizer(text)["input_ids"]
    total = 0.0
    for at in range(1, len(ids)):
        row = torch.tensor([ids])
        row[0, at] = tokenizer.mask_token_id
        with torch.inference_mode():
            logits = model(
                input_ids=row, attention_mask=torch.zeros(1, 1, len(ids), len(ids))
            ).logits
        total += logits[0, at].log_softmax(-1)[ids[at]].item()
    assert all_close(sum_logprobs(folder, [text], "mlm"), [total])
