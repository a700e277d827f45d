"""No module branches on the name of a registered record: whoever needs a fact asks the record."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from antlm_bench.architectures.records import ARCHITECTURES
from antlm_bench.metrics import METRICS
from antlm_bench.scoring.methods import METHODS
from antlm_bench.suites.task_types import TASK_TYPES

PACKAGE = Path(__file__).resolve().parent.parent / "antlm_bench"


class RegistryRule(NamedTuple):
    """What the names of one registry's records are, and who may write them down."""

    names: tuple[str, ...]
    homes: tuple[str, ...]
    """Modules of the records themselves (prefixes)."""
    other_meanings: frozenset[tuple[str, str]] = frozenset()
    """(module, expression): the word is there, and names something else."""


# A registry joins with a row here.
REGISTRIES: dict[str, RegistryRule] = {
    "metrics": RegistryRule(
        METRICS.names(),
        ("metrics.records",),
        frozenset(
            {
                # columns of the model's predictors of reading times
                ("comparison.paired_reading_times", "surprisals[0][SURPRISAL_COLUMN]"),
                ("comparison.paired_reading_times", "surprisals[1][SURPRISAL_COLUMN]"),
                ("metrics.reading_times", "columns[SURPRISAL_COLUMN]"),
                ("suites.reading_times_spec", "name not in MODEL_COLUMNS"),
                # what a part of a leaderboard's file holds, and the columns of its rows
                (
                    "exports.leaderboard",
                    "Literal[('scored', 'continuation', 'sentence', 'share', 'class', "
                    "'surprisal', 'curves', 'headline')]",
                ),
                ("exports.external_parts", "part.answer_format == 'surprisal'"),
                ("exports.external_parts", "key in NAN_ALLOWED_KEYS"),
                ("exports.leaderboard_file", "part.answer_format == 'surprisal'"),
                ("exports.leaderboard_file", "row['surprisal']"),
                ("exports.leaderboard_answers", "{'surprisal': }"),
                ("exports.external_parts", "key != 'surprisal'"),
                # commands and kinds of suite
                ("__init__", "{'surprisal': }"),
                ("cli.app", "{'surprisal': , 'acquisition': }"),
                ("suites.collection", "{'acquisition': }"),
                ("suites.task_types", "{'surprisal': , 'acquisition': }"),
                ("suites.acquisition", "Literal['acquisition']"),
                (
                    "suites.collection",
                    "Literal[('score', 'finetune', 'acquisition', 'nothing')]",
                ),
            }
        ),
    ),
    # The other names (suite, collection, surprisal, ...) are words of many meanings: see
    # test_nobody_branches_on_the_kind_of_a_suite.
    "task types": RegistryRule(
        ("reading-times", "syntaxgym", "lm-eval-documents", "classification"),
        ("suites.shipped_task_types", "suites.task_types"),
        frozenset(
            {
                ("suites.classification", "Literal['classification']"),
                ("suites.spec", "Literal['syntaxgym']"),
            }
        ),
    ),
    # "causal" is an attention and a kind of model, too: see
    # test_nobody_compares_a_method_to_causal.
    "methods": RegistryRule(
        (
            *(name for name in METHODS.names() if name != "causal"),
            "finetune-causal",
            "finetune-full",
        ),
        ("scoring.methods", "scoring.probes"),
        frozenset(
            {  # masked training objectives
                ("training.objectives", "self.objective != 'mntp'"),
                ("training.objectives", "spec.masked == 'mntp'"),
                ("training.recipe", "Literal[('mlm', 'mntp')]"),
            }
        ),
    ),
    "architectures": RegistryRule(
        (*ARCHITECTURES.names(), "antlm_ltg_bert", "antlm_gpt_bert"),
        ("architectures.records", "architectures.shipped"),
        frozenset(),
    ),
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


TREES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    if "_share" not in path.parts
}


def literals(node: ast.AST, constants: Mapping[str, set[str]]) -> set[str]:
    """The texts that an expression holds, written out or as the constant of a module."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            return {text for element in elements for text in literals(element, constants)}
        case ast.Call(func=ast.Name(id="frozenset" | "set" | "tuple"), args=arguments):
            return {text for argument in arguments for text in literals(argument, constants)}
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return constants.get(name, set())
    return set()


@cache
def text_constants() -> dict[str, set[str]]:
    """Name -> texts of every constant that a module assigns."""
    found: dict[str, set[str]] = {}
    for tree in TREES.values():
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                        pairs = list(zip(target.elts, node.value.elts, strict=False))
                    else:
                        pairs = [(target, node.value)]
                    for name, value in pairs:
                        if isinstance(name, ast.Name) and name.id.isupper():
                            found.setdefault(name.id, set()).update(literals(value, found))
    return found


def branches(tree: ast.Module, names: set[str]) -> Iterator[tuple[int, str]]:
    """(line, expression) of every comparison, match, and dict key or index that is such a name."""
    constants = {name: texts & names for name, texts in text_constants().items() if texts & names}
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                if any(literals(side, constants) & names for side in (left, *others)):
                    yield node.lineno, ast.unparse(node)
            case ast.MatchValue(value=value):
                if literals(value, constants) & names:
                    yield value.lineno, ast.unparse(value)
            case ast.Dict(keys=keys):
                named = [key for key in keys if key and literals(key, constants) & names]
                if named:
                    yield node.lineno, "{" + ", ".join(f"{ast.unparse(k)}: " for k in named) + "}"
            case ast.Subscript(slice=key, value=container):
                if literals(key, constants) & names:
                    yield node.lineno, f"{ast.unparse(container)}[{ast.unparse(key)}]"
            case ast.Call(func=ast.Attribute(attr="get" | "pop"), args=[key, *_]):
                if literals(key, constants) & names:
                    yield node.lineno, ast.unparse(node)


def foreign_branches(rule: RegistryRule) -> Iterator[tuple[str, int, str]]:
    for module, tree in TREES.items():
        if not any(module == home or module.startswith(f"{home}.") for home in rule.homes):
            for line, expression in branches(tree, set(rule.names)):
                if (module, expression) not in rule.other_meanings:
                    yield module, line, expression


@pytest.mark.long
@pytest.mark.parametrize("registry", REGISTRIES)
def test_only_a_record_knows_its_name(registry: str) -> None:
    found = [
        f"{module}:{line}: {text}" for module, line, text in foreign_branches(REGISTRIES[registry])
    ]
    assert not found, "ask the record instead:\n" + "\n".join(found)


@pytest.mark.long
@pytest.mark.parametrize("registry", REGISTRIES)
def test_every_exception_still_occurs(registry: str) -> None:
    rule = REGISTRIES[registry]
    everything = {
        (module, text)
        for module, _, text in foreign_branches(rule._replace(other_meanings=frozenset()))
    }
    assert rule.other_meanings <= everything


def method_branches(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, expression) of comparisons of something called a method with "causal"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = (node.left, *node.comparators)
            texts = {text for side in sides for text in literals(side, {})}
            is_method = re.search(r"\bmethods?\b|\bmethod_name", ast.unparse(node))
            if "causal" in texts and is_method:
                yield node.lineno, ast.unparse(node)


@pytest.mark.long
def test_nobody_compares_a_method_to_causal() -> None:
    assert list(method_branches(ast.parse("x = cell.method == 'causal'")))
    found = [
        f"{module}:{line}: {text}"
        for module, tree in TREES.items()
        for line, text in method_branches(tree)
    ]
    assert not found, "ask the record instead:\n" + "\n".join(found)


SUITE_MODELS = {
    node.name
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.ClassDef)
    and any(ast.unparse(base) == "SuiteDeclaration" for base in node.bases)
}


def kind_branches(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, expression) of comparisons of a suite's kind, and of isinstance with its model."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                sides = (left, *others)
                attributes = {side.attr for side in sides if isinstance(side, ast.Attribute)}
                texts = {text for side in sides for text in literals(side, {})}
                is_kind = attributes & {"kind", "task_type"} and texts & {*TASK_TYPES.names()}
                if is_kind or ("made_by" in attributes and texts):
                    yield node.lineno, ast.unparse(node)
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, model]):
                if any(
                    isinstance(name, ast.Name) and name.id in SUITE_MODELS
                    for name in ast.walk(model)
                ):
                    yield node.lineno, ast.unparse(node)


@pytest.mark.long
def test_nobody_branches_on_the_kind_of_a_suite() -> None:
    assert {
        "SuiteSpec",
        "CollectionSpec",
        "ClassificationSpec",
        "AcquisitionSpec",
        "StimuliSpec",
        "SyntaxGymSpec",
    } == SUITE_MODELS
    allowed = {
        # the declaration of a member checks its own keys
        ("suites.collection", "self.made_by == 'finetune'"),
        ("suites.collection", "self.made_by != 'score'"),
    }
    found = [
        f"{module}:{line}: {text}"
        for module, tree in TREES.items()
        for line, text in kind_branches(tree)
        if (module, text) not in allowed
    ]
    assert not found, "ask the record instead:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "if spec.kind == 'suite': pass",
        "if member.made_by != 'score': pass",
        "x = suite.task_type in ('suite', 'surprisal')",
        "x = isinstance(spec, SuiteSpec)",
        "x = isinstance(spec, CollectionSpec | AcquisitionSpec)",
    ],
)
def test_a_branch_on_a_kind_is_found(code: str) -> None:
    assert list(kind_branches(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "if metric == 'mcc': pass",
        "if 'mcc' != summary.metric: pass",
        "x = metric in ('f1', 'mcc')",
        "x = metric not in frozenset({'mcc'})",
        "match metric:\n    case 'mcc': pass",
        "x = {'mcc': 1}[metric]",
        "x = table['mcc']",
        "x = table.get('mcc')",
        "match metric:\n    case 'f1' | 'mcc': pass",
    ],
)
def test_a_branch_on_a_name_is_found(code: str) -> None:
    assert list(branches(ast.parse(code), {"mcc"}))


@pytest.mark.parametrize("code", ["x = 'mcc'", "f(metric='mcc')", "x = METRICS[metric].scale == 1"])
def test_writing_a_name_down_is_no_branch(code: str) -> None:
    assert not list(branches(ast.parse(code), {"mcc"}))
