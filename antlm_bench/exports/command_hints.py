"""Shell commands that make a missing or deviating part of a leaderboard's file."""

from __future__ import annotations

import shlex

from antlm_bench.exports.leaderboard import LeaderboardSpec
from antlm_bench.scoring.methods import get_method
from antlm_bench.types import Run


def model_name(run: Run) -> str:
    """Return the name of a run's checkpoint."""
    return str(run.manifest.model.get("name", "MODEL"))


def sibling_path(name: str, basename: str) -> str:
    """Return the path of `basename` beside `name`: trainers write milestones beside the final
    model."""
    folder, slash, _ = name.rpartition("/")
    return folder + slash + basename


def score_command(
    run: Run | None, suite: str, method: str, board: LeaderboardSpec, model: str = ""
) -> str:
    """Return the command that scores a run's checkpoint (or `model`) on a suite, by the year's
    conventions."""
    name = model or (model_name(run) if run else "")
    command = ["antlm-bench", "score", *model_arguments(name), "--suite", suite]
    command += ["--method", method, "--compat", board.name]
    return shlex.join([*command, *(["--out", run.path] if run else [])])


def finetune_command(
    run: Run,
    suite: str,
    method: str,
    board: LeaderboardSpec,
    *,
    seed: int | None = None,
    task: str = "",
) -> str:
    """Return the command that finetunes a run's checkpoint on a suite (or one task of it), by the
    official preset. seed: None = the official one."""
    command = ["antlm-bench", "finetune", *model_arguments(model_name(run)), "--suite", suite]
    command += ["--task", task] if task else []
    command += ["--attention", get_method(method).main_attention, "--compat", board.finetune]
    command += ["--seed", str(board.seed if seed is None else seed), "--out", run.path]
    return shlex.join(command)


def model_arguments(name: str) -> list[str]:
    """Return a checkpoint's name as options, hub@revision as two. A run knows a local checkpoint's
    name, not its path."""
    model, _, revision = name.partition("@")
    if revision and "/" in model:
        return ["--model", model, "--revision", revision]
    return ["--model", name]
