"""Remember what opening a checkpoint told, so that finished scores are found without opening it.

A content key has facts that only an open checkpoint tells: its class, its special tokens, its
maximum length. They follow from its files, the options and the software. A record in the user's
cache holds these facts under a hash of all of that. Whatever changes, the hash changes, no record
is found, and the checkpoint is opened.

Records are not trusted: whatever can be computed from the files is compared with them, and a record
that is damaged, or that another user wrote, is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import antlm_bench
from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.checkpoints.metadata import (
    HasMetadata,
    describe_reference,
    hash_checkpoint_files,
    hash_code,
)
from antlm_bench.checkpoints.resolve import (
    CODE_PATTERNS,
    TOKENIZER_PATTERNS,
    CheckpointSources,
    OpenOptions,
    display_name,
    list_files,
)
from antlm_bench.errors import BenchError, CheckpointError
from antlm_bench.runs.folder_io import write_cache_file
from antlm_bench.runs.provenance import PEER_PACKAGES, RECORDED_PACKAGES, describe_machine
from antlm_bench.safe_files import read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.scoring.conventions import CONVENTIONS_VERSION
from antlm_bench.scoring.methods import METHODS
from antlm_bench.scoring.text import EosRule
from antlm_bench.suites.sources import cache_dir
from antlm_bench.types import ModelInfo
from antlm_bench.weight_files import (
    ADAPTER_WEIGHTS,
    MAX_JSON_BYTES,
    hash_files,
    read_json,
    select_weights,
)

CHECKPOINT_RECORD_VERSION = 2
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
MAX_HASHED_BYTES = 100_000_000
"""Largest file of a folder, besides loaded weights and tokenizers, whose bytes are hashed."""


class CheckpointInfo(HasMetadata, ModelInfo, Protocol):
    """A checkpoint, open or remembered, of which all is known that a content key depends on."""

    @property
    def methods(self) -> list[str]: ...

    @property
    def trained_methods(self) -> tuple[str, ...]: ...

    def with_context_bos_policy(self, bos: str) -> Any: ...

    def with_scored_eos(self, rule: EosRule) -> Any: ...


@dataclass(frozen=True, slots=True)
class RecordedCheckpoint:
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

    def with_context_bos_policy(self, bos: str) -> RecordedCheckpoint:
        """Return itself: the policy is no part of the metadata."""
        del bos
        return self

    def with_scored_eos(self, rule: EosRule) -> RecordedCheckpoint:
        """Return a copy with the metadata of this rule. Raises CheckpointError if it has none."""
        if rule not in self.scored_specials:
            raise CheckpointError(f"{self.name}: cannot score the special tokens after a text")
        if (specials := self.scored_specials[rule]) is None:
            return self
        return replace(self, metadata={**self.metadata, "scored_specials": specials})


def hash_inputs(ref: str, sources: CheckpointSources, options: OpenOptions, engine: str) -> str:
    """Return a hash of all but the weights that decides what opening a checkpoint tells.

    "" = something cannot be hashed: an unreadable file, a package that Python imports from another
    place than where it was installed, or code in another repository, which transformers fetches.
    """
    try:
        return _hash_inputs(ref, sources, options, engine)
    except (OSError, BenchError, UnhashableError):
        return ""


class UnhashableError(Exception):
    """Something that decides what opening a checkpoint tells cannot be hashed. Never reaches a
    user.
    """


def _hash_inputs(ref: str, sources: CheckpointSources, options: OpenOptions, engine: str) -> str:
    folders = {sources.base, sources.tokenizer, *filter(None, [sources.adapter])}
    if options.trust_remote_code and any(map(_names_other_repository, folders)):
        raise UnhashableError
    inputs = {
        "record": CHECKPOINT_RECORD_VERSION,
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


def store_checkpoint_record(inputs: str, checkpoint: CheckpointInfo) -> None:
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


def find_checkpoint_record(
    inputs: str, sources: CheckpointSources, options: OpenOptions, weights: str
) -> RecordedCheckpoint | None:
    """Return what is stored under a hash of inputs and one of the base model's weights.

    None = nothing is stored, or the record is damaged, another user's, or does not fit the files.
    """
    stored = read_record(lambda: _record_file(inputs, weights)) if inputs else {}
    checkpoint = _build_checkpoint(stored)
    if checkpoint is None:
        return None
    with suppress(OSError, BenchError, RuntimeError):
        expected = hash_checkpoint_files(sources, options, weights)
        if options.trust_remote_code:
            expected["code"] = hash_code(sources)
        if expected.items() <= checkpoint.metadata.items():
            return checkpoint
    return None


def _build_checkpoint(stored: Mapping[str, Any]) -> RecordedCheckpoint | None:
    """Return the facts of a stored record; None if one is missing or of a wrong type."""
    try:
        return RecordedCheckpoint(
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
    except (KeyError, TypeError, ValueError):
        return None


def write_record(locate: Callable[[], Path], content: Mapping[str, Any]) -> None:
    """Write a record with its hash. A cache that cannot be written is left out.

    locate: function that returns its file.
    """
    with suppress(TypeError, ValueError, RuntimeError):  # RuntimeError: there is no home directory
        file, text = locate(), json.dumps(content)
        document = {"sha256": hash_text(text), "content": text}
        write_cache_file(file, json.dumps(document).encode())


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


def _list_scored_specials(checkpoint: CheckpointInfo) -> Iterator[tuple[str, str | None]]:
    """Yield (rule, entry "scored_specials" of the metadata) for each rule that can be applied."""
    for rule in EOS_RULES:
        with suppress(BenchError):
            scored = checkpoint.with_context_bos_policy("auto").with_scored_eos(rule)
            yield rule, scored.metadata.get("scored_specials")


def _names_other_repository(folder: Path) -> bool:
    """Return whether a configuration names code in another repository: "owner/name--file.Class".

    The text is searched, because `read_json` refuses numbers that transformers writes.
    """
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        text = read_regular_file(file, MAX_JSON_BYTES) if file.exists() else b""
        if b'"auto_map"' in text and b"--" in text:
            return True
    return False


def _hash_folder(folder: Path, options: OpenOptions) -> Iterator[tuple[str, Any]]:
    """Yield (name, hash) of the files of a folder and, if it is run, of its code in subfolders.

    Weights that are loaded have no hash here, because it is kept apart. Weights that are not
    loaded, and other large files, have their size, times and inode number instead: the time of the
    last change of an inode cannot be set back.
    """
    selected = select_weights(folder, options.allow_pickle)
    loaded = set(selected.files) if selected else set()
    tokenizer = list_files(folder, TOKENIZER_PATTERNS)
    patterns = CODE_PATTERNS if options.trust_remote_code else ()
    code = [file for pattern in patterns for file in folder.rglob(pattern)]
    for file in sorted({*folder.iterdir(), *code}):
        name = str(file.relative_to(folder))
        if not file.is_file():
            continue
        if file in loaded:
            yield name, "loaded"
            continue
        facts = file.stat()
        is_weight = file.suffix in WEIGHT_SUFFIXES and file.name not in ADAPTER_WEIGHTS
        if (is_weight or facts.st_size > MAX_HASHED_BYTES) and file not in tokenizer:
            yield name, [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
        else:
            yield name, hash_files([file])


@cache
def describe_software() -> dict[str, Any]:
    """Return the versions of the packages and of our own code, and facts about the machine.

    Raises UnhashableError for a package whose version does not tell its code.
    """
    versions = {}
    for name in (*LIBRARIES, *RECORDED_PACKAGES, *PEER_PACKAGES):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
            _check_location(name)
    machine = describe_machine()
    return {
        "libraries": versions,
        "source": _hash_source(),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        **{name: machine[name] for name in MACHINE_FACTS},
    }


def _check_location(name: str) -> None:
    """Raise UnhashableError if Python would not import a package from where it was installed: an
    editable installation, or a folder on PYTHONPATH. Its code changes without its version.
    """
    installed = distribution(name)
    try:
        spec = find_spec(name) if name.isidentifier() else None
    except ValueError as error:  # a module in its stead that has no spec
        raise UnhashableError from error
    if spec is None or spec.origin is None:  # the module has another name, as that of protobuf
        return
    root = Path(str(installed.locate_file(""))).resolve()
    if not Path(spec.origin).resolve().is_relative_to(root / name):
        raise UnhashableError


def _hash_source() -> str:
    """Return a hash of our own code, which may change without a new version: 9 ms."""
    root = Path(antlm_bench.__file__).parent
    return hash_files(sorted(root.rglob("*.py")))
