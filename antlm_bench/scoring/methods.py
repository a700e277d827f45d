"""The registry of scoring methods: one `Method` record per method.

A record holds everything that other modules need to know about a method: how it reads
log-probabilities (`parts`), what it needs of a model, and what peers call it. Other modules use
these fields and never compare a method's name. The shipped records are in scoring.probes. Other
packages add theirs as entry points of the group `antlm_bench.methods` (docs/how-to/extending.md).

This module does not import numpy, so that help texts list the names quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from antlm_bench.errors import MethodNotSupported, UsageError
from antlm_bench.registry import RecordType, Registry, deferred

if TYPE_CHECKING:
    from antlm_bench.types import Attention, Encodings, ModelInfo, Probes

SHIPPED = {
    "causal": "antlm_bench.scoring.probes:CAUSAL",
    "mlm": "antlm_bench.scoring.probes:MLM",
    "mlm-l2r": "antlm_bench.scoring.probes:MLM_L2R",
    "mntp": "antlm_bench.scoring.probes:MNTP",
    "fused": "antlm_bench.scoring.probes:FUSED",
    "seq2seq": "antlm_bench.scoring.probes:SEQ2SEQ",
    "infill": "antlm_bench.scoring.probes:INFILL",
}
ADD_MASK_TOKEN_HINT = "save it with a tokenizer whose mask token the model has an embedding for"


@dataclass(frozen=True, slots=True)
class Method:
    """A scoring method: the score of a text is the sum of the log-probabilities that it reads."""

    name: str
    """The value of --method, and the name in run folders and tables."""
    description: str
    """Short description of what it computes."""
    parts: tuple[tuple[Attention, Callable[..., Probes]], ...]
    """(attention, probe function) pairs. Each pair scores every token of a text once, and the
    log-probabilities of all pairs are added up. A probe function takes an EncodedBatch and the id
    of the mask token (None without one)."""
    needs_mask: bool = False
    """Whether it masks tokens, so that the model must have a mask token."""
    needs_words: bool = False
    """Whether it needs to know which word a token belongs to."""
    mask_shift: int | None = None
    """To predict a word from its left context (scoring.surprisal.predict), a masked method
    reads this many positions before the first mask; None = it cannot do that."""
    objective: str = ""
    """The masked training objective that it matches ("mlm", "mntp"); "" = any."""
    hub_task: str = "fill-mask"
    """Name of the task on the Hugging Face Hub (model-index)."""
    peer_names: Mapping[str, str] = field(default_factory=dict)
    """Peer that has this method -> the name it passes to that peer, "" if it passes none."""

    @property
    def attentions(self) -> frozenset[Attention]:
        """The attentions with which it runs a model."""
        return frozenset(attention for attention, _ in self.parts)

    @property
    def main_attention(self) -> Attention:
        """Attention of the finetuned results that are reported with this method's scores: full if
        any part has full attention, else that of the first part.
        """
        return "full" if "full" in self.attentions else self.parts[0][0]

    @property
    def is_left_to_right(self) -> bool:
        """Whether each token is predicted from the preceding tokens only. The sum then is the
        log-probability of the text by the chain rule.
        """
        return not self.needs_mask and self.attentions == {"causal"}

    @property
    def predicts_next_token(self) -> bool:
        """Whether it can score a token after its left context alone, with a mask or without."""
        return self.is_left_to_right or self.mask_shift is not None

    def with_relevant_flags(self, encodings: Encodings) -> Encodings:
        """Return the encodings without the flag "spans-words", unless the method needs words."""
        if self.needs_words:
            return encodings
        flags = {name: mask for name, mask in encodings.flags.items() if name != "spans-words"}
        return replace(encodings, flags=flags)


METHODS: Registry[Method] = Registry(
    "method",
    "antlm_bench.methods",
    SHIPPED,
    "antlm-bench list methods",
    RecordType(Method, {"parts": deferred("antlm_bench.scoring.probes:find_wrong_probes")}),
)


def get_method(name: str) -> Method:
    """Return a method by name. Raises UsageError for an unknown name."""
    if name not in METHODS:
        raise UsageError(
            f"unknown method {name!r}",
            location="--method",
            hint=f"one of {', '.join(METHODS.names())}",
        )
    return METHODS[name]


def resolve_method(name: str, model: ModelInfo) -> Method:
    """Return a method by name, if the model supports it.

    Raises UsageError for an unknown name, and MethodNotSupported if the model lacks a mask token or
    an attention that the method needs.
    """
    method = get_method(name)
    if method.needs_mask and model.mask_id is None:
        others = supported_methods(model)
        raise MethodNotSupported(
            f"{model.name} cannot be scored with {name!r}: {model.no_mask_reason}",
            location="--method",
            hint=(f"score it with --method {' or '.join(others)}, or " if others else "")
            + ADD_MASK_TOKEN_HINT,
        )
    missing = sorted(method.attentions - model.attentions)
    if missing:
        raise MethodNotSupported(
            f"{model.name} cannot be scored with {name!r}: "
            f"it does not run with {' and '.join(missing)} attention",
            location="--method",
            hint=f"supported methods: {', '.join(supported_methods(model))}",
        )
    return method


def peer_methods(peer: str) -> list[str]:
    """Return the names of the methods that a peer ("minicons", "lm-eval") has, too."""
    return [method.name for method in METHODS if peer in method.peer_names]


def peer_version(name: str) -> str:
    """Return a peer's name and version, such as "minicons 0.3.39"."""
    from importlib.metadata import version  # slow, and help texts list methods

    return f"{name} {version(name.replace('-', '_'))}"


def default_method(model: ModelInfo, methods: Sequence[str]) -> str:
    """Return the first of a checkpoint's methods. Raises MethodNotSupported if there is none."""
    if methods:
        return methods[0]
    attentions = " and ".join(sorted(model.attentions))
    raise MethodNotSupported(
        f"{model.name} cannot be scored with any method: "
        + (model.no_mask_reason or f"it runs with {attentions} attention"),
        location="--model",
        hint=ADD_MASK_TOKEN_HINT,
    )


def supported_methods(model: ModelInfo) -> list[str]:
    """Return the names of the methods that a model supports, in registry order."""
    return [
        method.name
        for method in METHODS
        if method.attentions <= model.attentions
        and (model.mask_id is not None or not method.needs_mask)
    ]
