"""docs/how-to/ci.md: every block of commands, workflow and pipeline is executed as it stands."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from documented_pages import read_blocks
from gate_jobs import make_job, publish_repository, read_pip_log, replace_score, write_commands
from gitlab_runner import run_pipeline
from workflow_runner import ROOT, Job, Scope, run_job, run_step

from antlm_bench import __version__
from antlm_bench.cli.app import run

PAGE = (ROOT / "docs/how-to/ci.md").read_text(encoding="utf-8")
BLOCKS = [(block.language, block.text) for block in read_blocks(PAGE)]
BLOCK_BY_FILE = {
    match[1]: text for _, text in BLOCKS if (match := re.match(r"# (\S+\.ya?ml)\n", text))
}
POLICY = next(text for language, text in BLOCKS if language == "toml")
WORKFLOW, RUN_WORKFLOW = ".github/workflows/checkpoint.yml", ".github/workflows/run.yml"


@pytest.fixture
def docs_job(gate_runs: Path, tmp_path: Path) -> Job:
    """A machine on which git finds the repository, `score` copies a run, and "main" is saved."""
    job = make_job(tmp_path, write_commands(tmp_path / "commands"))
    replace_score(tmp_path / "commands", gate_runs / "base")
    job.env |= publish_repository(tmp_path / "repository", f"v{__version__}")
    shutil.copytree(gate_runs / "base", job.workspace / "reports/baselines/main")
    return job


def test_every_block_has_a_test() -> None:
    assert {language for language, _ in BLOCKS} == {"text", "sh", "toml", "json", "yaml"}
    assert sorted(BLOCK_BY_FILE) == [
        WORKFLOW,
        RUN_WORKFLOW,
        ".gitlab-ci.yml",
        ".pre-commit-config.yaml",
    ]
    assert len(BLOCK_BY_FILE) == sum(language == "yaml" for language, _ in BLOCKS)


def test_all_pages_pin_this_version() -> None:
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]
    pattern = r"(?:antlm-bench@|--branch |\brev: |tag such as `)(v[\d.]+\d)"
    pins = [pin for page in pages for pin in re.findall(pattern, page)]
    assert set(pins) == {f"v{__version__}"}
    assert len(pins) >= len(re.findall(pattern, PAGE)) >= 5


def list_commands() -> list[str]:
    """Return the lines of all blocks of shell commands that start with antlm-bench."""
    shell = "".join(text for language, text in BLOCKS if language == "sh")
    return re.findall(r"^antlm-bench .*$", shell, re.M)


@pytest.mark.long
def test_the_commands_run_as_they_stand(
    gate_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(gate_runs / "base", "reports/trusted")
    shutil.copytree(gate_runs / "base", "reports/new")
    Path("check.toml").write_text(POLICY.replace("island_effects", "islands"))
    for line in list_commands():
        argv = shlex.split(line)[1:]
        assert run([*argv, "--help"] if argv[0] == "score" else argv) == 0, line
    assert Path("reports/baselines/main/run.json").exists()


def test_the_slim_installation_runs_as_it_stands(docs_job: Job) -> None:
    [script] = [text for _, text in BLOCKS if text.startswith("git clone")]
    run_step({"shell": "bash", "run": script}, Scope({}), docs_job)
    assert not docs_job.failed, docs_job.output
    assert read_pip_log(docs_job) == [
        "install -c antlm-bench/constraints.txt --no-compile -r antlm-bench/requirements-slim.txt",
        "install --no-compile --no-deps ./antlm-bench",
    ]
    assert (docs_job.workspace / "antlm-bench/requirements-slim.txt").exists()


@pytest.mark.long
def test_the_workflow_scores_checks_and_reports_the_verdict(docs_job: Job) -> None:
    run_job(yaml.safe_load(BLOCK_BY_FILE[WORKFLOW]), "check", docs_job)
    assert not docs_job.failed, docs_job.output
    assert docs_job.output.endswith("the verdict is pass\n")
    assert read_pip_log(docs_job)[-1] == f"install -c {ROOT}/constraints.txt {ROOT}"
    assert (docs_job.workspace / "antlm-bench.xml").exists()


@pytest.mark.long
def test_the_workflow_fails_for_a_worse_checkpoint(docs_job: Job, gate_runs: Path) -> None:
    shutil.copytree(gate_runs / "worse", docs_job.workspace / "reports/new")
    run_job(yaml.safe_load(BLOCK_BY_FILE[RUN_WORKFLOW]), "check", docs_job)
    assert docs_job.exit_code == 1
    assert "requirements-slim.txt" in read_pip_log(docs_job)[0]
    assert "| blimp" in docs_job.summary


@pytest.mark.long
def test_the_pipeline_scores_checks_and_keeps_its_junit_file(docs_job: Job) -> None:
    exit_codes = run_pipeline(yaml.safe_load(BLOCK_BY_FILE[".gitlab-ci.yml"]), docs_job)
    assert exit_codes == {"score": 0, "check": 0}, docs_job.output
    versions = "install -c .antlm-bench/constraints.txt"
    assert read_pip_log(docs_job) == [
        f"{versions} --no-deps --index-url https://download.pytorch.org/whl/cpu torch",
        f"{versions} ./.antlm-bench",
        f"{versions} --no-compile -r .antlm-bench/requirements-slim.txt",
        "install --no-compile --no-deps ./.antlm-bench",
    ]
    report = ElementTree.parse(docs_job.artifacts / "check/antlm-bench.xml").getroot()
    assert report.findall(".//testcase") and not report.findall(".//failure")


@pytest.mark.long
def test_the_pipeline_fails_for_a_worse_checkpoint(docs_job: Job, gate_runs: Path) -> None:
    replace_score(docs_job.workspace.parent / "commands", gate_runs / "worse")
    exit_codes = run_pipeline(yaml.safe_load(BLOCK_BY_FILE[".gitlab-ci.yml"]), docs_job)
    assert exit_codes == {"score": 0, "check": 1}
    report = ElementTree.parse(docs_job.artifacts / "check/antlm-bench.xml").getroot()
    assert [each.get("type") for each in report.findall(".//failure")] == ["regression"]
    assert (docs_job.artifacts / "check/antlm-bench.md").exists()
