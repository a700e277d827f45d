"""A classifier's logits do not depend on batch or padding, with either attention."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from finetuning_helpers import make_backbone, make_example, make_task
from ltg_models import build_ltg_model
from prediction_rows import to_rows
from tiny_models import build_model
from torch.nn import functional

from antlm_bench.errors import UsageError
from antlm_bench.finetuning.batches import PaddedBatch, pad_batch
from antlm_bench.finetuning.data import encode_examples, resolve_pad_id
from antlm_bench.finetuning.heads import ClassificationHead, build_classifier, resolve_pooling
from antlm_bench.finetuning.loop import ClassifierTrainer, FinetuneSettings, finetune
from antlm_bench.scoring.text import Specials

CPU = torch.device("cpu")
WIDE = {"vocab_size": 400, "hidden_size": 24, "max_position_embeddings": 64}


def backbone_named(name: str, both: bool = False):
    if name in ("ltg-bert", "gpt-bert"):
        causal = "ForCausalLM" if both else "ForMaskedLM"
        model = build_ltg_model("gpt" if name == "gpt-bert" else "", causal, **WIDE)
        return make_backbone(model, "causal" if both else "masked", both=both)
    classes = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM",
               "bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM"}  # fmt: skip
    more = {
        "gpt2": {"n_positions": 64, "pad_token_id": None},
        "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
        "roberta": {"max_position_embeddings": 80},
        "llama": {"num_key_value_heads": 2},
    }
    model = build_model("", 0, classes[name], **more.get(name, {}))
    return make_backbone(
        model, "causal" if name in ("llama", "gpt2", "opt") else "masked", both=both
    )


def logits(body, attention: str, pooling: str, rows, chosen, extra: int = 0):
    """In evaluation mode; `extra`: so many columns of padding more than are needed."""
    model = build_classifier(body, attention, pooling, 3, 0.1, 0).eval()
    batch = pad_batch(rows, np.array(chosen), resolve_pad_id(body), body.has_token_type_ids, CPU)
    if extra:
        fill = torch.full((len(chosen), extra), resolve_pad_id(body))
        types = (
            None
            if batch.token_type_ids is None
            else torch.cat([batch.token_type_ids, torch.zeros_like(fill)], 1)
        )
        batch = PaddedBatch(torch.cat([batch.ids, fill], 1), batch.lengths, types, has_padding=True)
    with torch.no_grad():
        return model(batch)


NAMES = ["llama", "gpt2", "opt", "bert", "roberta", "ltg-bert", "gpt-bert"]
BOTH = [("llama", "causal"), ("llama", "full"), ("ltg-bert", "causal"), ("ltg-bert", "full"),
        ("gpt-bert", "causal"),
        ("gpt-bert", "full")]  # fmt: skip
WAYS = [(name, "", pooling) for name in NAMES for pooling in ("auto", "mean")]
WAYS += [(name, way, pooling) for name, way in BOTH for pooling in ("auto", "mean")]


@pytest.mark.long
@pytest.mark.parametrize(("name", "way", "pooling"), WAYS)
def test_padding_never_moves_a_logit(name, way, pooling):
    body = backbone_named(name, both=bool(way))
    attention = way or body.native_attention
    pooling = resolve_pooling(body, attention, pooling)
    rows = encode_examples(body, attention, [make_example(i) for i in range(8)], 40)
    alone = torch.cat([logits(body, attention, pooling, rows, [i]) for i in range(8)])
    assert len(set(rows.lengths.tolist())) > 2
    torch.testing.assert_close(
        logits(body, attention, pooling, rows, range(8)), alone, atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        logits(body, attention, pooling, rows, range(8), 7), alone, atol=1e-5, rtol=1e-5
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "way", "pooling"),
    [
        ("llama", "causal", "last"),
        ("llama", "full", "first"),
        ("gpt2", "causal", "last"),
        ("ltg-bert", "full", "first"),
        ("ltg-bert", "causal", "last"),
    ],
)
def test_narrowing_the_last_layer_changes_nothing(name, way, pooling):
    """Logits and gradients, narrowed and whole, without dropout."""
    body = backbone_named(name, both=name != "gpt2")
    rows = pad_batch(
        encode_examples(body, way, [make_example(i) for i in range(6)], 40),
        np.arange(6),
        resolve_pad_id(body),
        False,
        CPU,
    )
    model = build_classifier(body, way, pooling, 3, 0.0, 0).eval()
    assert model.last_layer_is_restricted
    result = []
    for model.last_layer_is_restricted in (True, False):
        model.zero_grad()
        batch = model(rows)
        batch.square().sum().backward()
        result.append(
            (batch.detach(), {name: p.grad.clone() for name, p in model.named_parameters()})
        )
    torch.testing.assert_close(result[0], result[1], atol=1e-5, rtol=1e-4)


def test_a_feed_forward_that_must_see_everything_is_left_whole():
    """Of the mean, or in a layer that is passed twice."""
    assert not build_classifier(
        backbone_named("llama"), "causal", "mean", 2, 0.0, 0
    ).last_layer_is_restricted
    twice = backbone_named("llama")
    twice.model.layers[0] = twice.model.layers[-1]
    assert not build_classifier(twice, "causal", "last", 2, 0.0, 0).last_layer_is_restricted


@pytest.mark.parametrize("name", ["llama", "ltg-bert", "gpt-bert"])
def test_the_two_attentions_of_a_hybrid_see_what_they_should(name):
    """Read at the first token, a row that attends in full sees the last one; causally, the last
    alone sees it.
    """
    body = backbone_named(name, both=True)
    ids = torch.arange(5, 17)[None].repeat(2, 1)
    ids[1, -1] = 30
    for attention, sees in (("causal", False), ("full", True)):
        model = build_classifier(body, attention, "first", 2, 0.0, 0).eval()
        with torch.no_grad():
            first = [model.pool_hidden_states(_row(ids[i : i + 1])) for i in range(2)]
            model.pooling = "last"
            last = [model.pool_hidden_states(_row(ids[i : i + 1])) for i in range(2)]
        assert (not torch.allclose(first[0], first[1], atol=1e-5)) == sees
        assert not torch.allclose(last[0], last[1], atol=1e-5)


def _row(ids: torch.Tensor):
    return PaddedBatch(ids, torch.tensor([ids.shape[1]]), None, has_padding=False)


@pytest.mark.parametrize(("name", "attention"), BOTH)
def test_a_hybrid_equals_its_backbone_on_one_row(name, attention):
    """Against the body's plain forward under an explicit 4-D mask."""
    body = backbone_named(name, both=True)
    ids = torch.arange(5, 15)[None]
    mask = torch.ones(1, 1, 10, 10, dtype=torch.bool)
    with torch.no_grad():
        hidden = body.model(
            input_ids=ids, attention_mask=mask.tril() if attention == "causal" else mask
        )[0]
        model = build_classifier(body, attention, "mean", 2, 0.0, 0).eval()
        torch.testing.assert_close(
            model.pool_hidden_states(_row(ids)), hidden.mean(1), atol=1e-5, rtol=1e-5
        )


def test_pooling_follows_from_attention_and_tokenizer():
    causal, masked = backbone_named("llama", both=True), backbone_named("bert")
    assert resolve_pooling(causal, "causal", "auto") == "last"
    assert resolve_pooling(masked, "full", "auto") == "first"
    assert resolve_pooling(masked, "full", "mean") == "mean"
    bare = make_backbone(build_model("masked", 0), "masked", adds=False)
    assert (
        resolve_pooling(bare, "full", "auto") == "first"
    )  # a cls token there is, though no template names it
    bare = dataclasses.replace(bare, specials={"full": Specials()})
    assert resolve_pooling(bare, "full", "auto") == "mean"


def test_the_head_has_the_documented_layers():
    head, x = ClassificationHead(8, 3, 0.5, seed=4).eval(), torch.randn(5, 8)
    plain = functional.layer_norm(x, (8,)) @ head[1].weight.T + head[1].bias
    plain = functional.layer_norm(functional.gelu(plain), (8,)) @ head[5].weight.T + head[5].bias
    torch.testing.assert_close(head(x), plain)
    std = (2 / (5 * 8)) ** 0.5
    assert head[1].weight.abs().max() <= 2 * std and 0.6 * std < head[1].weight.std() < std
    assert torch.equal(head[1].weight, ClassificationHead(8, 3, 0.5, seed=4)[1].weight)
    assert not torch.equal(head[1].weight, ClassificationHead(8, 3, 0.5, seed=5)[1].weight)


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "ltg-bert"])
def test_low_rank_training_changes_only_adapters_and_head(name):
    body = backbone_named(name)
    learner = ClassifierTrainer(
        body, make_task(20, 5), 1, body.native_attention, FinetuneSettings("cpu", lora_rank=3)
    )
    learned = [n for n, p in learner.model.named_parameters() if p.requires_grad]
    assert all("lora_" in n or n.startswith("head.") for n in learned)
    linear = [n for n, m in body.model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    assert sum("lora_A" in n for n in learned) == len(linear)
    groups = [p for group in learner.optimizer.param_groups for p in group["params"]]
    assert len(groups) == len(learned)
    rows = encode_examples(body, body.native_attention, learner.task.train, 40)
    learner.train(rows, rows, None)
    after = {
        n.replace(".base_layer", ""): p
        for n, p in learner.model.backbone.named_parameters()
        if "lora_" not in n
    }
    assert all(torch.equal(p, after[n]) for n, p in body.model.named_parameters())


def test_lora_without_peft_names_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match="pip install"):
        build_classifier(backbone_named("llama"), "causal", "last", 2, 0.1, 0, lora_rank=2)


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "bert", "ltg-bert"])
def test_bf16_learns_the_same_task(name):
    body = backbone_named(name)
    toy = make_task(200, 60, epochs=6, lr=2e-3)
    outcome = finetune(
        body, toy, 1, body.native_attention, FinetuneSettings("cpu", dtype="bfloat16")
    )
    assert np.isfinite([p.scores for p in to_rows(outcome.predictions)]).all()
    assert outcome.history["epochs"][-1]["loss"] < 0.7
    plain = finetune(body, toy, 1, body.native_attention, FinetuneSettings("cpu"))
    losses = [[epoch["loss"] for epoch in o.history["epochs"]] for o in (outcome, plain)]
    assert losses[0] != losses[1] and losses[0][0] == pytest.approx(losses[1][0], rel=0.1)
