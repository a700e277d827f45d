"""Limits on what a checkpoint's config.json can make transformers build.

The numbers in config.json decide how many layers and parameters are built. They may be wrong, or
chosen by a stranger to use up time and memory. So sizes are checked before anything is built, and
the building itself is limited (build_limits).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antlm_bench.checkpoints.build_limits import RESTORE_HINT
from antlm_bench.checkpoints.resolve import TRAINING_KEY
from antlm_bench.errors import CheckpointError
from antlm_bench.safe_files import read_regular_file
from antlm_bench.safe_json import parse_json
from antlm_bench.weight_files import MAX_JSON_BYTES

MAX_LAYERS = 10_000
MAX_SIZE = 100_000_000
"""Largest width, vocabulary, number of heads or of positions. The largest known number of positions
is 10,485,760 (Llama 4)."""
LAYER_KEY = re.compile(r"(^|_)(n_)?(layers?|blocks|depth|stages)$|num_hidden_layers|num_layers")
SIZE_KEY = re.compile(
    r"size|dim$|hidden|heads|(^|_)(positions?|embd|ctx|inner|model|ff|ffn|experts|rank|vocab|labels)"
    r"(_|$)|embeddings$|width|window"
)
EPS_KEY = re.compile(r"(^|_)(eps|epsilon)$")
TEXT_KEYS = ("model_type", "_attn_implementation", "attn_implementation")


def check_config_file(folder: Path) -> None:
    """Check the sizes in config.json before transformers reads them.

    Raises CheckpointError for a file that is not a JSON object, and for a size that no model has,
    with its key.
    """
    path = folder / "config.json"
    try:
        content = parse_json(read_regular_file(path, MAX_JSON_BYTES), allow_nan=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"cannot read the configuration: {reason}", location=str(path), hint=RESTORE_HINT
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            "cannot read the configuration: it is not an object",
            location=str(path),
            hint=RESTORE_HINT,
        )
    for keys, value in _iter_values(content):
        if expected := _describe_expected(keys.rpartition(".")[2], value):
            is_bool = isinstance(value, bool)
            shown = f"{value:,}" if isinstance(value, int) and not is_bool else f"{value!r:.40}"
            raise CheckpointError(
                f"{keys} is {shown}, and should be {expected}",
                location=str(path),
                hint=RESTORE_HINT,
            )


def _describe_expected(key: str, value: Any) -> str:
    """Return what a value of config.json should be, "" if it may be right."""
    if key in TEXT_KEYS:
        # Models of several modalities have an attention for each, as an object.
        is_name = value is None or isinstance(value, str)
        is_table = isinstance(value, dict) and key != "model_type"
        return "" if is_name or is_table else "a name"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number:
        return ""
    if EPS_KEY.search(key):
        return "" if value >= 0 else "a number from 0 on"
    limit = MAX_LAYERS if LAYER_KEY.search(key) else MAX_SIZE if SIZE_KEY.search(key) else None
    least = 0 if "heads" in key else -1  # -1 is "no limit" of a window, for instance
    if limit is None or not isinstance(value, int) or least <= value <= limit:
        return ""
    return f"from 0 to {limit:,}"


def _iter_values(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (keys, value) of the values in a table and its subtables."""
    for key, value in table.items():
        if isinstance(value, dict) and key != TRAINING_KEY and key not in TEXT_KEYS:
            yield from _iter_values(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
