"""Commands in the processes of torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from antlm_bench.errors import UsageError

COMMANDS = ("score", "train", "worker")
"""Commands that several processes carry out together."""


def count_processes() -> int:
    """Return how many processes torchrun (or accelerate launch) has started; 1 without it."""
    is_started_by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    return int(os.environ.get("WORLD_SIZE", "1")) if is_started_by_torchrun else 1


def is_first_process() -> bool:
    """Return whether this process prints: the first of torchrun, or one without it."""
    return count_processes() == 1 or os.environ.get("RANK", "0") == "0"


def check_command(command: str) -> bool:
    """Return whether a command runs in this process.

    Raises UsageError in the first process of torchrun for a command that runs in one process only.
    The others end without an error, because torchrun ends all when one fails.
    """
    if command in COMMANDS or count_processes() == 1:
        return True
    if not is_first_process():
        return False
    raise UsageError(
        f"`{command}` runs in one process, and torchrun has started {count_processes()}",
        location="torchrun",
        hint="start it without torchrun; `antlm-bench run` spreads models, suites, tasks and seeds "
        "over processes and machines",
    )


@contextmanager
def silence_other_processes() -> Iterator[None]:
    """Discard the progress of all processes but the first."""
    if is_first_process():
        yield
        return
    with Path(os.devnull).open("w") as devnull, redirect_stderr(devnull):
        yield
