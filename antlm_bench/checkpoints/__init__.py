"""Checkpoints: resolve references, load with transformers, open for scoring (loader) or finetuning
(backbone).
"""

from antlm_bench.checkpoints.backbone import Backbone, open_backbone
from antlm_bench.checkpoints.in_memory import evaluation_mode, open_model
from antlm_bench.checkpoints.loader import (
    Checkpoint,
    key_settings,
    loading_notes,
    open_checkpoint,
    with_bf16_body,
)
from antlm_bench.checkpoints.resolve import CARD_KEY, OpenOptions, expand_refs, hash_weights

__all__ = [
    "CARD_KEY",
    "Backbone",
    "Checkpoint",
    "OpenOptions",
    "evaluation_mode",
    "expand_refs",
    "hash_weights",
    "key_settings",
    "loading_notes",
    "open_backbone",
    "open_checkpoint",
    "open_model",
    "with_bf16_body",
]
