"""How long a row a model allows, found from its configuration and from what its body reads.

Models with learned positions look them up in a table. Where the first position lies differs: BERT's
is 0, OPT's 2, that of the RoBERTa family one after the padding id. A row of seven equal tokens
shows it: of all tables that are read, only position tables are read at seven indices that rise by
one. A table of n rows whose first index is i allows rows of n - i tokens. Where that is less than
the configuration says, a row of one token more must fail, or the table limits nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

TRIAL_LENGTH = 7  # tokens of the trial; no dimension of a model is likely to be sliced into so many
# Names of the limit in configurations.
LIMIT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
FORWARD_ERRORS = (
    TypeError,
    ValueError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    IndexError,
)
ATEN = torch.ops.aten


def position_limit(model: Any) -> int | None:
    """Return the longest row in tokens, specials included; None for a model without a limit.

    The model must be on the CPU: other devices do not survive an index beyond a table.
    """
    declared = [getattr(model.config, name, None) for name in LIMIT_KEYS]
    positive = [limit for limit in declared if isinstance(limit, int) and limit > 0]
    lookups = _TableLookups(model)
    with lookups:
        can_run_length(model, TRIAL_LENGTH)
    for limit in sorted(set(lookups.limits)):
        if limit < min(positive, default=limit + 1) and not can_run_length(model, limit + 1):
            return limit
    return min(positive, default=None)


def can_run_length(model: Any, length: int) -> bool:
    """Return whether the base model runs a row of so many equal tokens that are not padding."""
    embeddings = model.get_input_embeddings().weight
    pad = getattr(model.config, "pad_token_id", None)
    token = next(token for token in range(embeddings.shape[0]) if token != pad)
    try:
        with torch.no_grad():
            model.base_model(input_ids=torch.full((1, length), token, device=embeddings.device))
    except FORWARD_ERRORS:
        return False
    return True


class _TableLookups(TorchDispatchMode):  # type: ignore[misc]  # torch is not typed
    """Records in `limits` how many rows each table of a model's parameters and buffers allows."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.table_pointers = {
            tensor.untyped_storage().data_ptr()
            for tensor in (*model.parameters(), *model.buffers())
        }
        self.limits: list[int] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in TABLE_READS and args[0].untyped_storage().data_ptr() in self.table_pointers:
            dim, first = TABLE_READS[func](args)
            rows = args[0].shape[dim]
            if first is not None and rows > TRIAL_LENGTH:
                self.limits.append(rows - first)
        return func(*args, **(kwargs or {}))


def _first_rising_index(index: Any) -> int | None:
    """Return the first of the indices if exactly TRIAL_LENGTH rise by 1, None for others."""
    if (
        not isinstance(index, Tensor)
        or index.dtype not in (torch.int64, torch.int32)
        or index.numel() < TRIAL_LENGTH
    ):
        return None
    read: list[int] = index.flatten()[: TRIAL_LENGTH + 1].tolist()
    rising = list(range(read[0], read[0] + TRIAL_LENGTH))
    return (
        read[0]
        if read[:TRIAL_LENGTH] == rising and read[TRIAL_LENGTH:] != [read[0] + TRIAL_LENGTH]
        else None
    )


def _slice_start(args: tuple[Any, ...]) -> tuple[int, int | None]:
    defaults: tuple[Any, ...] = (0, None, None)
    dim, start, end = (*args[1:4], *defaults[len(args) - 1 :])
    rows, start = args[0].shape[dim], start or 0
    return dim, start if min(rows, rows if end is None else end) - start == TRIAL_LENGTH else None


# How each operation reads a table: its dimension, and the first of LENGTH rising indices or None.
TABLE_READS: dict[Any, Callable[[tuple[Any, ...]], tuple[int, int | None]]] = {
    ATEN.embedding.default: lambda args: (0, _first_rising_index(args[1])),
    ATEN.index_select.default: lambda args: (args[1], _first_rising_index(args[2])),
    ATEN.index.Tensor: lambda args: (
        0,
        _first_rising_index(args[1][0]) if len(args[1]) == 1 else None,
    ),
    ATEN.slice.Tensor: _slice_start,
}
