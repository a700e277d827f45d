"""Progress in a log: a line now and then, honest about rate and time left; nothing when it is
quick.
"""

from __future__ import annotations

import pytest

from antlm_bench import progress
from antlm_bench.progress import Progress, format_duration


class Clock:
    """A clock that tests turn by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "time", clock := Clock())
    return clock


def test_a_line_every_ten_seconds_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(1000, "blimp · causal") as bar:
        for _ in range(10):
            clock.now += 4
            bar.advance(100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "blimp · causal: 300 of 1,000 items (30%), 25 items/s, 28 s left",
        "blimp · causal: 600 of 1,000 items (60%), 25 items/s, 16 s left",
        "blimp · causal: 900 of 1,000 items (90%), 25 items/s, 4 s left",
        "blimp · causal: 1,000 items in 40 s",
    ]


def test_what_was_resumed_does_not_flatter_the_rate(clock: Clock) -> None:
    with Progress(1000, "x") as bar:
        bar.skip(500)
        clock.now += 5
        bar.advance(50)
        assert bar.log_line() == "x: 550 of 1,000 items (55%), 10 items/s, 45 s left"


def test_a_quick_thing_is_not_talked_about(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(10, "x") as bar:
        clock.now += 1
        bar.advance(10)
    assert capsys.readouterr().err == ""


def test_an_error_inside_is_not_followed_by_a_success(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError), Progress(10, "x") as bar:
        clock.now += 11
        bar.advance(1)
        raise RuntimeError
    assert "items in" not in capsys.readouterr().err


def test_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with Progress(10, "[bold]x") as bar:
        bar.advance(3)
        bar.log("a note")
        assert bar.bar is not None
        bar.bar.refresh()
    err = capsys.readouterr().err
    assert "[bold]x" in err and "3/10" in err and "a note" in err and "items/s" in err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7805, "2 h 10 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words
