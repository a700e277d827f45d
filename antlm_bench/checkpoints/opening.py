"""Open checkpoints by reference: a folder or a hub id.

Options and files are checked before torch is imported, so that a wrong name costs no time. The
modules that open a model are imported after that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from antlm_bench.checkpoints.resolve import (
    DTYPE_NAMES,
    CheckpointSources,
    OpenOptions,
    locate_sources,
    split_revision,
)
from antlm_bench.errors import UsageError
from antlm_bench.scoring.text import check_bos_policy

if TYPE_CHECKING:
    from antlm_bench.checkpoints.checkpoint import Backbone, Checkpoint
    from antlm_bench.checkpoints.minicons_backend import MiniconsCheckpoint

DEVICE_PATTERN = re.compile(r"auto|(cpu|cuda|mps)(:\d+)?")


class LocatedCheckpoint(NamedTuple):
    """A reference whose files were found, and how they are opened."""

    ref: str
    """The reference without its revision."""
    sources: CheckpointSources
    options: OpenOptions
    """The options, with the revision of the reference."""


def open_checkpoint(ref: str | LocatedCheckpoint, options: OpenOptions | None = None) -> Checkpoint:
    """Open a local folder or a hub id (also `id@revision`) for scoring.

    Raises CheckpointError (absent, damaged, incomplete or pickled weights, no tokenizer, an
    architecture that is neither causal nor masked) and UsageError (an option that cannot apply).
    """
    located = locate_checkpoint(ref, options)
    from antlm_bench.checkpoints.checkpoint import open_for_scoring

    return open_for_scoring(*located)


def open_backbone(ref: str | LocatedCheckpoint, options: OpenOptions | None = None) -> Backbone:
    """Open a local folder or hub id for finetuning. Raises as `open_checkpoint`."""
    located = locate_checkpoint(ref, options)
    from antlm_bench.checkpoints.checkpoint import open_for_finetuning

    return open_for_finetuning(*located)


def open_minicons_checkpoint(
    ref: str | LocatedCheckpoint, options: OpenOptions | None = None
) -> MiniconsCheckpoint:
    """Open a local folder or hub id for minicons.

    Raises as `open_checkpoint`, and CheckpointError if minicons cannot take the model.
    """
    located = locate_checkpoint(ref, options)
    from antlm_bench.checkpoints.minicons_backend import open_for_minicons

    return open_for_minicons(*located)


def locate_checkpoint(
    ref: str | LocatedCheckpoint, options: OpenOptions | None = None
) -> LocatedCheckpoint:
    """Check the options, and find the files of a checkpoint, unless they are located already.

    Raises as `open_checkpoint`.
    """
    if isinstance(ref, LocatedCheckpoint):
        return ref
    ref, options = split_revision(ref, options or OpenOptions())
    check_option_values(options)
    return LocatedCheckpoint(ref, locate_sources(ref, options), options)


def check_option_values(options: OpenOptions) -> None:
    """Raise UsageError for a dtype, a BOS policy or a device that does not exist anywhere.

    Whether this machine has the device is known when the checkpoint is opened.
    """
    if options.dtype not in DTYPE_NAMES:
        raise UsageError(
            f"unknown dtype {options.dtype!r}",
            location="--dtype",
            hint=f"one of {', '.join(DTYPE_NAMES)}",
        )
    check_bos_policy(options.bos)
    if isinstance(options.device, str) and not DEVICE_PATTERN.fullmatch(options.device):
        raise UsageError(
            f"unknown device {options.device!r}",
            location="--device",
            hint="cpu, cuda, cuda:1, mps",
        )
