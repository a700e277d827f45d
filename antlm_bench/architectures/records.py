"""The registry of architectures: one `Architecture` record per architecture that `train` builds.

A record names the classes of an architecture, converts a recipe's [model] table to a configuration,
counts its weights, and names the converter of its authors' checkpoints. Other modules use the
record's fields and never compare an architecture's name or model type. The shipped records are in
architectures.shipped. Other packages add theirs as entry points of the group
`antlm_bench.architectures` (docs/how-to/extending.md).

This module does not import torch, so that sizes and costs are computed from a recipe quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from antlm_bench.registry import RecordType, Registry, load_target, naming_plugin

SHIPPED = {
    "llama": "antlm_bench.architectures.shipped:LLAMA",
    "gpt2": "antlm_bench.architectures.shipped:GPT2",
    "ltg-bert": "antlm_bench.architectures.shipped:LTG_BERT",
    "gpt-bert": "antlm_bench.architectures.shipped:GPT_BERT",
}


class ModelShape(Protocol):
    """The [model] table of a recipe; training.recipe.ModelSpec documents its keys."""

    @property
    def layers(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int | None: ...
    @property
    def ffn(self) -> int: ...
    @property
    def positions(self) -> int: ...
    @property
    def tied(self) -> bool: ...
    @property
    def dropout(self) -> float: ...
    @property
    def attention_dropout(self) -> float: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def buckets(self) -> int: ...
    @property
    def layer_mix(self) -> str: ...
    @property
    def attention_gate(self) -> bool: ...
    @property
    def layer_weights(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Numbers of weights of a model, in total and per matrix product."""

    parameters: int
    """All parameters; tied ones are counted once."""
    weights_per_token: int
    """Weights of the layers' matrices, which process every token."""
    weights_per_target: int
    """Weights of the LM head, which processes only positions whose logits are read."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture: its classes, configuration and size."""

    name: str
    """The value of `model.architecture` in a recipe."""
    title: str
    """Name and source in one line."""
    model_type: str
    """`model_type` in config.json."""
    classes: Mapping[str, str]
    """Auto class of transformers -> "module:class". A class from outside transformers is registered
    with its Auto class. Its module is copied into checkpoints, and so may import only torch and
    transformers."""
    config_settings: Callable[[ModelShape], dict[str, Any]]
    """Converts a [model] table to arguments of the configuration class. Vocabulary size, special
    tokens and `tie_word_embeddings` are passed separately."""
    compute_size: Callable[[ModelShape, int], ModelSize]
    """Computes the model's size from its shape and vocabulary size."""
    optional_keys: frozenset[str] = frozenset()
    """Keys of [model] that this architecture has and others refuse."""
    relative_positions: bool = False
    """Whether attention scores include products with 2 x `buckets` - 1 relative-position vectors.
    """
    learned_positions: bool = False
    """Whether positions are learned embeddings, so that the positions of each document in a row
    must begin at 0."""
    original_layout: str = ""
    """"module:class" of the checkpoints.conversion.OriginalCheckpoint that converts its authors'
    files."""

    @property
    def custom_classes(self) -> dict[str, str]:
        """The classes that are not part of transformers."""
        return {
            auto: target
            for auto, target in self.classes.items()
            if not target.startswith("transformers:")
        }

    @property
    def is_from_library(self) -> bool:
        """Whether the architecture is part of transformers; `own_classes` then only complete it."""
        return "AutoConfig" not in self.custom_classes

    def load_class(self, auto: str) -> Any:
        """Import the class that an Auto class opens."""
        with naming_plugin(ARCHITECTURES.describe(self.name)):
            return load_target(self.classes[auto])

    def load_model_class(self, masked: bool) -> Any:
        """Import the class to train. For an architecture of transformers it is the causal LM, which
        masked objectives train with another attention mask.
        """
        masked_class = masked and not self.is_from_library
        return self.load_class("AutoModelForMaskedLM" if masked_class else "AutoModelForCausalLM")


def _find_wrong_settings(settings: Any, _: ModelShape) -> str:
    return "" if isinstance(settings, Mapping) else f"a {type(settings).__name__}, not a dict"


def _find_wrong_size(size: Any, *_: Any) -> str:
    return "" if isinstance(size, ModelSize) else f"a {type(size).__name__}, not a ModelSize"


ARCHITECTURES: Registry[Architecture] = Registry(
    "architecture",
    "antlm_bench.architectures",
    SHIPPED,
    "antlm-bench list architectures",
    RecordType(
        Architecture,
        {"config_settings": _find_wrong_settings, "compute_size": _find_wrong_size},
    ),
)


def find_architecture(model_type: str) -> Architecture | None:
    """Return the architecture with a `model_type`, or None if it is not registered."""
    return next(
        (architecture for architecture in ARCHITECTURES if architecture.model_type == model_type),
        None,
    )
