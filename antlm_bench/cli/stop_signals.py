"""End a process on Ctrl-C, SIGTERM and SIGUSR1 (with which schedulers warn of the end).

The handler ends the process itself and raises nothing. An exception that is raised at an arbitrary
moment is lost in a destructor or a callback, and a library can turn it into another one. Nothing
needs to be unwound: run folders and training runs continue after a kill at any moment.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

from antlm_bench.atomic_files import remove_temporary_paths
from antlm_bench.errors import Interrupted

CTRL_C = 130
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
SHOW_CURSOR_AND_CLEAR_LINE = b"\x1b[?25h\r\x1b[2K"
"""Undoes what a progress bar does to a terminal."""


def end_on_signals() -> None:
    """Make stop signals end this process with a message and the exit code 130 or 75.

    Temporary files are removed. A second signal ends the process at once.
    """
    process_id = os.getpid()

    def end_process(signum: int, _frame: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != process_id:  # a forked worker: its files are those of its parent
            os.kill(os.getpid(), signum)
            return
        remove_temporary_paths()
        message = (
            f"error: stopped by {signal.Signals(signum).name}\n"
            " hint: the same command continues where this one stopped\n"
        )
        with suppress(OSError):  # past sys.stderr, which the main program may be writing to
            is_terminal = os.isatty(2)
            os.write(2, (SHOW_CURSOR_AND_CLEAR_LINE if is_terminal else b"") + message.encode())
        os._exit(CTRL_C if signum == signal.SIGINT else Interrupted.exit_code)

    for each in STOP_SIGNALS:
        signal.signal(each, end_process)
