"""Token scores: windows over long texts, rank, entropy and top-k, against loops and minicons."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import build_model, train_tokenizer

from antlm_bench import Scorer, surprisal
from antlm_bench.scoring import peers, token_scores
from antlm_bench.scoring.logit_readers import DistributionReader, fast_logsumexp
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.token_scores import TokenSettings, WindowSizes, score_tokens

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peers

SHORT = "the cat sees some dogs near the house."
LONG = " ".join(["the cat sees some dogs near the old house", "who never sleeps", "no boy"] * 4)
MAX_LENGTH = 24


@pytest.fixture(scope="module", params=["causal", "masked"])
def opened(request):
    """(scorer with a short length, model, tokenizer, kind)."""
    model, tokenizer = build_model(request.param, 1), train_tokenizer(request.param, True)
    return Scorer(model, tokenizer, max_length=MAX_LENGTH), model, tokenizer, request.param


def read_row(model, tokenizer, kind: str, ids: list[int], position: int) -> torch.Tensor:
    """The log-distribution from which the token of a plain row is predicted."""
    row = torch.tensor([ids])
    if kind == "masked":
        row[0, position] = tokenizer.mask_token_id
    with torch.inference_mode():
        logits = model(input_ids=row).logits[0, position - (kind == "causal")]
    return logits.log_softmax(-1)


def plain_window_scores(model, tokenizer, kind: str, text: str) -> list[float]:
    """Loop over the tokens: the context of each is found anew from the rule in the documents."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    before, after = [1], [2] if kind == "masked" else []
    size = MAX_LENGTH - len(before) - len(after)
    left, right = (MAX_LENGTH // 2, 0) if kind == "causal" else (MAX_LENGTH // 4, MAX_LENGTH // 4)
    scores = []
    for token in range(len(ids)):
        start, stride = 0, size - left - right
        while token >= start + size - right and start + size < len(ids):
            start += stride
        start = min(start, max(0, len(ids) - size))
        row = [*before, *ids[start : start + size], *after]
        position = len(before) + token - start
        scores.append(read_row(model, tokenizer, kind, row, position)[ids[token]].item())
    return scores


def score(opened, text: str, **options) -> list[float]:
    rows = surprisal(opened[0], [text], by="token", base="e", **options).rows
    return [-row["surprisal_nats"] for row in rows]


@pytest.mark.long
def test_long_texts_equal_a_loop_over_windows(opened):
    _, model, tokenizer, kind = opened
    expected = plain_window_scores(model, tokenizer, kind, LONG)
    assert len(expected) > 2 * MAX_LENGTH
    assert score(opened, LONG) == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_texts_that_fit_equal_the_plain_forward(opened):
    _, model, tokenizer, kind = opened
    ids = tokenizer(SHORT)["input_ids"]
    end = len(ids) - (kind == "masked")
    expected = [read_row(model, tokenizer, kind, ids, i)[ids[i]].item() for i in range(1, end)]
    assert score(opened, SHORT) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("sizes", "num_tokens", "expected"),
    [
        (WindowSizes(6, 3, 0), 6, [(0, 6, 0, 6)]),
        (WindowSizes(6, 3, 0), 10, [(0, 6, 0, 6), (3, 9, 6, 9), (4, 10, 9, 10)]),
        (WindowSizes(6, 2, 2), 9, [(0, 6, 0, 4), (2, 8, 4, 6), (3, 9, 6, 9)]),
        (WindowSizes(None, 0, 0), 999, [(0, 999, 0, 999)]),
        (WindowSizes(0, 0, 0), 1, []),
    ],
)
def test_windows_by_hand(sizes, num_tokens, expected):
    assert sizes.split(num_tokens) == expected


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_every_token_is_scored_once_with_half_the_length_as_context(attention):
    specials = SimpleNamespace(before=(1,), after=(2,) if attention == "full" else ())
    encoders = {attention: SimpleNamespace(specials=specials)}
    for length in range(8, 40):
        sizes = WindowSizes.for_model(
            SimpleNamespace(max_length=length, encoders=encoders), attention
        )
        for num_tokens in range(1, 130):
            scored = []
            for start, end, first, end_scored in sizes.split(num_tokens):
                assert end - start + len(specials.before + specials.after) <= length
                scored += range(first, end_scored)
                share = length / 2 if attention == "causal" else length / 4
                assert start == 0 or first - start >= share
                assert end == num_tokens or attention == "causal" or end - end_scored >= share
            assert scored == list(range(num_tokens))


@pytest.mark.long
def test_chunks_do_not_change_scores(opened, monkeypatch):
    correction = "pimentel-meister" if opened[3] == "causal" else "none"
    whole = score(opened, LONG, correction=correction)
    monkeypatch.setattr(token_scores, "MAX_CHUNK_TOKENS", 30)
    assert score(opened, LONG, correction=correction) == pytest.approx(whole, abs=1e-5)


@pytest.mark.long
def test_rank_entropy_and_top_tokens_equal_a_softmax_loop(opened):
    scorer, model, tokenizer, kind = opened
    rows = surprisal(scorer, [SHORT], by="token", add=["rank", "entropy", "top-3"]).rows
    ids = tokenizer(SHORT)["input_ids"]
    for position, row in enumerate(rows, start=1):
        logp = read_row(model, tokenizer, kind, ids, position)
        assert row["rank"] == 1 + int((logp > logp[ids[position]]).sum())
        entropy = -(logp.exp() * logp).sum().item() / np.log(2)
        assert row["entropy_bits"] == pytest.approx(entropy, abs=1e-4)
        best = logp.topk(3)
        assert [row[f"top_{n}"] for n in (1, 2, 3)] == [
            tokenizer.decode(token) for token in best.indices.tolist()
        ]
        assert [row[f"top_{n}_probability"] for n in (1, 2, 3)] == pytest.approx(
            best.values.exp().tolist(), abs=1e-5
        )


@pytest.mark.long
def test_words_have_the_entropy_of_their_first_token(opened):
    add = ["rank", "entropy", "top-1"]
    tokens = surprisal(opened[0], [SHORT], by="token", add=add).rows
    for word in surprisal(opened[0], [SHORT], by="word", add=add).rows:
        own_tokens = [row for row in tokens if row["word_index"] == word["word_index"]]
        assert word["entropy_bits"] == own_tokens[0]["entropy_bits"]
        assert word["top_1"] == own_tokens[0]["top_1"]
        assert word["rank"] == (own_tokens[0]["rank"] if len(own_tokens) == 1 else None)


@pytest.mark.long
def test_ranks_are_those_of_minicons(opened):
    scorer, model, tokenizer, kind = opened
    peer = peers.make_minicons_scorer(kind, model, tokenizer)
    scored = peer.token_score([SHORT], rank=True)[0]
    expected = [rank for _, _, rank in scored if rank]
    rows = surprisal(scorer, [SHORT], by="token", add="rank").rows
    assert [row["rank"] for row in rows] == expected[-len(rows) :]


def test_tied_tokens_share_the_best_rank_and_excluded_ones_have_no_entropy():
    logits = torch.tensor([[1.0, 1.0, 0.0, -torch.inf]])
    target, row = torch.tensor([0, 1, 2, 3]), torch.zeros(4, dtype=torch.long)
    logprobs = (logits - fast_logsumexp(logits)[:, None])[0]
    values = DistributionReader(1).read(logits, row, target, logprobs)
    assert values[:, 1].tolist() == [1, 1, 3, 4]
    p = logits[0, :3].softmax(-1)
    assert values[:, 2].tolist() == pytest.approx([-(p * p.log()).sum().item()] * 4, abs=1e-6)


def test_distributions_are_read_from_blocks_of_logits(opened, monkeypatch):
    """No more logits than a block of the LM head are held, however many texts there are."""
    scorer, *_ = opened
    engine = scorer.checkpoint.engine
    monkeypatch.setattr(engine, "head_rows", 4)
    sizes = []
    original = DistributionReader.read

    def record(self, logits, *arguments):
        sizes.append(len(logits))
        return original(self, logits, *arguments)

    monkeypatch.setattr(DistributionReader, "read", record)
    surprisal(scorer, [SHORT, "no dogs"], add=["entropy"])
    assert len(sizes) > 2 and max(sizes) <= 4


def test_texts_that_do_not_fit_can_be_left(opened):
    method = METHODS["causal" if opened[3] == "causal" else "mlm"]
    settings = TokenSettings(method, splits_long_texts=False)
    (short, long), _ = score_tokens(opened[0].checkpoint, [SHORT, LONG], [0, 0], settings)
    assert np.isfinite(short.logprobs).all() and short.num_windows == 1
    assert np.isnan(long.logprobs).all() and long.num_windows == 0
