"""Find what keeps a checkpoint from opening in the environment of BabyLM's official pipelines.

They pin transformers 4.51.3. Everything here is read from files: no weight is loaded, no code is
run. What that version knows is listed in `official_environment.json`, which a slow test compares
with the version itself.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

# Modules and names that code for transformers 5 imports, and 4.51.3 does not have.
NEWER_MODULES = frozenset(
    f"transformers.{name}"
    for name in [
        "backbone_utils",
        "conversion_mapping",
        "core_model_loading",
        "initialization",
        "integrations.moe",
        "masking_utils",
        "modeling_layers",
        "tokenization_python",
        "tokenization_utils_sentencepiece",
        "tokenization_utils_tokenizers",
        "utils.auto_docstring",
        "utils.output_capturing",
        "utils.type_validators",
        "video_utils",
    ]
)
NEWER_NAMES = frozenset(
    [
        "AttentionMaskInterface",
        "DynamicLayer",
        "EmbeddingAccessMixin",
        "GeneralInterface",
        "PreTrainedConfig",
        "PythonBackend",
        "SentencePieceBackend",
        "TokenizersBackend",
        "TransformersKwargs",
        "auto_docstring",
        "check_model_inputs",
        "initialization",
        "masking_utils",
        "maybe_autocast",
        "merge_with_config_defaults",
        "modeling_layers",
    ]
)
DEFAULT_ROPE_THETA = 10_000.0
"""Base of rotary positions in 4.51.3 if config.json has no rope_theta."""


@cache
def official_environment() -> Mapping[str, Any]:
    """Return the version of transformers that the official pipelines pin, and what it knows.

    Keys: transformers (version), model_types, tokenizer_classes.
    """
    content = Path(__file__).with_name("official_environment.json").read_text(encoding="utf-8")
    environment: dict[str, Any] = json.loads(content)
    return environment


def find_portability_problems(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (problem, fix) for each reason why the pinned version cannot open a checkpoint.

    Settings that it would open, but read otherwise, are problems too.
    """
    config = _read_json(folder / "config.json")
    tokenizer = _read_json(folder / "tokenizer_config.json")
    auto_map = config.get("auto_map")
    carried = auto_map if isinstance(auto_map, dict) else {}
    yield from _tokenizer_problems(tokenizer, _read_json(folder / "tokenizer.json"))
    yield from _config_problems(config, carried)
    own_modules = {
        str(name).partition(".")[0] for name in carried.values() if "--" not in str(name)
    }
    for module in sorted(own_modules):
        file = folder / f"{module}.py"
        if not file.is_file():
            yield (
                f"config.json names code in {file.name}, which is not here",
                "put it beside the weights",
            )
    for file in sorted(folder.glob("*.py")):
        yield from _import_problems(file)


def _tokenizer_problems(
    tokenizer: Mapping[str, Any], fast_tokenizer: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the problems of tokenizer_config.json and tokenizer.json."""
    environment, name = official_environment(), tokenizer.get("tokenizer_class")
    auto_map = tokenizer.get("auto_map")
    own = isinstance(auto_map, list) or (isinstance(auto_map, dict) and "AutoTokenizer" in auto_map)
    if isinstance(name, str) and not own and name not in environment["tokenizer_classes"]:
        yield (
            f"tokenizer_config.json names the class {name}, which transformers "
            f"{environment['transformers']} (of the official pipelines) does not know",
            'write "tokenizer_class": "PreTrainedTokenizerFast" there, if tokenizer.json is beside'
            " it",
        )
    splitting = fast_tokenizer.get("pre_tokenizer")
    space = splitting.get("add_prefix_space") if isinstance(splitting, dict) else None
    if splitting and space is True and not tokenizer.get("add_prefix_space", False) and not own:
        yield (
            f"transformers {environment['transformers']} (of the official pipelines) would not put"
            " the space before a text that tokenizer.json asks for, and would read other tokens",
            'write "add_prefix_space": true into tokenizer_config.json',
        )


def _config_problems(
    config: Mapping[str, Any], auto_map: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    environment, model_type = official_environment(), config.get("model_type")
    if (
        isinstance(model_type, str)
        and model_type not in environment["model_types"]
        and "AutoConfig" not in auto_map
    ):
        yield (
            f"transformers {environment['transformers']} (of the official pipelines) does not know"
            f" the model type {model_type!r}, and config.json names no code for it (auto_map)",
            "save the checkpoint with its code and an auto_map for AutoConfig and its models",
        )
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("rope_theta") not in (
        None,
        config.get("rope_theta", DEFAULT_ROPE_THETA),
    ):
        yield (
            f"the base of rotary positions is {rope['rope_theta']}, and only transformers 5 reads"
            " it there",
            f'write "rope_theta": {rope["rope_theta"]} into config.json, too',
        )
    if (
        isinstance(rope, dict)
        and rope.get("rope_type", "default") != "default"
        and "rope_scaling" not in config
    ):
        yield (
            f"rotary positions are scaled ({rope['rope_type']}), and only transformers 5 reads it"
            " there",
            'write the same table as "rope_scaling" into config.json, too',
        )


def _import_problems(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the imports of names that the pinned version lacks.

    Imports inside a `try` with `except ImportError` are left out.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        yield f"{file.name} cannot be read as Python ({error})", "save the checkpoint again"
        return
    caught = {
        node
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try)
        and any(_catches_import_error(handler) for handler in attempt.handlers)
        for statement in attempt.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        missing = [] if node in caught else _newer_imports(node)
        if missing:
            yield (
                f"{file.name}:{getattr(node, 'lineno', 1)} imports {', '.join(missing)}, which "
                f"transformers {official_environment()['transformers']} (of the official pipelines)"
                " does not have",
                "import it inside try, with a substitute under except ImportError",
            )


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    names = (
        {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
        if handler.type
        else {"ImportError"}
    )
    return bool(names & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def _newer_imports(node: ast.AST) -> list[str]:
    """Return the names that an import statement takes from newer versions of transformers."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in NEWER_MODULES]
    if (
        not isinstance(node, ast.ImportFrom)
        or node.level
        or not (node.module or "").startswith("transformers")
    ):
        return []
    if node.module in NEWER_MODULES:
        return [str(node.module)]
    return [f"{node.module}.{alias.name}" for alias in node.names if alias.name in NEWER_NAMES]


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} if it cannot be read (`preflight` reports that)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
