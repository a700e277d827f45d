"""Small LTG-BERT, ELC-BERT and GPT-BERT models with the weights of the reference models."""

from __future__ import annotations

import numpy as np
import reference_models as reference
import torch

from antlm_bench.architectures import gpt_bert, ltg_bert

SIZES = {
    "vocab_size": 20,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 16,
    "position_bucket_size": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = ("", "base", "zero", "normalized", "weighted_output", "gpt")


def reference_settings(mix: str, **more):
    eps = 1e-5 if mix == "gpt" else 1e-7
    return {"heads": 3, "eps": eps, "buckets": 8, "furthest": 32, "mix": mix, **more}


def build_ltg_model(kind: str, suffix: str = "ForMaskedLM", **config):
    """Build a random model in evaluation mode; kind: layer_mix of LTG-BERT, or "gpt"."""
    torch.manual_seed(0)
    module, prefix = (gpt_bert, "GptBert") if kind == "gpt" else (ltg_bert, "LtgBert")
    extra = {} if kind == "gpt" else {"layer_mix": kind}
    return getattr(module, prefix + suffix)(
        getattr(module, prefix + "Config")(**SIZES | extra | config)
    ).eval()


def convert_weights(weights):
    """Convert the weights of a reference model to the names of this package."""
    state = {
        "model.embedding.weight": weights["embedding"],
        "model.positions.table.weight": weights["table"],
        "model.positions.norm.weight": weights["table_norm"][0],
        "model.positions.norm.bias": weights["table_norm"][1],
        "head.transform.1.weight": weights["dense_w"],
        "head.transform.1.bias": weights["dense_b"],
        "head.decoder.weight": weights["embedding"],
        "head.decoder.bias": weights["bias"],
    }
    if "alpha" in weights:
        state["model.mix.alpha"] = weights["alpha"]
    for n, layer in enumerate(weights["layers"]):
        to, value = f"model.layers.{n}.", "value" if "norm_w" in layer else "value_gate"
        state |= {
            to + "attention.query_key.weight": layer["qk_w"],
            to + "attention.query_key.bias": layer["qk_b"],
            to + f"attention.{value}.weight": np.concatenate(
                [layer["v_w"], layer.get("g_w", layer["v_w"][:0])]
            ),
            to + f"attention.{value}.bias": np.concatenate(
                [layer["v_b"], layer.get("g_b", layer["v_b"][:0])]
            ),
            to + "attention.output.weight": layer["o_w"],
            to + "attention.output.bias": layer["o_b"],
            to + "feed_forward.wide.weight": layer["wide"],
            to + "feed_forward.narrow.weight": layer["narrow"],
        }
        if "norm_w" in layer:
            state |= {
                to + "attention.norm_out.weight": layer["norm_w"],
                to + "attention.norm_out.bias": layer["norm_b"],
            }
        if "alpha" in layer:
            state[to + "mix.alpha"] = layer["alpha"]
        for index, alpha in enumerate(layer.get("alphas", ())):
            state[to + f"mixes.{index}.alpha"] = alpha
    return {
        name: torch.tensor(np.asarray(value), dtype=torch.float32) for name, value in state.items()
    }


def build_reference_model(kind: str, suffix: str = "ForMaskedLM", seed: int = 0, **config):
    """Return (model, weights): a model of this package with random reference weights."""
    weights = reference.random_weights(
        np.random.default_rng(seed),
        kind,
        gate=config.get("attention_gate", True),
        learned=config.get("layer_weights", True),
    )
    model = build_ltg_model(kind, suffix, **config)
    model.load_state_dict(convert_weights(weights))
    return model, weights
