"""Scoring methods are records: no module compares their names, and a package can add one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from plugin_packages import install_package, rescanned

import antlm_bench
from antlm_bench import runs
from antlm_bench.cli.app import run
from antlm_bench.scoring.methods import METHODS, SHIPPED

PACKAGE = Path(antlm_bench.__file__).parent
# Training objectives and attentions are enumerations of their own, with some equal names.
OBJECTIVES = "training/objectives.py"


def compared_strings(node: ast.AST) -> Iterator[str]:
    """String literals that a comparison, a match, a table or a subscript asks about."""
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
    elif isinstance(node, ast.Dict):
        operands = [key for key in node.keys if key is not None]
    elif isinstance(node, ast.MatchValue):
        operands = [node.value]
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) != "Literal":
        operands = [node.slice]
    else:
        return
    for operand in operands:
        for part in [operand, *getattr(operand, "elts", [])]:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value


def names_a_method(node: ast.AST) -> bool:
    """Whether an expression asks for a method by name; "causal" may be an attention or a kind."""
    literals = set(compared_strings(node))
    if literals & ({*SHIPPED, "finetune-causal", "finetune-full"} - {"causal"}):
        return True
    asks_method = re.search(r"\bmethods?\b|\bmethod_name", ast.unparse(node))
    return isinstance(node, ast.Compare) and "causal" in literals and asks_method is not None


@pytest.mark.parametrize(
    "code",
    ['cell.method == "causal"', 'name in ("mlm", "mntp")', '{"fused": 1}', 'x["mlm-l2r"]'],
)
def test_the_search_finds_a_comparison(code):
    assert any(map(names_a_method, ast.walk(ast.parse(code))))


def test_no_module_compares_the_name_of_a_method():
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).as_posix() not in ("scoring/methods.py", OBJECTIVES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if names_a_method(node)
    ]
    assert not found, "\n".join(found)


def test_registered_names_are_those_of_the_records():
    assert tuple(SHIPPED) == METHODS.names()[: len(SHIPPED)]
    assert [METHODS[name].name for name in SHIPPED] == list(SHIPPED)


TWICE = """
from antlm_bench.scoring.methods import Method
from antlm_bench.scoring.probes import causal

TWICE = Method("causal-twice", "causal, counted twice", (("causal", causal), ("causal", causal)))
"""


@pytest.fixture
def twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The package `twice_package` with the method causal-twice."""
    folder = tmp_path / "packages"
    folder.mkdir()
    entries = "[antlm_bench.methods]\ncausal-twice = twice_package:TWICE\n"
    install_package(folder, monkeypatch, "twice_package", TWICE, entries)
    with rescanned(METHODS):
        yield


@pytest.mark.usefixtures("twice")
def test_a_package_adds_a_method_to_the_command_line(make_checkpoint, tmp_path, capsys):
    assert run(["list", "methods", "--csv"]) == 0
    assert 'causal-twice,"causal, counted twice",causal' in capsys.readouterr().out
    assert run(["show", "causal-twice"]) == 0

    suite, out = tmp_path / "agree.csv", tmp_path / "run"
    suite.write_text("good,bad\nthe cat sleeps,the cat sleep\na dog sees,a dog see\n")
    command = ["score", "--model", str(make_checkpoint()), "--suite", str(suite)]
    command += ["--method", "causal,causal-twice", "--out", str(out), "--device", "cpu"]
    assert run(command) == 0
    once, doubled = runs.open_run(out).cells
    assert (once.method, doubled.method) == ("causal", "causal-twice")
    pairs = zip(runs.read_predictions(out, once), runs.read_predictions(out, doubled), strict=True)
    for a, b in pairs:
        assert b.scores == pytest.approx([2 * score for score in a.scores])
        assert b.tokens == a.tokens
    assert run(["report", str(out)]) == 0
