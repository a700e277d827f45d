"""The names of `antlm_bench`: lazy, typed and documented; the examples of the documents run."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from tiny_models import build_model, train_tokenizer

import antlm_bench
from antlm_bench import keywords
from antlm_bench.checkpoints import OpenOptions
from antlm_bench.commands.finetune import FinetuneOptions
from antlm_bench.commands.score import ScoreOptions
from antlm_bench.commands.train import TrainOptions

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = [
    (document, number, code)
    for document in ("README.md", "docs/python.md")
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.S)
    )
]


def test_every_name_is_there_and_documented() -> None:
    for name in antlm_bench.__all__:
        value = getattr(antlm_bench, name)
        assert name == "__version__" or inspect.getdoc(value), name
    assert set(antlm_bench.__all__) <= set(dir(antlm_bench))


def test_no_name_is_hidden_by_a_module() -> None:
    values = [getattr(antlm_bench, name) for name in antlm_bench.__all__]
    assert not [value for value in values if inspect.ismodule(value)]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'evaluate'"):
        _ = antlm_bench.evaluate


@pytest.mark.parametrize(
    ("typed", "options", "left_out"),
    [
        (keywords.CheckpointKeywords, OpenOptions, {"lengths"}),
        (keywords.ScoreKeywords, ScoreOptions, set()),
        (keywords.FinetuneKeywords, FinetuneOptions, set()),
        (keywords.TrainKeywords, TrainOptions, set()),
    ],
)
def test_keywords_are_the_fields_of_the_options(
    typed: type, options: type, left_out: set[str]
) -> None:
    hints = get_type_hints(options)
    names = {field.name for field in fields(options)} - left_out
    typed_hints = get_type_hints(typed)
    other_names = {
        name for name in typed_hints if keywords.COMMAND_LINE_NAMES.get(name) and name not in names
    }
    assert {n: typed_hints[n] for n in typed_hints if n not in other_names} == {
        name: hints[name] for name in names
    }


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random checkpoint where `make demo` trains one."""
    folder = tmp_path_factory.mktemp("demo")
    checkpoint = folder / ".demo" / "babyllama" / "main"
    train_tokenizer("causal", True).save_pretrained(checkpoint)
    build_model("causal", 0).save_pretrained(checkpoint)
    return folder


@pytest.mark.long
@pytest.mark.parametrize(("document", "number", "code"), EXAMPLES)
def test_the_examples_of_the_documents_run(
    demo: Path, document: str, number: int, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pandas")
    monkeypatch.chdir(demo)
    exec(compile(code, f"{document} {number}", "exec"), {})
