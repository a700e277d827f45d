"""`report --html`, `--svg`, `--png`: which files a command leaves, and which options exclude each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_pages import log, model

from antlm_bench.cli import run


@pytest.fixture
def ran(tmp_path: Path) -> str:
    return str(model(tmp_path / "run", "llama", 0.7))


def test_a_page_is_one_file(ran: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert run(["report", ran, "--html", str(page), "--training", str(log(tmp_path / "trained"))]) == 0
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>") and "page.html" in capsys.readouterr().out


def test_figures_are_files_of_their_own(ran: str, tmp_path: Path) -> None:
    assert run(["report", ran, "--svg", str(tmp_path / "figures")]) == 0
    assert {file.suffix for file in (tmp_path / "figures").iterdir()} == {".svg"}


@pytest.mark.parametrize("other", [["--collection", "babylm-2024"], ["--partial"], ["--json"], ["--baseline", "x"]])
def test_what_belongs_to_the_table_is_not_ignored(
    ran: str, tmp_path: Path, other: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", ran, "--html", str(tmp_path / "page.html"), *other]) == 2
    assert other[0] in capsys.readouterr().err and not (tmp_path / "page.html").exists()


def test_losses_are_not_tabulated(ran: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", ran, "--training", str(tmp_path)]) == 2
    assert "--training" in capsys.readouterr().err
