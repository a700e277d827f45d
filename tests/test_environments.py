"""Real installations in fresh environments with a fresh home: the wheel as it is, the slim way, and
the archives themselves. They need a package registry, and are skipped where none is reached.

Sizes are printed (`pytest -s`); docs/how-to/install.md has those of one machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import slim_commands
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
MAX_SLIM_MB = 385
DECLARATIONS = ("tasks/", "models/")
SHORT = "phase=[{steps=4,causal=1}]"
PIP = ("-m", "pip", "install", "-q", "--disable-pip-version-check")
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))


class Environment:
    """A virtual environment whose programs see neither this checkout nor this user's home."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        self.home = folder / "home"
        self.home.mkdir()
        self.bin = folder / "venv" / "bin"
        [self.packages] = (folder / "venv").glob("lib/python*/site-packages")
        self.size_before = self.measure()
        """MB of pip itself."""

    def measure(self) -> float:
        """Return the size of the installed packages in MB (10^6 bytes)."""
        files = (path for path in self.packages.rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files) / 1e6

    def run(self, *argv: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment."""
        kept = ("PATH", "LANG", "SSL_CERT_FILE", "http_proxy", "https_proxy", "no_proxy")
        variables = {k: v for k, v in os.environ.items() if k in kept or k.startswith("PIP_")}
        variables |= {"HOME": str(self.home), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        return subprocess.run(
            [str(self.bin / argv[0]), *argv[1:]],
            cwd=folder or self.home,
            env=variables,
            capture_output=True,
            text=True,
        )

    def install(self, *arguments: str) -> None:
        """Install packages. Skips the test if no registry is reached."""
        process = self.run("python", *PIP, *arguments)
        if process.returncode and "No matching distribution" in process.stderr:
            pytest.skip(f"no package registry: {process.stderr.strip().splitlines()[-1]}")
        assert process.returncode == 0, process.stderr

    def list_packages(self) -> list[str]:
        lines = self.run("python", "-m", "pip", "list", "--format", "freeze").stdout.splitlines()
        names = [line.partition("==")[0].lower() for line in lines]
        return [name for name in names if name not in ("pip", "setuptools")]


def list_tracked_files() -> list[str]:
    """Return the files of the repository."""
    command = ["git", "ls-files", "-z"]
    process = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return [name for name in process.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, a wheel from it, and a wheel from the checkout; return their folder."""
    folder = tmp_path_factory.mktemp("build")
    for name in list_tracked_files():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "source" / name)
    tools = Environment(folder)
    tools.install(*CONSTRAINTS, "build", "twine", "hatchling")
    build = ("python", "-m", "build", "--no-isolation", str(folder / "source"), "--outdir")
    for options in ((str(folder / "dist"),), (str(folder / "direct"), "--wheel")):
        process = tools.run(*build, *options)
        assert process.returncode == 0, process.stdout + process.stderr
    process = tools.run("twine", "check", "--strict", *map(str, (folder / "dist").iterdir()))
    assert process.returncode == 0 and process.stdout.count("PASSED") == 2, process.stdout
    return folder


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    [wheel] = (archives / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    slim_commands.write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def slim(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("slim"))
    environment.install("--no-compile", *CONSTRAINTS, "-r", str(ROOT / "requirements-slim.txt"))
    environment.install("--no-compile", "--no-deps", str(wheel))
    return environment


def test_both_archives_hold_every_file(archives: Path, wheel: Path) -> None:
    tracked = list_tracked_files()
    shared = {f"antlm_bench/_share/{name}" for name in tracked if name.startswith(DECLARATIONS)}
    code = {name for name in tracked if name.startswith("antlm_bench/")}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == shared | code
    assert any(name.endswith(".toml") for name in shared)
    [sdist] = (archives / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked if not name.startswith(".")} <= members
    print(f"wheel {wheel.stat().st_size / 1e6:.1f} MB, sdist {sdist.stat().st_size / 1e6:.1f} MB")


def test_the_sdist_builds_the_same_wheel(archives: Path, wheel: Path) -> None:
    [direct] = (archives / "direct").glob("*.whl")
    contents = [
        {name: archive.read(name) for name in archive.namelist()}
        for archive in map(zipfile.ZipFile, (wheel, direct))
    ]
    assert contents[0] == contents[1]


def test_the_slim_installation_is_small_and_has_no_torch(slim: Environment) -> None:
    size, packages = slim.measure() - slim.size_before, slim.list_packages()
    print(f"slim: {len(packages)} packages, {size:.0f} MB")
    assert size < MAX_SLIM_MB
    assert not {"torch", "transformers", "pandas", "scikit-learn"} & set(packages)


@pytest.mark.parametrize("command", slim_commands.SLIM_COMMANDS)
def test_the_slim_installation_runs(command: str, slim: Environment, inputs: Path) -> None:
    process = slim.run("antlm-bench", *command.split(), folder=inputs)
    assert process.returncode == slim_commands.SLIM_COMMANDS[command], process.stderr


@pytest.mark.parametrize("command", slim_commands.MODEL_COMMANDS)
def test_the_slim_installation_names_what_it_lacks(
    command: str, slim: Environment, inputs: Path
) -> None:
    process = slim.run("antlm-bench", *command.split(), folder=inputs)
    install = slim_commands.MODEL_COMMANDS[command]
    assert process.returncode == 2
    assert process.stderr.endswith(f" hint: pip install {install}\n")


def test_the_named_command_adds_figures(slim: Environment, inputs: Path) -> None:
    slim.install("--no-compile", *CONSTRAINTS, "altair", "vl-convert-python")
    process = slim.run("antlm-bench", "report", "trusted", "--html", "page.html", folder=inputs)
    assert process.returncode == 0, process.stderr
    assert (inputs / "page.html").stat().st_size > 10_000
    print(f"slim with figures: {slim.measure() - slim.size_before:.0f} MB")


def test_the_named_command_would_add_torch(slim: Environment) -> None:
    process = slim.run("python", "-m", "pip", "install", "--dry-run", *CONSTRAINTS, "antlm-bench")
    assert process.returncode == 0, process.stderr
    assert " torch-" in process.stdout and " lm_eval-" in process.stdout


def test_the_default_installation_trains_scores_and_reports(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install(*CONSTRAINTS, "torch")
    environment.install(*CONSTRAINTS, str(wheel))
    packages, size = environment.list_packages(), environment.measure() - environment.size_before
    print(f"default with a CPU build of torch: {len(packages)} packages, {size:.0f} MB")
    assert not {"ray", "peft", "statsmodels", "wandb", "s3fs", "gguf"} & set(packages)
    for command in (
        "antlm-bench list",
        f"antlm-bench train babyllama --scale nano --corpus nano --out model --set {SHORT}",
        "antlm-bench doctor --model model/main",
        "antlm-bench score --model model/main --suite nano --out runs",
        "antlm-bench verify --model model/main --suite nano --limit 5",
        "antlm-bench report runs --html page.html",
        "python -m antlm_bench.lm_eval_bridge --help",
    ):
        process = environment.run(*command.split())
        assert process.returncode == 0, f"{command}: {process.stdout}{process.stderr}"
    doctor = environment.run("antlm-bench", "doctor", "--csv").stdout
    assert "torch build,CPU" in doctor


LIGHT_EXTRAS = {"gguf": "gguf", "pandas": "pandas", "s3": "s3fs"}
"""Extra -> a module that it brings. The others need torch, or hundreds of MB."""


def test_light_extras_add_their_module(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install("--no-deps", str(wheel))
    for extra, module in LIGHT_EXTRAS.items():
        requirements = [
            str(requirement)
            for line in read_requirements(wheel)
            if (requirement := Requirement(line)).marker
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
        ]
        environment.install(*CONSTRAINTS, *(line.partition(";")[0] for line in requirements))
        assert environment.run("python", "-c", f"import {module}").returncode == 0


def read_requirements(wheel: Path) -> list[str]:
    """Return the Requires-Dist lines of a wheel."""
    archive = zipfile.ZipFile(wheel)
    [name] = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    lines = archive.read(name).decode().splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]


def test_the_citation_is_valid(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install("cffconvert")
    process = environment.run("cffconvert", "--validate", "-i", str(ROOT / "CITATION.cff"))
    assert process.returncode == 0, process.stdout + process.stderr
    bibtex = environment.run("cffconvert", "-f", "bibtex", "-i", str(ROOT / "CITATION.cff")).stdout
    assert "antlm-bench authors" in bibtex
