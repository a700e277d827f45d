"""Register our architectures with transformers' Auto classes, and copy their model files into
checkpoints.
"""

from __future__ import annotations

import functools
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from antlm_bench.architectures.records import ARCHITECTURES, find_architecture
from antlm_bench.errors import CheckpointError
from antlm_bench.registry import naming_plugin

TRAINING_KEY = "antlm_bench"  # key of config.json under which `train` describes the training


@functools.cache
def register_architectures() -> None:
    """Register all classes that transformers lacks with its Auto classes; the first call only.

    Imports torch and transformers.
    """
    import transformers

    for architecture in ARCHITECTURES:
        models = {auto: architecture.load_class(auto) for auto in architecture.custom_classes}
        with naming_plugin(ARCHITECTURES.describe(architecture.name)):
            if config := models.pop("AutoConfig", None):
                transformers.AutoConfig.register(architecture.model_type, config, exist_ok=True)
            for auto, model in models.items():
                getattr(transformers, auto).register(model.config_class, model, exist_ok=True)


def add_remote_code(folder: Path) -> bool:
    """Copy an architecture's model file into a saved checkpoint, if it needs one, and return
    whether it does.

    `auto_map` in config.json then names the file's classes, so that `trust_remote_code=True` opens
    the checkpoint without this package. An architecture of transformers needs a file only for full
    attention, if transformers lacks the class. Raises CheckpointError if config.json cannot be read
    or the folder cannot be written.
    """
    location = folder / "config.json"
    try:
        config = json.loads(location.read_text(encoding="utf-8"))
        classes = _classes_to_copy(config)
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
            f"cannot add the model file of its architecture: {error}", location=str(location)
        ) from error
    return True


def _classes_to_copy(config: Any) -> dict[str, str]:
    """Return Auto class -> "module:class" of the classes that the checkpoint must include."""
    architecture = find_architecture(config.get("model_type"))
    if architecture is None:
        return {}
    training = config.get(TRAINING_KEY)
    attentions = training.get("attends", []) if isinstance(training, dict) else []
    is_needed = not architecture.is_from_library or "full" in attentions
    return architecture.custom_classes if is_needed else {}
