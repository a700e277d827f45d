"""Checkpoints: where they lie (folders), what the library makes of them (loading), what the scorer sees (opening)."""

from antlm_bench.checkpoints.folders import OpenOptions, expand, weight_hash
from antlm_bench.checkpoints.opening import CARD, Checkpoint, open_checkpoint, quicker, settings

__all__ = ["CARD", "Checkpoint", "OpenOptions", "expand", "open_checkpoint", "quicker", "settings", "weight_hash"]
