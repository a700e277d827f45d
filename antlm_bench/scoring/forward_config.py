"""What a model's forward can do, and the shortcuts with which the engine runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from antlm_bench.types import Attention

Layout = Literal["packed", "rows"]


@dataclass(frozen=True, slots=True)
class ForwardConfig:
    """Facts about a model's forward, and the shortcuts with which it is run."""

    native_implementation: str
    """Name of the model's attention implementation in transformers."""
    native_attention: Attention
    """The attention that the model has without a mask: causal or full; cross in an
    encoder-decoder."""
    layout: Layout = "rows"
    """packed: rows without padding in one long row, shared prefixes once; rows: plain rows of one
    length."""
    first_position: int = 0
    """Position id of the first token of a packed row."""
    padding_id: int | None = None
    """Token id that is not counted in position ids (as in RoBERTa); None = all are counted."""
    max_packed_length: int | None = None
    """Longest row that may be packed, for models whose rotary angles depend on the longest row of a
    batch; None = unbounded."""
    last_layer_at_reads: bool = False
    """Run the last layer only at the read positions."""
    obeys_masks: bool = False
    """Plain rows can have causal or full attention, as a 4-D mask says."""
    lm_head_at_reads: bool = True
    """Run the LM head only at the read positions."""
    batched: bool = True
    """Run several plain rows of one length in one forward."""
    padded: bool = False
    """Run rows of several lengths in one forward, padded (encoder-decoders)."""
    whole_rows: bool = True
    """Read all causal predictions of a text from one row; False = run each prefix as a row."""
    restores_state: bool = False
    """Restore the model's state after each forward, because a forward changes it."""


CPU_KERNELS = "CPU kernels"
# Name of each shortcut -> the fields of ForwardConfig that turn it off.
SHORTCUTS: dict[str, dict[str, Any]] = {
    CPU_KERNELS: {},
    "last layer at read positions": {"last_layer_at_reads": False},
    "packed rows": {"layout": "rows", "last_layer_at_reads": False},
    "LM head at read positions": {
        "lm_head_at_reads": False,
        "last_layer_at_reads": False,
        "layout": "rows",
    },
    "padded rows": {"padded": False},
    "batches": {"batched": False, "padded": False, "last_layer_at_reads": False, "layout": "rows"},
    "one row per text": {"whole_rows": False},
}
