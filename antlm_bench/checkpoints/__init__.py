"""Checkpoints: where they lie (folders), what the library makes of them (loading), what the scorer sees (opening), what
finetuning starts from (bodies)."""

from antlm_bench.checkpoints.backbone import Body, open_body
from antlm_bench.checkpoints.loader import Checkpoint, open_checkpoint, opening_notes, quicker, settings
from antlm_bench.checkpoints.resolve import CARD, OpenOptions, expand, weight_hash

__all__ = [
    "CARD",
    "Body",
    "Checkpoint",
    "OpenOptions",
    "expand",
    "open_body",
    "open_checkpoint",
    "opening_notes",
    "quicker",
    "settings",
    "weight_hash",
]
