"""Architectures are records: no module compares their names, and a package can add one."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_packages import install_package, rescanned
from training_text import write_text

import antlm_bench
from antlm_bench import runs
from antlm_bench.architectures import registration
from antlm_bench.architectures.records import ARCHITECTURES, SHIPPED, find_architecture
from antlm_bench.cli.app import run

PACKAGE = Path(antlm_bench.__file__).parent
MODEL_TYPES = {"gpt2", "antlm_ltg_bert", "antlm_gpt_bert"}


def compared_strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, literal) of every comparison, match case, table key and subscript."""
    for node in ast.walk(tree):
        operands: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            operands = list(node.keys)
        elif isinstance(node, ast.MatchValue):
            operands = [node.value]
        elif isinstance(node, ast.Subscript):
            operands = [node.slice]
        for operand in operands:
            for part in [operand, *getattr(operand, "elts", [])]:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


def test_no_module_compares_the_name_of_an_architecture():
    names = {*SHIPPED, *MODEL_TYPES}
    found = [
        f"{path.relative_to(PACKAGE)}:{line} {literal!r}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).as_posix() != "architectures/records.py"
        for line, literal in compared_strings(ast.parse(path.read_text(encoding="utf-8")))
        if literal in names
    ]
    assert not found, "\n".join(found)


def test_registered_names_are_those_of_the_records():
    assert [ARCHITECTURES[name].name for name in SHIPPED] == list(SHIPPED)
    assert find_architecture("gpt2") is ARCHITECTURES["gpt2"]
    assert find_architecture("no_such_type") is None


def test_targets_of_a_record_can_be_imported():
    for name in SHIPPED:
        architecture = ARCHITECTURES[name]
        config = architecture.load_class("AutoConfig")
        assert config.model_type == architecture.model_type
        for auto in architecture.classes:
            assert issubclass(
                getattr(architecture.load_class(auto), "config_class", config), config
            )


MODEL = """
from transformers import LlamaConfig, LlamaForCausalLM

class StrangerConfig(LlamaConfig):
    model_type = "stranger_llama"

class StrangerForCausalLM(LlamaForCausalLM):
    config_class = StrangerConfig
"""
RECORD = """
from antlm_bench.architectures.records import ARCHITECTURES, Architecture

LLAMA = ARCHITECTURES["llama"]
STRANGER = Architecture(
    name="stranger",
    title="Llama under another name",
    model_type="stranger_llama",
    classes={
        "AutoConfig": "stranger_model:StrangerConfig",
        "AutoModelForCausalLM": "stranger_model:StrangerForCausalLM",
    },
    config_settings=LLAMA.config_settings,
    compute_size=LLAMA.compute_size,
)
"""
RECIPE = """
title = "Stranger"
sources = ["nobody"]
methods = ["causal"]
[model]
architecture = "stranger"
layers = 1
hidden = 16
heads = 2
ffn = 24
positions = 32
tied = true
norm_eps = 1e-6
[tokenizer]
vocabulary = 300
[corpus]
document = "line"
[[phase]]
steps = 3
causal = 1
[batch]
tokens = 64
length = 16
[optimizer]
name = "adamw"
lr = 1e-3
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The package `stranger_record`, with a model file beside it."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "stranger_model.py").write_text(MODEL)
    entries = "[antlm_bench.architectures]\nstranger = stranger_record:STRANGER\n"
    install_package(folder, monkeypatch, "stranger_record", RECORD, entries)
    with rescanned(ARCHITECTURES):
        registration.register_architectures()
        yield


@pytest.mark.usefixtures("stranger")
def test_a_package_adds_an_architecture_to_the_command_line(tmp_path, capsys):
    assert run(["list", "architectures", "--csv"]) == 0
    assert "stranger,stranger_llama,Llama under another name" in capsys.readouterr().out

    recipe, text, out = tmp_path / "stranger.toml", write_text(tmp_path / "text"), tmp_path / "out"
    recipe.write_text(RECIPE)
    assert run(["show", "models", str(recipe)]) == 0
    command = ["train", str(recipe), "--corpus", str(text), "--out", str(out), "--device", "cpu"]
    assert run(command) == 0
    config = json.loads((out / "main" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "stranger_model.StrangerForCausalLM"
    assert (out / "main" / "stranger_model.py").read_text() == MODEL

    suite = tmp_path / "agree.csv"
    suite.write_text("good,bad\nthe cat sleeps,the cat sleep\na dog sees,a dog see\n")
    command = ["score", "--model", str(out / "main"), "--suite", str(suite), "--device", "cpu"]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    [cell] = runs.open_run(tmp_path / "run").cells
    assert cell.settings["architecture"] == "StrangerForCausalLM"
