"""Find reasons why BabyLM's official pipelines, which pin transformers 4.51.3, cannot open a
checkpoint.

Only files are read: no weight is loaded, no code is run. `official_environment.json` lists the
model types and tokenizer classes of that version; a slow test compares it with an installed
transformers 4.51.3.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

# Modules and names of transformers 5 that 4.51.3 does not have. A module is also in NEWER_NAMES if
# it is imported by name: `from transformers import masking_utils`.
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
    """Return the pinned version of transformers, its model types and its tokenizer classes.

    Keys: transformers (version), model_types, tokenizer_classes.
    """
    content = Path(__file__).with_name("official_environment.json").read_text(encoding="utf-8")
    environment: dict[str, Any] = json.loads(content)
    return environment


def find_portability_problems(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (problem, fix) for each reason why the pinned version cannot open a checkpoint.

    A setting that the pinned version would ignore is a problem, too.
    """
    config = read_json_object(folder / "config.json")
    tokenizer_config = read_json_object(folder / "tokenizer_config.json")
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict):
        auto_map = {}
    yield from _tokenizer_problems(tokenizer_config, read_json_object(folder / "tokenizer.json"))
    yield from _config_problems(config, auto_map)
    # A value with "--" names code in another repository of the hub.
    modules = {str(name).partition(".")[0] for name in auto_map.values() if "--" not in str(name)}
    for module in sorted(modules):
        file = folder / f"{module}.py"
        if not file.is_file():
            yield (
                f"config.json names code in {file.name}, which is missing",
                f"copy {file.name} into the folder",
            )
    for file in sorted(folder.glob("*.py")):
        yield from _import_problems(file)


def _tokenizer_problems(
    tokenizer_config: Mapping[str, Any], tokenizer_json: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the problems of tokenizer_config.json and tokenizer.json."""
    environment = official_environment()
    class_name = tokenizer_config.get("tokenizer_class")
    auto_map = tokenizer_config.get("auto_map")
    has_remote_code = isinstance(auto_map, list) or (
        isinstance(auto_map, dict) and "AutoTokenizer" in auto_map
    )
    is_unknown = isinstance(class_name, str) and class_name not in environment["tokenizer_classes"]
    if is_unknown and not has_remote_code:
        yield (
            f"tokenizer_config.json names the class {class_name}, which the official "
            f"pipelines' transformers {environment['transformers']} does not know",
            'write "tokenizer_class": "PreTrainedTokenizerFast" there, if tokenizer.json exists',
        )
    pre_tokenizer = tokenizer_json.get("pre_tokenizer")
    adds_space = isinstance(pre_tokenizer, dict) and pre_tokenizer.get("add_prefix_space") is True
    # PreTrainedTokenizerFast overwrites add_prefix_space of tokenizer.json with its keyword, whose
    # default is False.
    if adds_space and not tokenizer_config.get("add_prefix_space", False) and not has_remote_code:
        yield (
            "tokenizer.json adds a space before a text, which the official pipelines' transformers "
            f"{environment['transformers']} turns off unless tokenizer_config.json sets it",
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
            f"the official pipelines' transformers {environment['transformers']} does not know"
            f" the model type {model_type!r}, and config.json names no code for it (auto_map)",
            "save the checkpoint with its code and an auto_map for AutoConfig and its models",
        )
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return
    if rope.get("rope_theta") not in (None, config.get("rope_theta", DEFAULT_ROPE_THETA)):
        yield (
            f"rope_theta {rope['rope_theta']} is only in rope_parameters, which 4.51.3 ignores",
            f'also write "rope_theta": {rope["rope_theta"]} at the top level of config.json',
        )
    if rope.get("rope_type", "default") != "default" and "rope_scaling" not in config:
        yield (
            f"rope_type is {rope['rope_type']} in rope_parameters, which 4.51.3 ignores",
            'also write the same table as "rope_scaling" at the top level of config.json',
        )


def _import_problems(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the imports of names that the pinned version lacks.

    Imports inside a `try` with `except ImportError` are not problems.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        yield f"{file.name} cannot be read as Python ({error})", "save the checkpoint again"
        return
    nodes_in_try = {
        node
        for try_statement in ast.walk(tree)
        if isinstance(try_statement, ast.Try)
        and any(map(_catches_import_error, try_statement.handlers))
        for statement in try_statement.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        missing = [] if node in nodes_in_try else _newer_imports(node)
        if missing:
            yield (
                f"{file.name}:{getattr(node, 'lineno', 1)} imports {', '.join(missing)}, which "
                f"the official pipelines' transformers {official_environment()['transformers']}"
                " does not have",
                "import it in a try block, and handle ImportError",
            )


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:  # a bare except
        return True
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return bool(names & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def _newer_imports(node: ast.AST) -> list[str]:
    """Return the names in an import statement that only newer versions of transformers have."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in NEWER_MODULES]
    if not isinstance(node, ast.ImportFrom) or node.level:
        return []
    module = node.module or ""
    if module in NEWER_MODULES:
        return [module]
    if not module.startswith("transformers"):
        return []
    return [f"{module}.{alias.name}" for alias in node.names if alias.name in NEWER_NAMES]


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or {} if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
