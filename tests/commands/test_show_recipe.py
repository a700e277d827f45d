"""`antlm-bench show RECIPE`: the table of what differs from the paper."""

from __future__ import annotations

import pytest

from antlm_bench.cli import app
from antlm_bench.commands.catalog import list_recipe_differences


def test_a_recipe_shows_what_differs_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["show", "gpt-bert-10m"]) == 0
    shown = capsys.readouterr().out
    heads = next(
        line for line in shown.splitlines() if line.split()[:3] == ["number", "paper", "ours"]
    )
    table = shown[shown.index(heads) :]
    assert "mixture" in table and "15 of 16 GPUs are masked" in " ".join(table.split())


def test_what_is_not_known_of_a_paper_says_so() -> None:
    rows = {row["number"]: row for row in list_recipe_differences(["antlm-ltg-bert"])}
    assert rows["batch.tokens"]["paper"] == rows["optimizer"]["paper"] == "unknown"
    assert rows["objective.masked"]["why"].endswith(
        "--set objective.masked=mntp --set methods=['causal','mntp','fused']"
    )


def test_numbers_of_a_scale_and_of_set_stand_in_the_same_table() -> None:
    rows = {
        row["number"]: row
        for row in list_recipe_differences(["models", "babyllama-2"], "nano", ["optimizer.lr=0.5"])
    }
    assert rows["model.layers"] == {
        "number": "model.layers",
        "paper": "32",
        "ours": "3",
        "why": "changed by scale nano",
    }
    assert rows["optimizer.lr"] == {
        "number": "optimizer.lr",
        "paper": "0.0007",
        "ours": "0.5",
        "why": "changed by --set",
    }
    assert (
        rows["phase"]["paper"] == "8 epochs: 1 causal"
        and rows["phase"]["ours"] == "2 epochs: 1 causal"
    )
    assert "optimizer.clip" not in rows and "name" not in rows


def test_a_key_that_a_change_removes_is_the_changes_doing() -> None:
    rows = {
        row["number"]: row
        for row in list_recipe_differences(["babyllama"], "", ["optimizer.warmup=0.1"])
    }
    assert (
        rows["optimizer.warmup_steps"]["ours"] == "None"
        and rows["optimizer.warmup_steps"]["why"] == "changed by --set"
    )


def test_a_phase_names_the_relative_numbers_of_rows() -> None:
    rows = {
        row["number"]: row
        for row in list_recipe_differences(
            ["gpt-bert-10m"], "", ["phase=[{steps=9,causal=2,masked=6}]"]
        )
    }
    assert rows["phase"]["ours"] == "9 steps: 2 causal and 6 masked"
    assert rows["phase"]["paper"] == "7,812 steps: 1 causal and 15 masked"


def test_what_is_no_recipe_has_no_such_table() -> None:
    assert list_recipe_differences(["nano"]) == list_recipe_differences(["methods", "mlm"]) == []
