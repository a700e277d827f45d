"""Find the maximum length of a model's rows from its configuration and from a trial forward.

Models with learned positions look them up in a table of n rows. The index of the first position is
0 in BERT, 2 in OPT, and the padding id plus one in the RoBERTa family. The trial forward shows it:
it runs TRIAL_LENGTH equal tokens, so that only a position table is read at TRIAL_LENGTH indices
that rise by 1. If the first index is i, the table allows rows of n - i tokens. If the configuration
declares more, a row of one token more is tried. If that row runs, the table limits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from antlm_bench.checkpoints.resolve import LENGTH_KEYS, NO_MAX_LENGTH
from antlm_bench.errors import UsageError
from antlm_bench.scoring.plain_forward import is_encoder_decoder

TRIAL_LENGTH = 7  # tokens; unlikely to be another size at which a model slices a tensor
MAX_TRIAL_LENGTH = 2048  # tokens; the longest shipped text has 1,300 bytes
LENGTH_ERRORS = (
    TypeError,
    ValueError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    IndexError,
)
"""Errors of a forward whose row is too long."""
ATEN = torch.ops.aten


def resolve_max_length(model: Any, tokenizer: Any, requested: int | None) -> int | None:
    """Return the maximum length of a row in tokens: the least of what model (on the CPU), tokenizer
    and user allow. None = unlimited.

    Raises UsageError if the user requests more than model or tokenizer allow.
    """
    tokenizer_limit = tokenizer.model_max_length
    if not isinstance(tokenizer_limit, int | float) or tokenizer_limit >= NO_MAX_LENGTH:
        tokenizer_limit = None
    limits = [position_limit(model), None if tokenizer_limit is None else int(tokenizer_limit)]
    positive = [limit for limit in limits if limit is not None and limit > 0]
    if requested is not None:
        if requested < 1 or (positive and requested > min(positive)):
            raise UsageError(
                f"{requested} is not in 1..{min(positive, default='?')}",
                location="--max-length",
                hint="the model, or its tokenizer, reads no longer texts",
            )
        positive.append(requested)
    return min(positive, default=None)


def max_runnable_length(model: Any, declared: int | None) -> int | None:
    """Return the maximum length of a row (tokens) that a model on the CPU runs; None = unlimited.

    Code that ignores the declared limit (BabyLM 2025's) runs longer rows with rotary and relative
    positions, and fails with learned positions. So one row is tried that is a token longer than the
    limit. A limit above MAX_TRIAL_LENGTH is not tried, and `declared` is returned.
    """
    limit = position_limit(model)
    if declared is None or limit is None or limit > MAX_TRIAL_LENGTH:
        return declared
    return None if can_run_length(model, limit + 1) else limit


def position_limit(model: Any) -> int | None:
    """Return the maximum length of a row in tokens, special tokens included; None = unlimited.

    The model must be on the CPU, because an index beyond a table ends the process on a GPU.
    """
    declared = [getattr(model.config, name, None) for name in LENGTH_KEYS]
    declared_limit = min((n for n in declared if isinstance(n, int) and n > 0), default=None)
    lookups = _TableLookups(model)
    with lookups:
        can_run_length(model, TRIAL_LENGTH)
    for limit in sorted(set(lookups.limits)):
        is_lower = declared_limit is None or limit < declared_limit
        if is_lower and not can_run_length(model, limit + 1):
            return limit
    return declared_limit


def can_run_length(model: Any, length: int) -> bool:
    """Return whether the base model runs a row of `length` equal tokens (not the padding token)."""
    embeddings = model.get_input_embeddings().weight
    padding_id = getattr(model.config, "pad_token_id", None)
    token_id = next(i for i in range(embeddings.shape[0]) if i != padding_id)
    try:
        with torch.no_grad():
            ids = torch.full((1, length), token_id, device=embeddings.device)
            inputs = {"input_ids": ids}
            if is_encoder_decoder(model):
                inputs["decoder_input_ids"] = ids
            model.base_model(**inputs)
    except LENGTH_ERRORS:
        return False
    return True


class _TableLookups(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed
    """Records position tables that a forward reads, among the model's parameters and buffers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.table_pointers = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*model.parameters(), *model.buffers())
        }
        self.limits: list[int] = []
        """Per read of a position table, how many positions it allows."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in TABLE_READS and args[0].untyped_storage().data_ptr() in self.table_pointers:
            dim, first_index = TABLE_READS[func](args)
            num_rows = args[0].shape[dim]
            if first_index is not None and num_rows > TRIAL_LENGTH:
                self.limits.append(num_rows - first_index)
        return func(*args, **(kwargs or {}))


def _first_rising_index(index: Any) -> int | None:
    """Return the first index if exactly the first TRIAL_LENGTH indices rise by 1, else None."""
    if (
        not isinstance(index, Tensor)
        or index.dtype not in (torch.int64, torch.int32)
        or index.numel() < TRIAL_LENGTH
    ):
        return None
    indices: list[int] = index.flatten()[: TRIAL_LENGTH + 1].tolist()
    first = indices[0]
    if indices[:TRIAL_LENGTH] != list(range(first, first + TRIAL_LENGTH)):
        return None
    goes_on = indices[TRIAL_LENGTH:] == [first + TRIAL_LENGTH]
    return None if goes_on else first


def _slice_start(args: tuple[Any, ...]) -> tuple[int, int | None]:
    """Return the dimension of a slice, and its start if it has TRIAL_LENGTH rows, else None."""
    defaults: tuple[Any, ...] = (0, None, None)
    dim, start, end = (*args[1:4], *defaults[len(args) - 1 :])
    num_rows = args[0].shape[dim]
    start = 0 if start is None else start
    end = num_rows if end is None else min(end, num_rows)
    return dim, start if end - start == TRIAL_LENGTH else None


# Operation -> its arguments -> (dimension of the table, first of TRIAL_LENGTH indices that rise by
# 1, or None).
TABLE_READS: dict[Any, Callable[[tuple[Any, ...]], tuple[int, int | None]]] = {
    ATEN.embedding.default: lambda args: (0, _first_rising_index(args[1])),
    ATEN.index_select.default: lambda args: (args[1], _first_rising_index(args[2])),
    ATEN.index.Tensor: lambda args: (
        0,
        _first_rising_index(args[1][0]) if len(args[1]) == 1 else None,
    ),
    ATEN.slice.Tensor: _slice_start,
}
