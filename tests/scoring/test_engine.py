"""The engine on real architectures: same numbers whatever the layout, budget, order or thread
count; loud when not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from peer_helpers import sum_logprobs
from prediction_rows import predict_rows

from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.errors import CheckpointError
from antlm_bench.scoring.engine import Engine
from antlm_bench.scoring.methods import resolve_method
from antlm_bench.types import Item, Option

GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CAUSAL = {
    "LlamaForCausalLM": {"num_key_value_heads": 2},
    "GPT2LMHeadModel": GPT2,
    "GPTNeoXForCausalLM": {},
    "OPTForCausalLM": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Qwen2ForCausalLM": {"num_key_value_heads": 2},
    "Gemma2ForCausalLM": {"num_key_value_heads": 2, "head_dim": 8},
    "BloomForCausalLM": {"n_layer": 2, "n_head": 4},
}
MASKED = {
    "BertForMaskedLM": {},
    "RobertaForMaskedLM": {"max_position_embeddings": 66},
    "DebertaV2ForMaskedLM": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "ModernBertForMaskedLM": {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 20},
    "AlbertForMaskedLM": {"embedding_size": 16},
    "ElectraForMaskedLM": {"embedding_size": 16},
    "DistilBertForMaskedLM": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
}
PLAIN = {
    "Gemma2ForCausalLM",
    "BloomForCausalLM",
    "DebertaV2ForMaskedLM",
}  # attention that cannot be replaced
SHORT = [
    "the cat sees.",
    "the cat sleeps.",
    "no dogs",
    "every boy that sees himself has ever seen the old house near.",
]


def by_library(folder, texts, kind):
    """The library's own forward, one unpadded row at a time."""
    from peer_helpers import load_transformers

    model, tokenizer = load_transformers(folder)
    totals = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        total = 0.0
        for at in range(1, len(ids) if kind == "causal" else len(ids) - 1):
            row = torch.tensor([ids])
            if kind == "masked":
                row[0, at] = tokenizer.mask_token_id
            with torch.inference_mode():
                logits = model(input_ids=row).logits[0, at - (kind == "causal")]
            total += logits.log_softmax(-1)[ids[at]].item()
        totals.append(total)
    return totals


@pytest.mark.long
@pytest.mark.parametrize("name", [*CAUSAL, *MASKED])
def test_every_architecture_gives_the_numbers_of_its_own_library(make_checkpoint, name):
    kind = "causal" if name in CAUSAL else "masked"
    folder = make_checkpoint(kind, architecture=name, **(CAUSAL | MASKED)[name])
    opened = open_checkpoint(str(folder), OpenOptions(device="cpu"))
    if Version(transformers.__version__) >= Version(
        "5.23"
    ):  # older ones need plain rows more often, for OPT for one
        assert opened.metadata["layout"] == ("rows" if name in PLAIN else "packed")
    scores = sum_logprobs(folder, SHORT, "causal" if kind == "causal" else "mlm")
    np.testing.assert_allclose(scores, by_library(folder, SHORT, kind), rtol=1e-5, atol=1e-4)


def scored(model: Engine, items, name, budget=None):
    if budget is not None:
        model.engine.batch_tokens = budget
    return np.array(
        [p.scores for p in predict_rows(model, items, [resolve_method(name, model)])[0]]
    )


@pytest.fixture(scope="module")
def pairs(sentences) -> list[Item]:
    halves = zip(sentences[::2], sentences[1::2], strict=True)
    return [Item(str(n), (Option(good), Option(bad)), 0) for n, (good, bad) in enumerate(halves)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "name"), [("causal", "causal"), ("masked", "mlm"), ("causal", "fused")]
)
def test_no_score_depends_on_budget_order_limit_or_threads(make_checkpoint, pairs, kind, name):
    model = open_checkpoint(str(make_checkpoint(kind)), OpenOptions(device="cpu"))
    reference = scored(model, pairs, name, 1024)

    worst = [0.0]

    @settings(max_examples=15, deadline=None)
    @given(
        budget=st.integers(1, 3000),
        threads=st.sampled_from([1, 2]),
        order=st.permutations(range(len(pairs))),
        limit=st.integers(1, len(pairs)),
    )
    def holds(budget, threads, order, limit):
        torch.set_num_threads(threads)
        chosen = order[:limit]
        found = scored(model, [pairs[n] for n in chosen], name, budget)
        worst[0] = max(worst[0], np.abs(found - reference[list(chosen)]).max())
        assert worst[0] <= 1e-5

    before = torch.get_num_threads()
    try:
        holds()
    finally:
        torch.set_num_threads(before)


@pytest.mark.long
def test_out_of_memory_halves_the_budget_and_changes_no_score(make_checkpoint, pairs, monkeypatch):
    model = open_checkpoint(str(make_checkpoint()), OpenOptions(device="cpu"))
    reference = scored(model, pairs, "causal", 1024)
    real = Engine._batch_logprobs

    def small(self, batch):
        if len(batch.ids) > 40:
            raise torch.OutOfMemoryError("no")
        return real(self, batch)

    monkeypatch.setattr(Engine, "_batch_logprobs", small)
    assert np.abs(scored(model, pairs, "causal", 1024) - reference).max() < 1e-4
    assert model.engine.batch_tokens <= 64
    monkeypatch.setattr(
        Engine, "_batch_logprobs", lambda self, batch: (_ for _ in ()).throw(MemoryError())
    )
    with pytest.raises(CheckpointError, match="does not fit into memory"):
        scored(model, pairs[:1], "causal", 1)


def test_an_error_that_is_not_about_memory_is_not_swallowed(make_checkpoint, pairs, monkeypatch):
    model = open_checkpoint(str(make_checkpoint()), OpenOptions(device="cpu"))

    def broken(self, batch):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Engine, "_batch_logprobs", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        scored(model, pairs, "causal")


def test_nan_weights_fail_the_run(make_checkpoint, pairs):
    model = open_checkpoint(str(make_checkpoint()), OpenOptions(device="cpu"))
    with torch.no_grad():
        model.engine.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        scored(model, pairs, "causal")


def test_equal_prefixes_are_computed_once(make_checkpoint):
    model = open_checkpoint(str(make_checkpoint()), OpenOptions(device="cpu"))
    before = model.engine.nodes_computed
    texts = ("the cat sees the dog.", "the cat sees the dogs.")
    scored(model, [Item("1", (Option(texts[0]), Option(texts[1])), 0)] * 5, "causal")
    ids = [model.encoders["causal"].tokenizer(text)["input_ids"][:-1] for text in texts]
    prefixes = {tuple(row[: n + 1]) for row in ids for n in range(len(row))}
    assert model.engine.nodes_computed - before == len(prefixes)
