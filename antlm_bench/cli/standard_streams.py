"""stdout and stderr of a process that record failed writes instead of raising errors.

Results are in files, so a command must not end after hours because its log is on a full disk. The
exit code reports the failure at the end. Only a closed pipe ends a command early.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from antlm_bench.errors import BenchError, OutputError

BROKEN_PIPE = 141


class StandardStream(io.FileIO):
    """Raw stdout or stderr. Discards what is written after the first failure."""

    failure: OSError | None = None
    """The first failure of a write."""

    def write(self, data: Any, /) -> int:
        """Write bytes. Raises BrokenPipeError the first time that a pipe is closed."""
        while self.failure is None:
            try:
                count: int | None = super().write(data)
            except OSError as error:
                self.failure = error
                if isinstance(error, BrokenPipeError):
                    raise
                break
            if count is not None:
                return count
            select.select([], [self.fileno()], [])  # a pipe that does not block is full
        return memoryview(data).nbytes


_streams: dict[str, StandardStream] = {}
"""Name (stdout, stderr) -> stream, once `replace_standard_streams` has run."""


def replace_standard_streams() -> None:
    """Replace sys.stdout and sys.stderr by streams that record failures. Later calls do nothing.

    A closed stream is replaced by a file on which every write fails. Otherwise the next file that
    is opened would get the file descriptor of the stream, and would receive what is printed.
    """
    if _streams:
        return
    for name in ("stdin", "stdout", "stderr"):
        old = getattr(sys, name)
        if old is None:
            descriptor = os.open(os.devnull, os.O_RDONLY)
        if name == "stdin":
            continue
        stream = StandardStream(descriptor if old is None else old.fileno(), "w", closefd=False)
        _streams[name] = stream
        wrapper = io.TextIOWrapper(
            io.BufferedWriter(stream),
            encoding=old.encoding if old else "utf-8",
            errors=old.errors if old else "replace",
            line_buffering=old.line_buffering if old else False,
            write_through=old.write_through if old else False,
        )
        setattr(sys, name, wrapper)


def is_pipe_closed() -> bool:
    """Whether the reader of stdout or stderr has closed the pipe."""
    return any(isinstance(stream.failure, BrokenPipeError) for stream in _streams.values())


def check_output(report_error: Callable[[BenchError], None]) -> int | None:
    """Flush stdout and stderr. Return the exit code of a failed write, or None without one."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    if is_pipe_closed():
        return BROKEN_PIPE
    failures = {name: stream.failure for name, stream in _streams.items() if stream.failure}
    for name, failure in failures.items():
        is_closed = failure.errno == errno.EBADF
        error = OutputError(
            f"cannot be written: {'it is closed' if is_closed else failure.strerror}",
            location=name,
            hint="files were written as usual; repeat the command to see the rest of the output",
        )
        report_error(error)
    return OutputError.exit_code if failures else None
