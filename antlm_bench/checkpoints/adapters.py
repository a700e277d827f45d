"""Merge PEFT adapters into the weights of their base model when a checkpoint is opened."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from antlm_bench.checkpoints.adapter_files import adapter_weights
from antlm_bench.checkpoints.build_limits import limit_model_size
from antlm_bench.checkpoints.resolve import OpenOptions
from antlm_bench.errors import CheckpointError, first_line
from antlm_bench.packages import require_packages
from antlm_bench.weight_files import ADAPTER_CONFIG, WeightSet

MERGE_TOLERANCE = 1e-3
"""Largest change of a logit by merging, relative to the largest logit: rounding stays below it."""


def merge_adapter(model: Any, adapter: Path, options: OpenOptions) -> Any:
    """Return the model with a PEFT adapter merged into its weights, in evaluation mode.

    Raises UsageError if peft is not installed, and CheckpointError for an adapter that does not
    fit the model, is of a type that cannot be merged, or is pickled without --allow-pickle.
    """
    with require_packages(str(adapter)):
        import peft
    _untie_embeddings(model)
    wrapped = _load_adapter(peft, model, adapter, adapter_weights(adapter, options))
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        adapter_type = str(wrapped.peft_config["default"].peft_type).rpartition(".")[2]
        raise CheckpointError(
            f"an adapter of type {adapter_type} cannot be merged into the weights",
            location=str(adapter),
            hint="only adapters that change weights (LoRA, IA3, ...) can be scored",
        )
    wrapped.eval()
    unmerged = _trial_logits(wrapped)
    merged = wrapped.merge_and_unload().eval()
    difference = (_trial_logits(merged) - unmerged).abs().max()
    relative = float(difference / unmerged.abs().max().clamp(min=1e-6))
    if not relative < MERGE_TOLERANCE:
        raise CheckpointError(
            f"the adapter cannot be merged into {type(model).__name__}: "
            f"merging changes a logit by {relative:.2g} of the largest logit",
            location=str(adapter),
            hint="merge it with peft (merge_and_unload), check the merged model, and score the "
            "folder that save_pretrained writes",
        )
    return merged


def _load_adapter(peft: Any, model: Any, adapter: Path, weights: Path) -> Any:
    """Return a peft model: the model with the adapter beside its layers, not merged yet.

    Raises CheckpointError if tensors of the adapter are missing or have no place in the model.
    """
    problem = f"the adapter does not fit {type(model).__name__}"
    hint = (
        "give the base model that it was trained on (base_model_name_or_path in "
        "adapter_config.json)"
    )
    base_names = {f"base_model.model.{name}" for name in model.state_dict()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tensors that do not fit: they raise below
            weight_set = WeightSet(weights.name, (weights,), weights.suffix == ".bin")
            with limit_model_size(adapter / ADAPTER_CONFIG, weight_set):
                wrapped = peft.PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")
            stored = set(peft.utils.load_peft_weights(str(adapter), device="cpu"))
            expected = set(
                peft.utils.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            )
    except CheckpointError:
        raise
    except Exception as error:  # peft, safetensors and torch raise unrelated types
        raise CheckpointError(
            f"{problem}: {first_line(error)}", location=str(adapter), hint=hint
        ) from error
    # An adapter file may also hold whole tensors of the base model: embeddings, or the base layer
    # of an adapted embedding or head.
    stored = {name for name in stored if name.replace(".base_layer.", ".") not in base_names}
    unused, missing = sorted(stored - expected), sorted(expected - stored)
    if unused or missing:
        raise CheckpointError(
            f"{problem}: {len(unused)} of its tensors have no place in it, {len(missing)} are "
            f"missing from {weights.name} (e.g. {(unused or missing)[0]})",
            location=str(adapter),
            hint=hint,
        )
    return wrapped


def _untie_embeddings(model: Any) -> None:
    """Copy weights that LM head and input embedding share, because an adapter of one of the two
    must not change the other.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


def _trial_logits(model: Any) -> torch.Tensor:
    """Return the logits (1, t, v) of a row of t different tokens."""
    vocab_size = model.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.arange(min(16, vocab_size))[None]).logits
    return logits
