"""Where checkpoints lie: folders, globs, hub ids; what their bytes hash to. Nothing here loads a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench.errors import CheckpointError, UsageError

SAFE, PICKLED = ("*.safetensors",), ("pytorch_model*.bin",)
TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json")
CODE = ("*.py",)


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How to open a checkpoint; every field can change a score or refuse a file. See the command line's help."""

    revision: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    bos: str = "auto"
    max_length: int | None = None
    lengths: str = "declared"  # see scoring.choice.Policy
    batch_tokens: int | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False


def expand(refs: Sequence[str]) -> list[str]:
    """Folders, globs, folders of checkpoints (`chck_1M`, `chck_2M`, ...) and hub ids -> one ref per checkpoint.

    Sub-folders are sorted by the number in their name, so that milestones come in order of words seen.
    Raises CheckpointError for a glob or a folder that holds no checkpoint.
    """
    found: list[str] = []
    for ref in refs:
        path = _path(ref)
        if any(c in ref for c in "*?["):
            root = Path(path.anchor) if path.is_absolute() else Path()
            pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else ref
            matches = [p for p in root.glob(pattern) if (p / "config.json").is_file()]
        elif path.is_dir() and not (path / "config.json").is_file():
            matches = [p.parent for p in path.glob("*/config.json")]
        else:
            found.append(ref)
            continue
        if not matches:
            raise CheckpointError(
                "no checkpoint here (no config.json, in it or one level down)",
                place=ref,
                hint="give a Hugging Face folder (config.json, model.safetensors, tokenizer.json) or a hub id",
            )
        found += [str(p) for p in sorted(matches, key=_milestone)]
    return list(dict.fromkeys(found))


def _path(ref: str) -> Path:
    """The path that a reference may be. CheckpointError where no file system could hold it."""
    try:
        Path(ref).exists()
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        raise CheckpointError(f"no such folder: {first_line(error)}", place=f"{ref:.60}") from error
    return Path(ref)


def _milestone(path: Path) -> tuple[float, str]:
    """Words seen as the folder's name tells them (`chck_1M`, `step-2000`): the last number, K/M/B understood."""
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


def locate(ref: str, options: OpenOptions) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded (safetensors, configuration and tokenizer only)."""
    path = _path(ref)
    if path.is_dir():
        if options.revision:
            raise UsageError(
                f"a local folder has no revisions: {options.revision!r} would score the same weights again",
                place="--revision",
                hint="give the folder of that checkpoint instead, or the hub id",
            )
        if not (path / "config.json").is_file():
            raise CheckpointError("no config.json: not a Hugging Face checkpoint", place=ref)
        if not files(path, SAFE):
            _pickled(path, options)
        return path
    if path.exists() or ref.startswith((".", "/", "~")) or ref.count("/") > 1:
        raise CheckpointError(
            "no such folder", place=ref, hint="a checkpoint is a folder with config.json, or a hub id"
        )
    from huggingface_hub import snapshot_download

    # Code is run with --trust-remote-code only; it is read, though, where two layouts have the same names of weights.
    patterns = ["*.json", "*.txt", "*.model", *CODE, *SAFE]
    patterns += PICKLED if options.allow_pickle else ()
    try:
        folder = Path(snapshot_download(ref, revision=options.revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise CheckpointError(
            f"cannot be had from the hub: {first_line(error)}",
            place=f"{ref}@{options.revision or 'main'}",
            hint="no such local folder either; check the spelling, the network and HF_TOKEN, or unset HF_HUB_OFFLINE",
        ) from error
    if not files(folder, SAFE):
        _pickled(folder, options)
    return folder


def _pickled(folder: Path, options: OpenOptions) -> None:
    if not files(folder, PICKLED):
        raise CheckpointError("no weights: no *.safetensors file", place=str(folder))
    if not options.allow_pickle:
        raise CheckpointError(
            "the weights are pickled, and unpickling can run code",
            place=str(folder),
            hint="convert them to safetensors, or pass --allow-pickle if you trust their author",
        )


def weight_hash(folder: Path) -> str:
    """sha256 over the bytes of the weight files, shard by shard: what a run, a cache and a duplicate are keyed by."""
    return hash_of(files(folder, SAFE) or files(folder, PICKLED))


def hash_of(some: Sequence[Path]) -> str:
    """sha256 over the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for file in some:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder that match any of the patterns, sorted by name."""
    return sorted({f for pattern in patterns for f in folder.glob(pattern) if f.is_file()})


def first_line(error: BaseException) -> str:
    """What a library's exception says, short enough for one of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
