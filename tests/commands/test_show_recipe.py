"""`antlm-bench show RECIPE`: the table of what differs from the paper."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antlm_bench.cli import app
from antlm_bench.commands.catalog import list_recipe_differences
from antlm_bench.commands.train import TrainOptions, _build_run_metadata
from antlm_bench.declarations import list_declarations
from antlm_bench.training.recipe import list_scales, read_recipe
from antlm_bench.training.text_sources import load_text_source

DESCRIPTIONS = ("name", "title", "scale", "sources", "notes", "difference")
"""Keys of a recipe that decide no weight, and that `show` prints elsewhere."""


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


def drop_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: drop_none(each) for key, each in value.items() if each is not None}
    return [drop_none(each) for each in value] if isinstance(value, list) else value


@pytest.mark.long
@pytest.mark.parametrize("name", list_declarations("models"))
def test_the_printed_recipe_is_the_one_that_train_records(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """At every scale, as it is and with a change."""
    source = load_text_source("nano")
    for scale, changes in (*((scale, []) for scale in list_scales(name)), ("", ["seed=7"])):
        words = ["--scale", scale] if scale else ["--set", *changes]
        assert app.run(["show", "models", name, *words, "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)["facts"]["recipe"]
        options = TrainOptions(scale=scale, changes=changes)
        recipe = read_recipe(name, scale, changes)
        metadata = _build_run_metadata(recipe, source, options, [])
        recorded = json.loads(json.dumps(metadata))["recipe"]
        phases = {f"phase {n}": each for n, each in enumerate(recorded.pop("phase"), 1)}

        printed.pop("milestones")  # they change no weight, and train.json leaves them out
        expected = {key: each for key, each in recorded.items() if key not in DESCRIPTIONS}
        assert printed == drop_none(expected | phases)
