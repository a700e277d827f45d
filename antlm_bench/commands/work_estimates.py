"""Estimate how many tokens a model will read for some items, and count those that it has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from antlm_bench.progress import Workload
from antlm_bench.scoring.adaptive import AdaptiveScorer
from antlm_bench.scoring.methods import Method
from antlm_bench.types import Item

CHARACTERS_PER_TOKEN = 4.5
"""Assumed for texts that are not tokenized yet."""
SAMPLE_SIZE = 1000
"""Number of items from whose lengths the cost of a suite is estimated."""
MASKED_ATTENTIONS = ("full", "denoising")
"""Attentions with which a method that masks tokens reads a row per token."""


def estimate_work(items: Sequence[Item], methods: Sequence[Method]) -> Workload:
    """Return the work of scoring items. Units: items times methods. Cost: about the tokens read."""
    sample = items[:: max(1, len(items) // SAMPLE_SIZE)]
    texts = [option.text for item in sample for option in item.options]
    cost = sum(estimate_tokens(texts, method) for method in methods) / max(len(sample), 1)
    return Workload(len(items) * len(methods), len(items) * cost)


def estimate_tokens(texts: Sequence[str], method: Method) -> float:
    """Return about how many tokens a model reads to score texts.

    Each part of the method reads one row per text, or one per token if it masks tokens.
    """
    return sum(
        (len(text) / CHARACTERS_PER_TOKEN)
        ** (2 if method.needs_mask and attention in MASKED_ATTENTIONS else 1)
        for attention, _ in method.parts
        for text in texts
    )


def build_token_counter(scorer: Any) -> Callable[[], int]:
    """Return a function () -> number of tokens that the engines of a scorer have read so far.

    scorer: a Checkpoint, a MiniconsCheckpoint or an AdaptiveScorer. Equal prefixes are read once.
    Other libraries do not count their tokens.
    """
    is_adaptive = isinstance(scorer, AdaptiveScorer)
    models = [scorer.fast_model, scorer.fp32_model] if is_adaptive else [scorer]
    engines = [model.engine for model in models if hasattr(model, "engine")]
    return lambda: sum(getattr(engine, "nodes_computed", 0) for engine in engines)
