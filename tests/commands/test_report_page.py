"""`report --html`, `--svg`, `--png`: which files a command leaves, and which options exclude each
other.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from large_runs import write_model_run, write_training_log
from report_runs import make_glue_cells, make_zero_shot_cells, write_run

from antlm_bench.cli.app import run


@pytest.fixture
def ran(tmp_path: Path) -> str:
    return str(write_model_run(tmp_path / "run", "llama", 0.7))


@pytest.mark.long
def test_a_page_is_one_file(ran: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "page.html"
    assert (
        run(
            [
                "report",
                ran,
                "--html",
                str(page),
                "--training",
                str(write_training_log(tmp_path / "trained")),
            ]
        )
        == 0
    )
    assert (
        page.read_text(encoding="utf-8").startswith("<!doctype html>")
        and "page.html" in capsys.readouterr().out
    )


@pytest.mark.long
def test_figures_are_files_of_their_own(ran: str, tmp_path: Path) -> None:
    assert run(["report", ran, "--svg", str(tmp_path / "figures")]) == 0
    assert {file.suffix for file in (tmp_path / "figures").iterdir()} == {".svg"}


@pytest.mark.long
def test_a_collection_opens_the_page_as_the_terminal_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_run(tmp_path / "whole", make_zero_shot_cells("causal") + make_glue_cells())
    asked = ["--collection", "babylm-2024", "--baseline", "BabyLlama 10M"]
    page = tmp_path / "page.html"
    assert run(["report", str(whole), *asked, "--html", str(page)]) == 0
    capsys.readouterr()
    assert run(["report", str(whole), *asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    text = page.read_text(encoding="utf-8")
    numbers = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', text, re.S)
    collected = json.loads(numbers[1])["collection"] if numbers else {}
    assert collected["numbers"] and collected == {key: said[key] for key in collected}
    (table,) = re.findall(r'<table class="headline collection".*?</table>', text, re.S)
    table = re.sub(r'<span class="label".*?</span></span>', "", table)  # of lists on a phone
    table = re.sub(r' role="\w+"', "", table)
    rows = {
        re.sub("<.*?>", "", name): [
            re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", cells)
        ]
        for name, cells in re.findall(
            r'<tr class="(?:member|macro)"><th scope="row">(.*?)</th>(.*?)</tr>', table
        )
    }
    assert list(rows) == ["BLiMP", "Supplement", "EWoK", "GLUE", "Macro-average"]
    macro = next(one for one in said["numbers"] if one["member"] == "Macro-average")
    value, low, high = (f"{100 * macro[key]:.1f}" for key in ("value", "low", "high"))
    assert rows["Macro-average"] == [f"{value}[{low}, {high}]", "60.8"]
    assert rows["BLiMP"] == ["70.0[60.3, 78.5]", "69.8"] and "as if independent" in text


def expand(marks: str) -> set[str]:
    """Return the marks in `a,c-e`: a, c, d, e."""
    ends = [part.split("-") for part in marks.split(",")]
    return {chr(code) for end in ends for code in range(ord(end[0]), ord(end[-1]) + 1)}


@pytest.mark.long
def test_each_note_of_a_collection_is_marked_where_a_phone_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A phone hides the header, so that its marks stand beside the values, too."""
    runs = [write_model_run(tmp_path / name, name, 0.7, items=4) for name in "ABCD"]
    page = tmp_path / "page.html"
    asked = ["--collection", "babylm-2025", "--partial", "--html", str(page)]
    assert run(["report", *map(str, runs), *asked]) in (0, 5)
    text = page.read_text(encoding="utf-8")
    (table,) = re.findall(r'<table class="headline collection".*?</table>', text, re.S)
    (notes,) = re.findall(r'<dl class="letters">(.*?)</dl>', text, re.S)
    body = re.sub("<td[^>]*empty.*?</td>", "", table.partition("<tbody")[2])
    marks = [expand(marks) for marks in re.findall("<sup>(.*?)</sup>", body)]
    assert set().union(*marks) == set(re.findall("<dt>(.*?)</dt>", notes))
    assert all(f"<bdi>{name}</bdi>" in body for name in "ABCD")


@pytest.mark.long
def test_a_page_of_what_is_missing_says_so_and_so_does_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = str(write_run(tmp_path / "part", make_zero_shot_cells("causal")))
    asked = ["report", part, "--collection", "babylm-2024", "--html", str(tmp_path / "page.html")]
    assert run(asked) == 5
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "part (causal) lacks GLUE, so it has no average" in text
    assert "antlm-bench finetune --model part" in capsys.readouterr().err
    assert run([*asked, "--partial"]) == 0
    assert "partial: averaged without GLUE" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize(
    ("drawn", "other", "complaint"),
    [
        ("--html", ["--json"], "--json"),
        ("--html", ["--partial"], "only a collection has members"),
        ("--html", ["--baseline", "x"], "only a collection has members"),
        (
            "--svg",
            ["--collection", "babylm-2024"],
            "--collection: --svg and --png cannot show a collection",
        ),
    ],
)
def test_what_has_no_place_on_the_page_is_not_ignored(
    ran: str,
    tmp_path: Path,
    drawn: str,
    other: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["report", ran, drawn, str(tmp_path / "page.html"), *other]) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "page.html").exists()


@pytest.mark.long
def test_losses_are_not_tabulated(
    ran: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", ran, "--training", str(tmp_path)]) == 2
    assert "--training" in capsys.readouterr().err
