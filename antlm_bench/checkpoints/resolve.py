"""Resolve references to checkpoints: folders, globs, hub ids, adapters and separate tokenizers. No
weight is loaded here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from antlm_bench.errors import BenchError, CheckpointError, UsageError
from antlm_bench.weight_files import (
    ADAPTER_CONFIG,
    hash_files,
    hash_weights,
    list_weight_sets,
    read_json,
    select_weights,
)

__all__ = [
    "CARD_KEY",
    "CODE_PATTERNS",
    "TOKENIZER_PATTERNS",
    "CheckpointSources",
    "OpenOptions",
    "expand_refs",
    "first_line",
    "hash_files",
    "hash_weights",
    "list_files",
    "locate_checkpoint",
    "locate_sources",
    "pickled_files",
    "safetensors_files",
]  # fmt: skip
# The key of config.json under which a checkpoint of ours says how it was trained.
CARD_KEY = "antlm_bench"
SAFETENSORS_PATTERNS, PICKLE_PATTERNS = ("*.safetensors",), ("*.bin",)
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
CODE_PATTERNS = ("*.py",)
NO_WEIGHTS_MESSAGE = "no weights: no *.safetensors file"


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How to open a checkpoint. Each field can change a score or refuse a file; `score --help`
    explains them.
    """

    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    bos: str = "auto"
    """BOS policy (scoring.text.BOS_POLICIES)."""
    max_length: int | None = None
    """Longest row in tokens; None = what model and tokenizer allow."""
    lengths: str = "declared"
    """Which limit counts (scoring.conventions.ScoringConventions)."""
    batch_tokens: int | None = None
    """Tokens per forward; None = chosen by device."""
    allow_pickle: bool = False
    """Load pickled weights."""
    trust_remote_code: bool = False
    """Run the checkpoint's own Python."""
    original_layout: str | None = None
    """The published code that wrote the weights (checkpoints.ltg_layouts)."""
    peft: str | None = None
    """Folder or hub id of a PEFT adapter that is merged into the weights."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, instead of the checkpoint's own."""
    allow_unused: bool = False
    """Open a checkpoint some of whose tensors the model does not use."""
    allow_missing: bool = False
    """Open a checkpoint that lacks parameters of the model; they are random (seed 0)."""


@dataclass(frozen=True, slots=True)
class CheckpointSources:
    """The folders that a checkpoint is opened from."""

    base: Path
    """Configuration, weights and code."""
    tokenizer: Path
    adapter: Path | None = None
    """A PEFT adapter to merge into the weights."""
    notes: tuple[str, ...] = ()
    """Choices between several candidates, in sentences."""


def expand_refs(refs: Sequence[str]) -> list[str]:
    """Expand folders, globs, folders of checkpoints (`chck_1M`, `chck_2M`, ...) and hub ids to one
    reference per checkpoint.

    An existing path is never read as a glob, whatever brackets its name has. Sub-folders are sorted
    by the number in their name, so that milestones come in order of words seen. Raises
    CheckpointError for a glob or folder without checkpoints.
    """
    expanded: list[str] = []
    for ref in refs:
        if not ref.strip():
            raise CheckpointError(
                "the name is empty", location="--model", hint="give a folder, a glob or a hub id"
            )
        path = _as_path(ref)
        if path.is_dir() and not _is_checkpoint(path):
            matches = [child for child in path.iterdir() if _is_checkpoint(child)]
        elif not path.exists() and any(c in ref for c in "*?["):
            root, pattern = _split_glob(path)
            matches = [match for match in root.glob(pattern) if _is_checkpoint(match)]
        else:
            expanded.append(ref)
            continue
        if not matches:
            raise CheckpointError(
                "no checkpoint here (no config.json, in it or one level down)",
                location=ref,
                hint="give a Hugging Face folder (config.json, model.safetensors, tokenizer.json) "
                "or a hub id",
            )
        expanded += [str(p) for p in sorted(matches, key=_milestone_key)]
    return list(dict.fromkeys(expanded))


def _is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds a model or a PEFT adapter."""
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def _split_glob(path: Path) -> tuple[Path, str]:
    """Split a glob into the longest folder that exists (brackets in its name are letters) and the
    pattern below it.
    """
    parent = next((parent for parent in path.parents if parent.is_dir()), Path())
    return parent, str(path.relative_to(parent))


def _as_path(ref: str) -> Path:
    """Return a reference as a path. Raises CheckpointError for what cannot be a path."""
    try:
        Path(ref).exists()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        raise CheckpointError(
            f"no such folder: {first_line(error)}", location=f"{ref:.60}"
        ) from error
    return Path(ref)


def _milestone_key(path: Path) -> tuple[float, str]:
    """Return the number that sorts milestones: the last one in the folder's name, with K, M or B
    (`chck_1M`, `step-2000`).
    """
    digits = unit = ""
    for character in reversed(path.name):
        if character.isdigit() or (character == "." and digits):
            digits = character + digits
        elif digits:
            break
        elif character.upper() in "KMB":
            unit = character.upper()
    scale = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}[unit]
    return (float(digits.strip(".") or 0) * scale, path.name)


def locate_checkpoint(ref: str, options: OpenOptions) -> Path:
    """Return the local folder of a checkpoint or PEFT adapter; of a hub id only the needed files
    are downloaded.
    """
    path = _as_path(ref)
    if path.is_dir():
        if options.revision:
            raise UsageError(
                f"a local folder has no revisions: {options.revision!r} would score the same "
                "weights again",
                location="--revision",
                hint="give the folder of that checkpoint instead, or the hub id",
            )
        if not _is_checkpoint(path):
            raise CheckpointError("no config.json: not a Hugging Face checkpoint", location=ref)
        _check_weights(path, options)
        return path
    folder = _local_or_hub(
        ref, options.revision, options, "a checkpoint is a folder with config.json, or a hub id"
    )
    _check_weights(folder, options)
    return folder


def locate_sources(ref: str, options: OpenOptions) -> CheckpointSources:
    """Find the folders of a checkpoint, of the adapter that belongs to it, and of its tokenizer.

    Raises CheckpointError for an adapter beside weights that are not those it was trained on, and
    UsageError for two adapters.
    """
    folder = locate_checkpoint(ref, options)
    base, adapter = folder, None
    notes: list[str] = []
    config = read_json(folder / ADAPTER_CONFIG)
    if config is not None and options.peft:
        raise UsageError(
            f"{ref} is or holds a PEFT adapter already",
            location="--peft",
            hint="give the base model with --model, and one adapter with --peft",
        )
    if options.peft:
        adapter = _adapter_folder(options.peft, options)
    elif (folder / ADAPTER_CONFIG).is_file():
        adapter = folder
        base = _base_folder(ref, folder, config, options)
        notes += (
            [f"the adapter beside the weights in {folder.name} is merged into them"]
            if base == folder
            else []
        )
    tokenizer = (
        adapter
        if adapter is not None and list_files(adapter, TOKENIZER_PATTERNS) and not options.peft
        else base
    )
    if options.tokenizer:
        tokenizer = _tokenizer_folder(options.tokenizer, options)
    return CheckpointSources(base, tokenizer, adapter, tuple(notes))


def _base_folder(
    ref: str, folder: Path, config: dict[str, Any] | None, options: OpenOptions
) -> Path:
    """Return the folder of an adapter's base model, named by adapter_config.json."""
    named = (config or {}).get("base_model_name_or_path")
    if config is None or not (named is None or isinstance(named, str)):
        raise CheckpointError(
            f"{ADAPTER_CONFIG} cannot be read", location=str(folder), hint="save the adapter again"
        )
    has_own_weights = (folder / "config.json").is_file() and bool(list_weight_sets(folder))
    if has_own_weights:
        same = not named or named in (ref, str(folder)) or _is_same_folder(named, folder)
        if same:
            return folder
        raise CheckpointError(
            f"holds a whole model and an adapter of another one ({named!r}): which is meant?",
            location=str(folder),
            hint=f"score the adapter with --model {named} --peft {folder}, or move "
            f"{ADAPTER_CONFIG} away",
        )
    if not named:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} does not name its base model",
            location=str(folder),
            hint=f"--model BASE --peft {folder}",
        )
    sibling = folder.parent / named
    reference = str(sibling) if not _as_path(named).is_dir() and sibling.is_dir() else named
    revision = config.get("revision") if not Path(reference).is_dir() else None
    try:
        return locate_checkpoint(
            reference, replace(options, revision=revision if isinstance(revision, str) else None)
        )
    except BenchError as error:
        raise CheckpointError(
            f"its base model {named!r} cannot be had: {error.message}",
            location=str(folder),
            hint=f"--model BASE --peft {folder}",
        ) from error


def _is_same_folder(named: str, folder: Path) -> bool:
    return any(
        path.is_dir() and path.samefile(folder) for path in (_as_path(named), folder.parent / named)
    )


def _adapter_folder(ref: str, options: OpenOptions) -> Path:
    """Return the folder of `--peft`. Raises CheckpointError where it holds no adapter."""
    hint = f"an adapter is a folder with {ADAPTER_CONFIG}, or a hub id"
    path = _as_path(ref)
    folder = path if path.is_dir() else _local_or_hub(ref, None, options, hint)
    if read_json(folder / ADAPTER_CONFIG) is None:
        raise CheckpointError(
            f"no PEFT adapter here (no readable {ADAPTER_CONFIG})", location=ref, hint=hint
        )
    return folder


def _tokenizer_folder(ref: str, options: OpenOptions) -> Path:
    """Return the folder of `--tokenizer`. Raises CheckpointError where it holds no tokenizer."""
    hint = "a tokenizer is a folder with tokenizer.json (or vocab.txt, *.model), or a hub id"
    path = _as_path(ref)
    folder = path if path.is_dir() else _local_or_hub(ref, None, options, hint, weights=False)
    if not list_files(folder, TOKENIZER_PATTERNS):
        raise CheckpointError("no tokenizer here", location=ref, hint=hint)
    return folder


def _local_or_hub(
    ref: str, revision: str | None, options: OpenOptions, hint: str, weights: bool = True
) -> Path:
    """Return the local snapshot of a hub id. Raises CheckpointError for a path that does not exist
    or an id without files.
    """
    if (
        _as_path(ref).exists()
        or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", ref)
        or ref.startswith(".")
    ):
        raise CheckpointError("no such folder", location=ref, hint=hint)
    from huggingface_hub import snapshot_download

    # Code is run with --trust-remote-code only; it is read, though, where two layouts have the same
    # names of weights.
    patterns = [
        "*.json",
        "*.txt",
        "*.model",
        *CODE_PATTERNS,
        *(SAFETENSORS_PATTERNS if weights else ()),
    ]
    patterns += PICKLE_PATTERNS if options.allow_pickle and weights else ()
    try:
        return Path(snapshot_download(ref, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise CheckpointError(
            f"cannot be had from the hub: {first_line(error)}",
            location=f"{ref}@{revision or 'main'}",
            hint="no such local folder either; check the spelling, the network and HF_TOKEN, or "
            "unset HF_HUB_OFFLINE",
        ) from error


def _check_weights(folder: Path, options: OpenOptions) -> None:
    """Raise CheckpointError for a folder without weights or an adapter, or with pickled ones that
    are not allowed.
    """
    if select_weights(folder, options.allow_pickle) or (folder / ADAPTER_CONFIG).is_file():
        return
    if not list_weight_sets(folder):
        raise CheckpointError(NO_WEIGHTS_MESSAGE, location=str(folder))
    raise CheckpointError(
        "the weights are pickled, and unpickling can run code",
        location=str(folder),
        hint="convert them to safetensors, or pass --allow-pickle if you trust their author",
    )


def safetensors_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files that a checkpoint is loaded from; none where its weights are
    pickled.
    """
    chosen = select_weights(folder)
    return chosen.files if chosen else ()


def pickled_files(folder: Path) -> tuple[Path, ...]:
    """Return the pickled files that a checkpoint is loaded from; none where it has safetensors."""
    chosen = select_weights(folder, allow_pickle=True)
    return chosen.files if chosen and chosen.is_pickle else ()


def list_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a folder that match any of the patterns, sorted by name."""
    return sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()})


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, shortened for an error message of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
