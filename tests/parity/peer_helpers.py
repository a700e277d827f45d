"""Summed log-probabilities by our scorer, and models as the peers load them."""

from __future__ import annotations

from prediction_rows import predict_rows

from antlm_bench.checkpoints import OpenOptions, open_checkpoint
from antlm_bench.scoring.methods import resolve_method
from antlm_bench.types import Item, Option


def sum_logprobs(folder, texts, name, spans=None, **options) -> list[float]:
    """Return the summed log-probability of each text under one method."""
    model = open_checkpoint(str(folder), OpenOptions(device="cpu", **options))
    items = [
        Item(str(i), (Option(t, None if spans is None else spans[i]),), 0)
        for i, t in enumerate(texts)
    ]
    return [p.scores[0] for p in predict_rows(model, items, [resolve_method(name, model)])[0]]


def load_transformers(folder):
    """Load (model, tokenizer) with transformers, as the peers expect them."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)
