"""Uses of a checkpoint's metadata: the part that enters content keys, and notes about loading."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from antlm_bench.checkpoints.tensor_check import MAX_NAMES_SHOWN
from antlm_bench.scoring.text import EosRule, resolve_eos_rule

KEY_METADATA = (
    "weights",
    "config",
    "tokenizer",
    "architecture",
    "dtype",
    "max_length",
    "bos",
    "specials",
    # Only some checkpoints have these.
    "code",
    "scored_specials",
    "base_weights",
    "adapter_weights",
    "adapter_config",
    "allowed",
    "original_layout",
)
"""Metadata that a score depends on, in the order of the content key."""


class HasMetadata(Protocol):
    """A checkpoint opened for scoring, or for finetuning."""

    @property
    def metadata(self) -> dict[str, Any]: ...


def add_scored_eos(metadata: Mapping[str, Any], tokenizer: Any, rule: EosRule) -> dict[str, Any]:
    """Return metadata that also records which special tokens are scored. They change scores, so
    they are part of a cell's content key.
    """
    after, _ = resolve_eos_rule(tokenizer, rule)
    spelled = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(after))))
    texts = "texts with a context" if rule == "context" else "texts"
    return {**metadata, "scored_specials": f"{spelled} after {texts}"}


def key_settings(checkpoint: HasMetadata) -> dict[str, Any]:
    """Return the metadata that a score depends on, for a cell's content key."""
    return {
        key: json.loads(json.dumps(checkpoint.metadata[key]))
        for key in KEY_METADATA
        if key in checkpoint.metadata
    }


def loading_notes(checkpoint: HasMetadata) -> list[str]:
    """Return notes about loading: which weights were read, which tensors did not match."""
    notes = list(checkpoint.metadata.get("notes", []))
    templates = {
        "unused": "the model does not use {} of the files",
        "missing": "{} were in no file and are random",
    }
    for kind, names in checkpoint.metadata.get("allowed", {}).items():
        tensors = (
            f"{names['count']} tensors "
            f"({', '.join(names['first'])}{', ...' * (names['count'] > MAX_NAMES_SHOWN)})"
        )
        notes.append(templates[kind].format(tensors))
    return notes
