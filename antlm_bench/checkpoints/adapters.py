"""PEFT adapters: merged into the weights of their base model when a checkpoint is opened."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from antlm_bench.checkpoints.resolve import OpenOptions, first_line
from antlm_bench.errors import CheckpointError, UsageError
from antlm_bench.weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, hash_files

MERGE_TOLERANCE = 1e-3  # of the largest logit: rounding of one sum of two products


def merge_adapter(model: Any, adapter: Path, options: OpenOptions) -> Any:
    """Return the model with a PEFT adapter merged into its weights, in evaluation mode.

    Raises UsageError where peft is not installed, and CheckpointError for an adapter that does not
    fit the model, is of a kind that cannot be merged, or is pickled without leave.
    """
    try:
        import peft
    except ImportError as error:
        raise UsageError(
            "opening a PEFT adapter needs the package peft",
            location=str(adapter),
            hint='pip install "antlm-bench[lora]"',
        ) from error
    _untie_embeddings(model)
    wrapped = _load_adapter(peft, model, adapter, adapter_weights(adapter, options))
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        kind = str(wrapped.peft_config["default"].peft_type).rpartition(".")[2]
        raise CheckpointError(
            f"an adapter of type {kind} cannot be merged into the weights",
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
            f"its logits move by {relative:.2g} of the largest",
            location=str(adapter),
            hint="merge it with peft (merge_and_unload), compare, and score the folder that "
            "save_pretrained writes",
        )
    return merged


def _load_adapter(peft: Any, model: Any, adapter: Path, weights: Path) -> Any:
    """Return the model with an adapter around its layers. Raises CheckpointError where tensors of
    the adapter are missing or have no place in the model.
    """
    misfit = f"the adapter does not fit {type(model).__name__}"
    hint = (
        "give the base model that it was trained on (base_model_name_or_path in "
        "adapter_config.json)"
    )
    # Embeddings may be stored as they are.
    whole = {f"base_model.model.{name}" for name in model.state_dict()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tensors that do not fit: an error below
            wrapped = peft.PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")
            stored = set(peft.utils.load_peft_weights(str(adapter), device="cpu"))
            expected = set(
                peft.utils.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            )
    except Exception as error:  # peft, safetensors and torch each have their own
        raise CheckpointError(
            f"{misfit}: {first_line(error)}", location=str(adapter), hint=hint
        ) from error
    # A targeted embedding or head may be stored whole, as the base layer of its adapter.
    stored = {name for name in stored if name.replace(".base_layer.", ".") not in whole}
    unused, missing = sorted(stored - expected), sorted(expected - stored)
    if unused or missing:
        raise CheckpointError(
            f"{misfit}: {len(unused)} of its tensors have no place in it, {len(missing)} are "
            f"missing from {weights.name} (e.g. {(unused or missing)[0]})",
            location=str(adapter),
            hint=hint,
        )
    return wrapped


def _untie_embeddings(model: Any) -> None:
    """Give the output embedding weights of its own: an adapter of one end must not change the
    other.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = (
            False
        )


def _trial_logits(model: Any) -> torch.Tensor:
    """(1, t, v) logits of a row of different tokens."""
    size = model.get_input_embeddings().weight.shape[0]
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.arange(min(16, size))[None]).logits
    return logits


def adapter_weights(adapter: Path, options: OpenOptions) -> Path:
    """The file with an adapter's tensors. Raises CheckpointError where there is none, or only a
    pickled one.
    """
    safe, pickled = (adapter / name for name in ADAPTER_WEIGHTS)
    if safe.is_file():
        return safe
    if not pickled.is_file():
        raise CheckpointError(
            f"no weights: no {safe.name}", location=str(adapter), hint="save the adapter again"
        )
    if not options.allow_pickle:
        raise CheckpointError(
            "the weights of the adapter are pickled, and unpickling can run code",
            location=str(adapter),
            hint="convert them to safetensors, or pass --allow-pickle if you trust their author",
        )
    return pickled


def adapter_metadata(adapter: Path, base_hash: str, options: OpenOptions) -> dict[str, Any]:
    """Facts for the run's record: the hash of the whole, and those of base and adapter that it is
    made of.
    """
    parts = {
        "base_weights": base_hash,
        "adapter_weights": hash_files([adapter_weights(adapter, options)]),
        "adapter_config": hash_files([adapter / ADAPTER_CONFIG]),
    }
    whole = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"weights": whole, "adapter": adapter.resolve().name, **parts}


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """A folder with the same files but no adapter: transformers would load one beside the weights
    by itself.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        bare = Path(temporary) / folder.resolve().name
        bare.mkdir()
        for path in folder.iterdir():
            if path.name not in (ADAPTER_CONFIG, *ADAPTER_WEIGHTS):
                (bare / path.name).symlink_to(path.resolve())
        yield bare
