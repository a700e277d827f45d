"""Run a workflow's job or a composite action of GitHub Actions as the runner does.

Scripts are executed exactly as written. Everything that this module does not know is refused:
expressions, functions, contexts, keys of steps, inputs, actions. Actions of others are stand-ins:

    actions/checkout         does nothing: the workspace holds the files already
    actions/setup-python     requires `python-version`; Python is the one on PATH
    actions/cache            restores a folder by key; saves it at the end of a job that passed
    actions/upload-artifact  copies the files to the folder `artifacts`

Sources: docs.github.com, "Workflow syntax", "Evaluate expressions", "Metadata syntax", and the
README of each action.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
OUR_ACTION = re.compile(r"OWNER/antlm-bench@v\d+(\.\d+)*|\./")
STEP_KEYS = {"name", "id", "if", "run", "shell", "env", "uses", "with", "working-directory"}
SHELLS = {  # value of `shell` -> command; without `shell` a workflow runs `bash -e`
    "bash": ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"],
    "": ["bash", "-e"],
}
TOKEN = re.compile(r"\s*('(?:[^']|'')*'|==|!=|&&|\|\||[!()]|[A-Za-z_][\w.-]*)")
STATUS_FUNCTIONS = ("always", "success", "failure")


class UnsupportedWorkflow(Exception):
    """Something in a workflow or an action that this module does not know."""


@dataclass
class Job:
    """A machine on which steps run, and what they leave on it."""

    workspace: Path
    temp: Path
    """Folder of the runner's own files."""
    env: dict[str, str]
    """Environment of every step; a step can extend it through GITHUB_ENV and GITHUB_PATH."""
    caches: Path
    """Folder of saved caches, one folder per key. Shared by jobs, as on GitHub."""
    artifacts: Path
    """Folder of uploaded artifacts, one folder per name. Shared by jobs, as on GitHub."""
    failed: bool = False
    exit_code: int = 0
    output: str = ""
    """What all steps wrote to stdout and stderr, in order."""
    summary: str = ""
    step_names: list[str] = field(default_factory=list)
    """Names of the steps that were executed."""
    restored_caches: list[str] = field(default_factory=list)
    unsaved_caches: dict[str, Path] = field(default_factory=dict)

    def finish(self) -> None:
        """Save caches, as the last steps of actions/cache do after a job that passed."""
        for key, folder in self.unsaved_caches.items():
            if folder.is_dir() and not self.failed:
                shutil.copytree(folder, self.caches / key)


@dataclass
class Scope:
    """Values that expressions of one workflow job or one composite action can read."""

    inputs: Mapping[str, str]
    action_path: Path | None = None
    outputs_by_step: dict[str, dict[str, str]] = field(default_factory=dict)


def run_action(action_dir: Path, inputs: Mapping[str, str], job: Job) -> dict[str, str]:
    """Run a composite action and return its outputs.

    Raises UnsupportedWorkflow for an unknown or a missing input.
    """
    action = yaml.safe_load((action_dir / "action.yml").read_text(encoding="utf-8"))
    declared = action["inputs"]
    if unknown := inputs.keys() - declared.keys():
        raise UnsupportedWorkflow(f"unknown inputs {sorted(unknown)}")
    values = {name: str(each["default"]) for name, each in declared.items() if "default" in each}
    scope = Scope(values | dict(inputs), action_dir)
    if missing := [n for n, each in declared.items() if each.get("required") and n not in inputs]:
        raise UnsupportedWorkflow(f"missing inputs {missing}")
    for step in action["runs"]["steps"]:
        if "run" in step and "shell" not in step:
            raise UnsupportedWorkflow(f"step {step.get('name')!r} of an action needs `shell`")
        run_step(step, scope, job)
    return {
        name: interpolate(each["value"], scope, job)
        for name, each in action.get("outputs", {}).items()
    }


def run_job(workflow: Mapping[str, Any], job_name: str, job: Job) -> None:
    """Run the steps of a workflow's job, and save the caches at its end."""
    scope = Scope({})
    declared = workflow["jobs"][job_name]
    for variables in (workflow.get("env", {}), declared.get("env", {})):
        job.env |= {name: interpolate(str(text), scope, job) for name, text in variables.items()}
    for step in declared["steps"]:
        run_step(step, scope, job)
    job.finish()


def run_step(step: Mapping[str, Any], scope: Scope, job: Job) -> None:
    """Run a step if its condition holds, and store its outputs under its id."""
    if unknown := step.keys() - STEP_KEYS:
        raise UnsupportedWorkflow(f"step {step.get('name')!r} has unknown keys {sorted(unknown)}")
    if not is_step_due(str(step.get("if", "")), scope, job):
        scope.outputs_by_step.setdefault(step.get("id", ""), {})
        return
    job.step_names.append(step.get("name") or step.get("uses") or step["run"].splitlines()[0])
    if "uses" in step:
        values = {
            name: interpolate(format_input(value), scope, job)
            for name, value in step.get("with", {}).items()
        }
        outputs = use_action(step["uses"], values, job)
    else:
        outputs = run_script(step, scope, job)
    scope.outputs_by_step[step.get("id", "")] = outputs


def format_input(value: object) -> str:
    """Return a YAML value as the text that an action gets."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_step_due(condition: str, scope: Scope, job: Job) -> bool:
    condition = condition.removeprefix("${{").removesuffix("}}")
    if not any(f"{name}()" in condition for name in STATUS_FUNCTIONS):
        condition = f"success() && ({condition})" if condition.strip() else "success()"
    return bool(Expression(condition, scope, job).evaluate())


def run_script(step: Mapping[str, Any], scope: Scope, job: Job) -> dict[str, str]:
    """Run the script of a step with the variables and files that GitHub documents."""
    if "${{" in step["run"]:
        raise UnsupportedWorkflow(f"step {step.get('name')!r} pastes an expression into a script")
    step_dir = Path(tempfile.mkdtemp(dir=job.temp))
    script = step_dir / "script.sh"
    script.write_text(step["run"], encoding="utf-8")
    files = {name: step_dir / name for name in ("OUTPUT", "ENV", "PATH", "STEP_SUMMARY")}
    for file in files.values():
        file.touch()
    env = dict(job.env)
    env |= {name: interpolate(str(text), scope, job) for name, text in step.get("env", {}).items()}
    env |= {f"GITHUB_{name}": str(file) for name, file in files.items()}
    env |= {"GITHUB_ACTIONS": "true", "CI": "true", "GITHUB_WORKSPACE": str(job.workspace)}
    env |= {"RUNNER_OS": "Linux", "RUNNER_ARCH": "X64", "RUNNER_TEMP": str(job.temp)}
    if scope.action_path:
        env["GITHUB_ACTION_PATH"] = str(scope.action_path)
    finished = subprocess.run(
        [*SHELLS[step.get("shell", "")], str(script)],
        cwd=job.workspace / step.get("working-directory", "."),
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    job.output += finished.stdout
    job.summary += files["STEP_SUMMARY"].read_text(encoding="utf-8")
    job.env |= read_assignments(files["ENV"])
    for folder in files["PATH"].read_text(encoding="utf-8").splitlines():
        job.env["PATH"] = f"{folder}{os.pathsep}{job.env['PATH']}"
    if finished.returncode:
        job.failed, job.exit_code = True, finished.returncode
    return read_assignments(files["OUTPUT"])


def read_assignments(file: Path) -> dict[str, str]:
    """Read lines `NAME=value`. Raises UnsupportedWorkflow for the form of several lines."""
    lines = file.read_text(encoding="utf-8").splitlines()
    if bad := [line for line in lines if not re.match(r"[A-Za-z_][\w-]*=", line)]:
        raise UnsupportedWorkflow(f"{file.name}: no assignment: {bad[0]!r}")
    return dict(line.split("=", 1) for line in lines)


def use_action(name: str, inputs: Mapping[str, str], job: Job) -> dict[str, str]:
    """Run an action: ours as written, those of others as stand-ins."""
    if OUR_ACTION.fullmatch(name):
        return run_action(ROOT, inputs, job)
    action, _, version = name.partition("@")
    if action not in STAND_INS or not re.fullmatch(r"v\d+", version):
        raise UnsupportedWorkflow(f"action {name!r}")
    known_inputs, stand_in = STAND_INS[action]
    if unknown := inputs.keys() - set(known_inputs):
        raise UnsupportedWorkflow(f"{name}: unknown inputs {sorted(unknown)}")
    return stand_in(inputs, job)


def restore_cache(inputs: Mapping[str, str], job: Job) -> dict[str, str]:
    key, folder = inputs["key"], job.workspace / Path(inputs["path"]).expanduser()
    if not re.fullmatch(r"[^,\n]{1,512}", key) or "\n" in inputs["path"]:
        raise UnsupportedWorkflow(f"cache of {inputs['path']!r} with key {key!r}")
    saved = job.caches / key
    if not saved.is_dir():
        job.unsaved_caches[key] = folder
        return {"cache-hit": "false"}
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    job.restored_caches.append(key)
    return {"cache-hit": "true"}


def setup_python(inputs: Mapping[str, str], job: Job) -> dict[str, str]:
    return {"python-version": inputs["python-version"]}


def upload_artifact(inputs: Mapping[str, str], job: Job) -> dict[str, str]:
    artifact = job.artifacts / inputs["name"]
    source = job.workspace / inputs["path"]
    if source.is_dir():
        shutil.copytree(source, artifact)
    else:
        artifact.mkdir(parents=True)
        shutil.copy(source, artifact)
    return {}


STAND_INS: dict[str, tuple[tuple[str, ...], Callable[..., dict[str, str]]]] = {
    "actions/checkout": (("persist-credentials", "fetch-depth"), lambda inputs, job: {}),
    "actions/setup-python": (
        ("python-version", "cache", "cache-dependency-path"),
        setup_python,
    ),
    "actions/cache": (("path", "key"), restore_cache),
    "actions/upload-artifact": (("name", "path", "if-no-files-found"), upload_artifact),
}
"""Action -> (inputs that it knows, function that stands for it)."""


def interpolate(text: str, scope: Scope, job: Job) -> str:
    """Replace every `${{ expression }}` of a text by its value."""
    return re.sub(r"\$\{\{(.*?)\}\}", lambda m: str(Expression(m[1], scope, job).evaluate()), text)


class Expression:
    """Evaluate one expression: contexts, strings, ==, !=, &&, ||, ! and the status functions.

    As on GitHub, strings are compared without regard to case, and && and || return an operand.
    """

    def __init__(self, text: str, scope: Scope, job: Job) -> None:
        self.text, self.scope, self.job = text, scope, job
        self.tokens: list[str] = []
        position, text = 0, text.rstrip()
        while position < len(text):
            match = TOKEN.match(text, position)
            if not match:
                raise UnsupportedWorkflow(f"expression {text!r} at {text[position:]!r}")
            self.tokens.append(match[1])
            position = match.end()

    def evaluate(self) -> str | bool:
        value = self._either()
        if self.tokens:
            raise UnsupportedWorkflow(f"expression {self.text!r} at {self.tokens[0]!r}")
        return value

    def _take(self, *expected: str) -> str:
        if not self.tokens or (expected and self.tokens[0] not in expected):
            raise UnsupportedWorkflow(f"expression {self.text!r} lacks {expected or 'a value'}")
        return self.tokens.pop(0)

    def _either(self) -> str | bool:
        value = self._both()
        while self.tokens[:1] == ["||"]:
            self._take()
            right = self._both()
            value = value or right
        return value

    def _both(self) -> str | bool:
        value = self._comparison()
        while self.tokens[:1] == ["&&"]:
            self._take()
            right = self._comparison()
            value = value and right
        return value

    def _comparison(self) -> str | bool:
        left = self._operand()
        if self.tokens[:1] not in (["=="], ["!="]):
            return left
        operator, right = self._take(), self._operand()
        if not (isinstance(left, str) and isinstance(right, str)):
            raise UnsupportedWorkflow(f"expression {self.text!r} compares other values than texts")
        return (left.casefold() == right.casefold()) is (operator == "==")

    def _operand(self) -> str | bool:
        token = self._take()
        if token == "!":
            return not self._operand()
        if token == "(":
            value = self._either()
            self._take(")")
            return value
        if token.startswith("'"):
            return token[1:-1].replace("''", "'")
        if token in STATUS_FUNCTIONS:
            self._take("(")
            self._take(")")
            return token == "always" or self.job.failed is (token == "failure")
        return self._context_value(token)

    def _context_value(self, name: str) -> str:
        context, _, key = name.partition(".")
        if context == "inputs" and key in self.scope.inputs:
            return self.scope.inputs[key]
        if name == "github.action_path" and self.scope.action_path:
            return str(self.scope.action_path)
        if name in ("runner.os", "runner.arch", "runner.temp"):
            return {"os": "Linux", "arch": "X64", "temp": str(self.job.temp)}[key]
        match = re.fullmatch(r"steps\.([\w-]+)\.outputs\.([\w-]+)", name)
        if match and match[1] in self.scope.outputs_by_step:
            return self.scope.outputs_by_step[match[1]].get(match[2], "")
        raise UnsupportedWorkflow(f"expression {self.text!r}: unknown value {name!r}")
