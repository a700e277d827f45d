"""Packages that are not installed: every command either does without them, or names the command
that installs them. pyproject.toml declares what the code imports, and nothing else.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace

import pytest
import slim_commands

from antlm_bench.cli.exit_codes import run_command
from antlm_bench.commands.installation import describe_torch
from antlm_bench.errors import BenchError, MissingPackage
from antlm_bench.packages import INSTALL_ARGUMENTS, PIP_CHECK, missing_package, require_packages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RUN_WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

blocked = sys.argv[1].split(",")
sys.meta_path.insert(0, Blocker())
if sys.argv[2] == "python":
    import antlm_bench
    for line in sys.argv[3:]:
        try:
            eval(line)
        except antlm_bench.BenchError as error:
            print(type(error).__name__, error.hint)
    sys.exit()
from antlm_bench.cli.app import run
for line in sys.argv[2:]:
    code = run(line.split())
    sys.stdout.flush()
    print(f"\\n<<< {code} {line}", file=sys.stderr, flush=True)
"""


def list_names(requirements: list[str]) -> set[str]:
    """Return the names of packages, as in `torch>=2` -> torch."""
    return {re.split(r"[\[<>=!;\s]", line)[0].lower().replace("_", "-") for line in requirements}


BASE = list_names(PROJECT["dependencies"])
EXTRAS = {
    name: list_names(requirements)
    for name, requirements in PROJECT["optional-dependencies"].items()
    if name not in ("dev", "docs")
}


def iter_imported_modules() -> Iterator[str]:
    """Yield the top-level module of every import of the package that runs."""
    for path in sorted((ROOT / "antlm_bench").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        typing_only = {
            id(child)
            for node in nodes
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for child in ast.walk(node)
        }
        for node in nodes:
            if id(node) not in typing_only:
                if isinstance(node, ast.Import):
                    yield from (alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield (node.module or "").partition(".")[0]


IMPORTED = {*iter_imported_modules()} - {*sys.stdlib_module_names, "antlm_bench"}
DISTRIBUTIONS = {
    **{
        module: {name.lower() for name in names}
        for module, names in packages_distributions().items()
    },
    "tomli": {"tomli"},
    "unidic_lite": {"unidic-lite"},
}


def distributions_of(module: str) -> set[str]:
    """Return the packages that hold a module; by its name if none is installed."""
    names = DISTRIBUTIONS.get(module, {module})
    return {name.replace("_", "-") for name in names}


def test_every_import_is_declared() -> None:
    declared = BASE.union(*EXTRAS.values())
    assert not {module for module in IMPORTED if not distributions_of(module) & declared}


def test_every_default_package_is_imported() -> None:
    imported = set().union(*map(distributions_of, IMPORTED))
    assert not BASE - imported


def test_the_named_packages_are_in_the_default_installation() -> None:
    named = {"torch", "transformers", "minicons", "lm-eval", "scikit-learn", "scipy", "rich"}
    assert named <= BASE


def test_slim_requirements_are_those_of_the_default_without_models() -> None:
    lines = (ROOT / "requirements-slim.txt").read_text(encoding="utf-8").splitlines()
    requirements = [line for line in lines if line and not line.startswith("#")]
    normal = {line.replace("'", '"') for line in PROJECT["dependencies"]}
    assert set(requirements) <= normal
    optional = set().union(*map(distributions_of, INSTALL_ARGUMENTS))
    assert not list_names(requirements) & optional
    assert list_names(requirements) | optional >= BASE


@pytest.mark.parametrize("module", sorted(INSTALL_ARGUMENTS))
def test_the_command_installs_a_declared_package(module: str) -> None:
    arguments = INSTALL_ARGUMENTS[module]
    if match := re.fullmatch(r"'antlm-bench\[(.+)\]'", arguments):
        assert distributions_of(module) & EXTRAS[match[1]]
    elif arguments != PROJECT["name"]:
        assert set(arguments.split()) <= BASE.union(*EXTRAS.values())
    else:
        assert distributions_of(module) & BASE


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slim")
    slim_commands.write_inputs(folder)
    return folder


def run_without_packages(commands: list[str], folder: Path) -> list[tuple[int, str]]:
    """Return (exit code, stderr) of each command line, run where no optional package is found."""
    argv = [sys.executable, "-c", RUN_WITHOUT, ",".join(INSTALL_ARGUMENTS), *commands]
    process = subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, env=slim_commands.environment()
    )
    parts = re.split(r"\n<<< (\d+) .*\n", process.stderr)
    results = [(int(code), text) for text, code in zip(parts[::2], parts[1::2], strict=False)]
    assert len(results) == len(commands), process.stderr
    return results


@pytest.mark.long
def test_commands_without_a_model_need_no_optional_package(inputs: Path) -> None:
    commands = slim_commands.SLIM_COMMANDS
    results = run_without_packages([*commands], inputs)
    for (command, expected), (code, errors) in zip(commands.items(), results, strict=True):
        assert code == expected and "pip install" not in errors, f"{command}: {errors}"


@pytest.mark.long
def test_other_commands_name_the_command_that_installs(inputs: Path) -> None:
    commands = slim_commands.MODEL_COMMANDS
    results = run_without_packages([*commands], inputs)
    for (command, install), (code, errors) in zip(commands.items(), results, strict=True):
        assert code == MissingPackage.exit_code == 2, f"{command}: {errors}"
        error, hint = errors.strip().splitlines()
        assert re.search(r"this needs the package \w+, which is not installed$", error)
        assert hint.strip() == f"hint: pip install {install}"


@pytest.mark.long
def test_python_names_the_command_that_installs(inputs: Path) -> None:
    calls = {
        "antlm_bench.Scorer('checkpoint')": "antlm-bench",
        "antlm_bench.score('checkpoint', 'nano')": "antlm-bench",
        "antlm_bench.surprisal('checkpoint', ['He sleeps.'])": "antlm-bench",
        "antlm_bench.plot": "altair vl-convert-python",
        "antlm_bench.load_run('trusted').predictions('toy').to_pandas()": "pandas",
    }
    argv = [sys.executable, "-c", RUN_WITHOUT, ",".join(INSTALL_ARGUMENTS), "python", *calls]
    process = subprocess.run(
        argv, cwd=inputs, capture_output=True, text=True, env=slim_commands.environment()
    )
    expected = [f"MissingPackage pip install {install}" for install in calls.values()]
    assert process.stdout.splitlines() == expected, process.stderr


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("peft", "peft"),
        ("sklearn", "antlm_bench.finetuning.frozen"),
        ("minicons", "minicons"),
        ("lm_eval", "antlm_bench.lm_eval_bridge.model"),
        ("altair", "antlm_bench.reporting.charts"),
        ("vl_convert", "antlm_bench.reporting.figures"),
        ("torch", "antlm_bench.scoring.engine"),
    ],
)
def test_an_import_without_its_package_names_the_command(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = [other for other in sys.modules if other.startswith(f"{name}.")]
    for blocked in (name, *loaded):
        monkeypatch.setitem(sys.modules, blocked, None)
    if module != name:
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingPackage) as caught, require_packages("here"):
        __import__(module)
    assert caught.value.message == f"this needs the package {name}, which is not installed"
    assert (caught.value.location, caught.value.hint) == (
        "here",
        f"pip install {INSTALL_ARGUMENTS[name]}",
    )


def test_a_package_that_another_package_lacks_is_named() -> None:
    with pytest.raises(MissingPackage, match="package sympy, which") as caught, require_packages():
        raise ModuleNotFoundError("No module named 'sympy.core'", name="sympy.core")
    assert caught.value.hint == PIP_CHECK


def test_a_broken_package_is_no_bug_of_ours() -> None:
    with pytest.raises(MissingPackage, match=r"be imported: no libfoo\n"), require_packages():
        raise ImportError("no libfoo\nand more", name="foo")


def test_a_wrong_import_of_ours_stays_a_bug() -> None:
    errors: list[BenchError] = []

    def command() -> int:
        raise ModuleNotFoundError("No module named 'antlm_bench.no'", name="antlm_bench.no")

    assert run_command(command, errors.append) == 70
    assert "a bug in antlm-bench" in errors[0].message


def test_the_error_is_an_import_error_too() -> None:
    assert isinstance(missing_package("torch"), ImportError)


def make_torch(cuda: str | None, hip: str | None = None, gpus: int = 0) -> SimpleNamespace:
    """Make a stand-in for torch with the parts that `doctor` reads."""
    return SimpleNamespace(
        __version__="2.9",
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(
            device_count=lambda: gpus,
            get_device_name=lambda index: "H200",
            get_device_properties=lambda index: SimpleNamespace(total_memory=141 * 2**30),
        ),
        backends=SimpleNamespace(
            mps=SimpleNamespace(is_available=lambda: False, is_built=lambda: False)
        ),
        get_num_threads=lambda: 3,
    )


@pytest.mark.parametrize(
    ("torch", "build", "device", "note"),
    [
        (make_torch(None), "CPU", "cpu (", ""),
        (make_torch("12.8", gpus=2), "CUDA 12.8", "cuda:0 (H200, 141 GiB)\ncuda:1", ""),
        (make_torch("12.8"), "CUDA 12.8", "cpu (", "finds no GPU"),
        (make_torch(None, hip="6.3"), "ROCm 6.3", "cpu (", "finds no GPU"),
    ],
    ids=["cpu", "gpus", "no gpu", "rocm"],
)
def test_doctor_tells_what_torch_found(
    torch: SimpleNamespace,
    build: str,
    device: str,
    note: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("antlm_bench.commands.installation.NVIDIA_DEVICE", tmp_path / "absent")
    facts = describe_torch(torch)
    assert (facts["torch"], facts["torch build"], facts["torch threads"]) == ("2.9", build, 3)
    assert str(facts["devices"]).startswith(device)
    assert note in str(facts.get("note", "")) and bool(note) == ("note" in facts)


def test_doctor_names_a_gpu_that_a_cpu_build_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("antlm_bench.commands.installation.NVIDIA_DEVICE", tmp_path)
    assert "a CPU build of torch cannot use" in str(describe_torch(make_torch(None))["note"])
