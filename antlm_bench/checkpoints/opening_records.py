"""Remember what opening a checkpoint told, so that finished scores are found without opening it.

A content key has facts that only an open checkpoint tells: its class, its special tokens, its
maximum length. They follow from its files, the options and the software. A record in the user's
cache holds these facts under a hash of all of that. Whatever changes, the hash changes, no record
is found, and the checkpoint is opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import antlm_bench
from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.checkpoints.metadata import HasMetadata, describe_reference
from antlm_bench.checkpoints.resolve import (
    CODE_PATTERNS,
    CheckpointSources,
    OpenOptions,
    display_name,
)
from antlm_bench.errors import BenchError, CheckpointError
from antlm_bench.runs.folder_io import write_atomically
from antlm_bench.runs.provenance import describe_machine
from antlm_bench.safe_json import parse_json
from antlm_bench.scoring.conventions import CONVENTIONS_VERSION
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.text import EosRule
from antlm_bench.suites.sources import cache_dir
from antlm_bench.types import ModelInfo
from antlm_bench.weight_files import ADAPTER_WEIGHTS, hash_files, read_json, select_weights

RECORD_VERSION = 1
EOS_RULES: tuple[EosRule, ...] = ("all", "context")
LIBRARIES = (
    "accelerate",
    "huggingface_hub",
    "peft",
    "protobuf",
    "regex",
    "safetensors",
    "sentencepiece",
    "tiktoken",
)
"""Packages that open checkpoints, besides those of runs.provenance."""
MACHINE_FACTS = ("cpu", "gpus", "driver", "python", "packages")
"""Facts of runs.provenance.describe_machine that decide which shortcuts of the engine work."""


WEIGHT_SUFFIXES = (".bin", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".safetensors")


class DescribedCheckpoint(HasMetadata, ModelInfo, Protocol):
    """A checkpoint, open or remembered, of which all is known that a content key depends on."""

    @property
    def methods(self) -> list[str]: ...

    @property
    def trained_methods(self) -> tuple[str, ...]: ...

    def with_context_bos_policy(self, bos: str) -> Any: ...

    def with_scored_eos(self, rule: EosRule) -> Any: ...


@dataclass(frozen=True, slots=True)
class RememberedCheckpoint:
    """What is known of a checkpoint that was opened before. It cannot be run.

    checkpoint.Checkpoint documents the fields and methods that both classes have.
    """

    name: str
    attentions: frozenset[str]
    eos: str
    mask_id: int | None
    max_length: int | None
    no_mask_reason: str
    methods: list[str]
    trained_methods: tuple[str, ...]
    metadata: dict[str, Any]
    scored_specials: Mapping[str, str | None]
    """Rule of `with_scored_eos` -> its entry in the metadata; None = it adds none. A rule that
    cannot be applied is missing."""

    def with_context_bos_policy(self, bos: str) -> RememberedCheckpoint:
        """Return itself: the policy is no part of the metadata."""
        del bos
        return self

    def with_scored_eos(self, rule: EosRule) -> RememberedCheckpoint:
        """Return a copy with the metadata of this rule. Raises CheckpointError if it has none."""
        if rule not in self.scored_specials:
            raise CheckpointError("cannot score the special tokens after a text", location="--eos")
        if (specials := self.scored_specials[rule]) is None:
            return self
        return replace(self, metadata={**self.metadata, "scored_specials": specials})


def hash_inputs(ref: str, sources: CheckpointSources, options: OpenOptions, engine: str) -> str:
    """Return a hash of all but the weights that decides what opening a checkpoint tells.

    "" = not all can be hashed: code in another repository, which transformers would fetch.
    """
    if options.trust_remote_code and _names_other_repository(sources.base):
        return ""
    folders = {sources.base, sources.tokenizer, *filter(None, [sources.adapter])}
    inputs = {
        "record": RECORD_VERSION,
        "conventions": CONVENTIONS_VERSION,
        "checkpoint": [display_name(ref, options), describe_reference(ref, options.revision)],
        "options": {**asdict(options), "device": str(options.device)},
        "engine": engine,
        "files": {
            role: None if folder is None else str(folder.resolve())
            for role, folder in (
                ("base", sources.base),
                ("tokenizer", sources.tokenizer),
                ("adapter", sources.adapter),
            )
        },
        "contents": {
            str(folder.resolve()): dict(_hash_folder(folder, options)) for folder in folders
        },
        "notes": sources.notes,
        "methods": list(METHODS.names()),
        "architectures": list(ARCHITECTURES.names()),
        "software": describe_software(),
    }
    return hash_text(json.dumps(inputs, sort_keys=True))


def store_record(inputs: str, checkpoint: DescribedCheckpoint) -> None:
    """Store what an open checkpoint tells under the hash of its inputs and its weights.

    Without `inputs` nothing is stored. A cache that cannot be written is left out.
    """
    if not inputs:
        return
    metadata = checkpoint.metadata
    weights = str(metadata.get("base_weights", metadata["weights"]))
    content = {
        "name": checkpoint.name,
        "attentions": sorted(checkpoint.attentions),
        "eos": checkpoint.eos,
        "mask_id": checkpoint.mask_id,
        "max_length": checkpoint.max_length,
        "no_mask_reason": checkpoint.no_mask_reason,
        "methods": checkpoint.methods,
        "trained_methods": list(checkpoint.trained_methods),
        "metadata": checkpoint.metadata,
        "scored_specials": dict(_list_scored_specials(checkpoint)),
    }
    write_record(lambda: _record_file(inputs, weights), content)


def find_record(inputs: str, weights: str) -> RememberedCheckpoint | None:
    """Return what is stored under a hash of inputs and one of the base model's weights.

    None = nothing, or it is damaged.
    """
    stored = read_record(lambda: _record_file(inputs, weights)) if inputs else {}
    try:
        return RememberedCheckpoint(
            name=str(stored["name"]),
            attentions=frozenset(stored["attentions"]),
            eos=str(stored["eos"]),
            mask_id=stored["mask_id"],
            max_length=stored["max_length"],
            no_mask_reason=str(stored["no_mask_reason"]),
            methods=[*stored["methods"]],
            trained_methods=(*stored["trained_methods"],),
            metadata={**stored["metadata"]},
            scored_specials={**stored["scored_specials"]},
        )
    except (KeyError, TypeError):
        return None


def write_record(locate: Callable[[], Path], content: Mapping[str, Any]) -> None:
    """Write a record with its hash. A cache that cannot be written is left out.

    locate: function that returns its file.
    """
    # RuntimeError: there is no home directory.
    with suppress(OSError, BenchError, TypeError, ValueError, RuntimeError):
        file, text = locate(), json.dumps(content)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"sha256": hash_text(text), "content": text}).encode())


def read_record(locate: Callable[[], Path]) -> dict[str, Any]:
    """Return the content of a record; {} = there is none, it is damaged, or another user's."""
    with suppress(OSError, BenchError, KeyError, TypeError, ValueError, RuntimeError):
        file = locate()
        # In a cache that users share, only own records are believed.
        if hasattr(os, "getuid") and file.stat().st_uid != os.getuid():
            return {}
        document = read_json(file) or {}
        text = document.get("content")
        if isinstance(text, str) and document.get("sha256") == hash_text(text):
            content = parse_json(text)
            return content if isinstance(content, dict) else {}
    return {}


def hash_text(text: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _record_file(inputs: str, weights: str) -> Path:
    digest = hash_text(f"{inputs} {weights}")
    return cache_dir() / "opened-checkpoints" / f"{digest[:32]}.json"


def _list_scored_specials(checkpoint: DescribedCheckpoint) -> Iterator[tuple[str, str | None]]:
    """Yield (rule, entry "scored_specials" of the metadata) for each rule that can be applied."""
    for rule in EOS_RULES:
        with suppress(BenchError):
            scored = checkpoint.with_context_bos_policy("auto").with_scored_eos(rule)
            yield rule, scored.metadata.get("scored_specials")


def _names_other_repository(folder: Path) -> bool:
    """Return whether a configuration names code in another repository: "owner/name--file.Class"."""
    for name in ("config.json", "tokenizer_config.json"):
        if "--" in json.dumps((read_json(folder / name) or {}).get("auto_map")):
            return True
    return False


def _hash_folder(folder: Path, options: OpenOptions) -> Iterator[tuple[str, Any]]:
    """Yield (name, hash) of the files of a folder, and of its code in subfolders.

    Of the weights that are loaded, the name only: their hash is kept apart. Of weights
    that are not loaded, and may be large, size and time of the last change.
    """
    selected = select_weights(folder, options.allow_pickle)
    loaded = set(selected.files) if selected else set()
    code = [file for pattern in CODE_PATTERNS for file in folder.rglob(pattern)]
    for file in sorted({*folder.iterdir(), *code}):
        name = str(file.relative_to(folder))
        if not file.is_file():
            continue
        if file in loaded:
            yield name, "loaded"
        elif file.suffix in WEIGHT_SUFFIXES and file.name not in ADAPTER_WEIGHTS:
            yield name, [file.stat().st_size, file.stat().st_mtime_ns]
        else:
            yield name, hash_files([file])


@cache
def describe_software() -> dict[str, Any]:
    """Return the versions of the packages and of our own code, and facts about the machine."""
    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    machine = describe_machine()
    return {
        "libraries": versions,
        "source": _hash_source(),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        **{name: machine[name] for name in MACHINE_FACTS},
    }


def _hash_source() -> str:
    """Return a hash of our own code, which may change without a new version: 9 ms."""
    root = Path(antlm_bench.__file__).parent
    return hash_files(sorted(root.rglob("*.py")))
