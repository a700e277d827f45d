"""What a person sees: within the width, aligned, without colour where none is wanted, whatever the
names hold.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import regex
from rich.cells import cell_len
from table_runs import CHECKPOINT_RUNS, HYBRID_RUN, NOTE, ONE_RUN, READING_RUN, TWO_RUNS, make_run

from antlm_bench.console import print_error
from antlm_bench.errors import DataError
from antlm_bench.reporting.results_table import build_results_table
from antlm_bench.reporting.table import TableCell, build_records_table
from antlm_bench.reporting.writers import print_table
from antlm_bench.types import Run

GOLDEN = Path(__file__).parent.parent / "golden"


def show_runs(runs: list[Run], by: str = "phenomenon") -> None:
    print_table(build_results_table(runs, by))


CASES = {
    "one": ONE_RUN,
    "hybrid": HYBRID_RUN,
    "two": TWO_RUNS,
    "sweep": CHECKPOINT_RUNS,
    "read": READING_RUN,
}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize("name", CASES)
def test_golden(
    name: str, width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    show_runs(CASES[name], "paradigm" if name == "one" else "phenomenon")
    assert capsys.readouterr().out == (GOLDEN / f"terminal.{name}.{width}.txt").read_text(
        encoding="utf-8"
    )


@pytest.mark.long
@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
@pytest.mark.parametrize("by", ["suite", "phenomenon", "paradigm"])
@pytest.mark.parametrize(
    "runs", [*CASES.values(), [make_run("a-very-long-name-of-a-checkpoint-" * 4, "causal", "mlm")]]
)
def test_no_line_is_wider_than_the_terminal(
    runs: list[Run],
    by: str,
    width: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show_runs(runs, by)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_every_number_of_every_checkpoint_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_runs(CHECKPOINT_RUNS, "suite")
    out = capsys.readouterr().out
    assert out.count("63.4 [63.0, 63.8]") == len(CHECKPOINT_RUNS)
    assert all(f"chck_{words}M" in out for words in (1, 10, 20)) and NOTE in out


def test_names_are_not_markup_and_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_runs([make_run("[red]x[/red]\x1b[2J:smile:", "causal")], "suite")
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out and ":smile:" in out and "\x1b" not in out


def test_nothing_scored(capsys: pytest.CaptureFixture[str]) -> None:
    show_runs([])
    assert "nothing" in capsys.readouterr().out


def test_colour_on_a_terminal_and_none_under_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    table = build_records_table([{"verdict": TableCell("differs", tone="doubtful")}])
    print_table(table)
    assert "\x1b[35mdiffers" in capsys.readouterr().out  # magenta, readable on white
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(table)
    assert "\x1b[35m" not in capsys.readouterr().out


@pytest.mark.long
def test_an_ascii_terminal_gets_question_marks_not_a_traceback() -> None:
    here = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(here)!r}); from table_runs import ONE_RUN; "
    code += (
        "from antlm_bench.reporting.results_table import build_results_table as build; "
        "from antlm_bench.reporting.writers import print_table; "
        "print_table(build(ONE_RUN)); print_table(build(ONE_RUN), 'markdown')"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "63.4 [63.0, 63.8]" in done.stdout


def test_a_problem_goes_to_stderr_with_its_place_and_hint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_error(
        DataError("row has 2 cells", location="pairs.csv:4", hint="quote texts that hold commas")
    )
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err == "error: pairs.csv:4: row has 2 cells\n hint: quote texts that hold commas\n"
    )


def test_output_may_be_any_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sink := io.StringIO())
    show_runs(ONE_RUN, "suite")
    assert "blimp" in sink.getvalue()


# Names with their width on a terminal, counted by hand: two columns per ideograph or emoji, none
# per combining mark.
WIDTHS = {
    "plain": 5,
    "中文数据集": 10,
    "한국어": 6,
    "cafe\u0301s": 5,
    "שָׁלוֹם": 4,
    "مرحبا": 5,
    "👩‍👩‍👧 family": 9,
    "🇩🇪": 2,
}


def test_numbers_stand_below_each_other_beside_names_of_any_script(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(build_records_table([{"name": name, "n": 7} for name in WIDTHS]))
    lines = capsys.readouterr().out.splitlines()
    columns = set()
    for name, width in WIDTHS.items():
        [line] = [line for line in lines if name in line]
        before, _, after = line.replace("\u2068", "").replace("\u2069", "").partition(name)
        columns.add(len(before) + width + len(after))
    assert len(columns) == 1


def test_right_to_left_names_are_isolated_from_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(build_records_table([{"name": name, "n": 7} for name in WIDTHS]))
    out = capsys.readouterr().out
    assert "\u2068שָׁלוֹם\u2069 " in out and "\u2068مرحبا\u2069 " in out
    assert out.count("\u2068") == out.count("\u2069") == 2


def test_wrapped_names_keep_their_characters_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    characters = ["👩‍👩‍👧", "e\u0301", "हि", "🇩🇪"]
    print_table(build_records_table([{"name": c * 30, "n": 7} for c in characters]))
    drawn = regex.findall(r"\X", capsys.readouterr().out)
    assert [drawn.count(character) for character in characters] == [30] * 4


def test_long_names_break_after_a_sign(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    name = "organisation/babylm-baseline-100m-gpt2@chck_100M"
    print_table(build_records_table([{"model": name, "score": 71.5}]))
    _, *rows = filter(None, capsys.readouterr().out.split("\n"))
    lines = [row.split()[0] for row in rows]
    assert "".join(lines) == name
    assert all(line[-1] in "-_/@" for line in lines[:-1])
