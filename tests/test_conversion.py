"""Checkpoints in the public layouts of LTG-BERT, ELC-BERT and GPT-BERT: opened, scored against the reference, refused.

The names and shapes below are written by hand from the public files; the values are the slow reference's.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference_models as reference
import torch
from asking import ours
from safetensors.torch import save_file
from tiny import tokenizer_for

from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.errors import CheckpointError

TEXT = "the cat sees no dogs"
CONFIG = {
    "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "hidden_size": 12, "intermediate_size": 16,
    "max_position_embeddings": 32, "position_bucket_size": 8, "num_attention_heads": 3, "num_hidden_layers": 3,
    "vocab_size": 400,
}  # fmt: skip
LTG = {"architectures": ["LtgBertForMaskedLM"], "layer_norm_eps": 1e-7, "model_type": "bert",
       "auto_map": {"AutoModelForMaskedLM": "modeling_ltgbert.LtgBertForMaskedLM"}}  # fmt: skip
GPT = {"layer_norm_eps": 1e-5, "auto_map": {"AutoModelForCausalLM": "modeling_gpt_bert.GPTBERTForCausalLM"}}


def around(weights, body="", head="classifier."):
    """What all layouts share: embedding, position table, head."""
    return {
        f"{body}embedding.word_embedding.weight": weights["embedding"],
        f"{body}embedding.relative_embedding": weights["table"],
        f"{body}embedding.relative_layer_norm.weight": weights["table_norm"][0],
        f"{body}embedding.relative_layer_norm.bias": weights["table_norm"][1],
        f"{head}nonlinearity.1.weight": weights["dense_w"],
        f"{head}nonlinearity.1.bias": weights["dense_b"],
        f"{head}nonlinearity.5.weight": weights["embedding"],
        f"{head}nonlinearity.5.bias": weights["bias"],
    }


def indices():
    return np.array([[reference.bucket(i - j, 8, 32) + 7 for j in range(32)] for i in range(32)])


def ltg_layout(weights):
    """ltgoslo/ltg-bert and elc-bert: `transformer.layers.N`, separate values, prev_layer_weights."""
    state = around(weights)
    for n, layer in enumerate(weights["layers"]):
        state |= {
            f"transformer.layers.{n}.attention.in_proj_qk.weight": layer["qk_w"],
            f"transformer.layers.{n}.attention.in_proj_qk.bias": layer["qk_b"],
            f"transformer.layers.{n}.attention.in_proj_v.weight": layer["v_w"],
            f"transformer.layers.{n}.attention.in_proj_v.bias": layer["v_b"],
            f"transformer.layers.{n}.attention.out_proj.weight": layer["o_w"],
            f"transformer.layers.{n}.attention.out_proj.bias": layer["o_b"],
            f"transformer.layers.{n}.attention.post_layer_norm.weight": layer["norm_w"],
            f"transformer.layers.{n}.attention.post_layer_norm.bias": layer["norm_b"],
            f"transformer.layers.{n}.attention.position_indices": indices(),
            f"transformer.layers.{n}.mlp.mlp.1.weight": layer["wide"],
            f"transformer.layers.{n}.mlp.mlp.4.weight": layer["narrow"],
        }
        if "alpha" in layer:
            state[f"transformer.layers.{n}.prev_layer_weights"] = layer["alpha"]
    if "alpha" in weights:
        state["transformer.prev_layer_weights"] = weights["alpha"]
    return state


def gpt_layout(weights, body="transformer.", embedding="", head="classifier."):
    """ltgoslo/gpt-bert (the defaults) and the 2025 baselines (`model.`, `lm_head.`): attention_layers, mlp_layers."""
    state = around(weights, embedding, head)
    for n, layer in enumerate(weights["layers"]):
        state |= {
            f"{body}attention_layers.{n}.in_proj_qk.weight": layer["qk_w"],
            f"{body}attention_layers.{n}.in_proj_qk.bias": layer["qk_b"],
            f"{body}attention_layers.{n}.in_proj_vg.weight": np.concatenate([layer["v_w"], layer["g_w"]]),
            f"{body}attention_layers.{n}.in_proj_vg.bias": np.concatenate([layer["v_b"], layer["g_b"]]),
            f"{body}attention_layers.{n}.out_proj.weight": layer["o_w"],
            f"{body}attention_layers.{n}.out_proj.bias": layer["o_b"],
            f"{body}attention_layers.{n}.position_indices": indices(),
            f"{body}mlp_layers.{n}.mlp.1.weight": layer["wide"],
            f"{body}mlp_layers.{n}.mlp.4.weight": layer["narrow"],
        }
        for i in range(2):
            state[f"{body}dwa_modules.alphas.{2 * n + i}"] = layer["alphas"][i]
    return state


def saved(folder, state, config, *, pickled=False):
    """The checkpoint on disk, as its authors would have it, with a tokenizer."""
    folder.mkdir(exist_ok=True)
    tensors = {
        name: torch.tensor(np.array(value), dtype=torch.long if value.dtype.kind == "i" else torch.float32)
        for name, value in state.items()
    }
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    tokenizer_for("masked", True).save_pretrained(folder)
    (folder / "modeling_ltgbert.py").write_text("raise SystemExit\nq, k = self.in_proj_qk(relative).chunk(2, dim=-1)\n")
    return folder


def weights_for(mix, **more):
    weights = reference.random_weights(np.random.default_rng(1), mix, vocabulary=400)
    if mix in ("base", "zero", "normalized", "weighted_output"):
        weights["layers"][0]["alpha"][:] = float(mix == "base")  # where training began, and stayed
    return weights, {
        "heads": 3,
        "eps": 1e-5 if mix == "gpt" else 1e-7,
        "buckets": 8,
        "furthest": 32,
        "mix": mix,
        **more,
    }


def logp(weights, settings, ids, at, target, allowed=lambda i, j: True):
    scores = reference.logits(weights, settings, ids, allowed)[at]
    return scores[target] - math.log(np.exp(scores - scores.max()).sum()) - scores.max()


def by_hand(weights, settings, method):
    """Pseudo-log-likelihood or causal log-likelihood of TEXT, from the reference alone."""
    tokenizer = tokenizer_for("masked", True)
    ids = tokenizer(TEXT)["input_ids"]
    total = 0.0
    for i in range(1, len(ids) - 1):
        if method == "causal":
            total += logp(weights, settings, ids, i - 1, ids[i], lambda q, k: k <= q)
        else:
            hidden = [tokenizer.mask_token_id if place == i else token for place, token in enumerate(ids)]
            total += logp(weights, settings, hidden, i - (method == "mntp"), ids[i])
    return total


CASES = [
    ("", ltg_layout, LTG, {}),
    ("base", ltg_layout, LTG | {"architectures": ["ElcBertForMaskedLM"]}, {}),
    ("zero", ltg_layout, LTG | {"layer_mix": "zero"}, {}),
    ("normalized", ltg_layout, LTG | {"layer_mix": "normalized"}, {}),
    ("weighted_output", ltg_layout, LTG, {}),
    ("gpt", gpt_layout, GPT | {"architectures": ["LtgbertForMaskedLM"]}, {}),
    ("gpt", gpt_layout, GPT | {"architectures": ["GPTBERTForMaskedLM"], "num_layers": 3},
     {"body": "model.", "embedding": "model.", "head": "lm_head."}),
]  # fmt: skip


@pytest.mark.parametrize(("mix", "layout", "config", "prefixes"), CASES)
def test_a_public_layout_opens_and_scores_as_the_reference_does(tmp_path, mix, layout, config, prefixes):
    weights, settings = weights_for(mix)
    folder = saved(tmp_path / "public", layout(weights, **prefixes), config)
    for method in ("mlm", "mntp") if mix == "gpt" else ("mlm",):
        assert ours(folder, [TEXT], method)[0] == pytest.approx(by_hand(weights, settings, method), abs=1e-3)
    facts = open_checkpoint(str(folder)).describe
    assert facts["architecture"] == ("GptBertForMaskedLM" if mix == "gpt" else "LtgBertForMaskedLM")
    assert facts["max_length"] == 32 and facts["vocabulary"] == 400


def test_a_causal_gpt_bert_opens_as_causal(tmp_path):
    weights, settings = weights_for("gpt")
    state = gpt_layout(weights, "model.", "model.", "lm_head.")
    folder = saved(tmp_path / "c", state, GPT | {"architectures": ["GPTBERTForCausalLM"]})
    assert ours(folder, [TEXT], "causal", bos="tokenizer")[0] == pytest.approx(
        by_hand(weights, settings, "causal"), abs=1e-3
    )


def test_what_only_the_wrappers_code_tells_is_read_from_it_and_not_run(tmp_path):
    weights, settings = weights_for("", per_head=True)
    folder = saved(tmp_path / "heads", ltg_layout(weights), LTG)
    own = "raise SystemExit\nq, k = pos.view(-1, self.num_heads, 2*self.head_size).chunk(2, dim=2)\n"
    (folder / "modeling_ltgbert.py").write_text(own)
    assert ours(folder, [TEXT], "mlm")[0] == pytest.approx(by_hand(weights, settings, "mlm"), abs=1e-3)
    for mix, line in (("zero", ""), ("normalized", "self.norm = nn.LayerNorm(d)")):
        weights, settings = weights_for(mix)
        folder = saved(tmp_path / mix, ltg_layout(weights), LTG)
        (folder / "modeling_elcbert.py").write_text(f"raise SystemExit\nself.prev_layer_weights\n{line}")
        assert ours(folder, [TEXT], "mlm")[0] == pytest.approx(by_hand(weights, settings, "mlm"), abs=1e-3)


def test_without_the_wrappers_code_the_layout_of_positions_is_asked_for(tmp_path):
    weights, _ = weights_for("")
    elsewhere = {"auto_map": {"AutoModel": "someone/model--modeling_ltgbert.LtgBertModel"}}
    for config, missing in (
        (LTG, True),
        (elsewhere, True),
        (LTG | {"per_head_positions": False}, False),
        ({"auto_map": None}, False),
    ):
        folder = saved(tmp_path / "no", ltg_layout(weights), config)
        (folder / "modeling_ltgbert.py").unlink()
        if missing:
            with pytest.raises(CheckpointError, match=r"modeling_ltgbert\.py is not here(.|\n)*per_head_positions"):
                open_checkpoint(str(folder))
        else:
            assert open_checkpoint(str(folder)).engine.model.config.per_head_positions is False


def test_variants_that_nothing_tells_apart_are_asked_for(tmp_path):
    folder = saved(tmp_path / "m", ltg_layout(weights_for("zero")[0]), LTG)
    with pytest.raises(CheckpointError, match=r"ELC-BERT's zero and normalized(.|\n)*add \"layer_mix\""):
        open_checkpoint(str(folder))


def test_tied_weights_may_have_been_saved_under_either_name_or_untied(tmp_path):
    weights, settings = weights_for("gpt")
    expected = pytest.approx(by_hand(weights, settings, "mlm"), abs=1e-3)
    for dropped in ("embedding.word_embedding.weight", "classifier.nonlinearity.5.weight"):
        state = gpt_layout(weights)
        del state[dropped]
        assert ours(saved(tmp_path / dropped, state, GPT), [TEXT], "mlm")[0] == expected
    state["classifier.nonlinearity.5.weight"] = weights["embedding"] + 1
    model = open_checkpoint(str(saved(tmp_path / "untied", state, GPT))).engine.model
    difference = model.head.decoder.weight - model.model.embedding.weight
    assert torch.allclose(difference, torch.ones_like(difference), atol=1e-5)


LAYER = "transformer.layers.0."
GONE = None
CHANGED = {
    LAYER + "extra": (np.ones(3), r"no place in .*e\.g\. transformer\.layers\.0\.extra"),
    LAYER + "mlp.mlp.1.weight": (np.ones((4, 12)), r"layers\.0\.mlp\.mlp\.1\.weight is \(4, 12\)"),
    LAYER + "attention.position_indices": (indices() * 0, "other relative positions"),
    "bert.embedding.word_embedding.weight": (np.ones((400, 12)), "two weights have the same place"),
    LAYER + "mlp.mlp.4.weight": (GONE, r"layers\.0\.feed_forward\.narrow\.weight is absent"),
    "classifier.nonlinearity.1.bias": (GONE, r"head\.transform\.1\.bias is absent"),
    LAYER + "attention.out_proj.bias": (GONE, r"layers\.0\.attention\.output\.bias is absent"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_every_weight_is_used_and_every_parameter_filled_or_the_first_offender_is_named(tmp_path, name):
    state = ltg_layout(weights_for("")[0])
    value, message = CHANGED[name]
    state = {**state, name: value} if value is not GONE else {k: v for k, v in state.items() if k != name}
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(saved(tmp_path / "bad", state, LTG)))


@pytest.mark.parametrize(("key", "value", "message"), [("num_attention_heads", None, "num_attention_heads"),
                                                       ("num_attention_heads", 5, "num_attention_heads")])  # fmt: skip
def test_a_configuration_that_cannot_be_is_named(tmp_path, key, value, message):
    folder = saved(tmp_path / "bad", ltg_layout(weights_for("")[0]), LTG)
    config = CONFIG | LTG | {key: value}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(folder))


def test_damaged_weights_are_refused(tmp_path):
    folder = saved(tmp_path / "bad", ltg_layout(weights_for("")[0]), LTG)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        open_checkpoint(str(folder))


def test_pickled_weights_are_opened_only_on_request(tmp_path):
    weights, settings = weights_for("")
    folder = saved(tmp_path / "pickled", ltg_layout(weights), LTG, pickled=True)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        open_checkpoint(str(folder))
    expected = pytest.approx(by_hand(weights, settings, "mlm"), abs=1e-3)
    assert ours(folder, [TEXT], "mlm", allow_pickle=True)[0] == expected
    torch.save({"embedding.relative_embedding": print}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        open_checkpoint(str(folder), OpenOptions(allow_pickle=True))
