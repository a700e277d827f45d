"""Tasks of lm-eval scored by our engine, and their runs put through every command that reads runs."""

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
    """Two checkpoints scored on a task, compared, gated, reported and exported: their headlines,
    the comparison as JSON and as it is shown, and what lm-eval would be told of the first. Their
    numbers agree, or this fails.
    """
    one, two = (str(place / f"run{n}") for n in range(2))
    values = [
        score_task(folder, file, out)[1].summary.headline.value
        for folder, out in zip(folders, (one, two), strict=True)
    ]
    capsys.readouterr()
    assert cli(["compare", one, two, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["comparisons"][0]["comparisons"]
    assert [found["headline"][side] for side in "ab"] == pytest.approx(values)
    assert found["headline"]["value"] == pytest.approx(values[1] - values[0])
    assert cli(["compare", one, two]) == 0
    shown = capsys.readouterr().out
    assert cli(["check", one, "--against", one]) == 0
    capsys.readouterr()
    assert cli(["report", one]) == 0
    assert f"{values[0]:.3f}" in capsys.readouterr().out
    assert cli(["export", one, "--format", "lm-eval", "--out", str(place / "out")]) == 0
    results = json.loads(next((place / "out").rglob("results_*.json")).read_text())
    assert cli(["export", one, "--format", "csv", "--out", str(place / "items.csv")]) == 0
    return values, found, shown, results
