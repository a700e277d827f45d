"""Register our architectures with transformers' Auto classes, without importing transformers or
torch.

Registering needs the model files, which need transformers, and transformers cannot be imported
while it is loading (its own imports go in circles through the auto module). Therefore the two
functions of AutoConfig from which every use of an unknown model type starts are wrapped as soon as
the auto module exists; the first call of either registers everything.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from antlm_bench.architectures.records import ARCHITECTURES, find_architecture, load_target
from antlm_bench.errors import CheckpointError

TRAINING_KEY = "antlm_bench"  # key of config.json: how `train` trained a checkpoint
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
    """Register the classes of ARCHITECTURES that transformers lacks with its Auto classes. Imports
    torch and transformers.
    """
    import transformers

    for architecture in ARCHITECTURES:
        models = {auto: load_target(target) for auto, target in architecture.own_classes.items()}
        if config := models.pop("AutoConfig", None):
            transformers.AutoConfig.register(architecture.model_type, config, exist_ok=True)
        for auto, model in models.items():
            getattr(transformers, auto).register(model.config_class, model, exist_ok=True)


def add_remote_code(folder: Path) -> bool:
    """Copy the file of the architecture into a saved checkpoint and name its classes in config.json
    (`auto_map`), so that `trust_remote_code=True` opens it without this package.

    A checkpoint of the library's architecture carries a file only if it attends in full and the
    library lacks the class for that. Returns whether the checkpoint carries a file. Raises
    CheckpointError if the folder has no readable config.json or cannot be written.
    """
    location = folder / "config.json"
    try:
        config = json.loads(location.read_text(encoding="utf-8"))
        classes = _carried_classes(config)
        if not classes:
            return False
        auto_map = {}
        for auto, target in classes.items():
            module, _, name = target.partition(":")
            source = Path(str(import_module(module).__file__))
            (folder / source.name).write_bytes(source.read_bytes())
            auto_map[auto] = f"{source.stem}.{name}"
        config["auto_map"] = auto_map
        temporary = location.with_name("config.json.part")
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(temporary, location)  # noqa: PTH105 - atomic on every platform
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot carry its architecture: {error}", location=str(location)
        ) from error
    return True


def _carried_classes(config: Any) -> dict[str, str]:
    """Auto class -> "module:class" of the classes whose file a checkpoint carries; {} for none."""
    architecture, training = find_architecture(config.get("model_type")), config.get(TRAINING_KEY)
    if architecture is None:
        return {}
    attentions = training.get("attends", []) if isinstance(training, dict) else []
    needed = not architecture.is_from_library or "full" in attentions
    return architecture.own_classes if needed else {}


def _wrap_entry_points(module: ModuleType) -> None:
    """Wrap AutoConfig's entry points: the first call of either registers."""
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
    """A module finder that wraps the entry points of the auto module once it is executed; it finds
    nothing itself.
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
