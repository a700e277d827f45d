"""Every way a command can end: one message, one exit code, never a traceback."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from antlm_bench import errors
from antlm_bench.cli.exit_codes import BUG, run_command
from antlm_bench.errors import BenchError


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


def outcome(command: Callable[[], int | None]) -> tuple[int, list[BenchError]]:
    reported: list[BenchError] = []
    return run_command(command, reported.append), reported


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("UsageError", 2),
        ("DeclarationError", 2),
        ("MethodNotSupported", 2),
        ("CheckpointError", 3),
        ("DataError", 3),
        ("RunError", 3),
        ("IncompleteError", 5),
        ("NotComparable", 6),
        ("Interrupted", 75),
    ],
)
def test_each_typed_error_has_its_exit_code(name: str, code: int) -> None:
    error = getattr(errors, name)("message", location="place", hint="hint")
    assert outcome(raising(error)) == (code, [error])


def test_success_is_zero_and_says_nothing() -> None:
    assert outcome(lambda: None) == (0, [])
    assert outcome(lambda: 5) == (5, [])


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_stops_with_the_promise_to_resume(name: str, code: int) -> None:
    def command() -> int:
        try:
            signal.raise_signal(getattr(signal, name))
        except Exception:  # as a library might: a signal must not be swallowed
            return 0
        return 0

    before = signal.getsignal(getattr(signal, name))
    got, (error,) = outcome(command)
    assert got == code
    assert name in error.message and "continues" in error.hint
    assert signal.getsignal(getattr(signal, name)) == before


def test_a_bug_is_one_paragraph_that_says_how_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTLM_BENCH_TRACEBACK", raising=False)
    code, (error,) = outcome(raising(ZeroDivisionError("division by zero")))
    assert code == BUG
    assert "ZeroDivisionError: division by zero" in error.message
    assert "ANTLM_BENCH_TRACEBACK=1" in error.hint


def test_a_bug_shows_its_traceback_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTLM_BENCH_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), lambda _: None)
