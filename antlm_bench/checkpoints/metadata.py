"""Checkpoint metadata: build it for a run's manifest, and select the part in content keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from antlm_bench.checkpoints.adapter_files import adapter_metadata
from antlm_bench.checkpoints.resolve import (
    CODE_PATTERNS,
    TOKENIZER_PATTERNS,
    TRAINING_KEY,
    CheckpointSources,
    OpenOptions,
    list_files,
)
from antlm_bench.checkpoints.tensor_check import MAX_NAMES_SHOWN
from antlm_bench.scoring.text import EosRule, Specials, build_specials, resolve_eos_rule
from antlm_bench.weight_files import hash_files, hash_weights, select_weights

if TYPE_CHECKING:
    from antlm_bench.checkpoints.loader import RunnableModel

CONTENT_KEY_FIELDS = (
    "weights",
    "config",
    "tokenizer",
    "architecture",
    "dtype",
    "max_length",
    "bos",
    "specials",
    # Only some checkpoints have these.
    "code",
    "scored_specials",
    "base_weights",
    "adapter_weights",
    "adapter_config",
    "allowed",  # tensor mismatches that the user accepted
    "original_layout",
)
"""Metadata that a score depends on, in the order of the content key."""


class HasMetadata(Protocol):
    """A checkpoint opened for scoring, or for finetuning."""

    @property
    def metadata(self) -> dict[str, Any]: ...


def describe_checkpoint(ref: str, loaded: RunnableModel, options: OpenOptions) -> dict[str, Any]:
    """Return the metadata for a run's manifest, in the order in which `doctor` shows it."""
    model, tokenizer = loaded.model, loaded.tokenizer
    metadata = {
        "name": loaded.name,
        "source": loaded.name if Path(ref).exists() else ref,
        "given": describe_reference(ref, options.revision),
        "revision": options.revision,
        "architecture": type(model).__name__,
        "kind": loaded.kind,  # causal, masked, ... (pretrained.detect_kind)
        "parameters": sum(p.numel() for p in model.parameters()),
        **hash_checkpoint_files(
            loaded.sources, options, hash_weights(loaded.sources.base, options.allow_pickle)
        ),
        "tokenizer_class": type(tokenizer).__name__ + ("" if tokenizer.is_fast else " (slow)"),
        "vocabulary": model.get_input_embeddings().weight.shape[0],
        "max_length": loaded.max_length,
        "dtype": options.dtype,
        "device": str(next(model.parameters()).device),
        **_describe_layouts(loaded),
        "bos": options.bos,
        "specials": {
            name: _format_specials(tokenizer, specials)
            for attention, encoder in loaded.encoders.items()
            for name, specials in encoder.name_specials(attention).items()
        },
        # BOS policy of one of BabyLM's pipelines -> the special tokens that it adds. `submit`
        # compares these with the special tokens of the run ("specials").
        "specials_under": {
            policy: {
                attention: _format_specials(tokenizer, build_specials(tokenizer, attention, policy))
                for attention in loaded.specials
                if attention in ("causal", "full")
            }
            for policy in ("auto", "tokenizer")
        },
        "mask": tokenizer.mask_token if loaded.mask_id is not None else None,
        "unk": tokenizer.unk_token,
    }
    return metadata | _optional_metadata(loaded, options)


def describe_reference(ref: str, revision: str | None) -> str:
    """Return a checkpoint as the user named it: a path, from the working directory if it lies
    there, or `owner/name@revision`.
    """
    path = Path(ref)
    if not path.exists():
        return f"{ref}@{revision}" if revision else ref
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _optional_metadata(loaded: RunnableModel, options: OpenOptions) -> dict[str, Any]:
    """Return the optional entries, which only some checkpoints have. They come last."""
    config, sources = loaded.model.config, loaded.sources
    metadata: dict[str, Any] = {}
    training = getattr(config, TRAINING_KEY, None)
    words_seen = training.get("words_seen") if isinstance(training, dict) else None
    if isinstance(words_seen, int):
        metadata["words_seen"] = words_seen  # the checkpoint's x-value in a learning curve
    if options.tokenizer:
        tokenizer_path = Path(options.tokenizer)  # or a hub id
        metadata["tokenizer_source"] = (
            tokenizer_path.resolve().name if tokenizer_path.exists() else options.tokenizer
        )
    if allowed_mismatches := loaded.allowed_mismatches.to_record():
        metadata["allowed"] = allowed_mismatches
    if sources.notes:
        metadata["notes"] = list(sources.notes)
    if options.trust_remote_code:
        metadata["code"] = hash_code(sources)
    return metadata


def _describe_layouts(loaded: RunnableModel) -> dict[str, Any]:
    """Return how the engine arranges batches ("layout") and, if the checkpoint was converted to
    our format, the format of its authors ("original_layout").
    """
    original_format = getattr(loaded.model.config, "original_layout", None)
    metadata = {"layout": loaded.forward_config.layout}
    return metadata if original_format is None else metadata | {"original_layout": original_format}


def hash_checkpoint_files(
    sources: CheckpointSources, options: OpenOptions, base_hash: str
) -> dict[str, Any]:
    """Return hashes of weights, configuration and tokenizer, and the names of the weight files.

    With an adapter, the base and the adapter have separate hashes. base_hash: of the base model's
    weights. Raises CheckpointError for a missing file.
    """
    hashes = {"weights": base_hash}
    if sources.adapter:
        hashes = adapter_metadata(sources.adapter, base_hash, options)
    weight_files = ""
    if chosen := select_weights(sources.base, options.allow_pickle):
        num_files = len(chosen.files)
        weight_files = chosen.name + (f" ({num_files} files)" if num_files != 1 else "")
    return {
        **hashes,
        "weight_files": weight_files,
        "config": hash_files([sources.base / "config.json"]),
        "tokenizer": hash_files(list_files(sources.tokenizer, TOKENIZER_PATTERNS)),
    }


def hash_code(sources: CheckpointSources) -> dict[str, str]:
    """Return name -> hash of the files of Python code of a checkpoint."""
    return {file.name: hash_files([file])[:16] for file in list_files(sources.base, CODE_PATTERNS)}


def _format_specials(tokenizer: Any, specials: Specials) -> str:
    """Return the special tokens around a text in one string: `<s> ... </s>`."""
    before = tokenizer.convert_ids_to_tokens(specials.before)
    after = tokenizer.convert_ids_to_tokens(specials.after)
    return " ".join([*before, "...", *after])


def add_scored_specials(
    metadata: Mapping[str, Any], tokenizer: Any, rule: EosRule
) -> dict[str, Any]:
    """Return metadata plus the entry "scored_specials": the special tokens after a text whose
    log-probability is added to its score. `rule` says after which texts.
    """
    after, _ = resolve_eos_rule(tokenizer, rule)
    tokens = " ".join(map(str, tokenizer.convert_ids_to_tokens(list(after))))
    scope = "texts with a context" if rule == "context" else "texts"
    return {**metadata, "scored_specials": f"{tokens} after {scope}"}


def select_content_key_metadata(checkpoint: HasMetadata) -> dict[str, Any]:
    """Return the metadata that a score depends on, for a cell's content key."""
    # The JSON round trip makes lists of tuples, so that the result equals the settings in run.json.
    return {
        key: json.loads(json.dumps(checkpoint.metadata[key]))
        for key in CONTENT_KEY_FIELDS
        if key in checkpoint.metadata
    }


def loading_notes(checkpoint: HasMetadata) -> list[str]:
    """Return notes about loading: which weights were read, which tensors did not match."""
    notes = list(checkpoint.metadata.get("notes", []))
    templates = {
        "unused": "{} of the files are not used by the model",
        "missing": "{} were in no file and are random",
    }
    for mismatch, tensors in checkpoint.metadata.get("allowed", {}).items():
        names = ", ".join(tensors["first"])
        if tensors["count"] > MAX_NAMES_SHOWN:
            names += ", ..."
        notes.append(templates[mismatch].format(f"{tensors['count']} tensors ({names})"))
    return notes
