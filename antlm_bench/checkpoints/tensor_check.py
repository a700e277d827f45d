"""Check that the loaded model is the saved one: every tensor of the files is used, and every
parameter comes from a file.

transformers only warns of mismatches, and ignores some of them silently. Here each mismatch raises,
unless it is known to be harmless.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.errors import CheckpointError
from antlm_bench.weight_files import (
    TensorHeader,
    WeightSet,
    list_weight_sets,
    read_tensor_headers,
    select_weights,
)

MAX_NAMES_SHOWN = 4  # names of tensors in a message
# Names of tensors that a file may hold although scoring does not use them: buffers, which are
# computed from the configuration, and heads that predict something else than tokens.
BUFFER_PATTERN = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|original_inv_freq|cos_cached|sin_cached|masked_bias|causal_mask"
    r"|relative_position_index|num_batches_tracked|version|embed_positions\._float_tensor)$"
)
NON_LM_HEAD_PATTERN = re.compile(
    r"(^|\.)(pooler"  # BERT's first-token state, made for sentence classification
    # next sentence, sentence order
    r"|cls\.seq_relationship|nsp_classifier|sop_classifier|seq_relationship"
    # classification
    r"|classifier|score|qa_outputs|summary|sequence_summary|multiple_choice_head|logits_proj"
    r"|v_head|value_head"  # reinforcement learning (TRL)
    r"|discriminator_predictions"  # ELECTRA's other half
    r"|lm_predictions|mask_predictions"  # DeBERTa's heads of an older library
    r"|mtp\w*|nextn\w*"  # prediction of later tokens, for speculative decoding
    r"|visual|vision_tower|vision_model|audio_tower|talker|token2wav)\."  # other modalities
)
RELATIVE_POSITION_TYPES = {"esm", "deberta", "deberta-v2"}
"""Model types whose files may hold a table of absolute positions that the model does not use."""


@dataclass(frozen=True, slots=True)
class AllowedMismatches:
    """Names of tensors that --allow-unused and --allow-missing accepted."""

    unused: tuple[str, ...] = ()
    """Tensors of the files that the model does not use."""
    missing: tuple[str, ...] = ()
    """Parameters that no file holds."""

    def to_record(self) -> dict[str, Any]:
        """Return counts and first names for run.json and the content key; {} if there are none."""
        return {
            kind: {"count": len(names), "first": list(names[:MAX_NAMES_SHOWN])}
            for kind, names in (("unused", self.unused), ("missing", self.missing))
            if names
        }


def check_loaded_tensors(
    model: Any, loading_info: Mapping[str, Any], folder: Path, options: OpenOptions
) -> AllowedMismatches:
    """Compare the loaded model with its files. Return the mismatches that the options allow.

    loading_info: the second result of from_pretrained(output_loading_info=True). Raises
    CheckpointError for all other mismatches.
    """
    chosen = select_weights(folder, options.allow_pickle)
    try:
        headers = read_tensor_headers(chosen) if chosen else {}
    except CheckpointError:
        if chosen is None or not chosen.is_pickle:
            raise
        headers = {}  # torch reads pickles that `read_tensor_headers` cannot; use loading_info only
    model_names = _TensorNames([*model.state_dict(), *(name for name, _ in model.named_buffers())])
    unused = sorted(
        name
        for name in {*loading_info["unexpected_keys"], *_hidden_unused(model, headers, model_names)}
        if not is_harmless(name, headers.get(name), model.config)
    )
    missing = sorted(
        {*loading_info["missing_keys"], *_hidden_missing(model, headers)} - _computed_tensors(model)
    )
    class_name = type(model).__name__
    _check_shapes(loading_info.get("mismatched_keys", ()), class_name, folder)
    if missing and not options.allow_missing:
        raise CheckpointError(
            f"no file gives {_format_names(missing, 'parameter')} of {class_name}: they would be "
            "random numbers",
            location=str(folder),
            hint=_likely_cause(model, unused, missing) + "; --allow-missing opens it anyway",
        )
    if unused and not options.allow_unused:
        raise CheckpointError(
            f"{class_name} does not use {_format_names(unused, 'tensor')} of the files: its scores "
            "would be another model's",
            location=str(folder),
            hint=_likely_cause(model, unused, missing) + "; --allow-unused opens it anyway",
        )
    return AllowedMismatches(tuple(unused), tuple(missing))


def _check_shapes(mismatches: Iterable[Any], class_name: str, folder: Path) -> None:
    """Raise CheckpointError for tensors whose shape is not the model's.

    mismatches: (name of a tensor, shape in the file, shape in the model).
    """
    sorted_mismatches = sorted(
        (str(name), list(file_shape), list(model_shape))
        for name, file_shape, model_shape in mismatches
    )
    if sorted_mismatches:
        names = [name for name, _, _ in sorted_mismatches]
        first_name, file_shape, model_shape = sorted_mismatches[0]
        raise CheckpointError(
            f"the files hold {_format_names(names, 'tensor')} of another shape than {class_name}: "
            f"{first_name} is {file_shape} there and {model_shape} by config.json",
            location=str(folder),
            hint="config.json belongs to another checkpoint: restore the one that was saved with "
            "the weights",
        )


def check_other_weight_sets(folder: Path, options: OpenOptions) -> tuple[str, ...]:
    """Return notes that say which of several sets of weights in a folder is read, and why.

    Raises CheckpointError if another set holds other tensors than the set that is read.
    """
    chosen = select_weights(folder, options.allow_pickle)
    if chosen is None:
        return ()
    notes = []
    for other in list_weight_sets(folder):
        if other.name == chosen.name:
            continue
        reason = "transformers reads it"
        if other.is_pickle and not chosen.is_pickle:
            reason = "safetensors go before pickled weights"
        difference = _describe_difference(chosen, other)
        if difference:
            raise CheckpointError(
                f"two sets of weights that are not the same model: {chosen.name}, which would be "
                f"read ({reason}), and {other.name}: {difference}",
                location=str(folder),
                hint="move the set that is not meant out of the folder",
            )
        comparison = "holds tensors of the same shapes"
        if difference is None:
            comparison = "could not be compared with it"
        notes.append(f"weights are read from {chosen.name} ({reason}); {other.name} {comparison}")
    return tuple(notes)


def is_harmless(name: str, header: TensorHeader | None = None, config: Any = None) -> bool:
    """Return whether a tensor of a file cannot change predictions: a buffer, a head that predicts
    something else, an unused position table, or a layer for multi-token prediction.
    """
    if BUFFER_PATTERN.search(name):
        return True
    head = NON_LM_HEAD_PATTERN.search(name)
    # A module inside a numbered layer is not a head, whatever its name.
    if head and not re.search(r"(^|\.)\d+(\.|$)", name[: head.start()]):
        return True
    if header is not None and len(header.shape) == 4 and header.shape[:2] == (1, 1):
        return name.endswith(".bias")  # the causal mask in files of GPT-2 and GPT-Neo
    model_type = getattr(config, "model_type", "")
    if name.endswith("position_embeddings.weight") and model_type in RELATIVE_POSITION_TYPES:
        is_absolute = getattr(config, "position_embedding_type", "") == "absolute"
        return not (is_absolute or getattr(config, "position_biased_input", False))
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    num_layers = getattr(config, "num_hidden_layers", None)
    if layer is None or num_layers is None:
        return False
    num_extra_layers = getattr(config, "num_nextn_predict_layers", None) or 0
    return bool(num_layers <= int(layer[1]) < num_layers + num_extra_layers)


class _TensorNames:
    """A set of names in which a name is found with more or fewer prefixes, as transformers does."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = {_modernize_name(name) for name in names}
        self.suffixes = {suffix for name in self.names for suffix in _name_suffixes(name)}

    def __contains__(self, name: str) -> bool:
        name = _modernize_name(name)
        return name in self.suffixes or any(suffix in self.names for suffix in _name_suffixes(name))


def _name_suffixes(name: str) -> list[str]:
    """Return the dotted suffixes of a name that have two components or more, the name first."""
    components = name.split(".")
    return [".".join(components[start:]) for start in range(max(len(components) - 1, 1))]


def _modernize_name(name: str) -> str:
    """Rename LayerNorm's gamma and beta of old files to weight and bias."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _hidden_unused(
    model: Any, headers: Mapping[str, TensorHeader], model_names: _TensorNames
) -> set[str]:
    """Return the unused tensors that transformers does not report, because it ignores them."""
    patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    return {
        name
        for name in headers
        if any(re.search(pattern, name) for pattern in patterns) and name not in model_names
    }


def _hidden_missing(model: Any, headers: Mapping[str, TensorHeader]) -> set[str]:
    """Return the missing parameters that transformers does not report, because it ignores them."""
    patterns = list(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())
    if not patterns:
        return set()
    stored = _TensorNames(headers)
    # A tied parameter is listed once, under its first name.
    return {
        name
        for name, _ in model.named_parameters()
        if any(re.search(pattern, name) for pattern in patterns) and name not in stored
    }


def _computed_tensors(model: Any) -> set[str]:
    """Return the tensors that a transformers model computes, so that no file needs to hold them:
    buffers, and parameters that it never saves (Marian's sinusoidal positions).

    Models of other code may not compute their buffers. A floating-point buffer that is saved may be
    learned (DeepSeek-V3's e_score_correction_bias).
    """
    if not type(model).__module__.startswith("transformers."):
        return set()
    saved_names = model.state_dict().keys()
    never_saved = {*(getattr(model, "_keys_to_ignore_on_save", None) or ())}
    return never_saved | {
        name
        for name, buffer in model.named_buffers()
        if name not in saved_names
        or not buffer.is_floating_point()
        or is_harmless(name, None, model.config)
    }


def _format_names(names: Sequence[str], noun: str) -> str:
    """Return `5 tensors (a.weight, b.weight, c.weight, d.weight, ...)`."""
    ellipsis = ", ..." if len(names) > MAX_NAMES_SHOWN else ""
    return (
        f"{len(names)} {noun}{'s' if len(names) > 1 else ''} "
        f"({', '.join(names[:MAX_NAMES_SHOWN])}{ellipsis})"
    )


def _likely_cause(model: Any, unused: Sequence[str], missing: Sequence[str]) -> str:
    """Return the most likely reason why files and model do not match."""
    prefixes = (_extra_prefix(old, new) for old in unused for new in missing)
    prefix = next(filter(None, prefixes), "")
    if prefix:
        return (
            f"the names in the files differ by the prefix {prefix!r}: save the model with "
            "save_pretrained"
        )
    num_layers = getattr(model.config, "num_hidden_layers", None)
    first_numbers = [re.search(r"(?:^|\.)(\d+)\.", name) for name in unused]
    layers = {int(match[1]) for match in first_numbers if match}
    if num_layers is not None and layers and min(layers) >= num_layers and not missing:
        return (
            f"config.json says {num_layers} layers, and the files hold {max(layers) + 1}: one of "
            "them is not this model's"
        )
    if unused and not missing and all(name.endswith("bias") for name in unused):
        return (
            "config.json turns off biases that the files hold: was it written by another program?"
        )
    if missing and not any(re.search(r"\.\d+\.", name) for name in missing):
        return (
            "the checkpoint was saved without its language-model head, or with the head of another "
            "task"
        )
    return (
        "the checkpoint was saved for another architecture, or config.json belongs to another "
        "checkpoint"
    )


def _extra_prefix(old: str, new: str) -> str:
    """Return the prefix that the longer name has before the shorter one; "" if it does not end in
    the shorter one.
    """
    longer, shorter = (old, new) if len(old) > len(new) else (new, old)
    return longer.removesuffix(shorter) if longer.endswith("." + shorter) and "." in shorter else ""


def _describe_difference(used: WeightSet, other: WeightSet) -> str | None:
    """Return how two sets of weights differ.

    "" if they hold tensors of the same names and shapes, None if one cannot be read.
    """
    try:
        first, second = (
            {_modernize_name(name): header for name, header in read_tensor_headers(weights).items()}
            for weights in (used, other)
        )
    except CheckpointError:
        return None
    for name in sorted(first.keys() & second.keys()):
        shapes = list(first[name].shape), list(second[name].shape)
        if shapes[0] != shapes[1]:
            return f"{name} is {shapes[0]} in the first and {shapes[1]} in the second"
    for headers, other_headers, ordinal in ((first, second, "first"), (second, first, "second")):
        other_names = _TensorNames(other_headers)
        extra = [
            name
            for name, header in sorted(headers.items())
            if name not in other_names
            and not is_harmless(name, header)
            and not _may_be_tied(name, headers)
        ]
        if extra:
            return f"{_format_names(extra, 'tensor')} only in the {ordinal}"
    return ""


def _may_be_tied(name: str, headers: Mapping[str, TensorHeader]) -> bool:
    """Return whether a tensor may be tied to another one of its file.

    Safetensors store tied weights once, so that the other set of weights may lack this name.
    """
    header = headers[name]
    others = [other for other_name, other in headers.items() if other_name != name]
    if header.storage is not None:
        return any(other.storage == header.storage for other in others)
    is_head = re.search(
        r"(lm_head|decoder|vocab_projector|embed_out|proj|predictions)\.(weight|bias)$", name
    )
    return bool(is_head) and any(other.shape == header.shape for other in others)
