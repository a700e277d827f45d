"""The architecture, checked in the source: imports point down, each dependency is imported in few
modules, files are small.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "antlm_bench"

# A module belongs to the layer of its longest prefix here; a module without a layer fails a test.
LAYERS: dict[str, int] = {
    "types": 0,
    "errors": 0,
    "packages": 0,
    "atomic_files": 0,
    "notebook": 0,
    "keywords": 0,
    "printable": 0,
    "prediction_schema": 0,
    "cpu_tuning": 0,
    "safe_files": 0,
    "safe_json": 0,
    "console": 1,
    "weight_files": 1,
    "words": 1,
    "registry": 1,
    "declarations": 1,
    "configuration": 1,
    "arguments": 1,
    "text_arguments": 2,
    "runs": 1,
    "predictions": 1,
    "suites": 2,
    "metrics": 2,
    "statistics": 2,
    "progress": 2,
    "lm_eval_bridge.documents": 2,
    "lm_eval_bridge.jackknife": 2,
    "lm_eval_bridge.shims": 2,
    "lm_eval_bridge.task_metrics": 2,
    "lm_eval_bridge.tasks": 2,
    "comparison": 3,
    "scoring": 3,
    "architectures": 3,
    "exports": 3,
    "lm_eval_bridge.results_export": 3,
    "lm_eval_bridge.results_files": 2,
    "lm_eval_bridge.results_import": 3,
    "training.recipe": 3,
    "training.schedule": 3,
    "training.flops": 3,
    "training.text_sources": 3,
    "training.masking": 3,
    "checkpoints": 4,
    "scoring.engine": 4,
    "scoring.encoder_decoder_engine": 4,
    "scoring.plain_forward": 4,
    "scoring.cpu_kernels": 4,
    "scoring.logit_readers": 4,
    "scoring.model_state": 4,
    "scoring.int8_linear": 4,
    "scoring.mixed_precision_head": 4,
    "scoring.attention": 4,
    "scoring.devices": 4,
    "scoring.peers": 4,
    "scoring.suite_scoring": 5,
    "training": 4,
    "finetuning": 4,
    "training.pretrain": 5,
    "finetuning.loop": 5,
    "finetuning.frozen": 5,
    "lm_eval_bridge": 5,
    "scorer": 5,
    "results": 5,
    "sweeps": 6,
    "sweeps.units": 1,
    "reporting": 6,
    "commands": 6,
    "lm_eval_bridge.__main__": 7,
    "harness": 7,
    "cli": 7,
    "__main__": 7,
}

# Dependency -> the modules that may import it (prefixes).
ALLOWED_IMPORTERS: dict[str, tuple[str, ...]] = {
    "torch": (
        "checkpoints",
        "architectures",
        "scoring.engine",
        "scoring.logit_readers",
        "scoring.encoder_decoder_engine",
        "scoring.plain_forward",
        "scoring.attention",
        "scoring.devices",
        "scoring.cpu_kernels",
        "scoring.model_state",
        "scoring.int8_linear",
        "scoring.mixed_precision_head",
        "scoring.peers",
        "training",
        "finetuning",
        "commands",
        "sweeps.calibration",
    ),
    "transformers": (
        "checkpoints",
        "architectures",
        "training.corpus",
        "training.model_factory",
        "sweeps.calibration",
    ),
    "tokenizers": ("checkpoints", "training.corpus"),
    "safetensors": ("checkpoints", "training.checkpoint_io"),
    "accelerate": ("training.pretrain", "commands.train"),
    "huggingface_hub": ("suites.sources", "checkpoints"),
    "datasets": ("suites.sources", "lm_eval_bridge.shims"),
    "evaluate": ("lm_eval_bridge.shims",),
    "nltk": ("suites",),
    "regex": ("words", "scoring.tokens"),
    "icu4py": ("words",),
    "jieba": ("words",),
    "fugashi": ("words",),
    "unidic_lite": ("words",),
    "pythainlp": ("words",),
    "sklearn": ("finetuning.frozen",),
    "scipy": ("metrics", "statistics"),
    "peft": ("checkpoints", "finetuning"),
    "altair": ("reporting",),
    "vl_convert": ("reporting",),
    "jsonschema": ("exports",),
    "pydantic": (
        "declarations",
        "exports.leaderboard",
        "suites.spec",
        "suites.acceptability",
        "suites.classification",
        "suites.collection",
        "suites.acquisition",
        "suites.declaration_types",
        "suites.reading_times_spec",
        "suites.stimuli_spec",
        "training.recipe",
        "comparison.margins",
        "sweeps.ray_executor",
    ),
    "ray": ("sweeps.ray_executor",),
    "fsspec": ("runs.object_stores",),
    "pyarrow": ("predictions", "runs"),
    "pandas": ("notebook",),
    "rich": ("reporting", "console", "progress"),
    "jinja2": ("reporting",),
    "markupsafe": ("reporting",),
    "typer": ("cli",),
    "click": ("cli",),
    "minicons": ("scoring.peers",),
    "lm_eval": ("scoring.peers", "lm_eval_bridge"),
}
# Slow to import: these packages import them inside functions, so that only users pay for them.
LAZY_IN: dict[str, tuple[str, ...]] = {
    "commands": ("torch", "transformers", "accelerate", "pyarrow"),
    "cli": ("rich", "pydantic"),
}


class Import(NamedTuple):
    module: str
    target: str
    line: int
    lazy: bool
    """Stands inside a function."""
    typing: bool
    """Stands under `if TYPE_CHECKING:` and never runs."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if "_share" not in path.parts
}


def iter_imports(module: str, tree: ast.Module) -> Iterator[Import]:
    """Yield every import of a module, those under `if TYPE_CHECKING:` included."""

    def walk(node: ast.AST, lazy: bool, typing: bool = False) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, lazy, True)
                continue
            if isinstance(child, ast.Import):
                yield from (
                    Import(module, alias.name, child.lineno, lazy, typing) for alias in child.names
                )
            elif isinstance(child, ast.ImportFrom):
                assert child.module and not child.level, f"{module}:{child.lineno}: relative import"
                for alias in child.names:
                    # `from antlm_bench.suites import items` imports the module `suites.items`
                    target = f"{child.module}.{alias.name}"
                    if target.removeprefix("antlm_bench.") not in MODULES:
                        target = child.module
                    yield Import(module, target, child.lineno, lazy, typing)
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, lazy or in_function, typing)

    return walk(tree, False)


TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
IMPORTS = [item for module, tree in TREES.items() for item in iter_imports(module, tree)]
INTERNAL_IMPORTS = [
    i._replace(target=i.target.removeprefix("antlm_bench").lstrip("."))
    for i in IMPORTS
    if i.target.startswith("antlm_bench")
]
EXTERNAL_IMPORTS = [i for i in IMPORTS if not i.target.startswith("antlm_bench") and not i.typing]


def within(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def layer(module: str) -> int:
    prefixes = [prefix for prefix in LAYERS if within(module, (prefix,))]
    assert prefixes, f"{module} has no layer: add it to tests/test_layers.py and ARCHITECTURE.md"
    return LAYERS[max(prefixes, key=len)]


def is_package(module: str) -> bool:
    return MODULES[module].name == "__init__.py"


def test_the_tables_above_name_only_modules_that_exist() -> None:
    prefixes = {
        *LAYERS,
        *LAZY_IN,
        *(prefix for door in ALLOWED_IMPORTERS.values() for prefix in door),
    }
    assert not [
        prefix for prefix in prefixes if not any(within(module, (prefix,)) for module in MODULES)
    ]


def test_every_module_has_a_layer() -> None:
    assert all(layer(module) >= 0 for module in MODULES if not is_package(module))


def test_imports_only_point_down() -> None:
    upward = [
        i
        for i in INTERNAL_IMPORTS
        if i.module and not is_package(i.module) and i.target and layer(i.target) > layer(i.module)
    ]
    assert not upward, "\n".join(f"{i.module}:{i.line} imports {i.target}" for i in upward)


def test_reporting_and_commands_do_not_import_each_other() -> None:
    between = [
        i
        for i in INTERNAL_IMPORTS
        if (within(i.module, ("reporting",)) and within(i.target, ("commands",)))
        or (within(i.module, ("commands",)) and within(i.target, ("reporting",)))
    ]
    assert not between, "\n".join(f"{i.module}:{i.line} imports {i.target}" for i in between)


def test_no_import_cycles_within_a_layer() -> None:
    targets_by_module: dict[str, set[str]] = {module: set() for module in MODULES}
    for imported in INTERNAL_IMPORTS:
        if imported.module and imported.target in targets_by_module:
            targets_by_module[imported.module].add(imported.target)
    while targets_by_module:
        leaves = [
            module
            for module, targets in targets_by_module.items()
            if not targets & targets_by_module.keys() - {module}
        ]
        assert leaves, f"imports go in a circle among {sorted(targets_by_module)}"
        targets_by_module = {
            module: targets for module, targets in targets_by_module.items() if module not in leaves
        }


@pytest.mark.parametrize("dependency", sorted(ALLOWED_IMPORTERS))
def test_each_dependency_is_imported_only_where_allowed(dependency: str) -> None:
    outside = [
        i
        for i in EXTERNAL_IMPORTS
        if within(i.target, (dependency,)) and not within(i.module, ALLOWED_IMPORTERS[dependency])
    ]
    assert not outside, "\n".join(f"{i.module}:{i.line} imports {i.target}" for i in outside)


def test_every_dependency_is_declared() -> None:
    known = {*ALLOWED_IMPORTERS, *sys.stdlib_module_names, "numpy", "tomli"}
    undeclared = {
        f"{i.module}:{i.line} imports {i.target}"
        for i in EXTERNAL_IMPORTS
        if i.target.split(".")[0] not in known
    }
    assert not undeclared


@pytest.mark.parametrize("package", sorted(LAZY_IN))
def test_slow_imports_stand_inside_functions(package: str) -> None:
    eager = [
        i
        for i in EXTERNAL_IMPORTS
        if within(i.module, (package,)) and within(i.target, LAZY_IN[package]) and not i.lazy
    ]
    assert not eager, "\n".join(f"{i.module}:{i.line} imports {i.target} at the top" for i in eager)


def test_packages_do_nothing_on_import() -> None:
    allowed = ast.Expr | ast.ImportFrom | ast.Assign | ast.If | ast.FunctionDef
    for module, tree in TREES.items():
        if is_package(module):
            assert all(isinstance(node, allowed) for node in tree.body), module


@pytest.mark.long
def test_files_and_functions_stay_small() -> None:
    for module, path in MODULES.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 600, f"{module} has {lines} lines: split it by idea"
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.FunctionDef):
                # Of its body: the signature of a command is a table of options.
                length = (node.end_lineno or 0) - node.body[0].lineno + 1
                assert length <= 60, f"{module}.{node.name} has {length} lines"


def test_each_file_opens_with_the_sentence_that_justifies_it() -> None:
    assert not [module for module, tree in TREES.items() if not ast.get_docstring(tree)]


def test_no_vague_names() -> None:
    vague = re.compile(r"(^|[._])(utils?|common|core|base|manager)$")
    assert not [module for module in MODULES if vague.search(module)]


def list_loaded_packages(code: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after running `code`."""
    script = f"{code}\nimport sys\nprint('\\n@', *{{name.split('.')[0] for name in sys.modules}})"
    environment = {**os.environ, "COLUMNS": "100"}
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    return set(out.stdout.rpartition("@")[2].split())


def command_code(*argv: str) -> str:
    return f"from antlm_bench.cli.app import run\nassert run({list(argv)!r}) == 0"


def test_importing_the_package_loads_nothing() -> None:
    assert not list_loaded_packages("import antlm_bench") & {*ALLOWED_IMPORTERS, "numpy"}


@pytest.mark.long
def test_a_table_of_surprisals_is_analysed_without_torch() -> None:
    assert "torch" not in list_loaded_packages("import antlm_bench.commands.effects")


@pytest.mark.long
def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pyarrow", "scipy", "numpy", "huggingface_hub"}
    assert not list_loaded_packages(command_code("--help")) & {*heavy, "pydantic"}
    assert (
        not list_loaded_packages(command_code("score", "--help")) & heavy
    )  # typer itself may use pydantic here


@pytest.mark.long
@pytest.mark.parametrize(
    "argv",
    [
        ("list",),
        ("list", "methods"),
        ("list", "models"),
        ("show", "nano"),
        ("show", "models", "antlm-babyllama", "--scale", "nano"),
        ("data", "where"),
    ],
)
def test_commands_without_a_model_load_no_torch(argv: tuple[str, ...]) -> None:
    heavy = {"torch", "transformers", "minicons", "lm_eval", "sklearn", "scipy"}
    assert not list_loaded_packages(command_code(*argv)) & heavy
