"""Open checkpoints in their authors' formats ("original layouts") without running authors' code.

A layout is recognised by its weights; the model type in config.json is ignored. Each family of
layouts is a subclass of `OriginalCheckpoint`, and `Architecture.original_layout` of the target
architecture names it.
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
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.errors import CheckpointError, UsageError, first_line
from antlm_bench.registry import load_target, naming_plugin
from antlm_bench.weight_files import WeightSet, select_weights

LAYOUT_OPTION = "--original-layout"
REMOTE_CODE_HINT = "--trust-remote-code runs the checkpoint's own code, if you trust its author"


@dataclass(frozen=True, slots=True)
class OriginalCheckpoint:
    """A checkpoint in an original layout. Each subclass converts one family of layouts."""

    architecture: Architecture
    """Target of the conversion."""
    folder: Path
    settings: dict[str, Any]
    """Content of config.json."""
    shapes: dict[str, tuple[int, ...]]
    """Original name of every weight -> its shape."""
    options: OpenOptions

    layout_names: ClassVar[tuple[str, ...]] = ()
    """Values of --original-layout, each a published code that wrote weights of this family."""

    @classmethod
    def accepts_config(cls, settings: Mapping[str, Any]) -> bool:
        """Return whether a config.json can be of this family. If not, no weight file is read."""
        raise NotImplementedError

    @classmethod
    def matches_weights(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether weights of these names and shapes are of this family."""
        raise NotImplementedError

    def build_config(self) -> Any:
        """Return the configuration of the target architecture.

        Raises CheckpointError if the files leave a setting open.
        """
        raise NotImplementedError

    def build_model(self, kind: str, config: Any) -> Any:
        """Return the causal or masked model in fp32.

        Raises CheckpointError unless every weight is used and every parameter is filled.
        """
        raise NotImplementedError

    def load_into_model(
        self, kind: str, config: Any, state: Mapping[str, Tensor], original_names: Mapping[str, str]
    ) -> Any:
        """Build the target model from converted weights, in evaluation mode.

        state: name in the target model -> tensor. original_names: name in the target model -> name
        in the files, for error messages. Raises CheckpointError if names or shapes differ from the
        model's.
        """
        auto_class = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}[kind]
        with torch.device("meta"):
            model = self.architecture.load_class(auto_class)(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name in sorted(expected.keys() | state.keys()):
            shape = tuple(state[name].shape) if name in state else None
            if shape != expected.get(name):
                raise self.error(
                    f"{original_names.get(name, name)} is {shape or 'absent'}, "
                    f"and the model wants {expected.get(name, 'none')}",
                    "the checkpoint is incomplete, or an unsupported variant: " + REMOTE_CODE_HINT,
                )
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        return model.eval()

    def check_settings(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of config.json that have a key of `defaults` and are not null.

        Raises CheckpointError for a value whose type is not the default's.
        """
        settings = {
            key: value
            for key, value in self.settings.items()
            if key in defaults and value is not None
        }
        for key, value in settings.items():
            default = defaults[key]
            if key.endswith("_token_id"):
                is_valid = _is_number(value, int) or isinstance(value, list)
                expected = "a whole number"
            elif isinstance(default, bool):
                is_valid, expected = isinstance(value, bool), "true or false"
            elif isinstance(default, str):
                is_valid, expected = isinstance(value, str), "a string"
            elif isinstance(default, int):
                is_valid, expected = _is_number(value, int), "a whole number"
            else:
                is_valid, expected = _is_number(value, int | float), "a number"
            if not is_valid:
                raise self.wrong_value_error(key, value, expected)
        return settings

    def load_weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return original name -> tensor for these names."""
        names = set(names)
        weight_set = select_weights(self.folder, self.options.allow_pickle)
        if weight_set is None:
            return {}
        if weight_set.is_pickle:
            weights = _load_pickled(weight_set)
            return {name: weights[name] for name in names & weights.keys()}
        tensors: dict[str, Tensor] = {}
        for file in weight_set.files:
            with safetensors.safe_open(file, "pt") as handle:
                tensors |= {name: handle.get_tensor(name) for name in names & set(handle.keys())}
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
    """Return the checkpoint in this folder if it is in an original layout, else None.

    With --trust-remote-code the checkpoint's own code runs, so that the result is None, too. Raises
    CheckpointError for damaged weights, and UsageError for an --original-layout that is unknown or
    does not apply.
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
            f"{options.original_layout!r} does not apply to {folder.name}: {reason}",
            location=LAYOUT_OPTION,
            hint="leave it out",
        )
    return original


def _list_families() -> Iterator[tuple[Architecture, type[OriginalCheckpoint]]]:
    for architecture in ARCHITECTURES:
        if architecture.original_layout:
            with naming_plugin(ARCHITECTURES.describe(architecture.name)):
                family = load_target(architecture.original_layout)
            yield architecture, family


def _detect_original(folder: Path, options: OpenOptions) -> OriginalCheckpoint | None:
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # transformers raises, with the reason
    if options.trust_remote_code or not isinstance(settings, dict):
        return None
    model_type = settings.get("model_type")
    families = []
    for architecture, family in _list_families():
        with naming_plugin(ARCHITECTURES.describe(architecture.name)):
            if family.accepts_config(settings):
                families.append((architecture, family))
    if not families or model_type in {architecture.model_type for architecture, _ in families}:
        return None
    shapes = _read_shapes(folder, options)
    for architecture, family in families:
        with naming_plugin(ARCHITECTURES.describe(architecture.name)):
            if family.matches_weights(shapes):
                original = family(architecture, folder, settings, shapes, options)
                _check_class_names(original)
                return original
    return None


def _read_shapes(folder: Path, options: OpenOptions) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every weight. Raises CheckpointError for damaged files."""
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        weight_set = select_weights(folder, options.allow_pickle)
        if weight_set is None:
            return {}
        if weight_set.is_pickle:
            return {name: tuple(w.shape) for name, w in _load_pickled(weight_set).items()}
        for file in weight_set.files:
            with safetensors.safe_open(file, "pt") as handle:
                shapes |= {
                    name: tuple(handle.get_slice(name).get_shape())
                    for name in handle.keys()  # noqa: SIM118 - not a dict
                }
    except CheckpointError:
        raise
    except Exception as error:  # safetensors and pickle raise unrelated types
        raise CheckpointError(
            f"cannot read the weights: {first_line(error)}", location=str(folder)
        ) from error
    return shapes


def _check_class_names(original: OriginalCheckpoint) -> None:
    names, auto_map = original.settings.get("architectures"), original.settings.get("auto_map")
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if names is not None and not are_names:
        raise original.wrong_value_error("architectures", names, "a list of class names")
    if auto_map is not None and not isinstance(auto_map, dict):
        raise original.wrong_value_error("auto_map", auto_map, "an object")


def _load_pickled(weight_set: WeightSet) -> dict[str, Tensor]:
    """Return original name -> tensor of pickled files.

    Authors save the weights alone, or under the key `model` beside the optimizer's state. Raises
    CheckpointError if two files each hold a whole model.
    """
    paths = weight_set.files
    # Only the pytorch_model-0000N files are shards of one model.
    if len(paths) > 1 and not all(path.name.startswith("pytorch_model") for path in paths):
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(
            f"{len(paths)} files of weights, and nothing says which to score: {names}",
            location=str(paths[0].parent),
            hint="leave only the file that is to be scored in the folder",
        )
    tensors: dict[str, Tensor] = {}
    for path in paths:
        # Some files also hold the authors' command-line arguments, a Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        weights = content.get("model", content)
        tensors |= {name: tensor for name, tensor in weights.items() if isinstance(tensor, Tensor)}
    return tensors


def _is_number(value: object, number_type: Any) -> bool:
    return isinstance(value, number_type) and not isinstance(value, bool) and math.isfinite(value)
