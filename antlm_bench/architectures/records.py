"""Architectures that `train` builds and this package knows: one record each, in one registry.

A record names the classes of an architecture, says how a recipe's [model] table becomes a
configuration and how many weights that has, and which layouts of its authors can be converted. No
other module compares an architecture's name or model type. The shipped records are in
architectures.shipped; another package adds its own, with a model file of its own, as an entry point
of the group `antlm_bench.architectures` (docs/extending.md).

This module imports no torch: sizes and costs are computed from a recipe alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from antlm_bench.registry import Registry

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
    """How many weights a model has."""

    parameters: int
    """All of them, tied ones once."""
    weights_per_token: int
    """Those that every token is multiplied with."""
    weights_per_target: int
    """Those that only a position with a target is multiplied with, the output embedding
    included.
    """


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the rest of the package must know of one architecture."""

    name: str
    """The value of `model.architecture` in a recipe."""
    title: str
    """What it is, with its source, in a line."""
    model_type: str
    """`model_type` in config.json."""
    classes: Mapping[str, str]
    """Auto class of transformers -> "module:class". A class outside transformers is registered with
    its Auto class, and checkpoints carry its module as a file, which therefore imports nothing but
    torch and transformers."""
    config_settings: Callable[[ModelShape], dict[str, Any]]
    """The shape of a recipe as arguments of the configuration. Vocabulary, special tokens and tied
    embeddings are passed beside them, under the names of transformers."""
    compute_size: Callable[[ModelShape, int], ModelSize]
    """The size of the model from its shape and the size of the vocabulary."""
    optional_keys: frozenset[str] = frozenset()
    """Keys of [model] that other architectures refuse."""
    relative_positions: bool = False
    """Whether attention scores add products with 2 x `buckets` - 1 vectors of relative
    positions.
    """
    learned_positions: bool = False
    """Whether positions are rows of a table, so that each document of a row must count from 0."""
    original_layout: str = ""
    """"module:class" of the checkpoints.conversion.OriginalCheckpoint that opens its authors'
    files.
    """

    @property
    def own_classes(self) -> dict[str, str]:
        """The classes that are not those of transformers."""
        return {
            auto: target
            for auto, target in self.classes.items()
            if not target.startswith("transformers:")
        }

    @property
    def is_from_library(self) -> bool:
        """Whether transformers has it; then its own classes only add what the library lacks."""
        return "AutoConfig" not in self.own_classes

    def load_class(self, auto: str) -> Any:
        """Import the class that stands for an Auto class."""
        return load_target(self.classes[auto])

    def load_model_class(self, masked: bool) -> Any:
        """Import the class that is trained. A hybrid of the library's is trained as its causal
        LM.
        """
        masked_class = masked and not self.is_from_library
        return self.load_class("AutoModelForMaskedLM" if masked_class else "AutoModelForCausalLM")


ARCHITECTURES: Registry[Architecture] = Registry(
    "architecture", "antlm_bench.architectures", SHIPPED, "antlm-bench list architectures"
)


def find_architecture(model_type: str) -> Architecture | None:
    """Return the architecture of that `model_type`, None for one that is not registered."""
    return next(
        (architecture for architecture in ARCHITECTURES if architecture.model_type == model_type),
        None,
    )


def load_target(target: str) -> Any:
    """Import what "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)
