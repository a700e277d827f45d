"""action.yml, its steps executed as written: installation, caches, exit codes, outputs, summary."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from gate_jobs import (
    make_environment,
    make_job,
    read_pip_log,
    replace_score,
    write_commands,
    write_script,
)
from workflow_runner import ROOT, Job, run_action

INSTALL = f"install -c {ROOT}/constraints.txt"
SLIM = [
    f"{INSTALL} --no-compile -r {ROOT}/requirements-slim.txt",
    f"{INSTALL} --no-compile --no-deps {ROOT}",
]


def ignore_antlm_bench(job: Job) -> None:
    """Replace antlm-bench by a command that does nothing, for tests of the other steps."""
    write_script(job.workspace.parent / "commands/antlm-bench", "exit 0")


@pytest.mark.long
@pytest.mark.parametrize(
    ("inputs", "exit_code", "verdict"),
    [
        ({"run": "base"}, 0, "pass"),
        ({"run": "noisy", "margin": "0.5"}, 0, "undecided"),
        ({"run": "worse"}, 1, "regression"),
        ({"run": "worse", "margin": "20", "fail-on": "drop"}, 1, "drop"),
        ({"run": "noisy", "margin": "0.5", "strict": "true"}, 4, "undecided"),
        ({"run": "base", "suite": "ewok"}, 2, ""),
        ({"run": "nowhere"}, 3, ""),
        ({"run": "base", "against": "two-suites"}, 5, "incomplete"),
        ({"run": "other-rules"}, 6, ""),
    ],
)
def test_the_exit_code_and_the_outputs_are_those_of_check(
    job: Job, inputs: dict[str, str], exit_code: int, verdict: str
) -> None:
    outputs = run_action(ROOT, {"against": "base", "install": "", **inputs}, job)
    assert job.exit_code == exit_code, job.output
    assert outputs == {"verdict": verdict, "exit-code": str(exit_code)}
    assert job.failed == bool(exit_code)
    assert (f"**{verdict}" in job.summary) if verdict else not job.summary


def test_a_check_alone_installs_no_torch(job: Job) -> None:
    ignore_antlm_bench(job)
    run_action(ROOT, {"against": "base"}, job)
    assert not job.failed, job.output
    assert read_pip_log(job) == SLIM


@pytest.mark.parametrize(
    ("torch_index", "torch_options"),
    [
        (None, "--no-deps --index-url https://download.pytorch.org/whl/cpu torch"),
        (
            "https://torch.example/cu126",
            "--no-deps --index-url https://torch.example/cu126 torch",
        ),
        ("", ""),
    ],
)
def test_a_model_installs_torch_from_its_index(
    job: Job, torch_index: str | None, torch_options: str
) -> None:
    ignore_antlm_bench(job)
    inputs = {"against": "base", "model": "name/model", "suite": "blimp"}
    run_action(ROOT, inputs | ({} if torch_index is None else {"torch-index": torch_index}), job)
    expected = [f"{INSTALL} {torch_options}", f"{INSTALL} {ROOT}"]
    assert read_pip_log(job) == expected[not torch_options :], job.output


@pytest.mark.parametrize("requirement", ["antlm-bench==0.1.0", ""])
def test_a_requirement_is_installed_as_before(job: Job, requirement: str) -> None:
    ignore_antlm_bench(job)
    run_action(ROOT, {"against": "base", "install": requirement}, job)
    assert not job.failed, job.output
    assert read_pip_log(job) == ([f"install {requirement}"] if requirement else [])


@pytest.mark.long
def test_a_model_is_scored_and_then_checked(job: Job, gate_runs: Path, tmp_path: Path) -> None:
    replace_score(tmp_path / "commands", gate_runs / "worse")
    inputs = {"against": "base", "model": "out/new", "suite": "blimp", "junit": "deep/er.xml"}
    outputs = run_action(ROOT, {**inputs, "install": ""}, job)
    assert job.exit_code == 1 and outputs["verdict"] == "regression", job.output
    assert job.step_names[-2:] == ["Score", "Check"]
    assert (job.workspace / "reports/check/run.json").exists()
    assert "::error title=antlm-bench%3A regression::blimp · causal" in job.output
    failures = ElementTree.parse(job.workspace / "deep/er.xml").findall(".//failure")
    assert [each.get("type") for each in failures] == ["regression"]


def test_a_model_without_a_suite_names_the_input(job: Job) -> None:
    outputs = run_action(ROOT, {"against": "base", "model": "out/new"}, job)
    assert job.exit_code == 2
    assert "input 'suite' is empty" in job.output
    assert outputs == {"verdict": "", "exit-code": ""}
    assert not read_pip_log(job)


def test_no_input_is_executed(job: Job) -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    ignore_antlm_bench(job)
    command = "$(touch executed)`touch executed`; touch executed; '\"touch executed"
    inputs = dict.fromkeys(action["inputs"], command) | {"strict": "true"}
    run_action(ROOT, inputs, job)
    assert {"Install a requirement", "Score", "Check"} <= set(job.step_names), job.output
    assert not (job.workspace / "executed").exists()


def test_the_action_does_not_reach_for_a_published_package() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    scripts = [step["run"] for step in action["runs"]["steps"] if "run" in step]
    assert not [line for line in scripts if re.search(r"pip install .*\bantlm-bench\b", line)]
    assert action["inputs"]["install"]["default"] == "action"


# ---- caches


def run_downloading_job(
    root: Path, caches: Path, *, check_exit_code: int = 0, **inputs: str
) -> Job:
    """Run the action on a fresh machine, with a `score` that downloads data and weights."""
    root.mkdir()
    job = make_job(root, write_commands(root / "commands"))
    (job.workspace / "local-model").mkdir()
    job.caches = caches
    write_script(
        root / "commands/antlm-bench",
        f'if [ "$1" = check ]; then exit {check_exit_code}; fi\n'
        'mkdir -p "$HOME/.cache/antlm-bench" "$HOME/.cache/huggingface/hub"\n'
        'cd "$HOME/.cache"; touch antlm-bench/data huggingface/hub/weights huggingface/token',
    )
    defaults = {"against": "base", "model": "name/model", "suite": "blimp,supplement"}
    run_action(ROOT, defaults | {"install": ""} | inputs, job)
    job.finish()
    return job


def describe_caches(keys: list[str]) -> list[str]:
    """Return the contents that keys of caches name: "data", "model" or "packages"."""
    return sorted(key.split("-")[2] for key in keys)


def test_data_and_model_are_restored_by_suite_and_model(tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    caches.mkdir()
    first = run_downloading_job(tmp_path / "first", caches)
    again = run_downloading_job(tmp_path / "again", caches)
    other_suite = run_downloading_job(tmp_path / "other-suite", caches, suite="blimp")
    other_model = run_downloading_job(tmp_path / "other-model", caches, model="name/other")
    assert describe_caches(first.restored_caches) == []
    assert describe_caches(again.restored_caches) == ["data", "model"]
    assert describe_caches(other_suite.restored_caches) == ["model"]
    assert describe_caches(other_model.restored_caches) == ["data"]


def test_the_token_of_the_hub_is_in_no_cache(tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    caches.mkdir()
    run_downloading_job(tmp_path / "first", caches)
    cached_files = {path.name for path in caches.rglob("*") if path.is_file()}
    assert cached_files == {"data", "weights"}


def test_a_local_model_has_no_cache(tmp_path: Path) -> None:
    caches = tmp_path / "caches"
    caches.mkdir()
    run_downloading_job(tmp_path / "first", caches, model="local-model")
    assert describe_caches([path.name for path in caches.iterdir()]) == ["data"]


def test_folders_of_the_user_are_the_cached_ones(tmp_path: Path) -> None:
    job = make_job(tmp_path, write_commands(tmp_path / "commands"))
    ignore_antlm_bench(job)
    job.env |= {"ANTLM_BENCH_CACHE": "/disk/data", "HF_HOME": "/disk/hf"}
    run_action(ROOT, {"against": "base", "model": "name/model", "suite": "blimp"}, job)
    folders = sorted(map(str, job.unsaved_caches.values()))
    assert folders == ["/disk/data", "/disk/hf/hub", f"{tmp_path}/home/.cache/pip"]


def test_packages_are_cached_for_checks_and_models_apart(job: Job) -> None:
    ignore_antlm_bench(job)
    run_action(ROOT, {"against": "base"}, job)
    run_action(ROOT, {"against": "base", "model": "name/model", "suite": "blimp"}, job)
    assert describe_caches(list(job.unsaved_caches)) == ["data", "model", "packages", "packages"]


# ---- real installations


@pytest.mark.slow
def test_a_check_installs_itself_into_an_empty_environment(gate_runs: Path, tmp_path: Path) -> None:
    job = make_job(tmp_path, make_environment(tmp_path / "environment"))
    shutil.copytree(gate_runs, job.workspace, dirs_exist_ok=True)
    outputs = run_action(ROOT, {"run": "worse", "against": "base"}, job)
    assert outputs == {"verdict": "regression", "exit-code": "1"}, job.output
    installed = {path.name for path in (tmp_path / "environment").glob("lib/*/site-packages/*")}
    assert {"antlm_bench", "numpy"} <= installed and "torch" not in installed


@pytest.mark.slow
def test_a_model_is_installed_for_and_scored(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """The environment inherits torch and transformers, which take minutes to install."""
    commands_dir = make_environment(tmp_path / "environment", inherit=True)
    job = make_job(tmp_path, commands_dir)
    inputs = {"model": str(make_checkpoint()), "suite": "nano", "against": "reports/check"}
    outputs = run_action(ROOT, inputs | {"torch-index": ""}, job)
    assert outputs == {"verdict": "pass", "exit-code": "0"}, job.output
    assert (commands_dir / "antlm-bench").exists()
    assert "| nano" in job.summary
