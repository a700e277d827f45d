"""Write checkpoints that others can open, and the state from which a training run resumes.

Everything is written beside its final place and renamed into it: a full disk or SIGKILL costs
nothing older.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from antlm_bench.architectures import registration
from antlm_bench.architectures.records import find_architecture
from antlm_bench.checkpoints import TRAINING_KEY
from antlm_bench.checkpoints.pretrained import silence_transformers
from antlm_bench.errors import RunError
from antlm_bench.scoring.methods import METHODS

Metadata = dict[str, Any]


def save_checkpoint(folder: Path, model: Any, tokenizer: Any, training: Mapping[str, Any]) -> None:
    """Write a Hugging Face folder: safetensors, tokenizer, README, and the training metadata in
    config.json.

    Our architectures carry their source file, so that others can open them with remote code. Raises
    RunError.
    """

    def write(directory: Path) -> None:
        setattr(model.config, TRAINING_KEY, dict(training))
        with silence_transformers():  # the library's progress bars
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

    BabyLM's official pipelines pin 4.51: it does not know the tokenizer class that 5 writes, looks
    for the base of rotary positions under its old key, passes token types to any model, and
    switches a tokenizer's prefix space off unless tokenizer_config.json repeats it.
    """
    tokenizer = folder / "tokenizer_config.json"
    settings = json.loads(tokenizer.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    for key in ("backend", "is_local", "local_files_only"):  # how it was loaded here
        settings.pop(key, None)
    serialized = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pre_tokenizer = serialized["pre_tokenizer"] or {}
    if "add_prefix_space" in pre_tokenizer:
        settings["add_prefix_space"] = pre_tokenizer["add_prefix_space"]
    config = folder / "config.json"
    model = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(rope := model.get("rope_parameters"), dict) and "rope_theta" in rope:
        model["rope_theta"] = rope["rope_theta"]
    for path, content in ((tokenizer, settings), (config, model)):
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def render_readme(checkpoint_name: str, model: Any, training: Mapping[str, Any]) -> str:
    """Return the training metadata as Markdown, with the front matter that the hub reads."""
    count = sum(p.numel() for p in model.parameters())
    scale = f", scale {training['scale']}" if training["scale"] else ""
    methods = ", ".join(f"`{method}`" for method in training["methods"])
    return (
        "---\nlibrary_name: transformers\ntags: [babylm, antlm-bench]\n---\n\n"
        f"# {training['recipe']}{scale}: {checkpoint_name}\n\n"
        f"| | |\n| --- | --- |\n| architecture | {type(model).__name__}, {count:,} parameters |\n"
        f"| attends | {' and '.join(training['attends'])} |\n| scored as | {methods} |\n"
        f"| words seen | {training['words_seen']:,} |\n"
        f"| tokens seen | {training['tokens_seen']:,} |\n"
        f"| steps | {training['steps']:,} |\n| seed | {training['seed']} |\n\n"
        f"    antlm-bench score --model {checkpoint_name} --suite blimp\n\n"
        + describe_loading(model, training)
    )


def describe_loading(model: Any, training: Mapping[str, Any]) -> str:
    """Return sentences on how transformers opens the checkpoint."""
    architecture, masked = find_architecture(model.config.model_type), "full" in training["attends"]
    custom_classes = architecture.custom_classes if architecture else {}
    if architecture and custom_classes and not architecture.is_from_library:
        text = (
            "transformers opens it after `import antlm_bench`, or with `trust_remote_code=True` "
            "from the file that lies beside the weights.\n"
        )
    elif masked and custom_classes:
        text = (
            "transformers opens it as a causal LM; `AutoModelForMaskedLM` and the pipeline "
            "`fill-mask` need `trust_remote_code=True` for the file that lies beside the weights.\n"
        )
    elif masked:
        text = "transformers opens it as a causal LM; its masked reading needs antlm-bench.\n"
    else:
        text = "transformers opens it.\n"
    shifts = {METHODS[name].mask_shift for name in training["methods"]} - {None}
    if shifts and 0 not in shifts:
        text += (
            "A hidden token is read one position before it: the pipeline `fill-mask` reads at the "
            "token itself, and does not say what the model predicts.\n"
        )
    return text


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """Write the state after `step` steps, then delete older ones. Raises RunError."""

    def write(directory: Path) -> None:
        saved = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        save_file(saved, directory / "tensors")
        (directory / "facts.json").write_text(json.dumps(metadata), encoding="utf-8")

    newest = folder / f"{step:08}"
    if not newest.exists():
        _write_atomically(newest, write)
    for other in folder.iterdir():
        if other != newest:
            shutil.rmtree(other, ignore_errors=True)


def load_state(folder: Path) -> tuple[dict[str, Tensor], Metadata] | None:
    """Load the newest state; None if there is none. Raises RunError if it cannot be read."""
    states = [path for path in folder.glob("*") if path.name.isdecimal()]
    if not states:
        return None
    newest = max(states, key=lambda path: int(path.name))
    try:
        metadata = json.loads((newest / "facts.json").read_text(encoding="utf-8"))
        return load_file(newest / "tensors"), metadata
    except Exception as error:  # safetensors and json raise types of their own
        raise RunError(
            f"the state cannot be read: {error}",
            location=str(newest),
            hint="delete the folder: training starts anew",
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
    return {prefix + name: tensor for name, tensor in tensors}


def select_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _write_atomically(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder and put it in the place of `folder`.

    Raises RunError, and leaves no trace, if that fails. The temporary names are always the same:
    what a killed process left there is cleared by the next.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("new", "old"))
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        reason = getattr(error, "strerror", None) or error
        hint = "free some space and run the same command: it continues from the last state"
        raise RunError(f"cannot be written: {reason}", location=str(folder), hint=hint) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
