"""What a person sees: within the width, aligned, without colour where none is wanted, whatever the
names hold.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from table_runs import CHECKPOINT_RUNS, HYBRID_RUN, NOTE, ONE_RUN, READING_RUN, TWO_RUNS, make_run

from antlm_bench.errors import DataError
from antlm_bench.reporting import print_error, print_fields, print_rows, show_runs
from antlm_bench.types import Run

GOLDEN = Path(__file__).parent.parent / "golden"
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
    show_runs(CASES[name], "terminal", "paradigm" if name == "one" else "phenomenon")
    assert capsys.readouterr().out == (GOLDEN / f"terminal.{name}.{width}.txt").read_text(
        encoding="utf-8"
    )


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
    show_runs(runs, "terminal", by)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)


def test_every_number_of_every_checkpoint_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_runs(CHECKPOINT_RUNS, "terminal", "suite")
    out = capsys.readouterr().out
    assert out.count("63.4  ±0.4") == len(CHECKPOINT_RUNS)
    assert all(f"chck_{words}M" in out for words in (1, 10, 20)) and NOTE in out


def test_names_are_not_markup_and_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_runs([make_run("[red]x[/red]\x1b[2J:smile:", "causal")], "terminal", "suite")
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out and ":smile:" in out and "\x1b" not in out


def test_nothing_scored(capsys: pytest.CaptureFixture[str]) -> None:
    show_runs([], "terminal")
    assert "nothing" in capsys.readouterr().out


def test_colour_on_a_terminal_and_none_under_no_color(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    show_runs(ONE_RUN)
    assert "\x1b[33m" in capsys.readouterr().out  # the yellow note
    monkeypatch.setenv("NO_COLOR", "1")
    show_runs(ONE_RUN)
    assert "\x1b[33m" not in capsys.readouterr().out


def test_an_ascii_terminal_gets_question_marks_not_a_traceback() -> None:
    here = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(here)!r}); from table_runs import ONE_RUN; "
    code += "from antlm_bench.reporting import show_runs; show_runs(ONE_RUN); show_runs(ONE_RUN, 'markdown')"
    environment = {"PYTHONIOENCODING": "ascii", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert "63.4  ?0.4" in done.stdout


def test_facts(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields(
        "checkpoint x",
        {
            "parameters": 58000000,
            "tied": True,
            "mask": None,
            "special": {"bos": "<s>"},
            "m": ("a", "b"),
        },
    )
    assert capsys.readouterr().out.splitlines() == [
        " checkpoint x",
        "  parameters  58,000,000",
        "  tied        yes",
        "  mask        –",
        "  special",
        "    bos  <s>",
        "  m           a, b",
        "",
    ]


ROWS = [
    {"suite": "blimp", "items": "67,000", "title": "BLiMP"},
    {"suite": "a|b", "items": "", "title": "[x]"},
]


def test_catalog_in_every_form(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "─" not in line] == [
        ["suite", "items", "title"],
        ["blimp", "67,000", "BLiMP"],
        ["a|b", "–", "[x]"],
    ]
    print_rows(ROWS, "markdown")
    assert capsys.readouterr().out.splitlines()[3] == r"| a\|b | – | \[x\] |"
    print_rows(ROWS, "csv")
    assert capsys.readouterr().out == 'suite,items,title\nblimp,"67,000",BLiMP\na|b,,[x]\n'
    print_rows(ROWS, "json")
    assert '"title": "[x]"' in capsys.readouterr().out
    print_rows([], empty="no suites")
    assert capsys.readouterr().out == " no suites\n"


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
    show_runs(ONE_RUN, "terminal", "suite")
    assert "blimp" in sink.getvalue()
