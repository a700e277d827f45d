"""`list`: which rows it prints, and how the suites are grouped."""

from __future__ import annotations

import csv
import io

import pytest

from antlm_bench.cli.app import run
from antlm_bench.commands.catalog import fold_collections, list_catalog


def read_names(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    """Return the first column of `list ... --csv`."""
    assert run(["list", *args, "--csv"]) == 0
    return [row[0] for row in csv.reader(io.StringIO(capsys.readouterr().out))][1:]


def test_texts_and_a_language_choose_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_names(capsys, "suites") == [str(row["suite"]) for row in list_catalog()]
    assert read_names(capsys, "suites", "BLiMP", "fast") == ["blimp-fast", "supplement-fast"]
    assert read_names(capsys, "suites", "--language", "de") == ["clams-de", "multiblimp-deu"]
    assert read_names(capsys, "suites", "pairs", "--language", "NL") == ["blimp-nl"]
    assert read_names(capsys, "methods", "l2r") == ["mlm-l2r"]


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["suites", "--language", "xx"], "no suite is of the language 'xx'"),
        (["methods", "--language", "en"], "these have no language"),
    ],
)
def test_a_language_without_rows_is_an_error(
    args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["list", *args]) == 2
    assert f"--language: {complaint}" in capsys.readouterr().err


def test_a_terminal_shows_a_large_collection_as_one_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    suites = list_catalog()
    folded = {str(row["suite"]): row for row in fold_collections(suites)}
    members = [row for row in suites if str(row["suite"]).startswith("multiblimp-")]
    assert len(folded) == len(suites) - len(members) + 1 < 60
    assert folded["multiblimp-*"]["items"] == sum(int(str(row["items"])) for row in members)
    assert run(["list", "suites"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines if line.split()}
    assert set(folded) <= names and "multiblimp-deu" not in names
    english, several, other = (
        lines.index(f" {title}")
        for title in ("English", "several languages, or none", "other languages")
    )
    assert english < several < other
