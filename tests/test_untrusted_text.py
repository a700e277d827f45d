"""Names and notes of a stranger's run reach no terminal, spreadsheet, log or page as commands."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_runs import make_cell, make_finetuned_cell, write_run

from antlm_bench.cli.app import run
from antlm_bench.printable import from_csv_text, hide_workflow_commands, to_csv_text

HOSTILE = (
    "::error::\x1b]0;x\x07=cmd|'/c'!A0 ##[error]<script>alert(1)</script>\u202e\x9b31m\\x{y}$|`"
)
FORMATS = ("", "--json", "--csv", "--markdown", "--latex")
COMMANDS = (
    *(f"{line} {form}" for line in ("report a", "report a b", "compare a b") for form in FORMATS),
    *(f"check a --against b --margin 5 {form}" for form in ("", "--json", "--csv", "--latex")),
    "check a --against b --margin 5 --junit check.xml --markdown check.md",
    *(f"baseline list saved {form}" for form in FORMATS),
    "report a --html page.html --svg figures",
    "report a --model-index",
    "curve a",
    "export a --format csv --out items.csv",
    "export a --format model-index --out card",
)
# Members of run.json that a run from outside may fill with any text.
PLACES = {
    "suite": {"suite", "collection", "task"},
    "method": set(),
    "other": {"name", "ties", "preset", "select", "antlm-bench"},
}


def replace_strings(node: Any, keys: set[str], key: str = "") -> Any:
    """Return JSON content with HOSTILE for every string below one of these keys."""
    if isinstance(node, dict):
        return {name: replace_strings(value, keys, name) for name, value in node.items()}
    if isinstance(node, list):
        return [replace_strings(value, keys, key) for value in node]
    return HOSTILE if isinstance(node, str) and key in keys else node


@pytest.fixture(params=PLACES)
def hostile_run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Run folders a (with hostile strings) and b, and a folder of baselines with a copy of a."""
    monkeypatch.chdir(tmp_path)
    cells = [
        make_cell("s", "causal", 70, 100, notes=[HOSTILE]),
        make_finetuned_cell("boolq", 1, 30),
    ]
    hostile_cells = [
        make_cell("s", HOSTILE, 70, 100, notes=[HOSTILE]),
        make_finetuned_cell("boolq", 1, 30, way=HOSTILE),
    ]
    has_hostile_methods = request.param == "method"  # they are parts of the names of files
    write_run(tmp_path / "a", hostile_cells if has_hostile_methods else cells, name="m")
    write_run(tmp_path / "b", cells, name="m")
    assert run(["baseline", "save", "a", "--name", "n", "--to", "saved"]) == 0
    for folder in ("a", "saved/n"):
        file = tmp_path / folder / "run.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        changed = replace_strings(content, PLACES[request.param])
        if request.param == "other":  # the summary has a digest
            for cell, original in zip(changed["cells"], content["cells"], strict=True):
                cell["summary"] = original["summary"]
        file.write_text(json.dumps(changed), encoding="utf-8")
    return tmp_path


def find_commands(text: str) -> Iterator[str]:
    """Yield the lines that GitHub's log would carry out."""
    for line in text.splitlines():
        if line.lstrip().startswith("::") or "##[" in line:
            yield line


def find_formulas(text: str) -> Iterator[str]:
    """Yield the fields of a CSV that a spreadsheet would compute."""
    for row in csv.reader(io.StringIO(text)):
        for field in row:
            if field.startswith(("=", "+", "-", "@")) and not re.fullmatch(r"-[\d.e+-]+", field):
                yield field


def test_hostile_names_stay_text(hostile_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for command in COMMANDS:
        code = run(shlex.split(command))
        assert code < 70, command
        assert code == 0 or not command.startswith("report a "), command
        printed = capsys.readouterr()
        text = f"{printed.out}\n{printed.err}"
        categories = {unicodedata.category(c) for c in text if c != "\n"}
        assert not categories & {"Cc", "Cf", "Cs"}, command
        if "--csv" in command:
            assert not list(find_formulas(printed.out)), command
            assert not any(line.startswith("::") for line in text.splitlines())
        elif "--json" in command and code == 0:
            json.loads(printed.out)
        elif "model-index" not in command:  # YAML quotes its strings
            assert not list(find_commands(text)), command
    if (hostile_run / "items.csv").exists():
        assert not list(find_formulas((hostile_run / "items.csv").read_text(encoding="utf-8")))
    page = hostile_run / "page.html"
    if page.exists():
        assert "<script>alert" not in page.read_text(encoding="utf-8")
    for file in [*hostile_run.glob("*.xml"), *hostile_run.rglob("*.svg")]:
        ElementTree.parse(file)


@given(st.text() | st.text("'=+-@:a", max_size=6))
def test_csv_fields_can_be_read_back(text: str) -> None:
    field = to_csv_text(text)
    assert from_csv_text(field) == text
    assert not field.startswith(("=", "+", "-", "@", "::"))


@given(st.text("#[:\n x", max_size=12))
def test_no_line_is_a_workflow_command(text: str) -> None:
    hidden = hide_workflow_commands(text)
    assert not list(find_commands(hidden))
    assert len(hidden) == len(text)
