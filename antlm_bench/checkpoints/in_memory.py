"""Open a model and a tokenizer that are already in memory, and leave them as they were."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from antlm_bench.checkpoints import pretrained
from antlm_bench.checkpoints.loader import (
    Checkpoint,
    LoadedFiles,
    build_checkpoint,
    probe_model,
    self_test_on_opening,
)
from antlm_bench.checkpoints.resolve import CheckpointSources, OpenOptions
from antlm_bench.errors import UsageError


def open_model(model: Any, tokenizer: Any, options: OpenOptions | None = None) -> Checkpoint:
    """Open a transformers model and its tokenizer.

    The model keeps its device, dtype and weights; no layer is replaced, so it may be trained on
    between two calls. options: bos, max_length and batch_tokens count.

    Raises UsageError (objects of another kind, a tokenizer with dropout) and CheckpointError (a
    model without a language-model head, one that sees later tokens, a failed self-test).
    """
    options = options or OpenOptions()
    _check_objects(model, tokenizer)
    class_name = type(model).__name__
    name = str(getattr(model.config, "_name_or_path", "") or class_name)
    config = copy.copy(model.config)
    config.architectures = [class_name]
    source = Path(class_name)
    kind = pretrained.detect_kind(config, source)
    files = LoadedFiles(name, CheckpointSources(source, source), kind, model, tokenizer)
    with pretrained.silence_transformers(), evaluation_mode(model):
        loaded = probe_model(files, options, model.device)
        checkpoint = build_checkpoint(loaded, options.batch_tokens)
        checkpoint.metadata |= {"name": name, "architecture": class_name, "kind": kind}
        self_test_on_opening(checkpoint, loaded)
    return checkpoint


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Turn dropout off, and put training mode and attention implementation back at the end."""
    training = [module for module in model.modules() if module.training]
    implementation = model.config._attn_implementation
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        if model.config._attn_implementation != implementation:
            model.set_attn_implementation(implementation)


def _check_objects(model: Any, tokenizer: Any) -> None:
    if not isinstance(model, transformers.PreTrainedModel):
        raise UsageError(
            f"a model of transformers is needed, not {type(model).__name__}",
            location="Scorer",
            hint="unwrap it: model.module (DDP), model.merge_and_unload() (PEFT);"
            " or give the path or hub id of a checkpoint",
        )
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise UsageError(
            f"a tokenizer of transformers is needed, not {type(tokenizer).__name__}",
            location="Scorer",
            hint="wrap it: transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)",
        )
    backend_model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(backend_model, "dropout", None):
        raise UsageError(
            f"the tokenizer drops merges at random (BPE dropout {backend_model.dropout:g})",
            location="Scorer",
            hint="tokenizer.backend_tokenizer.model.dropout = None",
        )
