"""A checkpoint opened to be finetuned: its base model in fp32 with the library's own layers.

Layers that are packed for scoring (checkpoints.loader) cannot be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from antlm_bench.checkpoints import forward_trials, pretrained
from antlm_bench.checkpoints.loader import LoadedCheckpoint, describe_checkpoint, load_checkpoint
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.scoring.cpu_kernels import fuse_layers
from antlm_bench.scoring.text import Specials
from antlm_bench.types import Attention


@dataclass(frozen=True, slots=True)
class Backbone:
    """A checkpoint without its LM head."""

    name: str
    kind: str
    attentions: frozenset[str]
    """The attentions that it can be trained with."""
    native_attention: Attention
    """The one that it has without a mask."""
    model: Any
    """The base model; training works on a copy of it."""
    tokenizer: Any
    specials: Mapping[str, Specials]
    """The specials of a text under each attention, as in scoring."""
    max_length: int | None
    trained_methods: tuple[str, ...]
    metadata: dict[str, Any]
    """The facts that a scored run's manifest keeps, too."""

    @property
    def vocab_size(self) -> int:
        """The number of rows of the embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def has_token_type_ids(self) -> bool:
        """Whether it distinguishes the two texts of a pair (BERT's token types)."""
        types = getattr(self.model.config, "type_vocab_size", None) or 0
        return types > 1 and "token_type_ids" in self.tokenizer.model_input_names


def open_backbone(ref: str, options: OpenOptions | None = None) -> Backbone:
    """Open a local folder or hub id to be finetuned. Raises as `open_checkpoint`."""
    options = options or OpenOptions()
    with pretrained.silence_transformers():
        loaded = load_checkpoint(ref, options)
        metadata = describe_checkpoint(ref, loaded, options)
        # The trials left another implementation.
        loaded.model.set_attn_implementation(loaded.forward_config.native_implementation)
        fuse_layers(loaded.model)
        return Backbone(
            name=loaded.name,
            kind=loaded.kind,
            attentions=frozenset(_trainable_attentions(loaded)),
            native_attention=loaded.forward_config.native_attention,
            model=loaded.model.base_model,
            tokenizer=loaded.tokenizer,
            specials=loaded.specials,
            max_length=loaded.max_length,
            trained_methods=loaded.trained_methods,
            metadata=metadata,
        )


def _trainable_attentions(loaded: LoadedCheckpoint) -> set[str]:
    """Return the attentions that a 4-D mask can give a model. Scoring may also pack rows, training
    has only masks.
    """
    native = loaded.forward_config.native_attention
    others = set(loaded.specials) - {native}
    return {native} | (
        others if others and forward_trials.obeys_attention_masks(loaded.model, native) else set()
    )
