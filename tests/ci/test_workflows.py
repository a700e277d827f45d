"""Our workflows: pinned actions, least permissions, commands that exist; a release's build."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gate_jobs import copy_repository, make_environment, make_job
from workflow_runner import ROOT, Job, Scope, run_job, run_step

from antlm_bench import __version__

WORKFLOWS = sorted(path.name for path in (ROOT / ".github/workflows").iterdir())
PIN = re.compile(r"@(v\d+|release/v\d+|[0-9a-f]{40})$")


def read_workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github/workflows" / name).read_text(encoding="utf-8"))


def iter_uses(node: Any) -> Iterator[str]:
    """Yield the values of all `uses` keys below a node."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from [value] if key == "uses" else iter_uses(value)
    elif isinstance(node, list):
        for value in node:
            yield from iter_uses(value)


@pytest.mark.parametrize("name", [*WORKFLOWS, "../../action.yml"])
def test_actions_of_others_are_pinned(name: str) -> None:
    uses = [each for each in iter_uses(read_workflow(name)) if not each.startswith("./")]
    assert uses
    assert not [each for each in uses if not PIN.search(each)]


@pytest.mark.parametrize("name", [*WORKFLOWS, "../../action.yml"])
def test_workflows_of_our_own_exist(name: str) -> None:
    local = [each for each in iter_uses(read_workflow(name)) if each.startswith("./")]
    assert not [each for each in local if not (ROOT / each).exists()]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_only_publishing_may_write(name: str) -> None:
    workflow = read_workflow(name)
    permissions = {"": workflow["permissions"]}
    permissions |= {job: each.get("permissions", {}) for job, each in workflow["jobs"].items()}
    write_permissions = [
        (job, scope)
        for job, levels in permissions.items()
        for scope, level in levels.items()
        if level != "read"
    ]
    assert write_permissions == ([("publish", "id-token")] if name == "release.yml" else [])
    assert "secrets." not in (ROOT / ".github/workflows" / name).read_text()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_checkout_leaves_no_credentials_and_jobs_end(name: str) -> None:
    for job in read_workflow(name)["jobs"].values():
        assert "timeout-minutes" in job or "uses" in job
        for step in job.get("steps", ()):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("name", WORKFLOWS)
def test_targets_of_make_exist(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    scripts = [
        step["run"]
        for job in read_workflow(name)["jobs"].values()
        for step in job.get("steps", ())
        if "run" in step
    ]
    targets = re.findall(r"^make (.+)$", "\n".join(scripts), re.M)
    assert targets == (["test"] if name == "ci.yml" else [])
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_a_release_is_tested_built_and_published_in_this_order() -> None:
    workflow = read_workflow("release.yml")
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads the key `on` as true
    jobs = workflow["jobs"]
    assert jobs["test"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in read_workflow("ci.yml")[True]
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("test", "build")
    uploaded, downloaded = jobs["build"]["steps"][-1], jobs["publish"]["steps"][0]
    assert uploaded["with"]["name"] == downloaded["with"]["name"]
    assert downloaded["with"]["path"] == "dist"  # the folder that the publishing action reads


@pytest.mark.parametrize(
    ("tag", "exit_code"), [(f"v{__version__}", 0), (__version__, 1), ("v99.0.0", 1)]
)
def test_a_release_with_another_tag_than_the_version_stops(
    job: Job, tag: str, exit_code: int
) -> None:
    [step] = [
        step
        for step in read_workflow("release.yml")["jobs"]["build"]["steps"]
        if step.get("name") == "Compare the tag with the version"
    ]
    (job.workspace / "antlm_bench").mkdir()
    shutil.copy(ROOT / "antlm_bench/__init__.py", job.workspace / "antlm_bench")
    job.env["GITHUB_REF_NAME"] = tag
    run_step(step, Scope({}), job)
    assert job.exit_code == exit_code
    assert ("Tag v" in job.output) == bool(exit_code)


def test_a_release_shows_a_readme_without_relative_links(job: Job) -> None:
    [step] = [
        step
        for step in read_workflow("release.yml")["jobs"]["build"]["steps"]
        if step.get("name") == "Make the links of the README absolute"
    ]
    readme = job.workspace / "README.md"
    shutil.copy(ROOT / "README.md", readme)
    job.env |= {"GITHUB_REPOSITORY": "someone/bench", "GITHUB_REF_NAME": "v1.2.3"}
    run_step(step, Scope({}), job)
    links = re.findall(r"\]\(([^)]+)\)", readme.read_text(encoding="utf-8"))
    assert not [link for link in links if not link.startswith("https://")]
    assert "https://github.com/someone/bench/blob/v1.2.3/docs/how-to/install.md" in links
    picture = "https://raw.githubusercontent.com/someone/bench/v1.2.3/docs/images/page.png"
    assert picture in links


@pytest.mark.slow
def test_the_release_builds_a_wheel_and_an_sdist(tmp_path: Path) -> None:
    job = make_job(tmp_path, make_environment(tmp_path / "environment"))
    copy_repository(job.workspace)
    job.env["GITHUB_REF_NAME"] = f"v{__version__}"
    run_job(read_workflow("release.yml"), "build", job)
    assert not job.failed, job.output
    assert sorted(path.name for path in (job.artifacts / "dist").iterdir()) == [
        f"antlm_bench-{__version__}-py3-none-any.whl",
        f"antlm_bench-{__version__}.tar.gz",
    ]
