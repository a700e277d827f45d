"""Checkpoints: where they lie (folders), what the library makes of them (loading), what the scorer sees (opening), what
finetuning starts from (bodies)."""

from antlm_bench.checkpoints.bodies import Body, open_body
from antlm_bench.checkpoints.folders import CARD, OpenOptions, expand, weight_hash
from antlm_bench.checkpoints.opening import Checkpoint, open_checkpoint, opening_notes, quicker, settings

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
