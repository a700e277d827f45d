"""A sweep's TOML: each mistake fails before anything starts, and the error names its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps.sweep_files import expand_text, write_pairs, write_texts

from antlm_bench.errors import BenchError

SCORE = """
[[score]]
models = ["{model}"]
suites = ["{pairs}"]
"""
FINETUNE = """
[[finetune]]
models = ["{model}"]
suites = ["{texts}"]
options = {{ valid = "{texts}" }}
"""
TRAIN = """
[[train]]
name = "pretrain"
recipes = ["babyllama"]
corpus = "nano"
scale = "nano"
"""
MISTAKES = {
    "an unknown key": (SCORE + 'suite = ["blimp"]', "score.0", "unknown key 'suite'"),
    "no stage": ('name = "x"', "sweep.toml", "no stage"),
    "no name": ('name = "a b"' + SCORE, "name", "not a name"),
    "equal names": (
        SCORE + 'name = "a"' + SCORE + 'name = "a"',
        "score 'a': name",
        "two stages are called 'a'",
    ),
    "an empty list": ("[[score]]\nmodels = []\nsuites = ['nano']", "models", "models is empty"),
    "a table for an array": (SCORE.replace("[[score]]", "[score]"), "score", "write [...], or [["),
    "a number for an array": (FINETUNE + "seeds = 3", "seeds", "this is no array"),
    "an option of another type": (
        SCORE + 'options = {{ limit = "five" }}',
        "options",
        "limit is 'five' (str); it must be an integer",
    ),
    "an option that is no table": (
        SCORE + "options = {{ columns = 3 }}",
        "options",
        "it must be a table from a string to a string",
    ),
    "a negative seed": (FINETUNE + "seeds = [-1]", "seeds", "0 or more"),
    "no shard": (SCORE + "shards = 0", "shards", "1 or more"),
    "an unknown suite": (
        SCORE.replace("{pairs}", "blimb"),
        "score 'score': suites",
        "unknown suite 'blimb'",
    ),
    "an unknown method": (SCORE + 'methods = ["mlmm"]', "methods", "unknown method 'mlmm'"),
    "a method that it lacks": (SCORE + 'methods = ["mlm"]', "methods", "no mask token"),
    "an unknown option": (SCORE + "options = {{ dtyp = 1 }}", "options", "no option 'dtyp'"),
    "a key among the options": (
        SCORE + 'options = {{ shard = "1/2" }}',
        "options",
        "no option 'shard'",
    ),
    "an option of a wrong type": (SCORE + 'options = {{ limit = "2" }}', "options", "limit is '2'"),
    "contradicting options": (
        SCORE + 'options = {{ precision = "adaptive", dtype = "bfloat16" }}',
        "options: dtype",
        "both bfloat16 and float32",
    ),
    "a missing folder": (SCORE.replace("{model}", "./nowhere"), "models", "no such folder"),
    "a missing file": (SCORE.replace("{pairs}", "nowhere.csv"), "sweep.toml", "no such file"),
    "an unknown task": (FINETUNE + 'tasks = ["rte"]', "tasks", "no task 'rte'"),
    "an unknown preset": (
        FINETUNE.replace("options = {{", 'options = {{ preset = "x",'),
        "options: preset",
        "no preset 'x'",
    ),
    "an unknown hyper-parameter": (
        FINETUNE.replace("options = {{", 'options = {{ changes = ["lrr=1"],'),
        "options: changes",
        "lrr",
    ),
    "an option that frozen ignores": (
        FINETUNE.replace("options = {{", "options = {{ frozen = true, lora = 4,"),
        "options: lora",
        "--frozen",
    ),
    "an unknown attention": (FINETUNE + 'attentions = ["both"]', "attentions", "'both'"),
    "an unknown recipe": (TRAIN.replace("babyllama", "babylama"), "recipes", "'babylama'"),
    "an unknown scale": (TRAIN.replace('scale = "nano"', 'scale = "nan"'), "scale", "nan"),
    "an unknown corpus": (
        TRAIN.replace('corpus = "nano"', 'corpus = "nan"'),
        "corpus: nan",
        "no such file",
    ),
    "equal models": (TRAIN + "seeds = [1, 1]", "recipes", "two units train"),
    "an unknown train stage": (
        TRAIN + SCORE.replace("{model}", "stage:pretrian/main"),
        "models",
        "no train stage 'pretrian'",
    ),
    "an unknown milestone": (
        TRAIN + SCORE.replace("{model}", "stage:pretrain/chck_9M"),
        "models",
        "no checkpoint of pretrain/babyllama",
    ),
    "an unknown preset of frozen": (
        FINETUNE.replace("options = {{", 'options = {{ preset = "x", frozen = true,'),
        "options: preset",
        "cannot be combined with --frozen",
    ),
    "a limit of an unknown task": (
        FINETUNE.replace("options = {{", "options = {{ limit_train = {{ rte = 2 }},"),
        "options: limit_train",
        "no task 'rte'",
    ),
    "revisions of a folder": (
        SCORE + 'revisions = ["main"]',
        "score 'score': revisions",
        "only hub ids have revisions",
    ),
    "an unknown executor": (
        SCORE + '[executor.slrum]\npartition = "main"',
        "executor.slrum",
        "unknown executor 'slrum'",
    ),
    "a page elsewhere": (
        SCORE + '[report]\nhtml = "../page.html"',
        "report: html",
        "not a file in the sweep's folder",
    ),
    "the same cell twice": (
        SCORE + SCORE + "options = {{ limit = 2 }}",
        "score 'score-2'",
        "also computed by the stage 'score'",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_place(name: str, tmp_path: Path, make_checkpoint) -> None:
    text, location, message = MISTAKES[name]
    names = {
        "model": make_checkpoint("causal", mask=False),
        "pairs": write_pairs(tmp_path / "pairs.csv"),
        "texts": write_texts(tmp_path / "texts.csv", 8),
    }

    with pytest.raises(BenchError) as raised:
        expand_text(tmp_path, text.format(**names))

    assert "sweep.toml" in raised.value.location
    assert location in raised.value.location
    assert message in raised.value.message
    assert "None" not in raised.value.message
