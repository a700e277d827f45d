"""`Scorer`: scores after a prefix, next tokens, sets of words, against plain loops and minicons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import build_model, train_tokenizer

from antlm_bench import Scorer
from antlm_bench.errors import DataError, MethodNotSupported, UsageError
from antlm_bench.scoring import peers

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers

PREFIXES = ["the cat", "every old boy near the house", "who"]
TEXTS = ["sees some dogs", "never sleeps.", "has ever seen himself?"]


@pytest.fixture(scope="module", params=["causal", "masked"])
def opened(request):
    """(scorer, model, tokenizer, kind)."""
    model, tokenizer = build_model(request.param, 2), train_tokenizer(request.param, True)
    return Scorer(model, tokenizer), model, tokenizer, request.param


@pytest.mark.long
def test_conditional_scores_are_those_of_minicons(opened):
    scorer, model, tokenizer, kind = opened
    peer = peers.make_minicons_scorer(kind, model, tokenizer)
    expected = peer.conditional_score(PREFIXES, TEXTS, reduction=lambda scores: scores.sum().item())
    assert scorer.logprobs(TEXTS, prefixes=PREFIXES) == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_tokens_after_a_prefix_are_the_last_of_the_whole_text(opened):
    scorer, _, tokenizer, _ = opened
    rows = scorer.token_logprobs(TEXTS, prefixes=PREFIXES).to_rows()
    wholes = [f"{prefix} {text}" for prefix, text in zip(PREFIXES, TEXTS, strict=True)]
    whole_rows = scorer.token_logprobs(wholes).to_rows()
    for index, text in enumerate(TEXTS):
        num_tokens = len(tokenizer(f" {text}", add_special_tokens=False)["input_ids"])
        own_rows = [row for row in rows if row["text_index"] == index]
        last_rows = [row for row in whole_rows if row["text_index"] == index][-num_tokens:]
        assert [row["token_id"] for row in own_rows] == [row["token_id"] for row in last_rows]
        assert [row["token_index"] for row in own_rows] == list(range(num_tokens))
        assert [row["logprob"] for row in own_rows] == pytest.approx(
            [row["logprob"] for row in last_rows], abs=1e-5
        )


@pytest.mark.long
def test_an_empty_prefix_changes_nothing_and_join_is_chosen(opened):
    scorer = opened[0]
    plain = scorer.logprobs(TEXTS)
    assert scorer.logprobs(TEXTS, prefixes=[""] * 3) == pytest.approx(plain, abs=1e-5)
    spaced, given = scorer.logprobs(["dogs"] * 2, prefixes=["the ", "the"])
    assert spaced == pytest.approx(given, abs=1e-5)
    assert scorer.logprobs(["dogs"], prefixes=["the"], join="")[0] != pytest.approx(given, abs=1e-2)


def test_next_tokens_equal_the_plain_distribution(opened):
    scorer, model, tokenizer, kind = opened
    rows = scorer.next_tokens(PREFIXES, 4).to_rows()
    for index, prefix in enumerate(PREFIXES):
        ids = tokenizer(prefix)["input_ids"]
        if kind == "masked":
            ids = [*ids[:-1], tokenizer.mask_token_id, tokenizer.sep_token_id]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        best = logits[-1 if kind == "causal" else -2].log_softmax(-1).topk(4)
        own_rows = rows[4 * index : 4 * index + 4]
        assert [row["token_id"] for row in own_rows] == best.indices.tolist()
        assert [row["logprob"] for row in own_rows] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [row["rank"] for row in own_rows] == [1, 2, 3, 4]
        assert own_rows[0]["token"] == tokenizer.decode(best.indices[0].item())


@pytest.mark.long
def test_next_tokens_are_those_of_minicons():
    model, tokenizer = build_model("causal", 2), train_tokenizer("causal", True)
    peer = peers.make_minicons_scorer("causal", model, tokenizer)
    expected = peer.next_word_distribution(PREFIXES).topk(5).values.flatten().tolist()
    rows = Scorer(model, tokenizer).next_tokens(PREFIXES, 5).to_rows()
    assert [row["logprob"] for row in rows] == pytest.approx(expected, abs=1e-4)


def test_next_tokens_that_cannot_be_read_are_refused(opened):
    scorer = opened[0]
    with pytest.raises(UsageError, match="k: 0 is out of range"):
        scorer.next_tokens(["the"], 0)
    with pytest.raises(DataError, match=r"prefixes\[1\]: the prefix has \d+ tokens"):
        scorer.next_tokens(["the", "the cat " * 90], 1)
    if opened[3] == "causal":
        with pytest.raises(DataError, match=r"prefixes\[0\]: nothing stands before"):
            scorer.next_tokens([""], 1, bos="never")
    else:
        with pytest.raises(MethodNotSupported, match="mlm-l2r cannot predict a token"):
            scorer.next_tokens(["the"], 1, method="mlm-l2r")


def test_word_sets_are_sums_of_probabilities(opened):
    scorer, model, tokenizer, kind = opened
    template, plural, singular = "the dogs ___ some cats", ["see", "sleep"], ["sees", "sleeps"]
    [row] = scorer.compare_words([template], plural, singular).to_rows()
    masses = []
    for words in (plural, singular):
        ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
        assert all(len(word_ids) == 1 for word_ids in ids)
        if kind == "causal":
            text_ids = tokenizer("the dogs")["input_ids"]
        else:
            text_ids = tokenizer("the dogs see some cats")["input_ids"]
            text_ids[3] = tokenizer.mask_token_id  # <s> the dogs see
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([text_ids])).logits[0]
        probabilities = logits[-1 if kind == "causal" else 3].softmax(-1)
        masses.append(sum(probabilities[word_ids[0]].item() for word_ids in ids))
    assert np.exp([row["logprob"], row["other_logprob"]]) == pytest.approx(masses, rel=1e-4)
    assert row["difference"] == pytest.approx(np.log(masses[0] / masses[1]), abs=1e-4)


def test_words_of_several_tokens_have_the_score_of_their_span():
    model, tokenizer = build_model("causal", 2), train_tokenizer("causal", True)
    scorer = Scorer(model, tokenizer)
    [row] = scorer.compare_words(
        ["the [MASK] sleeps"], ["Zeppo"], ["cat"], blank="[MASK]"
    ).to_rows()
    expected = scorer.logprobs(["Zeppo", "cat"], prefixes=["the", "the"])
    assert [row["logprob"], row["other_logprob"]] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("templates", "words", "message"),
    [
        (["the cat sleeps"], ["see"], r"templates\[0\]: .* contains the blank '___' 0 times"),
        (["___ and ___"], ["see"], r"2 times, not once"),
        (["the ___"], [], "words: a word is missing"),
        (["the ___"], ["see", "see"], "words: 'see' is in the list twice"),
    ],
)
def test_wrong_templates_and_sets_are_refused(opened, templates, words, message):
    with pytest.raises(UsageError, match=message):
        opened[0].compare_words(templates, words, ["sees"])


def test_prefixes_are_one_per_text(opened):
    with pytest.raises(UsageError, match="prefixes: 1 prefixes for 2 texts"):
        opened[0].logprobs(["the", "cat"], prefixes=["a"])
