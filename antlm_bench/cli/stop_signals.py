"""End a process on Ctrl-C, SIGTERM and SIGUSR1 (with which schedulers warn of the end).

The handler ends the process itself and raises nothing. An exception that is raised at an arbitrary
moment is lost in a destructor or a callback, and a library can turn it into another one. Nothing
needs to be unwound: run folders and training runs continue after a kill at any moment.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from antlm_bench.atomic_files import remove_temporary_paths
from antlm_bench.commands.stop_requests import STOP_SIGNALS
from antlm_bench.errors import Interrupted

CTRL_C = 130
SHOW_CURSOR_AND_CLEAR_LINE = b"\x1b[?25h\r\x1b[2K"
"""Undoes what a progress bar does to a terminal."""


def end_on_signals(before_end: Callable[[], None] | None = None) -> None:
    """Make stop signals end this process with a message and the exit code 130 or 75.

    Temporary files are removed. A second signal ends the process at once. before_end: called
    first, at whatever moment the signal comes.
    """
    process_id = os.getpid()

    def handle_signal(signum: int, _frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != process_id:  # a forked worker: its files are those of its parent
            os.kill(os.getpid(), signum)
            return
        if before_end:
            before_end()
        code = CTRL_C if signum == signal.SIGINT else Interrupted.exit_code
        end_process(f"stopped by {signal.Signals(signum).name}", code)

    for each in STOP_SIGNALS:
        signal.signal(each, handle_signal)


def end_process(reason: str, exit_code: int) -> NoReturn:
    """End this process at once with a message. Temporary files are removed.

    Can be called at any moment and from any thread.
    """
    remove_temporary_paths()
    message = f"error: {reason}\n hint: the same command continues where this one stopped\n"
    with suppress(OSError):  # past sys.stderr, which the main program may be writing to
        has_bar = os.isatty(2) and os.environ.get("TERM") not in ("dumb", "unknown")
        os.write(2, (SHOW_CURSOR_AND_CLEAR_LINE if has_bar else b"") + message.encode())
    os._exit(exit_code)
