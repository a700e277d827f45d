"""Names of weights in the original LTG-BERT, ELC-BERT and GPT-BERT checkpoints, and ours."""

from __future__ import annotations

import re

PARTS = {
    "in_proj_qk": "attention.query_key",
    "in_proj_vg": "attention.value_gate",
    "in_proj_v": "attention.value",
    "out_proj": "attention.output",
    "post_layer_norm": "attention.norm_out",
    "1": "feed_forward.wide",
    "4": "feed_forward.narrow",
}
OUTSIDE = {
    "embedding.word_embedding.weight": "model.embedding.weight",
    "embedding.relative_embedding": "model.positions.table.weight",
    "embedding.relative_layer_norm.weight": "model.positions.norm.weight",
    "embedding.relative_layer_norm.bias": "model.positions.norm.bias",
    "classifier.nonlinearity.1.weight": "head.transform.1.weight",
    "classifier.nonlinearity.1.bias": "head.transform.1.bias",
    "classifier.nonlinearity.5.bias": "head.decoder.bias",
    "transformer.prev_layer_weights": "model.mix.alpha",
}


def convert_weight_name(original: str, gpt: bool = False) -> str:
    """gpt: of GPT-BERT, whose ungated values are held by the same module as gated ones."""
    if original in OUTSIDE:
        return OUTSIDE[original]
    if match := re.fullmatch(r"transformer\.dwa_modules\.alphas\.(\d+)", original):
        return f"model.layers.{int(match[1]) // 2}.mixes.{int(match[1]) % 2}.alpha"
    if match := re.fullmatch(r"transformer\.layers\.(\d+)\.prev_layer_weights", original):
        return f"model.layers.{match[1]}.mix.alpha"
    match = re.fullmatch(
        r"transformer\.\w*layers\.(\d+)\.(?:attention\.|mlp\.mlp\.|mlp\.)?(\w+)\.(\w+)", original
    )
    assert match, original
    part = "attention.value_gate" if gpt and match[2] == "in_proj_v" else PARTS[match[2]]
    return f"model.layers.{match[1]}.{part}.{match[3]}"
