"""Checkpoints in the public layouts of LTG-BERT, ELC-BERT and GPT-BERT: opened, scored against the
reference, refused.

The names and shapes below are written by hand from the public files; the values are the slow
reference's.
"""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import pytest
import reference_models as reference
import torch
from peer_helpers import sum_logprobs
from safetensors.torch import save_file
from tiny_models import train_tokenizer

from antlm_bench import score
from antlm_bench.checkpoints import OpenOptions, open_checkpoint, select_content_key_metadata
from antlm_bench.errors import CheckpointError, UsageError

TEXT = "the cat sees no dogs"
CONFIG = {
    "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1, "hidden_size": 12,
    "intermediate_size": 16,
    "max_position_embeddings": 32, "position_bucket_size": 8, "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "vocab_size": 400,
}  # fmt: skip
LTG = {"architectures": ["LtgBertForMaskedLM"], "layer_norm_eps": 1e-7, "model_type": "bert",
       "auto_map": {"AutoModelForMaskedLM": "modeling_ltgbert.LtgBertForMaskedLM"}}  # fmt: skip
GPT = {
    "layer_norm_eps": 1e-5,
    "auto_map": {"AutoModelForCausalLM": "modeling_gpt_bert.GPTBERTForCausalLM"},
}


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
    """ltgoslo/ltg-bert and elc-bert: `transformer.layers.N`, separate values,
    prev_layer_weights.
    """
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
    """ltgoslo/gpt-bert (the defaults) and the 2025 baselines (`model.`, `lm_head.`):
    attention_layers, mlp_layers.
    """
    state = around(weights, embedding, head)
    for n, layer in enumerate(weights["layers"]):
        state |= {
            f"{body}attention_layers.{n}.in_proj_qk.weight": layer["qk_w"],
            f"{body}attention_layers.{n}.in_proj_qk.bias": layer["qk_b"],
            f"{body}attention_layers.{n}.out_proj.weight": layer["o_w"],
            f"{body}attention_layers.{n}.out_proj.bias": layer["o_b"],
            f"{body}attention_layers.{n}.position_indices": indices(),
            f"{body}mlp_layers.{n}.mlp.1.weight": layer["wide"],
            f"{body}mlp_layers.{n}.mlp.4.weight": layer["narrow"],
        }
        gate = "g" if "g_w" in layer else ""
        for kind, name in (("w", "weight"), ("b", "bias")):
            parts = [layer[f"v_{kind}"], *([layer[f"g_{kind}"]] if gate else [])]
            state[f"{body}attention_layers.{n}.in_proj_v{gate}.{name}"] = np.concatenate(parts)
        for i in range(2 if "alphas" in layer else 0):
            state[f"{body}dwa_modules.alphas.{2 * n + i}"] = layer["alphas"][i]
    return state


def saved(folder, state, config, *, pickled=False):
    """The checkpoint on disk, as its authors would have it, with a tokenizer."""
    folder.mkdir(exist_ok=True)
    tensors = {
        name: torch.tensor(
            np.array(value), dtype=torch.long if value.dtype.kind == "i" else torch.float32
        )
        for name, value in state.items()
    }
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    train_tokenizer("masked", True).save_pretrained(folder)
    (folder / "modeling_ltgbert.py").write_text(
        "raise SystemExit\nq, k = self.in_proj_qk(relative).chunk(2, dim=-1)\n"
    )
    return folder


def weights_for(mix, gate=True, learned=True, **more):
    draw = np.random.default_rng(1)
    weights = reference.random_weights(draw, mix, vocabulary=400, gate=gate, learned=learned)
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
    tokenizer = train_tokenizer("masked", True)
    ids = tokenizer(TEXT)["input_ids"]
    total = 0.0
    for i in range(1, len(ids) - 1):
        if method == "causal":
            total += logp(weights, settings, ids, i - 1, ids[i], lambda q, k: k <= q)
        else:
            hidden = [
                tokenizer.mask_token_id if place == i else token for place, token in enumerate(ids)
            ]
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


@pytest.mark.long
@pytest.mark.parametrize(("mix", "layout", "config", "prefixes"), CASES)
def test_a_public_layout_opens_and_scores_as_the_reference_does(
    tmp_path, mix, layout, config, prefixes
):
    weights, settings = weights_for(mix)
    folder = saved(tmp_path / "public", layout(weights, **prefixes), config)
    for method in ("mlm", "mntp") if mix == "gpt" else ("mlm",):
        assert sum_logprobs(folder, [TEXT], method)[0] == pytest.approx(
            by_hand(weights, settings, method), abs=1e-3
        )
    facts = open_checkpoint(str(folder)).metadata
    assert facts["architecture"] == ("GptBertForMaskedLM" if mix == "gpt" else "LtgBertForMaskedLM")
    assert facts["max_length"] == 32 and facts["vocabulary"] == 400


WRAPPERS = [
    "GPTBERTFoCausalLM",
    "GPTBERTForCausalLM",
    "LtgbertForMaskedLM",
    "LtgbertForCausalLM",
    "GptBertForMaskedLM",
]


@pytest.mark.long
@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_every_form_of_gpt_bert_opens_both_ways(tmp_path, gate, learned):
    weights, settings = weights_for("gpt", gate, learned)
    folder = saved(tmp_path / "form", gpt_layout(weights), GPT)
    for method in ("mntp", "causal"):
        expected = by_hand(weights, settings, method)
        assert sum_logprobs(folder, [TEXT], method, bos="tokenizer")[0] == pytest.approx(
            expected, abs=1e-3
        )


@pytest.mark.long
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_gpt_bert_is_read_as_mntp_whatever_its_wrapper_is_called(tmp_path, wrapper):
    state = gpt_layout(weights_for("gpt")[0], "model.", "model.", "lm_head.")
    opened = open_checkpoint(str(saved(tmp_path / "c", state, GPT | {"architectures": [wrapper]})))
    assert opened.methods[:3] == ["mntp", "causal", "fused"]


@pytest.mark.long
def test_the_epsilon_comes_from_config_and_doctor_shows_it(tmp_path):
    state, descriptions = gpt_layout(weights_for("gpt")[0]), {}
    for eps in (1e-5, 1e-7, None):
        folder = saved(tmp_path / str(eps), state, GPT)
        config = CONFIG | {"layer_norm_eps": eps}
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in config.items() if v is not None})
        )
        opened = open_checkpoint(str(folder))
        assert opened.engine.model.config.layer_norm_eps == (eps or 1e-5)
        layout = opened.describe_for_doctor()["original_layout"]
        descriptions[eps] = layout.partition("layer_norm_eps ")[2]
    assert descriptions[1e-5] == "1e-05 (config.json)"
    assert descriptions[1e-7] == "1e-07 (config.json; the authors trained with 1e-05)"
    assert descriptions[None] == "1e-05 (not in config.json, as the authors trained)"


@pytest.mark.long
def test_traits_are_read_from_wrapper_code_without_running_it(tmp_path):
    weights, settings = weights_for("", per_head=True)
    folder = saved(tmp_path / "heads", ltg_layout(weights), LTG)
    (folder / "modeling_ltgbert.py").write_text(f"raise SystemExit\n{PER_HEAD[0]}\n")
    assert sum_logprobs(folder, [TEXT], "mlm")[0] == pytest.approx(
        by_hand(weights, settings, "mlm"), abs=1e-3
    )
    feed_forward = "self.prev_layer_weights\nout = attended + self.mlp(x + attended)\n"
    for mix, line in (("zero", ""), ("normalized", "self.norm = nn.LayerNorm(\n  d\n)")):
        weights, settings = weights_for(mix)
        folder = saved(tmp_path / mix, ltg_layout(weights), LTG)
        (folder / "modeling_elcbert.py").write_text(f"raise SystemExit\n{feed_forward}{line}")
        assert sum_logprobs(folder, [TEXT], "mlm")[0] == pytest.approx(
            by_hand(weights, settings, "mlm"), abs=1e-3
        )


@pytest.mark.long
def test_without_wrapper_code_the_layout_option_is_required(tmp_path):
    weights, _ = weights_for("")
    elsewhere = {"auto_map": {"AutoModel": "someone/model--modeling_ltgbert.LtgBertModel"}}
    for config, missing in (
        (LTG, True),
        (elsewhere, True),
        (LTG | {"per_head_positions": False}, False),
        ({"auto_map": None}, True),
    ):
        folder = saved(tmp_path / "no", ltg_layout(weights), config)
        (folder / "modeling_ltgbert.py").unlink()
        if missing:
            with pytest.raises(
                CheckpointError, match=r"--original-layout NAME with one of ltg-bert-babylm"
            ) as refused:
                open_checkpoint(str(folder))
            assert ("put modeling_ltgbert.py beside the weights" in refused.value.hint) == bool(
                config["auto_map"]
            )
        else:
            assert open_checkpoint(str(folder)).engine.model.config.per_head_positions is False


# How public wrappers cut the projected position table into heads, in statements of our own.
PER_HEAD = [
    "a, b = table.view(-1, self.num_heads, 2 * self.head_size).chunk(2, dim=2)",
    "table = table.view(\n n, n, self.num_heads, 2*self.head_size\n)\na, b = table.chunk(2, dim=3)",
    "t = t.reshape(n, num_heads, 2*head_dim)  # (-1, 2, num_heads, head_size)",
]
BY_HALF = [
    "a, b = table.view(-1, 2, self.num_heads, self.head_size).chunk(2, dim=1)",
    "a, key_pos = table.chunk(2, dim=-1)\nkey_pos = key_pos.view(n, n, self.num_heads, "
    "self.head_size)",
    "a, b = self.in_proj_qk(self.dropout(relative_embedding)).chunk(\n    2, dim=-1\n)",
]


@pytest.mark.long
@pytest.mark.parametrize(
    "text",
    [*PER_HEAD, *BY_HALF, "value, gate = x.chunk(2, dim=-1)", PER_HEAD[0] + "\n" + BY_HALF[0]],
)
def test_position_traits_come_from_code_or_the_option(tmp_path, text):
    folder = saved(tmp_path / "code", ltg_layout(weights_for("")[0]), LTG)
    (folder / "modeling_ltgbert.py").write_text(text)
    if (text in PER_HEAD) == (text in BY_HALF):
        with pytest.raises(CheckpointError, match="nothing here says which code"):
            open_checkpoint(str(folder))
    else:
        assert open_checkpoint(str(folder)).engine.model.config.per_head_positions is (
            text in PER_HEAD
        )


def test_ids_that_a_wrapper_never_predicts_have_no_probability(tmp_path):
    folder = saved(tmp_path / "blank", ltg_layout(weights_for("")[0]), LTG)
    code = BY_HALF[0] + "\nsubword_prediction[:, :, :6+1] = float('-inf')\n"
    (folder / "modeling_ltgbert.py").write_text(code)
    opened = open_checkpoint(str(folder))
    logits = opened.engine.model(torch.tensor([[1, 9, 4, 2]])).logits
    assert logits[..., :7].isneginf().all() and logits[..., 7:].isfinite().all()
    assert "ids 0 to 6 are never predicted" in opened.describe_for_doctor()["original_layout"]
    (folder / "modeling_ltgbert.py").write_text(BY_HALF[0] + "\nlogits[mask] = float('-inf')\n")
    with pytest.raises(CheckpointError, match="never predicts some ids, by an unknown rule"):
        open_checkpoint(str(folder))
    norbert = LTG | {"architectures": ["NorbertForMaskedLM"], "per_head_positions": False}
    (folder / "config.json").write_text(json.dumps(CONFIG | norbert))
    (folder / "modeling_ltgbert.py").unlink()
    with pytest.raises(CheckpointError, match="ltg-bert-first-wrapper"):
        open_checkpoint(str(folder))


@pytest.mark.long
def test_a_text_without_probability_is_a_tie_in_both_precisions(tmp_path):
    folder = saved(tmp_path / "blank", ltg_layout(weights_for("")[0]), LTG)
    (folder / "modeling_ltgbert.py").write_text(BY_HALF[0] + "\nlogits[:, :, :6] = -math.inf\n")
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("good,bad\nthe cat !,the dog !\nthe cat,the dog !\n")  # ! has id 5
    for precision in ("exact", "adaptive"):
        [run] = score(folder, pairs, precision=precision, out=tmp_path / precision, device="cpu")
        assert run.cells[0].summary.headline.value == pytest.approx((0.5 + 1) / 2)


def test_an_original_layout_must_fit_the_files(tmp_path):
    ltg, gpt = ltg_layout(weights_for("")[0]), gpt_layout(weights_for("gpt")[0])
    base, here = ltg_layout(weights_for("base")[0]), LTG
    for state, name, reason in (
        (ltg, "ltg-bert", "unknown layout 'ltg-bert'"),
        (ltg, "ltg-bert-bnc", "is not ltg-bert-bnc: its files say per_head_positions False"),
        (ltg, "elc-bert-zero", "is not elc-bert-zero: its files say layer_mix ''"),
        (base, "elc-bert-zero", "is not elc-bert-zero: its files say layer_mix 'base'"),
        (gpt, "ltg-bert-bnc", "is a GPT-BERT"),
    ):
        folder = saved(tmp_path / "other", state, here)
        with pytest.raises(UsageError, match=reason):
            open_checkpoint(str(folder), OpenOptions(original_layout=name))


def test_an_original_layout_is_refused_elsewhere(make_checkpoint):
    with pytest.raises(
        UsageError, match=r"does not apply to .*: it is not in a layout of LTG-BERT or ELC-BERT"
    ):
        open_checkpoint(str(make_checkpoint("masked")), OpenOptions(original_layout="ltg-bert-bnc"))


@pytest.mark.long
def test_the_layout_is_part_of_the_content_key(tmp_path):
    folder = saved(tmp_path / "two", ltg_layout(weights_for("")[0]), LTG)
    (folder / "modeling_ltgbert.py").unlink()
    keys = []
    for name in ("ltg-bert-babylm", "ltg-bert-bnc"):
        keys.append(
            select_content_key_metadata(
                open_checkpoint(str(folder), OpenOptions(original_layout=name))
            )
        )
    assert keys[0] != keys[1]


def test_indistinguishable_variants_need_the_option(tmp_path):
    folder = saved(tmp_path / "m", ltg_layout(weights_for("zero")[0]), LTG)
    with pytest.raises(
        CheckpointError, match=r"zero and normalized(.|\n)*--original-layout elc-bert-zero"
    ):
        open_checkpoint(str(folder))


@pytest.mark.long
def test_tied_weights_are_found_under_either_name(tmp_path):
    weights, settings = weights_for("gpt")
    expected = pytest.approx(by_hand(weights, settings, "mlm"), abs=1e-3)
    for dropped in ("embedding.word_embedding.weight", "classifier.nonlinearity.5.weight"):
        state = gpt_layout(weights)
        del state[dropped]
        assert sum_logprobs(saved(tmp_path / dropped, state, GPT), [TEXT], "mlm")[0] == expected
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


@pytest.mark.long
@pytest.mark.parametrize("name", CHANGED)
def test_unused_weights_and_empty_parameters_are_named(tmp_path, name):
    state = ltg_layout(weights_for("")[0])
    value, message = CHANGED[name]
    state = (
        {**state, name: value}
        if value is not GONE
        else {k: v for k, v in state.items() if k != name}
    )
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(saved(tmp_path / "bad", state, LTG)))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_attention_heads", None, "num_attention_heads"),
        ("num_attention_heads", 5, "num_attention_heads"),
    ],
)
def test_an_invalid_configuration_is_named(tmp_path, key, value, message):
    folder = saved(tmp_path / "bad", ltg_layout(weights_for("")[0]), LTG)
    config = CONFIG | LTG | {key: value}
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(folder))


WRONG_TYPES = [
    ("layer_norm_eps", "1e-5", "a number"), ("layer_norm_eps", True, "a number"),
    ("hidden_dropout_prob", [], "a number"),
    ("hidden_dropout_prob", float("nan"), "a number"),
    ("num_attention_heads", "4", "a whole number"),
    ("num_attention_heads", 3.0, "a whole number"), ("max_position_embeddings", {},
     "a whole number"),
    ("per_head_positions", "false", "true or false"), ("per_head_positions", 0, "true or false"),
    ("is_decoder", "no", "true or false"), ("layer_mix", 1, "a string"), ("pad_token_id", "3",
     "a whole number"),
    ("architectures", "LtgBertForMaskedLM", "a list of class names"), ("architectures", [1],
     "a list of class names"),
    ("auto_map", ["modeling_ltgbert"], "an object"),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(("key", "value", "wanted"), WRONG_TYPES, ids=str)
def test_a_value_of_the_wrong_type_is_named(tmp_path, key, value, wanted):
    for mix, layout, config in (("", ltg_layout, LTG), ("gpt", gpt_layout, GPT)):
        if mix == "gpt" and key in ("layer_mix", "per_head_positions"):
            continue  # not keys of a GPT-BERT
        folder = saved(tmp_path / f"bad{mix}", layout(weights_for(mix)[0]), config | {key: value})
        with pytest.raises(CheckpointError) as refused:
            open_checkpoint(str(folder))
        assert refused.value.message == f"{key} is {json.dumps(value)}, not {wanted}"
        assert refused.value.location == str(folder / "config.json")


def test_null_in_a_configuration_means_not_given(tmp_path):
    nulls = dict.fromkeys(
        ("classifier_dropout", "layer_norm_eps", "per_head_positions", "layer_mix")
    )
    folder = saved(tmp_path / "null", ltg_layout(weights_for("")[0]), LTG | nulls)
    assert (
        "not in config.json"
        in open_checkpoint(str(folder)).describe_for_doctor()["original_layout"]
    )


@pytest.mark.long
@pytest.mark.parametrize("mix", ["", "base", "zero", "normalized", "weighted_output"])
def test_a_layer_mix_that_contradicts_the_weights_is_refused(tmp_path, mix):
    """The zero and normalized variants have the same weights; all others differ."""
    state = ltg_layout(weights_for(mix)[0])
    fitting = ("zero", "normalized") if mix in ("zero", "normalized") else (mix,)
    for claimed in ("", "base", "zero", "normalized", "weighted_output"):
        folder = saved(tmp_path / "claimed", state, LTG | {"layer_mix": claimed})
        layout = {"": "ltg-bert-babylm"}.get(claimed, f"elc-bert-{claimed.replace('_', '-')}")
        if claimed in fitting:
            assert open_checkpoint(str(folder)).engine.model.config.layer_mix == claimed
            continue
        with pytest.raises(
            CheckpointError, match=rf"config\.json says layer_mix '{claimed}', and the weights say"
        ):
            open_checkpoint(str(folder))
        folder = saved(tmp_path / "option", state, LTG)
        with pytest.raises(UsageError, match=f"is not {layout}: its files say layer_mix"):
            open_checkpoint(str(folder), OpenOptions(original_layout=layout))


def test_a_config_that_contradicts_code_or_option_is_refused(tmp_path):
    state = ltg_layout(weights_for("")[0])
    folder = saved(
        tmp_path / "m", state, LTG | {"per_head_positions": True}
    )  # its code cuts by half
    with pytest.raises(
        CheckpointError, match=r"config\.json says per_head_positions True, and the code says False"
    ):
        open_checkpoint(str(folder))
    (folder / "modeling_ltgbert.py").unlink()
    assert open_checkpoint(str(folder)).engine.model.config.per_head_positions is True
    with pytest.raises(
        UsageError, match="is not ltg-bert-babylm: its files say per_head_positions True"
    ):
        open_checkpoint(str(folder), OpenOptions(original_layout="ltg-bert-babylm"))


def test_damaged_weights_are_refused(tmp_path):
    folder = saved(tmp_path / "bad", ltg_layout(weights_for("")[0]), LTG)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        open_checkpoint(str(folder))


AUTHORS_FILES = {
    "model.bin": lambda state: {"model": state, "optimizer": {"state": {}}, "global_step": 7,
                                "args": argparse.Namespace(seed=42, path="/x")},
    "run_10M.bin": lambda state: state,
    "run_state_dict.bin": lambda state: {"model": {f"module.{name}": value for name,
    value in state.items()},
                                         "ema_model": {name: value * 0 for name,
                                         value in state.items()}},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", AUTHORS_FILES)
def test_weights_open_as_their_authors_save_them(tmp_path, name):
    weights, settings = weights_for("")
    folder = saved(tmp_path / "authors", ltg_layout(weights), LTG, pickled=True)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    torch.save(AUTHORS_FILES[name](state), folder / name)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        open_checkpoint(str(folder))
    expected = pytest.approx(by_hand(weights, settings, "mlm"), abs=1e-3)
    assert sum_logprobs(folder, [TEXT], "mlm", allow_pickle=True)[0] == expected
    torch.save(state, folder / "run_ema.bin")
    with pytest.raises(
        CheckpointError, match=r"2 files of weights, .* which to score: .*run_ema\.bin"
    ):
        open_checkpoint(str(folder), OpenOptions(allow_pickle=True))


@pytest.mark.long
def test_pickled_weights_are_opened_only_on_request(tmp_path):
    weights, settings = weights_for("")
    folder = saved(tmp_path / "pickled", ltg_layout(weights), LTG, pickled=True)
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        open_checkpoint(str(folder))
    expected = pytest.approx(by_hand(weights, settings, "mlm"), abs=1e-3)
    assert sum_logprobs(folder, [TEXT], "mlm", allow_pickle=True)[0] == expected
    torch.save({"embedding.relative_embedding": print}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        open_checkpoint(str(folder), OpenOptions(allow_pickle=True))
