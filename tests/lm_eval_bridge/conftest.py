"""Tasks of lm-eval that lie in a folder, and both scorers' answers to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCS = [
    {"q": "the cat", "choices": ["sees the dog", "see the dog"], "gold": 0},
    {"q": "the boys near the old house", "choices": ["sleeps", "sleep", "has seen"], "gold": 1},
    {"q": "which girl has ", "choices": ["seen himself", "seen herself ☕"], "gold": 1},
    {"q": "naïve dogs\n", "choices": ["never ever see", "ever sees"], "gold": 0},
    {"q": "every small house that", "choices": ["the boy has", "no boy have"], "gold": 0},
]
CHOICE: dict[str, Any] = {
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


@pytest.fixture(scope="session", autouse=True)
def _data_sets_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the data set library prepares of a test's files stays out of the user's cache."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


@pytest.fixture
def make_task(tmp_path: Path):
    """make_task(name, docs=DOCS, **changes) -> the YAML file of a multiple-choice task, its
    documents beside it.
    """

    def make(name: str, docs: list[dict[str, Any]] = DOCS, **changes: Any) -> Path:
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
        config = {
            "task": name,
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            **CHOICE,
            **changes,
        }
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            yaml.safe_dump({key: value for key, value in config.items() if value is not None})
        )
        return file

    return make
