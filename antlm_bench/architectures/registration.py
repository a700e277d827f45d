"""`import antlm_bench` makes transformers' Auto classes know our architectures, without loading it
(or torch).

Registering needs the model files, and they need transformers: not before it is loaded, nor while it
is loading (its own imports go in circles through the auto module). So the auto module gets a
wrapper, as soon as it exists, around the two functions from which every use of an unknown model
type starts; the first call of either registers everything.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from antlm_bench.errors import CheckpointError

# model_type -> (file in this package, prefix of its class names)
ARCHITECTURES = {
    "antlm_ltg_bert": ("ltg_bert", "LtgBert"),
    "antlm_gpt_bert": ("gpt_bert", "GptBert"),
}
# Auto class -> suffix of the class name
AUTO_CLASS_SUFFIXES = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
}
# model_type of the library -> (file that a hybrid of it carries, Auto class that the library lacks,
# class)
HYBRID_ARCHITECTURES = {"llama": ("llama_masked", "AutoModelForMaskedLM", "LlamaForMaskedLM")}
CARD_KEY = "antlm_bench"  # the key of config.json that says which way a checkpoint of ours attends
AUTO_MODULE = "transformers.models.auto.configuration_auto"
ENTRY_POINTS = ("from_pretrained", "for_model")


def install_import_hook() -> None:
    """Prepare transformers' auto module, now or as soon as it is imported. Calling it again changes
    nothing.
    """
    if AUTO_MODULE in sys.modules and hasattr(sys.modules[AUTO_MODULE], "AutoConfig"):
        _wrap_entry_points(sys.modules[AUTO_MODULE])
    elif not any(isinstance(finder, _AutoModuleFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModuleFinder())


def register_architectures() -> None:
    """Tell the Auto classes of transformers about our architectures. Imports torch and
    transformers.
    """
    import transformers

    for model_type, (file, prefix) in ARCHITECTURES.items():
        module = importlib.import_module(f"antlm_bench.architectures.{file}")
        classes = {
            auto: getattr(module, prefix + suffix) for auto, suffix in AUTO_CLASS_SUFFIXES.items()
        }
        config = classes.pop("AutoConfig")
        transformers.AutoConfig.register(model_type, config, exist_ok=True)
        for auto, model in classes.items():
            getattr(transformers, auto).register(config, model, exist_ok=True)
    for file, auto, name in HYBRID_ARCHITECTURES.values():
        model = getattr(importlib.import_module(f"antlm_bench.architectures.{file}"), name)
        getattr(transformers, auto).register(model.config_class, model, exist_ok=True)


def add_remote_code(folder: Path) -> bool:
    """Put the architecture's file into a saved checkpoint and name it in config.json, for
    `trust_remote_code=True`.

    Others can then load it without this package. A hybrid of the library's architecture carries the
    class that the library lacks. Returns whether the checkpoint carries a file. Raises
    CheckpointError if the folder has no readable config.json or cannot be written.
    """
    place = folder / "config.json"
    try:
        config = json.loads(place.read_text(encoding="utf-8"))
        file, classes = _remote_code_file(config)
        if not file:
            return False
        (folder / f"{file}.py").write_bytes(Path(__file__).with_name(f"{file}.py").read_bytes())
        config["auto_map"] = {auto: f"{file}.{name}" for auto, name in classes.items()}
        written = place.with_name("config.json.part")
        written.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(written, place)  # noqa: PTH105 - atomic on every platform
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot carry its architecture: {error}", location=str(place)
        ) from error
    return True


def _remote_code_file(config: Any) -> tuple[str, dict[str, str]]:
    """The file that a checkpoint carries, and Auto class -> class in it; ("", {}) for none."""
    kind, card = config.get("model_type"), config.get(CARD_KEY)
    if kind in ARCHITECTURES:
        file, prefix = ARCHITECTURES[kind]
        return file, {auto: prefix + suffix for auto, suffix in AUTO_CLASS_SUFFIXES.items()}
    if (
        kind in HYBRID_ARCHITECTURES
        and isinstance(card, dict)
        and "full" in card.get("attends", [])
    ):
        file, auto, name = HYBRID_ARCHITECTURES[kind]
        return file, {auto: name}
    return "", {}


def _wrap_entry_points(module: ModuleType) -> None:
    """Wrap the entrances of AutoConfig: the first call of either registers."""
    for name in ENTRY_POINTS:
        entrance = getattr(module.AutoConfig, name)
        if not getattr(entrance, "registers_antlm", False):
            setattr(module.AutoConfig, name, _with_registration(entrance))


def _with_registration(entry_point: Any) -> Any:
    @functools.wraps(entry_point)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        register_architectures_once()
        return entry_point(*args, **kwargs)

    wrapped.registers_antlm = True  # type: ignore[attr-defined]
    return staticmethod(wrapped)


@functools.cache
def register_architectures_once() -> None:
    register_architectures()


class _AutoModuleFinder:
    """A finder that finds nothing: it only sees the auto module go by, and prepares it when it has
    been executed.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002 - the protocol's
        if name != AUTO_MODULE:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            _wrap_entry_points(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec
