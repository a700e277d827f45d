"""Hooks of pre-commit: the gate before a push that others use, and those of this repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from gate_jobs import copy_repository, make_environment, publish_repository, run_git, write_script
from test_ci_page import BLOCK_BY_FILE, BLOCKS
from workflow_runner import ROOT, Job

from antlm_bench import __version__

OUR_HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
USER_HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())


def test_our_hooks_are_the_tools_of_make_check() -> None:
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe
    tools = re.findall(r"\$\(BIN\)/(.*)", recipe[1])
    entries = [hook["entry"] for hook in OUR_HOOKS[0]["hooks"]]
    assert [each.replace(" --check", "") for each in tools] == [
        each.removeprefix(".venv/bin/").replace(" --force-exclude", "") for each in entries
    ]


def test_the_hook_of_the_page_is_one_that_we_offer() -> None:
    [repository] = yaml.safe_load(BLOCK_BY_FILE[".pre-commit-config.yaml"])["repos"]
    assert [hook["id"] for hook in repository["hooks"]] == [hook["id"] for hook in USER_HOOKS]
    assert USER_HOOKS[0]["stages"] == ["pre-push"]


@pytest.fixture(scope="module")
def pre_commit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment into which pip installed pre-commit."""
    commands_dir = make_environment(tmp_path_factory.mktemp("pre-commit") / "environment")
    subprocess.run([commands_dir / "pip", "install", "-q", "pre-commit"], check=True)
    return commands_dir


def run_command(command: str, job: Job) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-ec", command],
        cwd=job.workspace,
        env=job.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def link_command(command: Path, commands_dir: Path) -> None:
    write_script(commands_dir / command.name, f'exec "{command}" "$@"')


def commit_all(job: Job) -> None:
    run_git(job.workspace, "add", ".")
    run_git(job.workspace, "commit", "--quiet", "--no-verify", "--message", "Files")


@pytest.mark.slow
def test_a_push_of_a_worse_run_is_stopped(
    job: Job, pre_commit: Path, gate_runs: Path, tmp_path: Path
) -> None:
    link_command(pre_commit / "pre-commit", tmp_path / "commands")
    job.env |= publish_repository(tmp_path / "repository", f"v{__version__}")
    run_git(tmp_path, "init", "--quiet", "--bare", "remote.git")
    run_git(job.workspace, "init", "--quiet")
    run_git(job.workspace, "remote", "add", "origin", str(tmp_path / "remote.git"))
    (job.workspace / ".pre-commit-config.yaml").write_text(BLOCK_BY_FILE[".pre-commit-config.yaml"])
    shutil.copytree(gate_runs / "base", job.workspace / "reports/baselines/main")
    shutil.copytree(gate_runs / "base", job.workspace / "reports/new")
    commit_all(job)
    [installation] = [text for _, text in BLOCKS if text.startswith("pre-commit install")]
    installed = run_command(installation, job)
    assert not installed.returncode, installed.stdout

    good_push = run_command("git push --quiet origin HEAD:main", job)
    shutil.rmtree(job.workspace / "reports/new")
    shutil.copytree(gate_runs / "worse", job.workspace / "reports/new")
    commit_all(job)
    bad_push = run_command("git push --quiet origin HEAD:main", job)

    assert not good_push.returncode, good_push.stdout
    assert "Passed" in good_push.stdout
    assert "pass: base (new) against baseline base (main)" in good_push.stdout
    assert bad_push.returncode
    assert "- exit code: 1" in bad_push.stdout and "regression" in bad_push.stdout
    pushed = run_command("git rev-list --count origin/main", job)
    assert pushed.stdout == "1\n"


@pytest.mark.slow
def test_our_hooks_accept_this_checkout_and_refuse_a_fault(
    job: Job, pre_commit: Path, tmp_path: Path
) -> None:
    link_command(pre_commit / "pre-commit", tmp_path / "commands")
    shutil.rmtree(job.workspace)
    copy_repository(job.workspace)
    shutil.copy(ROOT / ".pre-commit-config.yaml", job.workspace)
    shutil.copytree(ROOT / "benchmarks", job.workspace / "benchmarks")
    (job.workspace / ".gitignore").write_text(".venv/\n.mypy_cache/\n.ruff_cache/\n__pycache__/\n")
    (job.workspace / ".venv").mkdir()
    (job.workspace / ".venv/bin").symlink_to(Path(sys.executable).parent)
    run_git(job.workspace, "init", "--quiet")
    commit_all(job)
    accepted = run_command("pre-commit run --all-files", job)
    assert not accepted.returncode, accepted.stdout
    assert accepted.stdout.count("Passed") == 3

    fault = '"""Faults."""\n\nimport os\n\nx: int = ""\n'
    (job.workspace / "antlm_bench/fault.py").write_text(fault)
    run_git(job.workspace, "add", ".")
    refused = run_command("pre-commit run", job)
    assert refused.returncode
    assert "F401" in refused.stdout and "Incompatible types" in refused.stdout
