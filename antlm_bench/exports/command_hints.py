"""The commands that make a missing or deviating part of a leaderboard's file, ready for a shell."""

from __future__ import annotations

import shlex

from antlm_bench.exports.leaderboard import LeaderboardSpec
from antlm_bench.scoring.methods import get_method
from antlm_bench.types import Run


def model_name(run: Run) -> str:
    return str(run.manifest.model.get("name", "MODEL"))


def sibling_path(name: str, basename: str) -> str:
    """The path beside `name`: our trainers write milestones beside the final model."""
    folder, slash, _ = name.rpartition("/")
    return folder + slash + basename


def score_command(
    run: Run | None, suite: str, method: str, board: LeaderboardSpec, model: str = ""
) -> str:
    """Return the command that scores a run's checkpoint (or `model`) on a suite, by the year's
    conventions.
    """
    command = [
        "antlm-bench",
        "score",
        *model_arguments(model or (model_name(run) if run else "")),
        "--suite",
        suite,
    ]
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
    """Return the command that finetunes a run's checkpoint on a suite (or one task of it), as
    officially.

    seed: None = the official one.
    """
    command = [
        "antlm-bench",
        "finetune",
        *model_arguments(model_name(run)),
        "--suite",
        suite,
        *["--task", task] * bool(task),
    ]
    command += [
        "--attention",
        get_method(method).main_attention,
        "--compat",
        board.finetune,
    ]
    return shlex.join(
        [*command, "--seed", str(board.seed if seed is None else seed), "--out", run.path]
    )


def model_arguments(name: str) -> list[str]:
    """A checkpoint's name as options: hub@revision in two; a run knows a local checkpoint's name,
    not its path.
    """
    model, _, revision = name.partition("@")
    return (
        ["--model", model, "--revision", revision]
        if revision and "/" in model
        else ["--model", name]
    )
