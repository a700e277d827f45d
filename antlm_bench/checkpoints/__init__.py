"""Checkpoints: resolve references, load with transformers, open for scoring or finetuning."""

from antlm_bench.checkpoints.checkpoint import (
    Backbone,
    Checkpoint,
    check_model,
    evaluation_mode,
    open_backbone,
    open_checkpoint,
    open_model,
    with_bf16_body,
)
from antlm_bench.checkpoints.metadata import key_settings, loading_notes
from antlm_bench.checkpoints.resolve import TRAINING_KEY, OpenOptions, expand_refs

__all__ = [
    "TRAINING_KEY",
    "Backbone",
    "Checkpoint",
    "OpenOptions",
    "check_model",
    "evaluation_mode",
    "expand_refs",
    "key_settings",
    "loading_notes",
    "open_backbone",
    "open_checkpoint",
    "open_model",
    "with_bf16_body",
]
