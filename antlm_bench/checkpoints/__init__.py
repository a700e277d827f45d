"""Checkpoints: resolve references, load with transformers, open for scoring or finetuning.

Names are imported when they are first used. References are resolved, and the files of a checkpoint
are found and checked, before torch is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antlm_bench.checkpoints.checkpoint import (
        Backbone,
        Checkpoint,
        build_adaptive_scorer,
        check_model,
        evaluation_mode,
        open_model,
        with_bf16_body,
        with_int8_layers,
    )
    from antlm_bench.checkpoints.metadata import loading_notes, select_content_key_metadata
    from antlm_bench.checkpoints.opening import open_backbone, open_checkpoint
    from antlm_bench.checkpoints.resolve import TRAINING_KEY, OpenOptions, expand_refs

__all__ = [
    "TRAINING_KEY",
    "Backbone",
    "Checkpoint",
    "OpenOptions",
    "build_adaptive_scorer",
    "check_model",
    "evaluation_mode",
    "expand_refs",
    "loading_notes",
    "open_backbone",
    "open_checkpoint",
    "open_model",
    "select_content_key_metadata",
    "with_bf16_body",
    "with_int8_layers",
]

_MODULES = {
    "TRAINING_KEY": "resolve",
    "OpenOptions": "resolve",
    "expand_refs": "resolve",
    "loading_notes": "metadata",
    "open_backbone": "opening",
    "open_checkpoint": "opening",
    "select_content_key_metadata": "metadata",
}
"""Name -> its module. All others are in the module `checkpoint`, which imports torch."""


def __getattr__(name: str) -> Any:
    """Import a name of this package when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'checkpoint')}"), name)
