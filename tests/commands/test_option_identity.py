"""What decides a result is part of its identity: every option of score, finetune and train."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from score_helpers import make_agreement_rows, write_pairs
from train_helpers import CAUSAL, write_recipe

from antlm_bench import score
from antlm_bench.checkpoints import open_backbone
from antlm_bench.commands import train as train_command
from antlm_bench.commands.finetune import FinetuneOptions, Finetuner
from antlm_bench.commands.score import ScoreOptions
from antlm_bench.commands.train import TrainOptions
from antlm_bench.errors import BenchError, UsageError
from antlm_bench.training.recipe import read_recipe
from antlm_bench.training.text_sources import load_text_source

Make = Callable[..., Path]

NEW_KEY, SAME_RESULT, REFUSED, NO_CELL = "new key", "same result", "refused", "no cell"
SCORE_CHANGES: dict[str, tuple[Any, str]] = {
    "revision": ("main", REFUSED),  # of a local folder
    "name": ("mine", SAME_RESULT),
    "limit": (2, NEW_KEY),
    "columns": ({"good": "bad", "bad": "good"}, NEW_KEY),
    "layout": ("columns", SAME_RESULT),  # the layout of a CSV
    "good": ("first", REFUSED),  # of lines in twos
    "words": ("characters", REFUSED),  # of a method without words
    "allow_incomplete": (True, SAME_RESULT),
    "require_all": (True, SAME_RESULT),
    "unigrams": ("text.txt", REFUSED),  # of a suite of pairs
    "bos": ("never", NEW_KEY),
    "ties": ("strict", NEW_KEY),
    "compat": ("minicons", NEW_KEY),
    "max_length": (8, NEW_KEY),
    "device": ("cpu", SAME_RESULT),
    "dtype": ("bfloat16", NEW_KEY),
    "precision": ("adaptive", NEW_KEY),
    "engine": ("minicons", NEW_KEY),
    "batch_tokens": (4096, SAME_RESULT),
    "trust_remote_code": (True, NEW_KEY),  # which holds the hashes of the code
    "allow_pickle": (True, SAME_RESULT),
    "peft": ("adapter", NEW_KEY),
    "tokenizer": ("tokenizer", NEW_KEY),
    "allow_unused": (True, SAME_RESULT),
    "allow_missing": (True, SAME_RESULT),
    "original_layout": ("ltg-bert-bnc", REFUSED),  # of a Llama
    "again": (True, SAME_RESULT),
    "replace": (True, SAME_RESULT),
    "shard": ("1/2", NO_CELL),  # until the shards are merged
}
"""Option of score -> another value, and what it changes."""
FINETUNE_CHANGES: dict[str, tuple[Any, str]] = {
    "revision": ("main", REFUSED),
    "name": ("mine", SAME_RESULT),
    "valid": ("other.csv", NEW_KEY),
    "columns": ({"text": "label2"}, NEW_KEY),
    "limit_train": ({"": 10}, NEW_KEY),
    "limit_valid": ({"": 3}, NEW_KEY),
    "preset": ("babylm-2025", REFUSED),  # of a user's file
    "changes": (["lr=1e-3"], NEW_KEY),
    "pooling": ("mean", NEW_KEY),
    "lora": (2, NEW_KEY),
    "frozen": (True, NEW_KEY),
    "device": ("cpu", SAME_RESULT),
    "dtype": ("bfloat16", NEW_KEY),
    "batch_tokens": (64, SAME_RESULT),
    "trust_remote_code": (True, NEW_KEY),
    "allow_pickle": (True, SAME_RESULT),
    "peft": ("adapter", NEW_KEY),
    "tokenizer": ("tokenizer", NEW_KEY),
    "allow_unused": (True, SAME_RESULT),
    "allow_missing": (True, SAME_RESULT),
    "original_layout": ("ltg-bert-bnc", REFUSED),
    "again": (True, SAME_RESULT),
    "replace": (True, SAME_RESULT),
}
TRAIN_CHANGES: dict[str, tuple[Any, str]] = {
    "scale": ("small", REFUSED),
    "changes": (["seed=2"], REFUSED),
    "teachers": (["b", "a2"], REFUSED),
    "resume": (True, SAME_RESULT),
    "device": ("cpu", SAME_RESULT),
    "precision": ("bfloat16", REFUSED),
    "micro_tokens": (64, SAME_RESULT),
    "compiled": (True, SAME_RESULT),
    "save_every": (1.0, SAME_RESULT),
    "stop_after": (3, SAME_RESULT),
    "trackers": (["tensorboard"], SAME_RESULT),
}
"""Option of train -> another value, and whether a run that was stopped is continued with it."""


def test_every_option_is_here() -> None:
    for options, changes in (
        (ScoreOptions, SCORE_CHANGES),
        (FinetuneOptions, FINETUNE_CHANGES),
        (TrainOptions, TRAIN_CHANGES),
    ):
        assert {field.name for field in fields(options)} == changes.keys()


@pytest.fixture(scope="module")
def paths(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, an adapter of it, another tokenizer, and files of pairs, texts and labels."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("identity")
    model = make_checkpoint()
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks for an older name
        adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    adapted.save_pretrained(folder / "adapter")
    rows = make_agreement_rows(12)
    for name, texts in (("train", 24), ("valid", 8), ("other", 6)):
        lines = [f"the cat sees {n},{'ab'[n % 2]},a dog {n}" for n in range(texts)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label,label2", *lines]))
    return {
        "model": str(model),
        "adapter": str(folder / "adapter"),
        "tokenizer": str(make_checkpoint(adds=False)),
        "pairs": str(write_pairs(folder / "pairs.csv", rows)),
        **{f"{name}.csv": str(folder / f"{name}.csv") for name in ("train", "valid", "other")},
    }


@pytest.mark.long
@pytest.mark.parametrize("option", SCORE_CHANGES)
def test_an_option_of_score_changes_the_key_or_nothing(
    option: str, paths: dict[str, str], tmp_path: Path
) -> None:
    value, effect = SCORE_CHANGES[option]
    value = paths.get(value, value) if isinstance(value, str) else value
    [[base]] = score(paths["model"], paths["pairs"], out=tmp_path / "base")
    ask = {"out": tmp_path / "changed", option: value}
    if effect == REFUSED:
        with pytest.raises(BenchError):
            score(paths["model"], paths["pairs"], **ask)
        return
    [run] = score(paths["model"], paths["pairs"], **ask)
    if effect == NO_CELL:
        assert not run.cells
        return
    [changed] = run
    assert (changed.key != base.key) == (effect == NEW_KEY)
    if effect == SAME_RESULT:
        assert changed.digest == base.digest


@pytest.mark.long
@pytest.mark.parametrize("option", FINETUNE_CHANGES)
def test_an_option_of_finetune_changes_the_key_or_nothing(
    option: str, paths: dict[str, str]
) -> None:
    def find_key(**options: Any) -> str:
        settings = FinetuneOptions(**{"valid": paths["valid.csv"], **options})
        backbone = open_backbone(paths["model"], settings.checkpoint_options())
        finetuner = Finetuner([(paths["train.csv"], "train")], (), [1], settings)
        finetuner.tasks = [finetuner._load_task(paths["train.csv"], "train")]
        [cell] = finetuner._list_cells(backbone, ["causal"])
        return cell.key

    value, effect = FINETUNE_CHANGES[option]
    value = paths.get(value, value) if isinstance(value, str) else value
    if effect == REFUSED:
        with pytest.raises(BenchError):
            find_key(**{option: value})
        return
    assert (find_key(**{option: value}) != find_key()) == (effect == NEW_KEY)


@pytest.mark.parametrize("option", TRAIN_CHANGES)
def test_a_stopped_run_is_continued_with_its_own_options_only(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distilled = CAUSAL + '[distil]\nteachers = ["a", "a"]\ntemperature = 2.0\nalpha = 0.5\n'
    recipe_file = write_recipe(tmp_path, text=distilled + "[scale.small.model]\nhidden = 8\n")
    (tmp_path / "a.txt").write_text("the cat sees the dog")
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(train_command, "_hash_teachers", lambda paths: [f"w {p}" for p in paths])

    def start(**values: Any) -> None:
        options = TrainOptions(**{"teachers": ["a1", "a2"], **values})
        recipe = read_recipe(str(recipe_file), options.scale, options.changes)
        metadata = train_command._build_run_metadata(
            recipe,
            load_text_source(str(tmp_path / "a.txt")),
            options,
            train_command._hash_teachers(options.teachers),
        )
        train_command._start_or_check_run(tmp_path / "run", metadata, options.resume)

    start()
    (tmp_path / "run" / "state").mkdir()
    start()
    value, effect = TRAIN_CHANGES[option]
    if effect == REFUSED:
        with pytest.raises(UsageError, match="the folder holds another run: "):
            start(**{option: value})
    else:
        start(**{option: value})
