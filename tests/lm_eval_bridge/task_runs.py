"""Tasks of lm-eval scored by our engine, and their runs read by every command."""

from __future__ import annotations

import json

import pytest
from lm_eval_reference import task_ref

from antlm_bench.cli.app import run as cli
from antlm_bench.commands.score import score


def score_task(folder, file, out, **options):
    (run,) = score(folder, task_ref(file), out=out, device="cpu", **options)
    (cell,) = run.cells
    return run, cell


def run_every_command(folders, file, place, capsys):
    """Score a task with two checkpoints; compare, check, report and export their runs.

    Asserts that the numbers agree. Returns headlines, the comparison as JSON and as printed, and
    the exported lm-eval results of the first.
    """
    first, second = (str(place / f"run{n}") for n in range(2))
    values = [
        score_task(folder, file, out)[1].summary.headline.value
        for folder, out in zip(folders, (first, second), strict=True)
    ]
    capsys.readouterr()
    assert cli(["compare", first, second, "--json"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)["comparisons"][0]["comparisons"]
    assert [comparison["headline"][side] for side in "ab"] == pytest.approx(values)
    assert comparison["headline"]["value"] == pytest.approx(values[1] - values[0])
    assert cli(["compare", first, second]) == 0
    printed = capsys.readouterr().out
    assert cli(["check", first, "--against", first]) == 0
    capsys.readouterr()
    assert cli(["report", first]) == 0
    assert f"{values[0]:.3f}" in capsys.readouterr().out
    assert cli(["export", first, "--format", "lm-eval", "--out", str(place / "out")]) == 0
    results = json.loads(next((place / "out").rglob("results_*.json")).read_text())
    assert cli(["export", first, "--format", "csv", "--out", str(place / "items.csv")]) == 0
    return values, comparison, printed, results
