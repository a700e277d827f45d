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
from antlm_bench.checkpoints.metadata import loading_notes, select_content_key_metadata
from antlm_bench.checkpoints.resolve import TRAINING_KEY, OpenOptions, expand_refs

__all__ = [
    "TRAINING_KEY",
    "Backbone",
    "Checkpoint",
    "OpenOptions",
    "check_model",
    "evaluation_mode",
    "expand_refs",
    "loading_notes",
    "open_backbone",
    "open_checkpoint",
    "open_model",
    "select_content_key_metadata",
    "with_bf16_body",
]
