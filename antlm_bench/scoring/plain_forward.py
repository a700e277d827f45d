"""Run a model's own forward, which defines its scores, and prepare inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from antlm_bench.errors import CheckpointError
from antlm_bench.types import Attention


def is_encoder_decoder(model: Any) -> bool:
    """Return whether the model has a decoder that reads a row after the source of an encoder."""
    return bool(getattr(model.config, "is_encoder_decoder", False))


def plain_logits(model: Any, **inputs: Tensor) -> Tensor:
    """Return the logits (r, t, vocabulary) of a model's own forward.

    inputs: input_ids (r, t), and other inputs. An encoder-decoder reads sources as input_ids, and
    decoder_input_ids (r, t) after them; without these its decoder reads the sources, too. Raises
    CheckpointError if the forward fails or returns something else.
    """
    rows = inputs["input_ids"]
    if is_encoder_decoder(model):
        rows = inputs.setdefault("decoder_input_ids", rows)
    try:
        logits: Tensor = model(**inputs, **no_cache_kwargs(model)).logits
        has_shape = logits.shape[:2] == rows.shape and logits.dim() == 3
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's code may raise any error
        message = (str(error).strip() or "no message").splitlines()[0][:200]
        raise CheckpointError(
            f"the forward of {type(model).__name__} fails on plain token ids: "
            f"{type(error).__name__}: {message}",
            hint="try the checkpoint in transformers by itself: model(input_ids=...)",
        ) from error
    if not has_shape:
        raise CheckpointError(
            f"{type(model).__name__} returns logits of shape {tuple(logits.shape)} for input_ids "
            f"of shape {tuple(rows.shape)}",
            hint="scoring needs the logits of every position, (rows, tokens, vocabulary)",
        )
    return logits


def vocabulary_size(model: Any) -> int:
    """Return the number of logits per position: the rows of the output embedding, or `vocab_size`
    of the configuration if there is none.
    """
    head = model.get_output_embeddings()
    if head is None:
        return int(model.config.get_text_config().vocab_size)
    return int(head.weight.shape[0])


def attention_mask_inputs(length: int, attention: Attention) -> dict[str, Tensor]:
    """Return the 4-D mask (1, 1, length, length) of an attention, as a model input."""
    mask = torch.ones(1, 1, length, length, dtype=torch.bool)
    return {"attention_mask": mask.tril() if attention == "causal" else mask}


def no_cache_kwargs(model: Any) -> dict[str, bool]:
    """Return the forward arguments that keep a model from building a key/value cache."""
    return {"use_cache": False} if getattr(model.config, "use_cache", None) else {}
