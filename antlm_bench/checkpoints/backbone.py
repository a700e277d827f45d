"""A checkpoint opened to be finetuned: its body in fp32 with the library's own layers, and what
scoring knows.

Beside the other file that opens: what is packed and laid out for reading cannot be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from antlm_bench.checkpoints import pretrained
from antlm_bench.checkpoints.loader import LoadedCheckpoint, describe_checkpoint, load_checkpoint
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.scoring.cpu_kernels import fuse_layers
from antlm_bench.scoring.text import Specials
from antlm_bench.types import Attention


@dataclass(frozen=True, slots=True)
class Backbone:
    """A checkpoint without its LM head. Whoever trains copies `model` first: it stays as it was
    opened.

    attends: the attentions it can be trained with; natively: the one it has when nothing is said.
    around: specials of a text under each, as in scoring. describe: the same facts that a scored
    run's manifest keeps.
    """

    name: str
    kind: str
    attends: frozenset[str]
    native_attention: Attention
    model: Any
    tokenizer: Any
    specials: Mapping[str, Specials]
    max_length: int | None
    trained_methods: tuple[str, ...]
    metadata: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def has_token_type_ids(self) -> bool:
        """Whether it has been told the first text of a pair from the second (BERT's token types)."""
        types = getattr(self.model.config, "type_vocab_size", None) or 0
        return types > 1 and "token_type_ids" in self.tokenizer.model_input_names


def open_backbone(ref: str, options: OpenOptions | None = None) -> Backbone:
    """Open a local folder or a hub id to be finetuned. Raises as `open_checkpoint`."""
    options = options or OpenOptions()
    with pretrained.silence_transformers():
        found = load_checkpoint(ref, options)
        facts = describe_checkpoint(ref, found, options)
        found.model.set_attn_implementation(
            found.forward_config.native_implementation
        )  # the trial left another one
        fuse_layers(found.model)
        return Backbone(
            name=found.name,
            kind=found.kind,
            attends=frozenset(_trainable_attentions(found)),
            native_attention=found.forward_config.native_attention,
            model=found.model.base_model,
            tokenizer=found.tokenizer,
            specials=found.specials,
            max_length=found.max_length,
            trained_methods=found.trained_methods,
            metadata=facts,
        )


def _trainable_attentions(loaded: LoadedCheckpoint) -> set[str]:
    """Scoring may turn a model the other way by packing its rows; training has masks alone, so they
    are tried.
    """
    native = loaded.forward_config.native_attention
    others = set(loaded.specials) - {native}
    return {native} | (
        others if others and pretrained.obeys_attention_masks(loaded.model, native) else set()
    )
