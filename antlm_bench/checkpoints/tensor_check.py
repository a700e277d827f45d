"""Check that the loaded model is the saved one: every tensor of the files is used, and every
parameter comes from a file.

transformers only warns of differences, and drops some names silently; here each is an error unless
it is known to be harmless.
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
# Tensors that a file may hold although scoring does not use them, by reason. Buffers are computed
# from the configuration; the heads answer other questions than "which token is it?".
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
# Absolute positions in files of models that use relative ones; their configuration says so.
RELATIVE_POSITION_TYPES = {"esm", "deberta", "deberta-v2"}


@dataclass(frozen=True, slots=True)
class AllowedMismatches:
    """Tensors that --allow-unused and --allow-missing let pass."""

    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Return counts and first names for run.json and the content key; empty if nothing was
        allowed.
        """
        named = {"unused": self.unused, "missing": self.missing}
        return {
            kind: {"count": len(names), "first": list(names[:MAX_NAMES_SHOWN])}
            for kind, names in named.items()
            if names
        }


def check_loaded_tensors(
    model: Any, loading_info: Mapping[str, Any], folder: Path, options: OpenOptions
) -> AllowedMismatches:
    """Compare the loaded model with its files.

    loading_info: `output_loading_info` of from_pretrained. Raises CheckpointError for tensors that
    the model does not use and for parameters that no file gives, unless the options allow them.
    """
    chosen = select_weights(folder, options.allow_pickle)
    try:
        headers = read_tensor_headers(chosen) if chosen else {}
    except CheckpointError:
        if chosen is None or not chosen.is_pickle:
            raise
        # torch reads pickles that the header reader does not; the library's report is left
        headers = {}
    model_names = _TensorNames([*model.state_dict(), *(name for name, _ in model.named_buffers())])
    unused = sorted(
        name
        for name in {*loading_info["unexpected_keys"], *_hidden_unused(model, headers, model_names)}
        if not is_harmless(name, headers.get(name), model.config)
    )
    missing = sorted(
        {*loading_info["missing_keys"], *_hidden_missing(model, headers)} - _computed_buffers(model)
    )
    name = type(model).__name__
    _check_shapes(loading_info.get("mismatched_keys", ()), name, folder)
    if missing and not options.allow_missing:
        raise CheckpointError(
            f"no file gives {_format_names(missing, 'parameter')} of {name}: they would be random "
            "numbers",
            location=str(folder),
            hint=_likely_cause(model, unused, missing) + "; --allow-missing opens it all the same",
        )
    if unused and not options.allow_unused:
        raise CheckpointError(
            f"{name} does not use {_format_names(unused, 'tensor')} of the files: its scores would "
            "be another model's",
            location=str(folder),
            hint=_likely_cause(model, unused, missing) + "; --allow-unused opens it all the same",
        )
    return AllowedMismatches(tuple(unused), tuple(missing))


def _check_shapes(mismatched: Iterable[Any], name: str, folder: Path) -> None:
    """Raise CheckpointError for tensors of another shape than the model's. mismatched: (name,
    stored, expected).
    """
    differing = sorted(
        (str(key), list(stored), list(expected)) for key, stored, expected in mismatched
    )
    if differing:
        first, stored, expected = differing[0]
        raise CheckpointError(
            f"the files hold {_format_names([key for key, _, _ in differing], 'tensor')} of "
            f"another shape than {name}: "
            f"{first} is {stored} there and {expected} by config.json",
            location=str(folder),
            hint="config.json belongs to another checkpoint: restore the one that was saved with "
            "the weights",
        )


def check_other_weight_sets(folder: Path, options: OpenOptions) -> tuple[str, ...]:
    """Return notes on which of several sets of weights in a folder is read and why. Raises
    CheckpointError where another set holds other tensors than the one that is read.
    """
    chosen = select_weights(folder, options.allow_pickle)
    notes = []
    for other in list_weight_sets(folder):
        if chosen is None or other.name == chosen.name:
            continue
        why = (
            "safetensors go before pickled weights"
            if other.is_pickle > chosen.is_pickle
            else "transformers reads it"
        )
        difference = _describe_difference(chosen, other)
        if difference is None:
            notes.append(
                f"weights are read from {chosen.name} ({why}); {other.name} could not be compared "
                "with it"
            )
        elif difference:
            raise CheckpointError(
                f"two sets of weights that are not the same model: {chosen.name}, which would be "
                f"read ({why}), and "
                f"{other.name}: {difference}",
                location=str(folder),
                hint="move the one that is not meant out of the folder",
            )
        else:
            notes.append(
                f"weights are read from {chosen.name} ({why}); {other.name} holds tensors of the "
                "same shapes"
            )
    return tuple(notes)


def is_harmless(name: str, header: TensorHeader | None = None, config: Any = None) -> bool:
    """Return whether a tensor of a file cannot change predictions: a buffer, or another head."""
    head = NON_LM_HEAD_PATTERN.search(name)
    if BUFFER_PATTERN.search(name) or (
        head and not re.search(r"(^|\.)\d+(\.|$)", name[: head.start()])
    ):
        return True  # what stands inside a numbered layer is no head
    if header is not None and len(header.shape) == 4 and header.shape[:2] == (1, 1):
        return name.endswith(".bias")  # GPT-2's and GPT-Neo's lower triangle of ones
    model_type = getattr(config, "model_type", "")
    if name.endswith("position_embeddings.weight") and model_type in RELATIVE_POSITION_TYPES:
        absolute = getattr(config, "position_embedding_type", "") == "absolute"
        return not (absolute or getattr(config, "position_biased_input", False))
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    extra = getattr(config, "num_nextn_predict_layers", None) or 0
    depth = getattr(config, "num_hidden_layers", None)
    return bool(layer and extra and depth is not None and depth <= int(layer[1]) < depth + extra)


class _TensorNames:
    """Names of tensors; two are equal if one only has a further prefix, as the library's have."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = {_modernize_name(name) for name in names}
        self.suffixes = {ending for name in self.names for ending in _name_suffixes(name)}

    def __contains__(self, name: str) -> bool:
        name = _modernize_name(name)
        return name in self.suffixes or any(ending in self.names for ending in _name_suffixes(name))


def _name_suffixes(name: str) -> list[str]:
    """Yield the name without its first part, its first two parts, ... while two parts are left."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(max(len(parts) - 1, 1))]


def _modernize_name(name: str) -> str:
    """Return a name with LayerNorm's gamma and beta as weight and bias."""
    return re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))


def _hidden_unused(
    model: Any, headers: Mapping[str, TensorHeader], model_names: _TensorNames
) -> set[str]:
    """Return the tensors without a place in the model that the library's ignore list hides."""
    patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    return {
        name
        for name in headers
        if any(re.search(p, name) for p in patterns) and name not in model_names
    }


def _hidden_missing(model: Any, headers: Mapping[str, TensorHeader]) -> set[str]:
    """Return the parameters that no file gives and that the library's ignore list hides."""
    patterns = list(getattr(model, "_keys_to_ignore_on_load_missing", None) or ())
    if not patterns:
        return set()
    stored = _TensorNames(headers)
    # A tied parameter is listed once, under its first name.
    return {
        n
        for n, _ in model.named_parameters()
        if any(re.search(p, n) for p in patterns) and n not in stored
    }


def _computed_buffers(model: Any) -> set[str]:
    """Return the buffers of the library's own classes that it computes from the configuration, so
    that no file must hold them.

    Other code may not compute its buffers, and a saved buffer may be learned (DeepSeek-V3's
    e_score_correction_bias).
    """
    if not type(model).__module__.startswith("transformers."):
        return set()
    saved = model.state_dict().keys()
    return {
        name
        for name, value in model.named_buffers()
        if name not in saved
        or not value.is_floating_point()
        or is_harmless(name, None, model.config)
    }


def _format_names(names: Sequence[str], noun: str) -> str:
    """`5 tensors (a.weight, b.weight, c.weight, d.weight, ...)`."""
    ellipsis = ", ..." if len(names) > MAX_NAMES_SHOWN else ""
    return (
        f"{len(names)} {noun}{'s' if len(names) > 1 else ''} "
        f"({', '.join(names[:MAX_NAMES_SHOWN])}{ellipsis})"
    )


def _likely_cause(model: Any, unused: Sequence[str], missing: Sequence[str]) -> str:
    """Return the most likely reason why files and model do not match."""
    depth = getattr(model.config, "num_hidden_layers", None)
    layers = {int(n) for name in unused for n in re.findall(r"\.(\d+)\.", f".{name}")[:1]}
    bodies = [name for name in missing if re.search(r"\.\d+\.", name)]
    prefix = next(
        (p for p in (_extra_prefix(old, new) for old in unused for new in missing) if p), ""
    )
    if prefix:
        return (
            f"the names in the files differ by the prefix {prefix!r}: save the model with "
            "save_pretrained"
        )
    if depth is not None and layers and min(layers) >= depth and not missing:
        return (
            f"config.json says {depth} layers, and the files hold {max(layers) + 1}: one of them "
            "is not this model's"
        )
    if unused and not missing and all(name.endswith("bias") for name in unused):
        return (
            "config.json switches off biases that the files hold: was it written by another "
            "program?"
        )
    if missing and not bodies:
        return (
            "the checkpoint was saved without its language-model head, or with the head of another "
            "task"
        )
    return (
        "the checkpoint was saved for another architecture, or config.json belongs to another "
        "checkpoint"
    )


def _extra_prefix(old: str, new: str) -> str:
    """Return the prefix that one of two names has more than the other, "" where neither ends in the
    other.
    """
    longer, shorter = (old, new) if len(old) > len(new) else (new, old)
    return longer.removesuffix(shorter) if longer.endswith("." + shorter) and "." in shorter else ""


def _describe_difference(used: WeightSet, other: WeightSet) -> str | None:
    """Return how two sets of weights differ, "" if they hold tensors of the same shapes, None if
    one is unreadable.
    """
    try:
        a, b = (
            {_modernize_name(n): h for n, h in read_tensor_headers(s).items()}
            for s in (used, other)
        )
    except CheckpointError:
        return None
    shapes = [name for name in sorted(a.keys() & b.keys()) if a[name].shape != b[name].shape]
    if shapes:
        name = shapes[0]
        return (
            f"{name} is {list(a[name].shape)} in the first and {list(b[name].shape)} in the second"
        )
    for one, another, which in ((a, b, "first"), (b, a, "second")):
        names = _TensorNames(another)
        lost = [
            n
            for n, h in sorted(one.items())
            if n not in names and not is_harmless(n, h) and not _may_be_tied(n, one)
        ]
        if lost:
            return f"{_format_names(lost, 'tensor')} only in the {which}"
    return ""


def _may_be_tied(name: str, headers: Mapping[str, TensorHeader]) -> bool:
    """Return whether a tensor may be a second name of another one: safetensors store tied weights
    once.
    """
    header = headers[name]
    if header.storage is not None:
        return any(other.storage == header.storage for key, other in headers.items() if key != name)
    head = re.search(
        r"(lm_head|decoder|vocab_projector|embed_out|proj|predictions)\.(weight|bias)$", name
    )
    return bool(head) and any(
        other.shape == header.shape for key, other in headers.items() if key != name
    )
