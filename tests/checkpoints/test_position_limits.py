"""The maximum length of a model's rows is found from its position table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import build_model

from antlm_bench.checkpoints.max_length import position_limit, resolve_max_length

PAD = 3  # RoBERTa's positions begin after it
FAMILIES = {
    "RobertaForMaskedLM": 36,
    "RobertaForCausalLM": 36,
    "RobertaPreLayerNormForMaskedLM": 36,
    "XLMRobertaForMaskedLM": 36,
    "XLMRobertaXLForMaskedLM": 36,
    "CamembertForMaskedLM": 36,
    "Data2VecTextForMaskedLM": 36,
    "LongformerForMaskedLM": 36,
    "IBertForMaskedLM": 36,
    "EsmForMaskedLM": 36,
    "MPNetForMaskedLM": 38,  # its padding id is 1, whatever the configuration says
    "BertForMaskedLM": 40,
    "GPT2LMHeadModel": 40,
    "OPTForCausalLM": 40,
    "NystromformerForMaskedLM": 40,
    "DebertaForMaskedLM": 40,
    "MptForCausalLM": 40,
}
OWN = {
    "LongformerForMaskedLM": {"attention_window": [4, 4]},
    "EsmForMaskedLM": {"position_embedding_type": "absolute", "mask_token_id": 4},
    "MptForCausalLM": {"max_seq_len": 40, "n_layers": 2, "n_heads": 4, "d_model": 32},
    "OPTForCausalLM": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


def accepts(model, length: int) -> bool:
    """Whether the model itself runs on a row of so many tokens."""
    try:
        with torch.no_grad():
            return model(input_ids=torch.full((1, length), 9)).logits.shape[1] == length
    except (IndexError, RuntimeError):
        return False


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_the_longest_row_is_the_longest_that_the_model_accepts(name: str) -> None:
    model = build_model(
        "masked",
        0,
        name,
        **{"max_position_embeddings": 40, "pad_token_id": PAD} | OWN.get(name, {}),
    )
    limit = position_limit(model)
    assert limit == FAMILIES[name]
    assert accepts(model, limit) and not accepts(model, limit + 1)


def test_without_a_table_the_configured_length_is_the_limit() -> None:
    llama = build_model("causal", 0, max_position_embeddings=40)
    assert position_limit(llama) == 40 and accepts(llama, 41)
    bloom = build_model(
        "causal", 0, "BloomForCausalLM", n_layer=2, n_head=4, max_position_embeddings=None
    )
    assert position_limit(bloom) is None


@pytest.mark.parametrize(
    ("declared", "limit"), [(10**30, 37), (512, 37), (514, 37), (20, 20), (20.0, 20), (None, 37)]
)
def test_the_shorter_of_tokenizer_and_model_is_the_limit(declared: object, limit: int) -> None:
    model = build_model(
        "masked", 0, "RobertaForMaskedLM", max_position_embeddings=40, pad_token_id=2
    )
    assert resolve_max_length(model, SimpleNamespace(model_max_length=declared), None) == limit
