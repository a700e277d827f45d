"""The errors that users see, each with a message, a location and a hint.

    BenchError                 exit
    ├── PerformanceRegression  1     a checkpoint is worse than its baseline by more than the margin
    ├── EngineDisagreement     1     another engine scores the same checkpoint differently
    ├── UsageError             2     a wrong option or value; UnknownCell: the run has no such cell;
    │                                MissingPackage: a package is not installed
    ├── DeclarationError       2     a TOML file is invalid, ours or the user's
    ├── MethodNotSupported     2     the checkpoint does not support the scoring method
    ├── CheckpointError        3     a model cannot be opened, or returns NaN
    ├── DataError              3     data is missing, damaged, unreadable or incomplete
    ├── RunError               3     a run folder cannot be read or written
    ├── PluginError            3     code of an installed package fails, or returns a wrong type
    ├── TrainingError          3     a loss is NaN or explodes
    ├── Undecided              4     under --strict: there are too few items for the margin
    ├── IncompleteError        5     some cells failed or are missing
    ├── NotComparable          6     runs of different suites, items or policies
    ├── OutputError            74    stdout or stderr is full or closed (the command line only)
    └── Interrupted            75    a signal stopped the run, which can be resumed

`exit` is the exit code of the command line; 0 is success, 130 is Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class BenchError(Exception):
    """The base class of all errors."""

    exit_code = 3

    def __init__(self, message: str, *, location: str = "", hint: str = "") -> None:
        """Create an error.

        message: what is wrong. location: where (file:line, option, item). hint: how to fix it.
        """
        super().__init__(message)
        self.message, self.location, self.hint = message, location, hint

    def __str__(self) -> str:
        location = f"{self.location}: " if self.location else ""
        return f"{location}{self.message}" + (f"\n  hint: {self.hint}" if self.hint else "")


class PerformanceRegression(BenchError):
    exit_code = 1


class EngineDisagreement(BenchError):
    exit_code = 1


class UsageError(BenchError):
    exit_code = 2


class UnknownCell(UsageError, KeyError):
    """A run has no cell, or several cells, for a suite, method and seed (`Run.__getitem__`)."""


class MissingPackage(UsageError, ImportError):
    """A package that an option or command needs is not installed (`packages.require_packages`)."""


class DeclarationError(BenchError):
    exit_code = 2


class MethodNotSupported(BenchError):
    exit_code = 2


class CheckpointError(BenchError):
    exit_code = 3


class DataError(BenchError):
    exit_code = 3


class RunError(BenchError):
    exit_code = 3


class PluginError(BenchError):
    exit_code = 3


class TrainingError(BenchError):
    exit_code = 3


class Undecided(BenchError):
    exit_code = 4


class IncompleteError(BenchError):
    """Some of several checkpoints, suites or cells failed or are missing."""

    exit_code = 5

    def __init__(
        self, message: str, *, location: str = "", hint: str = "", runs: Sequence[Any] = ()
    ) -> None:
        super().__init__(message, location=location, hint=hint)
        self.runs = tuple(runs)
        """The runs that finished."""


class NotComparable(BenchError):
    exit_code = 6


class OutputError(BenchError):
    exit_code = 74


class Interrupted(BenchError):
    exit_code = 75


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 300 characters of it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def map_collecting_errors(names: Sequence[str], function: Callable[[str], T]) -> Iterator[T]:
    """Yield the result of a function for each name. Errors are raised together at the end.

    Raises IncompleteError if any of several names failed. With a single name, its error is raised
    unchanged.
    """
    failures: list[str] = []
    for name in names:
        try:
            yield function(name)
        except BenchError as error:
            if len(names) == 1:
                raise
            failures.append(f"  {error}" if error.location == name else f"  {name}: {error}")
    if failures:
        raise IncompleteError(f"{len(failures)} of {len(names)} failed:\n" + "\n".join(failures))
