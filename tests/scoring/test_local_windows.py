"""Texts longer than a model's local attention window: scores are those of its own forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import WORDS, build_model, train_tokenizer

from antlm_bench.scorer import Scorer

WINDOW = 12
TEXTS = [" ".join(WORDS[:30]), " ".join(WORDS[:28]), "the dog"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "MistralForCausalLM": ("causal", {"sliding_window": WINDOW, "num_key_value_heads": 2}),
    "Gemma2ForCausalLM": ("causal", {"sliding_window": WINDOW, "head_dim": 8}),
    "Qwen2ForCausalLM": (
        "causal",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1,
         "num_key_value_heads": 2},
    ),
    "GPTNeoForCausalLM": (
        "causal",
        {"window_size": WINDOW, "attention_types": [[["global", "local"], 1]], "num_layers": 2},
    ),
    "ModernBertForMaskedLM": (
        "masked", {"local_attention": WINDOW, "global_attn_every_n_layers": 2},
    ),
}  # fmt: skip


def plain_logprobs(model: Any, ids: list[int], **masks: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), **masks).logits[0].double()
    return logits.log_softmax(-1).numpy()


def loop_causal(model: Any, ids: list[int]) -> float:
    logprobs = plain_logprobs(model, ids)
    return sum(logprobs[i - 1, ids[i]] for i in range(1, len(ids)))


def loop_masked(model: Any, ids: list[int], positions: range, mask_id: int, full: bool) -> float:
    """Full: with a 4-D mask that opens the attention of a causal model to both sides."""
    mask = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool)
    total = 0.0
    for i in positions:
        masked = [*ids[:i], mask_id, *ids[i + 1 :]]
        total += plain_logprobs(model, masked, **({"attention_mask": mask} if full else {}))[
            i, ids[i]
        ]
    return total


@pytest.mark.long
@pytest.mark.parametrize("class_name", MODELS)
def test_long_texts_are_scored_as_by_the_plain_forward(class_name: str) -> None:
    kind, settings = MODELS[class_name]
    model = build_model(kind, 3, class_name, **settings)
    tokenizer = train_tokenizer(kind, adds=True)
    scorer = Scorer(model, tokenizer)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert max(map(len, rows)) > 2 * WINDOW
    if "causal" in scorer.methods:
        expected = [loop_causal(model, ids) for ids in rows]
        np.testing.assert_allclose(scorer.logprobs(TEXTS, method="causal"), expected, atol=1e-3)
    if "mlm" in scorer.methods:
        last = 1 if kind == "masked" else 0
        expected = [
            loop_masked(
                model, ids, range(1, len(ids) - last), tokenizer.mask_token_id, kind == "causal"
            )
            for ids in rows
        ]
        np.testing.assert_allclose(scorer.logprobs(TEXTS, method="mlm"), expected, atol=1e-3)
