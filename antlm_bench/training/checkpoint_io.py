"""Write checkpoints that others can open, and the state from which a training run resumes.

Each folder is written under a temporary name and then renamed, so a full disk or SIGKILL never
damages an older checkpoint or state.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from antlm_bench import runs
from antlm_bench.architectures import registration
from antlm_bench.architectures.records import find_architecture
from antlm_bench.atomic_files import remove_path, replace_folder
from antlm_bench.checkpoints import TRAINING_KEY
from antlm_bench.checkpoints.pretrained import silence_transformers
from antlm_bench.errors import RunError
from antlm_bench.runs.folder_io import suggest_reading
from antlm_bench.safe_files import open_regular_file, read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.scoring.methods import METHODS

Metadata = dict[str, Any]


def save_checkpoint(folder: Path, model: Any, tokenizer: Any, training: Mapping[str, Any]) -> None:
    """Write a Hugging Face folder: safetensors, tokenizer, README, and the training metadata in
    config.json.

    For architectures of this package the folder also holds the source file of the model class, so
    that `trust_remote_code=True` opens it. Raises RunError.
    """

    def write(directory: Path) -> None:
        setattr(model.config, TRAINING_KEY, dict(training))
        with silence_transformers():  # hide its progress bars
            model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        registration.add_remote_code(directory)
        make_transformers4_compatible(directory)
        (directory / "README.md").write_text(
            render_readme(folder.name, model, training), encoding="utf-8"
        )

    _write_atomically(folder, write)


def make_transformers4_compatible(folder: Path) -> None:
    """Rewrite a saved checkpoint so that transformers 4 reads it as transformers 5 does.

    BabyLM's official pipelines pin transformers 4.51. That version does not know the tokenizer
    class that version 5 writes, expects `rope_theta` at the top level of config.json, passes token
    types to every model, and ignores the prefix space of tokenizer.json unless
    tokenizer_config.json repeats it.
    """
    tokenizer_path, model_path = folder / "tokenizer_config.json", folder / "config.json"
    tokenizer_config = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer_config["model_input_names"] = ["input_ids", "attention_mask"]
    for key in ("backend", "is_local", "local_files_only"):  # describe only this process
        tokenizer_config.pop(key, None)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pre_tokenizer = tokenizer["pre_tokenizer"] or {}
    if "add_prefix_space" in pre_tokenizer:
        tokenizer_config["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
    model_config = json.loads(model_path.read_text(encoding="utf-8"))
    rope = model_config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        model_config["rope_theta"] = rope["rope_theta"]
    for path, config in ((tokenizer_path, tokenizer_config), (model_path, model_config)):
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def render_readme(checkpoint_name: str, model: Any, training: Mapping[str, Any]) -> str:
    """Return the training metadata as Markdown, with YAML front matter for the Hugging Face hub."""
    num_parameters = sum(p.numel() for p in model.parameters())
    scale = f", scale {training['scale']}" if training["scale"] else ""
    methods = ", ".join(f"`{method}`" for method in training["methods"])
    return (
        "---\nlibrary_name: transformers\ntags: [babylm, antlm-bench]\n---\n\n"
        f"# {training['recipe']}{scale}: {checkpoint_name}\n\n"
        "| | |\n| --- | --- |\n"
        f"| architecture | {type(model).__name__}, {num_parameters:,} parameters |\n"
        f"| attention | {' and '.join(training['attends'])} |\n"
        f"| scoring methods | {methods} |\n"
        f"| words seen | {training['words_seen']:,} |\n"
        f"| tokens seen | {training['tokens_seen']:,} |\n"
        f"| steps | {training['steps']:,} |\n| seed | {training['seed']} |\n\n"
        f"    antlm-bench score --model {shlex.quote(checkpoint_name)} --suite blimp\n\n"
        + describe_loading(model, training)
    )


def describe_loading(model: Any, training: Mapping[str, Any]) -> str:
    """Return sentences that tell a user of transformers how to open the checkpoint."""
    architecture = find_architecture(model.config.model_type)
    is_masked = "full" in training["attends"]
    custom_classes = architecture.custom_classes if architecture else {}
    if architecture and custom_classes and not architecture.is_from_library:
        text = (
            "transformers opens it after `import antlm_bench`, or with `trust_remote_code=True` "
            "from the source file in this folder.\n"
        )
    elif is_masked and custom_classes:
        text = (
            "transformers opens it as a causal LM; `AutoModelForMaskedLM` and the pipeline "
            "`fill-mask` need `trust_remote_code=True`, which runs the source file in this "
            "folder.\n"
        )
    elif is_masked:
        text = (
            "transformers opens it as a causal LM; scoring it as a masked LM needs antlm-bench.\n"
        )
    else:
        text = "transformers opens it.\n"
    mask_shifts = {METHODS[name].mask_shift for name in training["methods"]} - {None}
    if mask_shifts and 0 not in mask_shifts:
        text += (
            "The model predicts a hidden token at the position before it. The pipeline `fill-mask` "
            "reads the token's own position, so its output is not the model's prediction.\n"
        )
    return text


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """Write the state after `step` steps, then delete older states. Raises RunError."""

    def write(directory: Path) -> None:
        saved = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(saved, directory / "tensors")
        (directory / "facts.json").write_text(json.dumps(metadata), encoding="utf-8")

    runs.reject_links(folder.parent, folder)
    newest = folder / f"{step:08}"
    if not newest.exists():
        _write_atomically(newest, write)
    for other in folder.iterdir():
        if other != newest:
            remove_path(other)


def load_state(folder: Path) -> tuple[dict[str, Tensor], Metadata] | None:
    """Load the newest state, or return None without one. Raises RunError if it is unreadable."""
    states = [path for path in folder.glob("*") if path.name.isdecimal()]
    if not states:
        return None
    newest = max(states, key=lambda path: int(path.name))
    try:
        metadata = parse_json(read_regular_file(newest / "facts.json"), allow_nan=True)
        if not isinstance(metadata, dict):
            raise ValueError("facts.json should be an object")
        open_regular_file(newest / "tensors").close()  # safetensors would wait for a FIFO
        return load_file(newest / "tensors"), metadata
    except Exception as error:  # safetensors and json raise many types
        raise RunError(
            f"the state cannot be read: {error}",
            location=str(newest),
            hint=suggest_reading(error, "delete the folder to train from the beginning"),
        ) from error


def flatten_optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Metadata]:
    """Return an optimizer's state as (tensors by name, values that are not tensors)."""
    tensors: dict[str, Tensor] = {}
    non_tensors: Metadata = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            target = tensors if isinstance(value, Tensor) else non_tensors
            target[f"{index}.{key}"] = value
    return tensors, non_tensors


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], non_tensors: Metadata
) -> None:
    """Undo `flatten_optimizer_state`."""
    state: dict[int, Metadata] = {}
    for name, value in [*tensors.items(), *non_tensors.items()]:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def add_prefix(prefix: str, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return a dict of the (name, tensor) pairs with `prefix` before every name."""
    return {prefix + name: tensor for name, tensor in tensors}


def select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, and remove it from their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder as `replace_folder` does. Raises RunError."""
    try:
        replace_folder(folder, write)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = "free some space and run the same command: it continues from the last state"
        raise RunError(f"cannot be written: {reason}", location=str(folder), hint=hint) from error
