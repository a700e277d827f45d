"""Scoring methods: one record per method, in one registry.

A record says everything that the rest of the package must know of a method: how it turns texts into
rows and reads (`parts`), what it needs of a model, and what others call it. No other module
compares a method's name. The shipped records are in scoring.probes; another package adds its own
as an entry point of the group `antlm_bench.methods` (docs/extending.md).

This module imports no numpy, so that help texts can list the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from antlm_bench.errors import MethodNotSupported, UsageError
from antlm_bench.registry import Registry

if TYPE_CHECKING:
    from antlm_bench.types import Attention, Encodings, ModelInfo, Probes

SHIPPED = {
    "causal": "antlm_bench.scoring.probes:CAUSAL",
    "mlm": "antlm_bench.scoring.probes:MLM",
    "mlm-l2r": "antlm_bench.scoring.probes:MLM_L2R",
    "mntp": "antlm_bench.scoring.probes:MNTP",
    "fused": "antlm_bench.scoring.probes:FUSED",
}


@dataclass(frozen=True, slots=True)
class Method:
    """A way to score a text: the sum of the log-probabilities that its probe functions read."""

    name: str
    """The value of --method, and the name in run folders and tables."""
    description: str
    """Short description of what it computes."""
    parts: tuple[tuple[Attention, Callable[..., Probes]], ...]
    """(attention, probe function) pairs whose reads are added up. A probe function takes an
    EncodedBatch and the id of the mask token (None without one)."""
    needs_mask: bool = False
    """Whether it masks tokens, so that the model must have a mask token."""
    needs_words: bool = False
    """Whether it asks which word a token belongs to."""
    mask_shift: int | None = None
    """How many positions before the first mask a word after its left context is read
    (scoring.surprisal.predict_words); None: a masked method cannot read that."""
    objective: str = ""
    """The masked training objective whose models it fits ("mlm", "mntp"); "" = any."""
    hub_task: str = "fill-mask"
    """The Hugging Face Hub's name of the task (model-index)."""
    peer_names: Mapping[str, str] = field(default_factory=dict)
    """Peers that score with this method -> their name of it, "" where it needs none."""

    @property
    def attentions(self) -> frozenset[Attention]:
        """The attentions that it runs a model with."""
        return frozenset(attention for attention, _ in self.parts)

    @property
    def main_attention(self) -> Attention:
        """The attention of the finetuned results that stand beside it: full if any part has it."""
        return "full" if "full" in self.attentions else "causal"

    @property
    def is_left_to_right(self) -> bool:
        """Whether each token is predicted from the tokens before it alone, so that the sum is the
        log-probability of the text by the chain rule.
        """
        return not self.needs_mask and self.attentions == {"causal"}

    def with_relevant_flags(self, encodings: Encodings) -> Encodings:
        """Return the encodings without flags that do not matter here: a token that spans words is
        worth a flag only where words are hidden.
        """
        if self.needs_words:
            return encodings
        flags = {name: raised for name, raised in encodings.flags.items() if name != "spans-words"}
        return replace(encodings, flags=flags)


METHODS: Registry[Method] = Registry(
    "method", "antlm_bench.methods", SHIPPED, "antlm-bench list methods"
)


def get_method(name: str) -> Method:
    """Return the method of that name, whatever the model. Raises UsageError."""
    if name not in METHODS:
        raise UsageError(
            f"unknown method {name!r}",
            location="--method",
            hint=f"one of {', '.join(METHODS.names())}",
        )
    return METHODS[name]


def resolve_method(name: str, model: ModelInfo) -> Method:
    """Return the method of that name, if this model can be scored with it.

    Raises UsageError for an unknown name, and MethodNotSupported (before any data is loaded) where
    the model lacks a mask token or an attention.
    """
    method = get_method(name)
    if method.needs_mask and model.mask_id is None:
        others = supported_methods(model)
        raise MethodNotSupported(
            f"{model.name} cannot be scored with {name!r}: {model.no_mask_reason}",
            location="--method",
            hint=(f"score it with --method {' or '.join(others)}, or " if others else "")
            + "save it with a tokenizer whose mask token the model has an embedding for",
        )
    if lacking := sorted(method.attentions - model.attentions):
        raise MethodNotSupported(
            f"{model.name} cannot be scored with {name!r}: "
            f"it does not attend {' and '.join(lacking)}",
            location="--method",
            hint=f"methods that fit: {', '.join(supported_methods(model))}",
        )
    return method


def peer_methods(peer: str) -> list[str]:
    """Return the names of the methods that a peer scores with, too ("minicons", "lm-eval")."""
    return [method.name for method in METHODS if peer in method.peer_names]


def default_method(model: ModelInfo, methods: Sequence[str]) -> str:
    """Return the first of a checkpoint's methods. Raises MethodNotSupported, with the reason, where
    it has none.
    """
    if methods:
        return methods[0]
    reason = model.no_mask_reason or f"it attends {' and '.join(sorted(model.attentions))}"
    raise MethodNotSupported(
        f"{model.name} cannot be scored with any method: {reason}",
        location="--model",
        hint="save it with a tokenizer whose mask token the model has an embedding for",
    )


def supported_methods(model: ModelInfo) -> list[str]:
    """Return the names of the methods that this model can be scored with, in registry order."""
    return [
        method.name
        for method in METHODS
        if method.attentions <= model.attentions
        and (model.mask_id is not None or not method.needs_mask)
    ]
