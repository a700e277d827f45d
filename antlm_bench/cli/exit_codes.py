"""Run a command, and turn errors into one message and one exit code."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import suppress

from antlm_bench.cli.standard_streams import BROKEN_PIPE, check_output, is_pipe_closed
from antlm_bench.errors import BenchError, UsageError
from antlm_bench.packages import require_packages

BUG = 70
TRACEBACK_VARIABLE = "ANTLM_BENCH_TRACEBACK"


def run_command(
    command: Callable[[], int | None], report_error: Callable[[BenchError], None]
) -> int:
    """Run `command` and return its exit code. An error is reported once; README lists the codes."""

    def report(error: BenchError) -> None:
        # A closed pipe: rich turns BrokenPipeError into SystemExit. check_output returns its code.
        with suppress(BrokenPipeError, SystemExit):
            report_error(error)

    code = _run_and_report(command, report)
    output_code = check_output(report)
    return code if output_code is None else output_code


def _run_and_report(
    command: Callable[[], int | None], report_error: Callable[[BenchError], None]
) -> int:
    try:
        with require_packages():
            return command() or 0
    except BenchError as error:
        report_error(error)
        return error.exit_code
    except (Exception, SystemExit) as error:
        # typer's usage errors differ in class between versions, but all have this method.
        if hasattr(error, "format_message"):
            message = error.format_message().replace("Value error, ", "")  # pydantic's prefix
            report_error(
                UsageError(message, hint="antlm-bench --help, or antlm-bench COMMAND --help")
            )
            return UsageError.exit_code
        if is_pipe_closed():
            return BROKEN_PIPE
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(type(error), error, error.__traceback__)
            return BUG
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
