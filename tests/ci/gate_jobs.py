"""Machines for jobs of a CI system: a workspace with runs, and commands on PATH.

Most tests use the environment of pytest, with a `pip` that only logs its arguments. The tests that
are marked slow use an environment of their own, into which pip installs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from workflow_runner import ROOT, Job

PIP_LOG = "pip.log"
"""Name of the file, beside the workspace, with one line per call of the logging pip."""
KEPT_VARIABLES = re.compile(r"LANG$|TMPDIR$|OMP_|PIP_|SSL_|https?_proxy$", re.IGNORECASE)
REPOSITORY_URL = "https://github.com/OWNER/antlm-bench"
REPOSITORY_FILES = (
    "LICENSE",
    "README.md",
    "action.yml",
    "pyproject.toml",
    "constraints.txt",
    "requirements-slim.txt",
    ".pre-commit-hooks.yaml",
)
REPOSITORY_DIRS = ("antlm_bench", "tasks", "models")


def make_job(root: Path, commands_dir: Path) -> Job:
    """Make a machine whose workspace is `root`/workspace. Its caches and artifacts are `root`'s.

    Of the environment of pytest, only PATH and the names of KEPT_VARIABLES reach its steps.
    """
    for name in ("workspace", "temp", "home", "caches", "artifacts"):
        (root / name).mkdir(exist_ok=True)
    env = {name: text for name, text in os.environ.items() if KEPT_VARIABLES.match(name)}
    env |= {"PATH": f"{commands_dir}{os.pathsep}{os.environ['PATH']}", "HOME": str(root / "home")}
    env |= {"XDG_CONFIG_HOME": str(Path.home() / ".config")}  # the configuration of pip
    env |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "120", "PIP_LOG": str(root / PIP_LOG)}
    return Job(root / "workspace", root / "temp", env, root / "caches", root / "artifacts")


def write_commands(folder: Path) -> Path:
    """Write `python`, `pip` and `antlm-bench` that use the environment of pytest.

    pip logs its arguments and installs nothing: the environment has everything.
    """
    folder.mkdir()
    python = shlex.quote(sys.executable)
    write_script(
        folder / "pip",
        'printf "%s\\n" "$*" >> "$PIP_LOG"\n'
        'if [ "$*" = "cache dir" ]; then echo "$HOME/.cache/pip"; fi',
    )
    write_script(
        folder / "python",
        f'if [ "$1 $2" = "-m pip" ]; then shift 2; exec pip "$@"; fi\nexec {python} "$@"',
    )
    module = f'PYTHONPATH={shlex.quote(str(ROOT))} exec {python} -m antlm_bench "$@"'
    write_script(folder / "antlm-bench", module)
    return folder


def replace_score(commands_dir: Path, run_dir: Path) -> None:
    """Let `antlm-bench score` check its options, and copy a ready run instead of scoring."""
    command = commands_dir / "antlm-bench"
    if not (commands_dir / "antlm-bench-real").exists():
        command.rename(commands_dir / "antlm-bench-real")
    write_script(
        command,
        'if [ "$1" = score ]; then\n'
        '  antlm-bench-real "$@" --help > /dev/null || exit\n'
        '  while [ "$1" != --out ]; do shift; done\n'
        f'  mkdir -p "$(dirname "$2")"; exec cp -r {shlex.quote(str(run_dir))} "$2"\n'
        "fi\n"
        'exec antlm-bench-real "$@"',
    )


def write_script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def read_pip_log(job: Job) -> list[str]:
    """Return the arguments of each call of pip that could install something."""
    log = job.workspace.parent / PIP_LOG
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [line for line in lines if line != "cache dir"]


def make_environment(folder: Path, *, inherit: bool = False) -> Path:
    """Make a virtual environment with its own pip, and return its folder of commands.

    inherit: whether it also has the packages of pytest's environment. Skips the test without a
    package registry.
    """
    venv.create(folder, with_pip=True)
    commands_dir = folder / "bin"
    [packages_dir] = folder.glob("lib/python*/site-packages")
    if inherit:
        (packages_dir / "inherited.pth").write_text(f"{site.getsitepackages()[0]}\n")
    probe = [
        commands_dir / "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        folder / "probe",
        "hatchling",
    ]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs a package registry")
    return commands_dir


def copy_repository(folder: Path) -> None:
    """Copy the files of this checkout from which pip builds the package."""
    folder.mkdir(exist_ok=True)
    for name in REPOSITORY_FILES:
        shutil.copy(ROOT / name, folder)
    for name in REPOSITORY_DIRS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def publish_repository(folder: Path, tag: str) -> dict[str, str]:
    """Make a git repository of this checkout's files, and return variables that lead git to it.

    With these variables git reads `folder` when a command names REPOSITORY_URL.
    """
    copy_repository(folder)
    run_git(folder, "init", "--quiet")
    run_git(folder, "add", ".")
    run_git(folder, "commit", "--quiet", "--message", "Files")
    run_git(folder, "tag", tag)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{folder}.insteadOf",
        "GIT_CONFIG_VALUE_0": REPOSITORY_URL,
    }


def run_git(folder: Path, *arguments: str) -> None:
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True)
