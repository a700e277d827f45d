"""Run a command, and turn errors and signals into one message and one exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from antlm_bench.errors import BenchError, Interrupted, UsageError

BUG, CTRL_C, BROKEN_PIPE = 70, 130, 141
TRACEBACK_VARIABLE = "ANTLM_BENCH_TRACEBACK"


class StopSignal(BaseException):
    """A signal arrived. Not an Exception, so that no library's `except Exception` swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise StopSignal on Ctrl-C, SIGTERM, and SIGUSR1 (with which schedulers warn of the end)."""

    def raise_stop(signum: int, _frame: FrameType | None) -> None:
        raise StopSignal(signum)

    signals = [
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
    ]
    previous_handlers = {signum: signal.signal(signum, raise_stop) for signum in signals}
    try:
        yield
    finally:
        for signum, handler in previous_handlers.items():
            signal.signal(signum, handler)


def run_command(
    command: Callable[[], int | None], report_error: Callable[[BenchError], None]
) -> int:
    """Run `command` and return its exit code. An error is reported once; README lists the codes."""
    try:
        with raise_on_signals():
            code = command() or 0
            # Raise BrokenPipeError here rather than at exit, where nothing would catch it.
            sys.stdout.flush()
            return code
    except StopSignal as stop:
        hint = "the same command continues where this one stopped"
        report_error(Interrupted(f"stopped by {signal.Signals(stop.signum).name}", hint=hint))
        return CTRL_C if stop.signum == signal.SIGINT else Interrupted.exit_code
    except BenchError as error:
        report_error(error)
        return error.exit_code
    except BrokenPipeError:  # `antlm-bench list | head -1`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        # typer's usage errors differ in class between versions, but all have this method.
        if hasattr(error, "format_message"):
            message = error.format_message().replace("Value error, ", "")  # pydantic's prefix
            report_error(
                UsageError(message, hint="antlm-bench --help, or antlm-bench COMMAND --help")
            )
            return UsageError.exit_code
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        hint = (
            f"run it again with {TRACEBACK_VARIABLE}=1 and report the traceback, "
            "with the command line"
        )
        report_error(
            BenchError(
                f"a bug in antlm-bench, not in your input ({type(error).__name__}: {error})",
                hint=hint,
            )
        )
        return BUG
