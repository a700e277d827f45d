"""Progress of whole commands: counts, time left by hand, lines in a log, one line on a terminal."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr

import pytest
from rich.cells import cell_len

from antlm_bench import progress
from antlm_bench.progress import (
    Progress,
    ShareCounter,
    Workload,
    build_bar_line,
    format_duration,
    format_rate,
)


class Clock:
    """A clock that tests turn by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "time", clock := Clock())
    return clock


@pytest.fixture
def terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    return Terminal()


# ---- a log


def test_log_has_a_line_soon_then_one_a_minute_and_a_last_one(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("blimp · causal", total=1000) as bar:
        for _ in range(25):
            clock.now += 4
            bar.advance(40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "blimp · causal: 80 of 1,000 items (8%), 10 items/s, 1 min 32 s left",
        "blimp · causal: 680 of 1,000 items (68%), 10 items/s, 32 s left",
        "blimp · causal: 1,000 items in 1 min 40 s",
    ]


def test_log_says_nothing_of_a_quick_command(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("x", total=10) as bar:
        clock.now += 1
        bar.advance(10)
    assert capsys.readouterr().err == ""


def test_log_has_no_last_line_after_an_error(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError), Progress("x", total=10) as bar:
        clock.now += 11
        bar.advance(1)
        raise RuntimeError
    assert capsys.readouterr().err.splitlines() == [
        "x: 1 of 10 items (10%), 0.091 items/s, 1 min 39 s left"
    ]


@pytest.mark.parametrize(
    "variables", [{"FORCE_COLOR": "1"}, {"TERM": "dumb"}], ids=["FORCE_COLOR in a file", "dumb"]
)
def test_log_lines_where_a_line_cannot_be_redrawn(
    variables: dict[str, str], clock: Clock, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stderr = io.StringIO() if "FORCE_COLOR" in variables else terminal
    with redirect_stderr(stderr), Progress("x", total=10) as bar:
        clock.now += 5
        bar.advance(5)
    assert "\x1b[2K" not in stderr.getvalue() and "\x1b[?25l" not in stderr.getvalue()
    assert "5 of 10" in stderr.getvalue()


# ---- counts and time


def test_time_left_counts_costs_and_parts_that_have_not_begun(clock: Clock) -> None:
    """By hand: the causal suite costs 100 and takes 10 s, so the masked one, which costs 300, will
    take 30 s, and each of the two further checkpoints 40 s.
    """
    causal, masked = Workload(50, 100.0), Workload(50, 300.0)
    with Progress(parts=("checkpoint", 3)) as bar:
        bar.next_part("opening a")
        assert bar.total == 0 and bar.seconds_left is None
        clock.now += 7  # importing libraries
        bar.plan(Workload.sum([causal, masked]))
        bar.start_piece("a suite causal", causal)
        assert (bar.total, bar.seconds_left) == (300, None)
        clock.now += 5
        bar.advance(25, tokens=1000)
        assert bar.seconds_left == pytest.approx(5 + 30 + 80)
        clock.now += 5
        bar.advance(25, tokens=1000)
        bar.start_piece("a suite mlm", masked)
        assert bar.seconds_left == pytest.approx(30 + 80)
        assert bar.log_line() == (
            "checkpoint 1 of 3, a suite mlm: 50 of 300 items (16%), 200 tokens/s, 1 min 50 s left"
        )


def test_time_left_counts_opening_of_further_checkpoints(clock: Clock) -> None:
    """By hand: ten units take 10 s. Opening the second of four takes 2 s; the others will, too."""
    with Progress(parts=("checkpoint", 4)) as bar:
        bar.next_part("a")
        bar.plan_piece("a", Workload(10, 10.0))
        clock.now += 10
        bar.advance(10)
        bar.next_part("b")
        clock.now += 2
        bar.plan_piece("b", Workload(10, 10.0))
        assert bar.seconds_left == 30 + 2 * 2


def test_units_of_an_earlier_call_take_no_time(clock: Clock) -> None:
    with Progress("x", total=1000) as bar:
        clock.now += 100  # reading what is there
        bar.skip(500)
        clock.now += 5
        bar.advance(50)
        assert bar.log_line() == "x: 550 of 1,000 items (55%), 10 items/s, 45 s left"
        bar.skip(450)
        assert bar.seconds_left == 0
        assert bar.last_line() == "x: 1,000 items in 1 min 45 s, 950 of them by an earlier call"


def test_parts_that_differ_from_the_first_correct_the_total(clock: Clock) -> None:
    with Progress(parts=("checkpoint", 3)) as bar:
        bar.next_part("a")
        bar.plan_piece("a", Workload(10, 10.0))
        assert bar.total == 30
        clock.now += 10
        bar.advance(10)
        bar.next_part("b cannot be opened")
        assert (bar.num_done, bar.total) == (10, 30)
        bar.next_part("c")
        assert bar.total == 20
        bar.plan_piece("c", Workload(5, 5.0))
        assert (bar.total, bar.seconds_left) == (15, 5)
        bar.advance(5)
        assert (bar.num_done, bar.total, bar.seconds_left) == (15, 15, 0)


def test_parts_of_known_size_are_expected_as_planned(clock: Clock) -> None:
    """A teacher of cost 20, then a student of cost 60, with as many tokens."""
    with Progress("", "tokens", parts=("recipe", 2)) as bar:
        bar.next_part("teacher")
        bar.plan_piece("teacher", Workload(100, 20.0), [Workload(100, 60.0)])
        clock.now += 10
        bar.advance(50, tokens=50)
        assert (bar.total, bar.seconds_left) == (200, 70)


def test_what_a_failure_left_undone_is_no_work(clock: Clock) -> None:
    with Progress() as bar:
        bar.plan(Workload(30, 30.0))
        bar.start_piece("fails", Workload(10, 10.0))
        clock.now += 4
        bar.advance(4)
        bar.start_piece("works", Workload(20, 20.0))
        assert (bar.num_done, bar.total, bar.seconds_left) == (4, 24, 20)


def test_counts_never_fall_and_time_is_never_negative(clock: Clock) -> None:
    with Progress(parts=("checkpoint", 4)) as bar:
        for part in range(4):
            bar.next_part("x")
            bar.plan(Workload(20, 7.0))
            for _piece in range(2):
                before = bar.num_done
                bar.start_piece("x", Workload(10, 3.5))
                count: Callable[[int], None] = bar.skip if part % 2 else bar.advance
                for _ in range(10):
                    clock.now += 0.5
                    count(1)
                    assert bar.seconds_left is None or bar.seconds_left >= 0
                    assert before < bar.num_done <= bar.total
        assert (bar.num_done, bar.total, bar.seconds_left) == (80, 80, 0)


def test_shares_become_whole_units_and_tokens(clock: Clock) -> None:
    tokens = iter([100, 160, 190, 200])
    with Progress(total=10) as bar:
        counter = ShareCounter(bar, 10, lambda: next(tokens))
        counter(0.33)
        assert (bar.num_done, bar.num_tokens) == (3, 60)
        counter(0.33)
        assert (bar.num_done, bar.num_tokens) == (7, 90)
        counter.finish()
        assert (bar.num_done, bar.num_tokens) == (10, 100)


def test_inner_progress_stands_in_the_line_of_the_outer(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("babyllama", "tokens", total=100) as outer:
        with Progress("nano causal", total=8) as inner:
            inner.advance(2)
            assert outer.title == "babyllama · nano causal 2/8"
            clock.now += 6
            inner.advance(2)
        assert (outer.title, outer.num_done) == ("babyllama", 0)
    assert capsys.readouterr().err.splitlines() == [
        "babyllama (nano causal 4/8): 0 of 100 tokens (0%)",
        "babyllama: 0 of 100 tokens in 6 s",
    ]


def test_estimate_of_the_caller_replaces_ours(clock: Clock) -> None:
    with Progress("sweep", "units", total=10, estimate_remaining=lambda: 61.0) as bar:
        assert bar.log_line() == "sweep: 0 of 10 units (0%), 1 min 01 s left"


# ---- a terminal


def test_terminal_shows_one_line_and_leaves_it_clean(
    terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    with redirect_stderr(terminal), Progress("[bold]x", total=10) as bar:
        bar.advance(3)
        bar.log("a note")
        assert bar._live is not None
        bar._live.refresh()
    text = terminal.getvalue()
    assert "[bold]x" in text and "3/10 items" in text and "a note\n" in text
    assert text.index("\x1b[?25l") < text.rindex("\x1b[?25h")  # the cursor is shown again
    assert text.endswith("\x1b[1A\x1b[2K")  # the line is erased
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_terminal_is_sane_after_an_error(error: type[BaseException], terminal: Terminal) -> None:
    with redirect_stderr(terminal):
        with pytest.raises(error), Progress("x", total=10):
            raise error
        assert sys.stderr is terminal and Progress._active is None
    assert terminal.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


@pytest.mark.parametrize("no_color", ["", "1"])
def test_terminal_without_colours(
    no_color: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    with redirect_stderr(terminal), Progress("x", total=10) as bar:
        bar.advance(3)
    assert "━─" in re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert ("\x1b[32m" in terminal.getvalue()) == (not no_color)


LONG = "chck_100M blimp causal+mlm+fused"


@pytest.mark.parametrize("label", ["gpt2", LONG, "语言模型" * 8])
@pytest.mark.parametrize("width", [1, 20, 40, 60, 80, 120])
def test_line_fits_its_terminal(label: str, width: int, clock: Clock) -> None:
    with Progress(label, total=67_000) as bar:
        clock.now += 10
        bar.advance(12_288, tokens=412_000)
        assert cell_len(build_bar_line(bar, width).plain) <= width


def test_line_keeps_what_matters_at_60_columns(clock: Clock) -> None:
    with Progress(parts=("checkpoint", 19)) as bar:
        bar.next_part("opening")
        bar.plan_piece(LONG, Workload(67_000, 1.0))
        clock.now += 100
        bar.advance(12_288, tokens=412_000)
        line = build_bar_line(bar, 60).plain
        assert line == "1/19 chck_100M blimp… 12,288/1,273,000 items 2 h 51 min left"
        wide = build_bar_line(bar, 120).plain
    assert f"1/19 {LONG} ─" in wide and "4,120 tokens/s 2 h 51 min left" in wide


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7805, "2 h 10 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


@pytest.mark.parametrize(("rate", "words"), [(41234.5, "41,234"), (9.54, "9.5"), (0.091, "0.091")])
def test_rates(rate: float, words: str) -> None:
    assert format_rate(rate) == words
