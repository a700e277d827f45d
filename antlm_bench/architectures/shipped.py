"""The records of the shipped architectures: Llama, GPT-2, LTG-BERT (with ELC-BERT) and GPT-BERT.

Sizes are counted from the shape; tests compare them with built models.
"""

from __future__ import annotations

from typing import Any

from antlm_bench.architectures.records import Architecture, ModelShape, ModelSize


def _model_file_classes(module: str, prefix: str) -> dict[str, str]:
    """Return Auto class -> "module:class" for one of our model files."""
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
    """Count the weights of a Llama: linear layers have no bias, an RMS norm has one weight per
    dimension.
    """
    d = shape.hidden
    kv_width = d // shape.heads * (shape.kv_heads or shape.heads)
    matrix_weights = 2 * d * d + 2 * d * kv_width + 3 * d * shape.ffn
    embeddings = vocab_size * d * (1 if shape.tied else 2)
    return ModelSize(
        parameters=embeddings + shape.layers * (matrix_weights + 2 * d) + d,
        weights_per_token=shape.layers * matrix_weights,
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
    """Count the weights of a GPT-2: positions are learned, every linear layer but the LM head has a
    bias, and every norm has weight and bias.
    """
    d = shape.hidden
    matrix_weights = 4 * d * d + 2 * d * shape.ffn
    # biases of qkv, attention output, ffn up and ffn down; weight and bias of two norms
    other_parameters = 3 * d + d + shape.ffn + d + 4 * d
    embeddings = (vocab_size * (1 if shape.tied else 2) + shape.positions) * d
    return ModelSize(
        parameters=embeddings + shape.layers * (matrix_weights + other_parameters) + 2 * d,
        weights_per_token=shape.layers * matrix_weights,
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
    """Count the weights of an encoder: layers, token embeddings, relative-position embeddings with
    their norm, and an LM head (one linear layer, the output embedding and its bias).

    weights_per_layer: weights of one layer's matrices. other_parameters: biases, norm weights and
    mixing weights of all layers together.
    """
    d = shape.hidden
    embeddings = vocab_size * d * (1 if shape.tied else 2) + (2 * shape.buckets - 1) * d + 2 * d
    head = d * d + d + vocab_size
    return ModelSize(
        parameters=shape.layers * weights_per_layer + other_parameters + embeddings + head,
        weights_per_token=shape.layers * weights_per_layer,
        weights_per_target=d * d + vocab_size * d,
    )


def _ltg_bert_settings(shape: ModelShape) -> dict[str, Any]:
    return _encoder_settings(shape) | {"layer_mix": shape.layer_mix}


def _ltg_bert_size(shape: ModelShape, vocab_size: int) -> ModelSize:
    """Count the weights of an LTG-BERT. In each layer, the four attention projections have biases
    and one norm has weight and bias; the feed-forward block has neither biases nor norm weights.
    """
    d = shape.hidden
    matrix_weights = 4 * d * d + 3 * d * shape.ffn
    mixing_weights = 0
    if shape.layer_mix:  # layer n mixes n states
        mixing_weights += sum(range(1, shape.layers + 1))
    if shape.layer_mix == "weighted_output":  # the output mixes the embeddings and all layers
        mixing_weights += shape.layers + 1
    other_parameters = shape.layers * (4 * d + 2 * d) + mixing_weights
    return _encoder_size(shape, vocab_size, matrix_weights, other_parameters)


LTG_BERT = Architecture(
    name="ltg-bert",
    title="LTG-BERT (Samuel et al. 2023, arXiv 2303.09859); with layer_mix ELC-BERT (2311.02265)",
    model_type="antlm_ltg_bert",
    classes=_model_file_classes("ltg_bert", "LtgBert"),
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
    """Count the weights of a GPT-BERT. It differs from an LTG-BERT by an attention gate (a fifth
    projection), by norms without weights, and by mixing weights after every sub-layer.
    """
    d = shape.hidden
    num_biases = (5 if shape.attention_gate else 4) * d  # of the attention projections
    matrix_weights = num_biases * d + 3 * d * shape.ffn
    mixing_weights = 0
    if shape.layer_weights:  # sub-layer n mixes the embeddings and n sub-layers
        mixing_weights = sum(range(2, 2 * shape.layers + 2))
    other_parameters = shape.layers * num_biases + mixing_weights
    return _encoder_size(shape, vocab_size, matrix_weights, other_parameters)


GPT_BERT = Architecture(
    name="gpt-bert",
    title="GPT-BERT (Charpentier & Samuel 2024, arXiv 2410.24159)",
    model_type="antlm_gpt_bert",
    classes=_model_file_classes("gpt_bert", "GptBert"),
    config_settings=_gpt_bert_settings,
    compute_size=_gpt_bert_size,
    relative_positions=True,
    original_layout="antlm_bench.checkpoints.ltg_layouts:GptBertOriginal",
)
