"""Checkpoints in the layouts of their authors, opened without the authors' code.

A layout is recognised by its weights, whatever config.json calls the model. Each family of layouts
is a subclass of `OriginalCheckpoint`, named by the record of the architecture that its weights are
converted to (architectures.records).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import torch
from torch import Tensor

from antlm_bench.architectures.records import ARCHITECTURES, Architecture
from antlm_bench.checkpoints.resolve import (
    OpenOptions,
    first_line,
    pickled_files,
    safetensors_files,
)
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.registry import load_target

LAYOUT_OPTION = "--original-layout"
OWN_CODE_HINT = "--trust-remote-code runs its own code, if you trust its author"


@dataclass(frozen=True, slots=True)
class OriginalCheckpoint:
    """A checkpoint in an author's layout; subclasses know one family of layouts."""

    architecture: Architecture
    """Target of the conversion."""
    folder: Path
    settings: dict[str, Any]
    """Its config.json."""
    shapes: dict[str, tuple[int, ...]]
    """Original name of every weight -> its shape."""
    options: OpenOptions

    layout_names: ClassVar[tuple[str, ...]] = ()
    """Values of --original-layout: the published code that wrote the weights."""

    @classmethod
    def may_be(cls, settings: Mapping[str, Any]) -> bool:
        """Whether a config.json can be of this family; its weights are looked at only then."""
        raise NotImplementedError

    @classmethod
    def matches(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether weights of these names and shapes are of this family."""
        raise NotImplementedError

    def build_config(self) -> Any:
        """Return our configuration. CheckpointError where the files do not tell all of it."""
        raise NotImplementedError

    def build_model(self, kind: str, config: Any) -> Any:
        """Return the causal or masked model in fp32. CheckpointError unless every weight is used
        and every parameter is filled.
        """
        raise NotImplementedError

    def load_into_model(
        self, kind: str, config: Any, state: Mapping[str, Tensor], original_names: Mapping[str, str]
    ) -> Any:
        """Build the model around the tensors of `state` (our names), in evaluation mode.

        original_names: our name -> the original one, for messages. Raises CheckpointError where
        names or shapes differ from the model's.
        """
        with torch.device("meta"):
            auto = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}[kind]
            model = self.architecture.load_class(auto)(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name in sorted(expected.keys() | state.keys()):
            shape = tuple(state[name].shape) if name in state else None
            if shape != expected.get(name):
                raise self.error(
                    f"{original_names.get(name, name)} is {shape or 'absent'}, "
                    f"and the model wants {expected.get(name, 'none')}",
                    "the checkpoint is incomplete, or a variant unknown here: "
                    "--trust-remote-code runs its own code",
                )
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        return model.eval()

    def check_settings(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of config.json whose keys `defaults` has; null counts as not given.

        Raises CheckpointError for a value of another type than the default's.
        """
        settings = {
            key: value
            for key, value in self.settings.items()
            if key in defaults and value is not None
        }
        for key, value in settings.items():
            default = defaults[key]
            if key.endswith("_token_id"):
                fits, expected = _is_number(value, int) or isinstance(value, list), "a whole number"
            elif isinstance(default, bool):
                fits, expected = isinstance(value, bool), "true or false"
            elif isinstance(default, str):
                fits, expected = isinstance(value, str), "a string"
            elif isinstance(default, int):
                fits, expected = _is_number(value, int), "a whole number"
            else:
                fits, expected = _is_number(value, int | float), "a number"
            if not fits:
                raise self.wrong_value_error(key, value, expected)
        return settings

    def load_weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors of these original names."""
        wanted, tensors = set(names), dict[str, Tensor]()
        safe = safetensors_files(self.folder)
        for file in safe:
            with safetensors.safe_open(file, "pt") as handle:
                tensors |= {name: handle.get_tensor(name) for name in wanted & set(handle.keys())}
        for part in [] if safe else _load_pickled(self.folder, self.options):
            tensors |= {name: part[name] for name in wanted & part.keys()}
        return tensors

    def wrong_value_error(self, key: str, value: Any, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{key} is {json.dumps(value)}, not {expected}",
            location=str(self.folder / "config.json"),
            hint="correct the value" + (", without quotes" if isinstance(value, str) else ""),
        )

    def error(self, message: str, hint: str) -> CheckpointError:
        return CheckpointError(message, location=str(self.folder), hint=hint)


def detect_original(folder: Path, options: OpenOptions) -> OriginalCheckpoint | None:
    """Return the checkpoint in this folder if it is in an original layout, and None if not, or if
    its own code is to run (--trust-remote-code).

    Raises CheckpointError for damaged weights, and UsageError for an unknown --original-layout or
    one that is given for any other checkpoint.
    """
    names = [name for _, family in _list_families() for name in family.layout_names]
    if options.original_layout and options.original_layout not in names:
        raise UsageError(
            f"unknown layout {options.original_layout!r}",
            location=LAYOUT_OPTION,
            hint=f"one of {', '.join(dict.fromkeys(names))}",
        )
    original = _detect_original(folder, options)
    if original is None and options.original_layout:
        reason = (
            "its own code runs"
            if options.trust_remote_code
            else "it is not in a layout of LTG-BERT or ELC-BERT"
        )
        raise UsageError(
            f"{options.original_layout!r} says nothing about {folder.name}: {reason}",
            location=LAYOUT_OPTION,
            hint="leave it out",
        )
    return original


def _list_families() -> Iterator[tuple[Architecture, type[OriginalCheckpoint]]]:
    for architecture in ARCHITECTURES:
        if architecture.original_layout:
            yield architecture, load_target(architecture.original_layout)


def _detect_original(folder: Path, options: OpenOptions) -> OriginalCheckpoint | None:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the library says what is wrong with it
    if options.trust_remote_code or not isinstance(settings, dict):
        return None
    model_type = settings.get("model_type")
    families = [
        (architecture, family)
        for architecture, family in _list_families()
        if family.may_be(settings)
    ]
    if not families or model_type in {architecture.model_type for architecture, _ in families}:
        return None
    shapes = _read_shapes(folder, options)
    for architecture, family in families:
        if family.matches(shapes):
            original = family(architecture, folder, settings, shapes, options)
            _check_class_names(original)
            return original
    return None


def _read_shapes(folder: Path, options: OpenOptions) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every weight. Raises CheckpointError for damaged files."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for file in safetensors_files(folder):
            with safetensors.safe_open(file, "pt") as handle:
                shapes |= {
                    name: tuple(handle.get_slice(name).get_shape())
                    for name in handle.keys()  # noqa: SIM118 - not a dict
                }
        if not shapes and options.allow_pickle:
            for part in _load_pickled(folder, options):
                shapes |= {name: tuple(weight.shape) for name, weight in part.items()}
    except CheckpointError:
        raise
    except Exception as error:  # safetensors and pickle have their own
        raise CheckpointError(
            f"cannot read the weights: {first_line(error)}", location=str(folder)
        ) from error
    return shapes


def _check_class_names(original: OriginalCheckpoint) -> None:
    names, modules = original.settings.get("architectures"), original.settings.get("auto_map")
    if not (
        names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))
    ):
        raise original.wrong_value_error("architectures", names, "a list of class names")
    if not (modules is None or isinstance(modules, dict)):
        raise original.wrong_value_error("auto_map", modules, "an object")


def _load_pickled(folder: Path, options: OpenOptions) -> list[dict[str, Tensor]]:
    """Return the tensors of each pickled file. Authors save them bare, or beside the optimizer's
    state under the key `model`.

    Raises CheckpointError where two files each hold a whole model.
    """
    assert options.allow_pickle
    paths = pickled_files(folder)
    if len(paths) > 1 and not all(path.name.startswith("pytorch_model") for path in paths):
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(
            f"{len(paths)} files of weights, and nothing says which to score: {names}",
            location=str(folder),
            hint="leave the one to be scored in the folder",
        )
    parts = []
    for path in paths:
        # The authors' command-line arguments lie beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content.get("model", content)
        parts.append(
            {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}
        )
    return parts


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
