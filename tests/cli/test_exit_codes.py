"""Every way a command can end: one message, one exit code, never a traceback."""

from __future__ import annotations

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
        ("OutputError", 74),
        ("Interrupted", 75),
    ],
)
def test_each_typed_error_has_its_exit_code(name: str, code: int) -> None:
    error = getattr(errors, name)("message", location="place", hint="hint")
    assert outcome(raising(error)) == (code, [error])


def test_success_is_zero_and_says_nothing() -> None:
    assert outcome(lambda: None) == (0, [])
    assert outcome(lambda: 5) == (5, [])


def test_a_bug_is_one_paragraph_that_says_how_to_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTLM_BENCH_TRACEBACK", raising=False)
    code, (error,) = outcome(raising(ZeroDivisionError("division by zero")))
    assert code == BUG
    assert "ZeroDivisionError: division by zero" in error.message
    assert "ANTLM_BENCH_TRACEBACK=1" in error.hint


def test_a_bug_shows_its_traceback_when_asked_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTLM_BENCH_TRACEBACK", "1")
    assert outcome(raising(ZeroDivisionError("by zero"))) == (BUG, [])
    assert "Traceback" in (shown := capsys.readouterr().err) and "by zero" in shown


def test_an_exit_of_a_library_is_a_bug_and_no_verdict() -> None:
    code, (error,) = outcome(raising(SystemExit(1)))
    assert code == BUG and "SystemExit: 1" in error.message
