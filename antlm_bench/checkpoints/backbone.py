"""A checkpoint opened to be finetuned: its body in fp32 with the library's own layers, and what scoring knows.

Beside the other file that opens: what is packed and laid out for reading cannot be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from antlm_bench.checkpoints import pretrained
from antlm_bench.checkpoints.loader import Found, describe, find
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.scoring.cpu_kernels import fuse
from antlm_bench.scoring.text import Specials
from antlm_bench.types import Attention


@dataclass(frozen=True, slots=True)
class Body:
    """A checkpoint without its LM head. Whoever trains copies `model` first: it stays as it was opened.

    attends: the attentions it can be trained with; natively: the one it has when nothing is said. around: specials of
    a text under each, as in scoring. describe: the same facts that a scored run's manifest keeps.
    """

    name: str
    kind: str
    attends: frozenset[str]
    natively: Attention
    model: Any
    tokenizer: Any
    around: Mapping[str, Specials]
    max_length: int | None
    trained_for: tuple[str, ...]
    describe: dict[str, Any]

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def typed(self) -> bool:
        """Whether it has been told the first text of a pair from the second (BERT's token types)."""
        types = getattr(self.model.config, "type_vocab_size", None) or 0
        return types > 1 and "token_type_ids" in self.tokenizer.model_input_names


def open_body(ref: str, options: OpenOptions | None = None) -> Body:
    """Open a local folder or a hub id to be finetuned. Raises as `open_checkpoint`."""
    options = options or OpenOptions()
    with pretrained.quiet():
        found = find(ref, options)
        facts = describe(ref, found, options)
        found.model.set_attn_implementation(found.geometry.native)  # the trial left another one
        fuse(found.model)
        return Body(
            name=found.name,
            kind=found.kind,
            attends=frozenset(_attends(found)),
            natively=found.geometry.attends,
            model=found.model.base_model,
            tokenizer=found.tokenizer,
            around=found.around,
            max_length=found.max_length,
            trained_for=found.trained_for,
            describe=facts,
        )


def _attends(found: Found) -> set[str]:
    """Scoring may turn a model the other way by packing its rows; training has masks alone, so they are tried."""
    native = found.geometry.attends
    others = set(found.around) - {native}
    return {native} | (others if others and pretrained.obeys_attention_masks(found.model, native) else set())
