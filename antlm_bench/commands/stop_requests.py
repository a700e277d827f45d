"""Stop signals that are collected, for commands that end at a safe point."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)


@contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
    """Collect stop signals inside this context, so that the command can end at a safe point.

    A repeated signal takes effect at once.
    """
    stop_signals: list[int] = []

    def handle_signal(signum: int, _frame: FrameType | None) -> None:
        if signum in stop_signals:  # repeated: do not wait for the safe point
            signal.signal(signum, old_handlers[signum])
            signal.raise_signal(signum)
        stop_signals.append(signum)

    old_handlers = {signum: signal.signal(signum, handle_signal) for signum in STOP_SIGNALS}
    try:
        yield stop_signals
    finally:
        for signum, handler in old_handlers.items():
            signal.signal(signum, handler)
