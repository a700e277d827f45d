"""The README's table is what `make demo` prints, and its Python prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"\d+\.\d|\[ *\d+\.\d, *\d+\.\d\]")
TOLERANCE = 10.0  # points; another CPU rounds the training's sums differently


def read_documented_table() -> list[str]:
    """Return the lines of the table below the first `make demo` of the README."""
    text = README.partition("make demo")[2]
    table = text.split("```\n")[2]
    return [line.rstrip() for line in table.splitlines() if line.strip()]


@pytest.mark.slow
def test_make_demo_prints_the_table_of_the_readme() -> None:
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(
        ["make", "demo"], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    printed = [line.rstrip() for line in done.stdout.splitlines() if line.strip()]
    documented = read_documented_table()
    printed = printed[-len(documented) :]  # the training's own output comes first
    shapes = [
        [re.sub(r" +", " ", NUMBER.sub("N", line)) for line in t] for t in (printed, documented)
    ]
    assert shapes[0] == shapes[1]
    for line, expected in zip(printed, documented, strict=True):
        numbers, expected_numbers = (
            [float(number) for number in re.findall(r"\d+\.\d", text)] for text in (line, expected)
        )
        assert numbers == pytest.approx(expected_numbers, abs=TOLERANCE)
    assert run_python_example() == pytest.approx(read_documented_accuracy(), abs=TOLERANCE / 100)


def run_python_example() -> list[float]:
    """Run the README's Python, and return the numbers that it prints."""
    [code] = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [ROOT / ".venv/bin/python", "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [float(number) for number in re.findall(r"\d+\.\d+|\d+", done.stdout)]


def read_documented_accuracy() -> list[float]:
    """Return the numbers after "this prints"."""
    [line] = re.findall(r"this prints `([^`]+)`", README)
    return [float(number) for number in re.findall(r"\d+\.\d+|\d+", line)]
