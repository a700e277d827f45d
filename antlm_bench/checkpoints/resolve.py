"""Resolve references to checkpoints: folders, globs, hub ids, adapters and separate tokenizers. No
weight is loaded here.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from antlm_bench.checkpoints.gguf_files import convert_gguf, find_gguf_file
from antlm_bench.errors import BenchError, CheckpointError, UsageError, first_line
from antlm_bench.text_arguments import check_option_types, check_path
from antlm_bench.weight_files import (
    ADAPTER_CONFIG,
    hash_files,
    list_weight_sets,
    read_json,
    select_weights,
)

TRAINING_KEY = "antlm_bench"
"""Key of config.json under which `train` stores how it trained a checkpoint."""
SAFETENSORS_PATTERN, PICKLE_PATTERN = "*.safetensors", "*.bin"
TOKENIZER_PATTERNS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
CODE_PATTERNS = ("*.py",)
HUB_ID = re.compile(r"(?!\.)[\w.-]+(/[\w.-]+)?")
"""`name` or `owner/name` on the Hugging Face hub."""
MAX_REVISIONS_SHOWN = 30
DTYPE_NAMES = ("float32", "bfloat16", "float16", "float64")
CPU_BATCH_TOKENS = 2048
"""Default number of tokens per forward on a CPU: few enough for its caches. A shared prefix counts
once."""
GPU_BATCH_TOKENS = 32_768
"""Default number of tokens per forward on other devices."""
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Keys of config.json that declare the longest row."""
NO_MAX_LENGTH = 10**9
"""A limit of this many tokens or more means "no limit": transformers writes a huge number."""


@dataclass(frozen=True, slots=True)
class WeightOptions:
    """Which files of a checkpoint to load, and how to run it: options that `score` and `finetune`
    share.
    """

    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    batch_tokens: int | None = None
    """Tokens per forward pass; None = the default for the device."""
    allow_pickle: bool = False
    """Load pickled weights."""
    trust_remote_code: bool = False
    """Run the Python code in the checkpoint's folder."""
    original_layout: str | None = None
    """Published layout of the weights (checkpoints.ltg_layouts), if the files fit several."""
    peft: str | None = None
    """Folder or hub id of a PEFT adapter that is merged into the weights."""
    tokenizer: str | None = None
    """Folder or hub id of a tokenizer that replaces the checkpoint's."""
    allow_unused: bool = False
    """Accept files with tensors that the model does not use."""
    allow_missing: bool = False
    """Accept files without some of the model's parameters, which are then random (seed 0)."""


@dataclass(frozen=True, slots=True)
class OpenOptions(WeightOptions):
    """How to open a checkpoint. Each field can change scores, or whether a checkpoint is accepted;
    `score --help` explains them.
    """

    dtype: str = "float32"
    """One of DTYPE_NAMES."""
    bos: str = "auto"
    """BOS policy (scoring.text.BOS_POLICIES)."""
    max_length: int | None = None
    """Longest text in tokens, special tokens included; None = as `lengths` allows."""
    lengths: str = "declared"
    """Rule for the longest text without `max_length`. "declared": the limit in config.json and the
    tokenizer. "positions": as many tokens as the model can run.
    """

    def __post_init__(self) -> None:
        """Convert paths to strings. Raises UsageError for values of other types."""
        check_option_types(self)
        for name in ("peft", "tokenizer"):
            if getattr(self, name) is not None:
                check_path(getattr(self, name), name)
                object.__setattr__(self, name, str(getattr(self, name)))


def select_open_options(options: Mapping[str, Any]) -> OpenOptions:
    """Return the options of `score` or `finetune` that OpenOptions has, too.

    Without dtype, which is only that of matrix products in `finetune`.
    """
    names = OpenOptions.__dataclass_fields__.keys() - {"dtype"}
    return OpenOptions(**{name: value for name, value in options.items() if name in names})


@dataclass(frozen=True, slots=True)
class CheckpointSources:
    """The folders that hold the files of a checkpoint."""

    base: Path
    """Configuration, weights and code."""
    tokenizer: Path
    adapter: Path | None = None
    """A PEFT adapter to merge into the weights."""
    notes: tuple[str, ...] = ()
    """Sentences for the user on what is opened, e.g. that an adapter is merged. The loader adds
    which of several sets of weights it read.
    """


def expand_refs(refs: Sequence[str], revision: str | None = None) -> list[str]:
    """Return one reference per checkpoint.

    A glob, or a folder of checkpoints (`chck_1M`, `chck_2M`, ...), becomes the checkpoints in it,
    sorted by the number in their name, so that milestones come in order of words seen. Hidden
    folders (`.main.old`) are left out. An existing path is never read as a glob, even if its name
    has brackets. Of several paths of one folder (`a`, `./a`), the first is kept.

    revision: several revisions of hub ids, as `a,b` or a pattern (`chck_*M`): a hub id becomes
    `id@revision` for each (`split_revision`). Raises CheckpointError for a glob or folder without
    checkpoints, and for a pattern that no revision on the hub matches.
    """
    expanded: list[str] = []
    for ref in refs:
        if not ref.strip():
            raise CheckpointError(
                "the name is empty", location="--model", hint="give a folder, a glob or a hub id"
            )
        path = _as_path(ref)
        if path.is_dir() and not _is_checkpoint(path):
            matches = [
                child
                for child in path.iterdir()
                if _is_checkpoint(child) and not child.name.startswith(".")
            ]
        elif not path.exists() and any(character in ref for character in "*?["):
            root, pattern = _split_glob(path)
            matches = list(filter(_is_checkpoint, root.glob(pattern)))
            if not pattern.startswith("."):
                matches = [match for match in matches if not _is_hidden(match, root)]
        else:
            expanded.append(ref)
            continue
        if not matches:
            raise CheckpointError(
                "no checkpoint here: no config.json in this folder or its subfolders",
                location=ref,
                hint="give a Hugging Face folder (config.json, model.safetensors, tokenizer.json) "
                "or a hub id",
            )
        expanded += [str(match) for match in sorted(matches, key=_milestone_key)]
    if revision and re.search(r"[,*?\[]", revision):
        expanded = [full_ref for ref in expanded for full_ref in _expand_revisions(ref, revision)]
    unique: dict[object, str] = {}
    for ref in expanded:
        path = _as_path(ref)
        unique.setdefault(path.resolve() if path.exists() else ref, ref)
    return list(unique.values())


def split_revision(ref: str, options: OpenOptions) -> tuple[str, OpenOptions]:
    """Return the hub id and the options with the revision of `id@revision`; else the arguments."""
    hub_id, separator, revision = ref.rpartition("@")
    if not separator or not revision or not HUB_ID.fullmatch(hub_id) or _as_path(ref).exists():
        return ref, options
    return hub_id, replace(options, revision=revision)


def _expand_revisions(ref: str, revisions: str) -> list[str]:
    """Return `ref@revision` for the revisions `a,b` or patterns of a hub id."""
    if not HUB_ID.fullmatch(ref) or _as_path(ref).exists():
        raise UsageError(
            f"{ref} is a local folder, which has no revisions",
            location="--revision",
            hint="give the folder that holds the checkpoints, or a hub id",
        )
    names: list[str] = []
    for part in filter(None, revisions.split(",")):
        if re.search(r"[*?\[]", part):
            matches = fnmatch.filter(_list_revisions(ref), part)
            if not matches:
                raise CheckpointError(
                    f"no revision matches {part!r}",
                    location=ref,
                    hint=f"there are {', '.join(_list_revisions(ref)[:MAX_REVISIONS_SHOWN])}",
                )
            names += sorted(matches, key=lambda name: _milestone_key(Path(name)))
        else:
            names.append(part)
    return [f"{ref}@{name}" for name in dict.fromkeys(names)]


@cache
def _list_revisions(ref: str) -> tuple[str, ...]:
    """Return the branches and tags of a hub id. Raises CheckpointError."""
    from huggingface_hub import HfApi

    try:
        refs = HfApi().list_repo_refs(ref)
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise CheckpointError(
            f"its revisions cannot be listed: {first_line(error)}",
            location=ref,
            hint="name them: --revision chck_1M,chck_2M; or check the network, HF_TOKEN and "
            "HF_HUB_OFFLINE",
        ) from error
    return tuple(each.name for each in (*refs.branches, *refs.tags))


def _is_checkpoint(folder: Path) -> bool:
    """Return whether a path is a folder with a model or a PEFT adapter, or a GGUF file."""
    if find_gguf_file(folder) is not None:
        return True
    return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))


def _is_hidden(path: Path, root: Path) -> bool:
    """Return whether a name below `root` begins with a dot: `.main.old` is what a writer left."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _split_glob(path: Path) -> tuple[Path, str]:
    """Return (longest existing parent folder, pattern below it) of a glob.

    Brackets in the parent's name are literal.
    """
    parent = next((parent for parent in path.parents if parent.is_dir()), Path())
    return parent, str(path.relative_to(parent))


def _as_path(ref: str) -> Path:
    """Return a reference as a path. Raises CheckpointError if it cannot be a path."""
    try:
        Path(ref).exists()
    except (OSError, ValueError) as error:  # too long, or a NUL character
        raise CheckpointError(
            f"no such folder: {first_line(error)}", location=f"{ref:.60}"
        ) from error
    return Path(ref)


def _milestone_key(path: Path) -> tuple[float, str]:
    """Return the sort key of a milestone: (last number in the folder's name, name).

    A K, M or B directly behind the number is its unit, unless a letter follows: `chck_1M` is a
    million, `step-1000-best` and `1000-base` are a thousand.
    """
    numbers = re.findall(r"(\d+(?:\.\d+)?)(?:([KMB])(?![^\W\d_]))?", path.name, re.IGNORECASE)
    if not numbers:
        return (0.0, path.name)
    number, unit = numbers[-1]
    scale = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}[unit.upper()]
    return (float(number) * scale, path.name)


def locate_checkpoint(ref: str, options: OpenOptions) -> Path:
    """Return the local folder of a checkpoint or PEFT adapter. Downloads the needed files of a hub
    id, and converts a GGUF file.
    """
    if not ref.strip():
        raise CheckpointError(
            "the name is empty", location="model", hint="give a folder or a hub id"
        )
    ref, options = split_revision(ref, options)
    path = _as_path(ref)
    if gguf_file := find_gguf_file(path):
        return convert_gguf(gguf_file)
    if path.is_dir():
        if options.revision:
            raise UsageError(
                f"{ref} is a local folder, which has no revision {options.revision!r}",
                location="--revision",
                hint="give the folder of that revision, or a hub id",
            )
        if not _is_checkpoint(path):
            raise CheckpointError("no config.json: not a Hugging Face checkpoint", location=ref)
        _check_weights(path, options)
        return path
    hint = "a checkpoint is a folder with config.json, or a hub id"
    folder = _download_snapshot(ref, options.revision, options, hint)
    _check_weights(folder, options)
    return folder


def locate_sources(ref: str, options: OpenOptions) -> CheckpointSources:
    """Find the folders of a checkpoint's base model, adapter and tokenizer.

    Raises CheckpointError for a folder with the weights of one model and an adapter of another, and
    UsageError for two adapters.
    """
    folder = locate_checkpoint(ref, options)
    base, adapter = folder, None
    notes: tuple[str, ...] = ()
    adapter_config = read_json(folder / ADAPTER_CONFIG)
    if adapter_config is not None and options.peft:
        raise UsageError(
            f"{ref} already holds a PEFT adapter",
            location="--peft",
            hint="give the base model with --model, and one adapter with --peft",
        )
    if options.peft:
        adapter = _adapter_folder(options.peft, options)
    elif (folder / ADAPTER_CONFIG).is_file():
        # Also for an unreadable file, whose adapter_config is None: _base_folder raises for it.
        adapter = folder
        base = _base_folder(ref, folder, adapter_config, options)
        if base == folder:
            notes = (f"{folder.name} holds weights and an adapter, which is merged into them",)
    if options.tokenizer:
        tokenizer = _tokenizer_folder(options.tokenizer, options)
    elif list_files(folder, TOKENIZER_PATTERNS):
        tokenizer = folder
    else:
        tokenizer = base  # an adapter's folder may hold no tokenizer
    if gguf_file := find_gguf_file(_as_path(ref)):
        digest = hash_files([gguf_file])
        notes += (f"transformers dequantised the weights of {gguf_file.name} (sha256 {digest})",)
    return CheckpointSources(base, tokenizer, adapter, notes)


def locate_description(ref: str, options: OpenOptions) -> CheckpointSources:
    """Find the folders of a checkpoint's configuration and tokenizer, without its weights.

    Of a hub id, the small files are downloaded. Raises as `locate_sources`.
    """
    ref, options = split_revision(ref, options)
    if _as_path(ref).exists():
        return locate_sources(ref, options)
    hint = "a checkpoint is a folder with config.json, or a hub id"
    folder = _download_snapshot(ref, options.revision, options, hint, with_weights=False)
    tokenizer = _tokenizer_folder(options.tokenizer, options) if options.tokenizer else folder
    return CheckpointSources(folder, tokenizer)


def display_name(ref: str, options: OpenOptions) -> str:
    """Return a checkpoint's name in tables: folder or hub id, revision, adapter."""
    revision = f"@{options.revision}" if options.revision else ""
    adapter = f"+{_shorten_ref(options.peft)}" if options.peft else ""
    return _shorten_ref(ref) + revision + adapter


def _shorten_ref(ref: str) -> str:
    """Return the name of a folder, or a hub id as it is.

    A folder `main`, as BabyLM names revisions, gets its parent's name.
    """
    if not Path(ref).exists():
        return ref
    folder = Path(ref).resolve()
    return folder.parent.name if folder.name == "main" else folder.name


def _base_folder(
    ref: str, folder: Path, adapter_config: dict[str, Any] | None, options: OpenOptions
) -> Path:
    """Return the folder of an adapter's base model, which adapter_config.json names."""
    base = (adapter_config or {}).get("base_model_name_or_path")
    is_valid_base = base is None or isinstance(base, str)
    if adapter_config is None or not is_valid_base:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} cannot be read", location=str(folder), hint="save the adapter again"
        )
    has_model_weights = (folder / "config.json").is_file() and bool(list_weight_sets(folder))
    if has_model_weights:
        if not base or base in (ref, str(folder)) or _is_same_folder(base, folder):
            return folder
        raise CheckpointError(
            f"holds a whole model and an adapter of another model ({base!r})",
            location=str(folder),
            hint=f"to score the adapter: --model {shlex.quote(base)} --peft "
            f"{shlex.quote(str(folder))}; to score the model: move {ADAPTER_CONFIG} out of the "
            "folder",
        )
    if not base:
        raise CheckpointError(
            f"{ADAPTER_CONFIG} does not name its base model",
            location=str(folder),
            hint=f"--model BASE --peft {shlex.quote(str(folder))}",
        )
    # The path of a base model may be relative to the adapter's parent folder.
    sibling = folder.parent / base
    base_ref = str(sibling) if sibling.is_dir() and not _as_path(base).is_dir() else base
    base_revision = adapter_config.get("revision")
    if Path(base_ref).is_dir() or not isinstance(base_revision, str):
        base_revision = None
    try:
        return locate_checkpoint(base_ref, replace(options, revision=base_revision))
    except BenchError as error:
        raise CheckpointError(
            f"the adapter's base model {base!r} cannot be opened: {error.message}",
            location=str(folder),
            hint=f"--model BASE --peft {shlex.quote(str(folder))}",
        ) from error


def _is_same_folder(base: str, folder: Path) -> bool:
    """Return whether the name of a base model is a path to `folder`."""
    candidates = (_as_path(base), folder.parent / base)
    return any(path.is_dir() and path.samefile(folder) for path in candidates)


def _adapter_folder(ref: str, options: OpenOptions) -> Path:
    """Return the folder of `--peft`. Raises CheckpointError if it holds no adapter."""
    hint = f"an adapter is a folder with {ADAPTER_CONFIG}, or a hub id"
    path = _as_path(ref)
    folder = path if path.is_dir() else _download_snapshot(ref, None, options, hint)
    if read_json(folder / ADAPTER_CONFIG) is None:
        raise CheckpointError(
            f"no PEFT adapter here (no readable {ADAPTER_CONFIG})", location=ref, hint=hint
        )
    return folder


def _tokenizer_folder(ref: str, options: OpenOptions) -> Path:
    """Return the folder of `--tokenizer`. Raises CheckpointError if it holds no tokenizer."""
    hint = "a tokenizer is a folder with tokenizer.json (or vocab.txt, *.model), or a hub id"
    path = _as_path(ref)
    folder = path
    if not path.is_dir():
        folder = _download_snapshot(ref, None, options, hint, with_weights=False)
    if not list_files(folder, TOKENIZER_PATTERNS):
        raise CheckpointError("no tokenizer here", location=ref, hint=hint)
    return folder


def _download_snapshot(
    ref: str, revision: str | None, options: OpenOptions, hint: str, with_weights: bool = True
) -> Path:
    """Return the local folder of a hub id's files.

    Raises CheckpointError for a reference that is not a hub id (with `hint`), and for a failed
    download (with its own hint).
    """
    if _as_path(ref).exists() or not HUB_ID.fullmatch(ref):
        raise CheckpointError("no such folder", location=ref, hint=hint)
    from huggingface_hub import snapshot_download

    # Code is downloaded even without --trust-remote-code, but not run: if the tensor names fit two
    # published layouts, checkpoints.ltg_layouts reads the code as text to tell them apart.
    patterns = ["*.json", "*.txt", "*.model", *CODE_PATTERNS]
    if with_weights:
        patterns.append(SAFETENSORS_PATTERN)
        if options.allow_pickle:
            patterns.append(PICKLE_PATTERN)
    try:
        return Path(snapshot_download(ref, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise CheckpointError(
            f"cannot be downloaded from the hub: {first_line(error)}",
            location=f"{ref}@{revision or 'main'}",
            hint="there is no such local folder either; check the spelling, the network and "
            "HF_TOKEN, or unset HF_HUB_OFFLINE",
        ) from error


def _check_weights(folder: Path, options: OpenOptions) -> None:
    """Raise CheckpointError for a folder with neither weights nor an adapter, and for pickled
    weights without --allow-pickle.
    """
    if select_weights(folder, options.allow_pickle) or (folder / ADAPTER_CONFIG).is_file():
        return
    if not list_weight_sets(folder):
        raise CheckpointError("no weights: no *.safetensors file", location=str(folder))
    raise CheckpointError(
        "the weights are pickled, and unpickling can run code",
        location=str(folder),
        hint="convert them to safetensors, or pass --allow-pickle if you trust their author",
    )


def list_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a folder that match any of the patterns, sorted by name."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return sorted(files)
