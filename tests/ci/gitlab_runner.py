"""Run the jobs of a .gitlab-ci.yml as GitLab's runner does, with scripts exactly as written.

Every job starts with a fresh copy of the repository, the saved caches and the artifacts of earlier
stages; `before_script` and `script` run in one shell. Keys that this module does not know are
refused. Source: docs.gitlab.com, "CI/CD YAML syntax reference".
"""

from __future__ import annotations

import shutil
import string
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workflow_runner import Job, UnsupportedWorkflow

GLOBAL_KEYS = {"stages", "default", "variables"}
JOB_KEYS = {"image", "stage", "before_script", "script", "cache", "artifacts"}
"""Keys of a job, and of `default`."""
ARTIFACT_KEYS = {"when", "paths", "reports"}


def run_pipeline(config: Mapping[str, Any], machine: Job) -> dict[str, int]:
    """Run the jobs of each stage, until a stage fails. Return the exit code of each executed job.

    `machine.workspace` is the repository. `machine.artifacts` receives a folder per job.
    """
    exit_codes: dict[str, int] = {}
    jobs = {name: each for name, each in config.items() if name not in GLOBAL_KEYS}
    for stage in config["stages"]:
        for name, each in jobs.items():
            settings = {**config.get("default", {}), **each}
            if settings["stage"] == stage:
                exit_codes[name] = run_gitlab_job(name, settings, config["variables"], machine)
        if any(exit_codes.values()):
            break
    return exit_codes


def run_gitlab_job(
    name: str, settings: Mapping[str, Any], variables: Mapping[str, str], machine: Job
) -> int:
    """Run one job, keep its artifacts and caches, and return its exit code."""
    artifacts = settings.get("artifacts", {})
    if unknown := (settings.keys() - JOB_KEYS) | (artifacts.keys() - ARTIFACT_KEYS):
        raise UnsupportedWorkflow(f"job {name!r} has unknown keys {sorted(unknown)}")
    project_dir = shutil.copytree(machine.workspace, machine.temp / name)
    for folder in [*machine.artifacts.iterdir(), machine.caches]:
        shutil.copytree(folder, project_dir, dirs_exist_ok=True)
    env = machine.env | {"CI": "true", "GITLAB_CI": "true", "CI_PROJECT_DIR": str(project_dir)}
    env |= {key: string.Template(text).substitute(env) for key, text in variables.items()}
    script = "\n".join([*settings.get("before_script", ()), *settings["script"]])
    finished = subprocess.run(
        ["bash", "-c", f"set -eo pipefail\n{script}"],
        cwd=project_dir,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    machine.output += finished.stdout
    if not finished.returncode:
        keep_files(settings.get("cache", {}).get("paths", ()), project_dir, machine.caches)
    if not finished.returncode or artifacts.get("when") == "always":
        reports = artifacts.get("reports", {}).values()
        keep_files([*artifacts.get("paths", ()), *reports], project_dir, machine.artifacts / name)
    return finished.returncode


def keep_files(paths: list[str], project_dir: Path, target_dir: Path) -> None:
    """Copy files and folders that exist, with their paths in the project."""
    for path in paths:
        source, target = project_dir / path, target_dir / path
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
