"""`doctor`: open checkpoints and report what they are, without scoring anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from antlm_bench.errors import map_collecting_errors

if TYPE_CHECKING:
    from antlm_bench.checkpoints import OpenOptions


def inspect_checkpoints(
    models: Sequence[str], options: OpenOptions | None = None
) -> Iterator[Mapping[str, object]]:
    """Yield the facts of each checkpoint that the references expand to.

    Raises as `checkpoints.open_checkpoint`; of several checkpoints the others are opened first.
    """
    from antlm_bench.checkpoints import expand_refs, open_checkpoint

    return map_collecting_errors(
        expand_refs(models), lambda ref: open_checkpoint(ref, options).describe_for_doctor()
    )
