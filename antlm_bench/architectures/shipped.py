"""The records of the shipped architectures: Llama, GPT-2, LTG-BERT (with ELC-BERT) and GPT-BERT.

Sizes are counted from the shape; tests compare them with built models.
"""

from __future__ import annotations

from typing import Any

from antlm_bench.architectures.records import Architecture, ModelShape, ModelSize


def _own_classes(module: str, prefix: str) -> dict[str, str]:
    """The classes of a model file of ours: Auto class -> "module:class"."""
    suffixes = {
        "AutoConfig": "Config",
        "AutoModel": "Model",
        "AutoModelForMaskedLM": "ForMaskedLM",
        "AutoModelForCausalLM": "ForCausalLM",
        "AutoModelForSequenceClassification": "ForSequenceClassification",
    }
    return {
        auto: f"antlm_bench.architectures.{module}:{prefix}{suffix}"
        for auto, suffix in suffixes.items()
    }


# ---- Llama ---------------------------------------------------------------------------------------


def _llama_settings(shape: ModelShape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.positions,
        "rms_norm_eps": shape.norm_eps,
        "attention_dropout": shape.attention_dropout,
    }


def _llama_size(shape: ModelShape, vocab_size: int) -> ModelSize:
    """RMS norms, no biases."""
    d = shape.hidden
    keys = d // shape.heads * (shape.kv_heads or shape.heads)
    layer = 2 * d * d + 2 * d * keys + 3 * d * shape.ffn
    embeddings = vocab_size * d * (1 if shape.tied else 2)
    return ModelSize(
        parameters=embeddings + shape.layers * (layer + 2 * d) + d,
        weights_per_token=shape.layers * layer,
        weights_per_target=vocab_size * d,
    )


LLAMA = Architecture(
    name="llama",
    title="Llama (Touvron et al. 2023, arXiv 2302.13971)",
    model_type="llama",
    classes={
        "AutoConfig": "transformers:LlamaConfig",
        "AutoModelForCausalLM": "transformers:LlamaForCausalLM",
        "AutoModelForMaskedLM": "antlm_bench.architectures.llama_masked:LlamaForMaskedLM",
    },
    config_settings=_llama_settings,
    compute_size=_llama_size,
    optional_keys=frozenset({"kv_heads"}),
)

# ---- GPT-2 ---------------------------------------------------------------------------------------


def _gpt2_settings(shape: ModelShape) -> dict[str, Any]:
    return {
        "n_embd": shape.hidden,
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_inner": shape.ffn,
        "n_positions": shape.positions,
        "layer_norm_epsilon": shape.norm_eps,
        "resid_pdrop": shape.dropout,
        "embd_pdrop": shape.dropout,
        "attn_pdrop": shape.attention_dropout,
    }


def _gpt2_size(shape: ModelShape, vocab_size: int) -> ModelSize:
    """Biases everywhere but in the output embedding, norms with weight and bias, learned
    positions.
    """
    d = shape.hidden
    layer = 4 * d * d + 2 * d * shape.ffn
    biases = 3 * d + d + shape.ffn + d + 4 * d
    embeddings = (vocab_size * (1 if shape.tied else 2) + shape.positions) * d
    return ModelSize(
        parameters=embeddings + shape.layers * (layer + biases) + 2 * d,
        weights_per_token=shape.layers * layer,
        weights_per_target=vocab_size * d,
    )


GPT2 = Architecture(
    name="gpt2",
    title="GPT-2 (Radford et al. 2019)",
    model_type="gpt2",
    classes={
        "AutoConfig": "transformers:GPT2Config",
        "AutoModelForCausalLM": "transformers:GPT2LMHeadModel",
    },
    config_settings=_gpt2_settings,
    compute_size=_gpt2_size,
    learned_positions=True,
)

# ---- LTG-BERT and GPT-BERT -----------------------------------------------------------------------


def _encoder_settings(shape: ModelShape) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn,
        "position_bucket_size": shape.buckets,
        "max_position_embeddings": shape.positions,
        "hidden_dropout_prob": shape.dropout,
        "attention_probs_dropout_prob": shape.attention_dropout,
        "layer_norm_eps": shape.norm_eps,
    }


def _encoder_size(
    shape: ModelShape, vocab_size: int, weights_per_layer: int, other_parameters: int
) -> ModelSize:
    """Layers, the table of relative positions with its norm, and a head of a linear layer and an
    output bias.
    """
    d = shape.hidden
    outside = vocab_size * d * (1 if shape.tied else 2) + (2 * shape.buckets - 1) * d + 2 * d
    head = d * d + d + vocab_size
    return ModelSize(
        parameters=shape.layers * weights_per_layer + other_parameters + outside + head,
        weights_per_token=shape.layers * weights_per_layer,
        weights_per_target=d * d + vocab_size * d,
    )


def _ltg_bert_settings(shape: ModelShape) -> dict[str, Any]:
    return _encoder_settings(shape) | {"layer_mix": shape.layer_mix}


def _ltg_bert_size(shape: ModelShape, vocab_size: int) -> ModelSize:
    """Attention's projections have biases and are followed by a norm with weights; feed-forward
    parts have neither.
    """
    d = shape.hidden
    layer = 4 * d * d + 3 * d * shape.ffn
    mixes = sum(range(1, shape.layers + 1)) if shape.layer_mix else 0
    mixes += shape.layers + 1 if shape.layer_mix == "weighted_output" else 0
    return _encoder_size(shape, vocab_size, layer, shape.layers * (4 * d + 2 * d) + mixes)


LTG_BERT = Architecture(
    name="ltg-bert",
    title="LTG-BERT (Samuel et al. 2023, arXiv 2303.09859); with layer_mix ELC-BERT (2311.02265)",
    model_type="antlm_ltg_bert",
    classes=_own_classes("ltg_bert", "LtgBert"),
    config_settings=_ltg_bert_settings,
    compute_size=_ltg_bert_size,
    optional_keys=frozenset({"layer_mix"}),
    relative_positions=True,
    original_layout="antlm_bench.checkpoints.ltg_layouts:LtgBertOriginal",
)


def _gpt_bert_settings(shape: ModelShape) -> dict[str, Any]:
    return _encoder_settings(shape) | {
        "attention_gate": shape.attention_gate,
        "layer_weights": shape.layer_weights,
    }


def _gpt_bert_size(shape: ModelShape, vocab_size: int) -> ModelSize:
    """LTG-BERT with a gate beside the values, norms without weights, and a sum over all states per
    sub-layer.
    """
    d = shape.hidden
    attention = (5 if shape.attention_gate else 4) * d
    sums = sum(range(2, 2 * shape.layers + 2)) if shape.layer_weights else 0
    layer = attention * d + 3 * d * shape.ffn
    return _encoder_size(shape, vocab_size, layer, shape.layers * attention + sums)


GPT_BERT = Architecture(
    name="gpt-bert",
    title="GPT-BERT (Charpentier & Samuel 2024, arXiv 2410.24159)",
    model_type="antlm_gpt_bert",
    classes=_own_classes("gpt_bert", "GptBert"),
    config_settings=_gpt_bert_settings,
    compute_size=_gpt_bert_size,
    relative_positions=True,
    original_layout="antlm_bench.checkpoints.ltg_layouts:GptBertOriginal",
)
