"""Classification suites as data: what ships tests itself, settings lie on top of each other, a slip
names its table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from classification_suites import DECLARATION, SHIPPED, write_declaration

from antlm_bench.commands.catalog import describe_entry, list_catalog
from antlm_bench.errors import BenchError, DeclarationError, UsageError
from antlm_bench.suites import classification_loader, loader
from antlm_bench.suites.classification import ClassificationExampleSpec, ClassificationSpec
from antlm_bench.suites.task_types import read_declaration_file

SELF_TESTS = [
    pytest.param(spec, example, id=f"{name}-{example.task}")
    for name, spec in SHIPPED.items()
    for example in spec.example
]


def spec_of(folder: Path, body: str = DECLARATION) -> ClassificationSpec:
    spec = read_declaration_file(write_declaration(folder, body))
    assert isinstance(spec, ClassificationSpec)
    return spec


def test_the_suites_of_the_field_are_shipped_with_their_tasks() -> None:
    assert list(SHIPPED) == ["glue", "glue-2024", "glue-2025", "superglue"]
    assert classification_loader.list_tasks("glue-2025") == [
        "boolq",
        "multirc",
        "rte",
        "wsc",
        "mrpc",
        "qqp",
        "mnli",
    ]
    more = [
        "cola",
        "sst2",
        "mrpc",
        "qqp",
        "mnli",
        "mnli-mm",
        "qnli",
        "rte",
        "boolq",
        "multirc",
        "wsc",
    ]
    assert classification_loader.list_tasks("glue-2024") == more
    assert {"cb", "copa", "wic"} < set(
        classification_loader.list_tasks("superglue")
    ) and "record" not in classification_loader.list_tasks("superglue")
    metrics = {name: task.metric for name, task in SHIPPED["glue-2024"].task.items()}
    assert {name for name, metric in metrics.items() if metric != "accuracy"} == {
        "cola",
        "mrpc",
        "qqp",
    }
    assert metrics["cola"] == "mcc" and metrics["mrpc"] == metrics["qqp"] == "f1"


@pytest.mark.parametrize(("spec", "example"), SELF_TESTS)
def test_an_example_becomes_what_it_says(
    spec: ClassificationSpec, example: ClassificationExampleSpec
) -> None:
    (made,) = classification_loader.build_examples(
        spec.task[example.task], example.task, "valid", [(1, example.record)], "x"
    )
    assert (made.first, made.second, made.gold) == (example.first, example.second, example.gold)
    assert made.id == f"{example.task}_0" and made.labels == {"task": example.task}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_task_tests_itself_and_says_how_many_rows_it_has(name: str) -> None:
    spec = SHIPPED[name]
    assert {example.task for example in spec.example} == set(spec.task)
    assert spec.licence and spec.citation and spec.notes
    assert all(file.rows for file in spec.data.files.values())
    assert set(spec.data.files) == {
        file for task in spec.task.values() for file in (task.train, task.valid) if file
    }


PUBLISHED: list[tuple[str, str, str, Mapping[str, Any]]] = [
    ("glue-2024", "babyllama", "cola", {"lr": 4e-5, "batch": 64, "epochs": 3, "patience": 10}),
    ("glue-2024", "babyllama", "mnli-mm", {"lr": 5e-5, "batch": 64, "epochs": 6, "patience": 10}),
    ("glue-2025", "babyllama", "wsc", {"lr": 5e-7, "batch": 1, "epochs": 10}),
    ("glue-2025", "gpt-bert", "wsc", {"lr": 3e-4, "batch": 32, "epochs": 20, "warmup": 0.0}),
    (
        "glue-2025",
        "gpt-bert",
        "rte",
        {"lr": 1e-4, "batch": 16, "epochs": 10, "warmup": 0.06, "weight_decay": 0.01},
    ),
    (
        "glue-2025",
        "babylm-2024",
        "boolq",
        {"lr": 5e-5, "batch": 64, "epochs": 10, "patience": 3, "max_length": 128},
    ),
    (
        "glue-2025",
        "babylm-2025",
        "boolq",
        {"lr": 3e-5, "batch": 16, "epochs": 10, "max_length": 512, "clip": None},
    ),
    (
        "glue-2025",
        "babylm-2025",
        "wsc",
        {"batch": 32, "epochs": 30, "schedule": "cosine", "floor": 0.1, "patience": 0},
    ),
]


@pytest.mark.parametrize(("suite", "preset", "task", "says"), PUBLISHED)
def test_a_preset_is_what_was_published(
    suite: str, preset: str, task: str, says: Mapping[str, Any]
) -> None:
    settings = SHIPPED[suite].resolve_training(task, preset).model_dump()
    assert {key: settings[key] for key in says} == says


def test_only_babylm_s_presets_select_on_what_is_scored() -> None:
    for spec in SHIPPED.values():
        chosen = {name: preset.select for name, preset in spec.preset.items()}
        assert {name for name, select in chosen.items() if select == "valid"} == {
            "babylm-2024",
            "babylm-2025",
        }
    assert "moderate confidence" in classification_loader.list_presets("glue-2025")["gpt-bert"]


def test_settings_lie_on_top_of_each_other(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    plain, loud = spec.resolve_training("mood"), spec.resolve_training("mood", "loud")
    assert (plain.lr, plain.epochs, plain.batch) == (1e-4, 3, 32)
    assert (loud.lr, loud.epochs, loud.batch) == (1e-3, 3, 4)
    assert (loud.betas, loud.eps, loud.floor) == ((0.9, 0.999), 1e-8, 0.0)
    assert spec.resolve_training("mood-too", "loud") == loud  # it is one training


SLIPS = [
    ("epochs = 3,", "epoch = 3,", "task.mood.training: unknown key 'epoch': did you mean 'epochs'"),
    ("batch = 4 }", "batch = 0 }", "preset.loud.task.mood: batch: Input should be greater than 0"),
    (
        "batch = 8 }",
        "floor = 0.5 }",
        "preset.loud.training: floor needs schedule = 'cosine', not 'linear'",
    ),
    ("task.mood = {", "task.mod = {", "preset.loud.task: there is no 'mod': did you mean 'mood'"),
    ("task.mood = {", "task.mood-too = {", "preset.loud.task: there is no 'mood-too'"),
    (
        'trains_with = "mood"',
        'trains_with = "moody"',
        "task.mood-too: there is no 'moody': did you mean 'mood'",
    ),
    ('trains_with = "mood"\n', "", "a task needs either `train` or `trains_with`"),
    (
        'trains_with = "mood"',
        'trains_with = "mood"\ntraining = { lr = 1.0 }',
        "are those of the task in `trains_with`",
    ),
    (
        'metric = "accuracy"\nclasses = ["bad", "good"]',
        'metric = "mcc"\nclasses = ["bad", "dull"]',
        "other classes",
    ),
    (
        'metric = "f1"\nclasses = ["bad", "good"]',
        'metric = "f1"\nclasses = ["a", "b", "c"]',
        "f1 needs 2 classes",
    ),
    (
        'metric = "f1"\nclasses = ["bad", "good"]',
        'metric = "f1"\nclasses = ["a", "a"]',
        "two classes are called 'a'",
    ),
    (
        'metric = "f1"',
        'metric = "auc"',
        "task.mood.metric: unknown metric 'auc': use 'accuracy', 'f1', 'macro-f1' or 'mcc'",
    ),
    (
        'valid = "mood.valid.jsonl"\ntr',
        'valid = "mood.jsonl"\ntr',
        "task.mood: there is no 'mood.jsonl': did you mean",
    ),
    ('first = "{text}"', 'first = "{text.upper}"', "must hold the name of a field"),
    ("warmup = 0.06", "warmup = 1.0", "mine.toml: training.warmup: Input should be less than 1"),
    ("lr = 5e-5\n", "", "mine.toml: training.lr: Field required"),
    ('select = "valid"', 'select = "test"', "mine.toml: preset.loud.select"),
]


@pytest.mark.parametrize(("old", "new", "says"), SLIPS)
def test_a_slip_in_a_declaration_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert DECLARATION.count(old)
    with pytest.raises(DeclarationError) as caught:
        read_declaration_file(write_declaration(tmp_path, DECLARATION.replace(old, new, 1)))
    assert says in str(caught.value) and "mine.toml" in str(caught.value)


def test_each_verb_sends_the_other_s_suites_there() -> None:
    for call in (
        lambda: loader.list_suite_refs("glue-2025"),
        lambda: loader.load_suite("glue-2025"),
    ):
        with pytest.raises(UsageError, match="is a suite that is finetuned") as caught:
            call()
        assert "antlm-bench finetune --model CKPT --suite glue-2025" in caught.value.hint
    with pytest.raises(UsageError, match="scored, not a suite that is finetuned") as caught:
        classification_loader.list_tasks("blimp")
    assert "antlm-bench score --model CKPT --suite blimp" in caught.value.hint
    with pytest.raises(UsageError, match="is a collection"):
        classification_loader.list_tasks("zero-shot-2024")
    with pytest.raises(BenchError, match="did you mean 'glue-2025'"):
        classification_loader.list_tasks("glue-2052")


def test_list_and_show_know_them() -> None:
    rows = {row["suite"]: row for row in list_catalog("suites")}
    assert rows["glue-2025"]["items"] == 29_577 and rows["glue-2025"]["by"] == "finetune"
    assert rows["glue-2025"]["metric"] == "accuracy, f1" and rows["blimp"]["by"] == "score"
    name, facts = describe_entry(["glue-2024"])
    assert name == "glue-2024" and facts["tasks"]["mnli-mm"].endswith(
        "trains with mnli, 4,916 are scored"
    )
    assert facts["per task"]["cola"] == "max_length 128" and "babylm-2025" in facts["presets"]
    assert facts["training"]["lr"] == SHIPPED["glue-2024"].training.lr
