"""The runner of workflows evaluates documented expressions, and refuses all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workflow_runner import Expression, Job, Scope, UnsupportedWorkflow, run_step


@pytest.fixture
def empty_job(tmp_path: Path) -> Job:
    return Job(tmp_path, tmp_path, {"PATH": "/usr/bin:/bin"}, tmp_path, tmp_path)


SCOPE = Scope({"model": "", "suite": "BLiMP"}, outputs_by_step={"check": {"exit-code": "1"}})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("inputs.suite", "BLiMP"),
        ("inputs.suite == 'blimp'", True),  # GitHub ignores case
        ("inputs.model != ''", False),
        ("inputs.model == '' && inputs.suite != ''", True),
        ("inputs.model || 'none'", "none"),
        ("!(inputs.model == '') || success()", True),
        ("steps.check.outputs.exit-code", "1"),
        ("steps.check.outputs.unset", ""),
        ("'it''s'", "it's"),
        ("always() && failure()", False),
    ],
)
def test_documented_expressions_are_evaluated(text: str, value: object, empty_job: Job) -> None:
    assert Expression(text, SCOPE, empty_job).evaluate() == value


@pytest.mark.parametrize(
    "text",
    [
        "inputs.unknown",
        "steps.unknown.outputs.x",
        "secrets.TOKEN",
        "contains(inputs.suite, 'b')",
        "hashFiles('x')",
        'inputs.suite == "b"',
        "inputs.suite ==",
        "inputs.suite inputs.model",
        "inputs.suite < '1'",
        "",
    ],
)
def test_other_expressions_are_refused(text: str, empty_job: Job) -> None:
    with pytest.raises(UnsupportedWorkflow):
        Expression(text, SCOPE, empty_job).evaluate()


@pytest.mark.parametrize(
    "step",
    [
        {"run": "true", "timeout-minutes": 1},
        {"run": "echo ${{ inputs.suite }}"},
        {"uses": "actions/cache@main"},
        {"uses": "somebody/else@v1"},
        {"uses": "actions/setup-python@v6", "with": {"python": "3.11"}},
        {"uses": "actions/cache@v5", "with": {"path": "x", "key": "a,b"}},
    ],
)
def test_unknown_steps_are_refused(step: dict[str, Any], empty_job: Job) -> None:
    with pytest.raises(UnsupportedWorkflow):
        run_step(step, SCOPE, empty_job)


def test_steps_after_a_failure_need_a_condition(empty_job: Job) -> None:
    scope = Scope({})
    for condition in ("", "failure()", "always()"):
        run_step({"name": condition or "none", "if": condition, "run": "exit 3"}, scope, empty_job)
    run_step({"name": "last", "run": "true"}, scope, empty_job)
    assert empty_job.step_names == ["none", "failure()", "always()"]
    assert empty_job.exit_code == 3


def test_a_step_hands_variables_paths_and_outputs_on(empty_job: Job) -> None:
    scope = Scope({})
    script = 'echo "A=1" >> "$GITHUB_ENV"; echo /x >> "$GITHUB_PATH"; echo b=2 >> "$GITHUB_OUTPUT"'
    run_step({"id": "first", "run": script}, scope, empty_job)
    run_step(
        {"run": 'echo "$A $B ${PATH%%:*}"', "env": {"B": "${{ steps.first.outputs.b }}"}},
        scope,
        empty_job,
    )
    assert empty_job.output == "1 2 /x\n"


def test_bash_of_an_action_fails_in_a_pipe(empty_job: Job) -> None:
    run_step({"shell": "bash", "run": "false | true\necho reached"}, Scope({}), empty_job)
    assert empty_job.failed and not empty_job.output
