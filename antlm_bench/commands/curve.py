"""`curve`: run folders of a model's checkpoints -> the score of each suite over the words seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from antlm_bench.comparison.summary_check import read_runs
from antlm_bench.errors import UsageError
from antlm_bench.results.checkpoint_series import (
    LearningCurve,
    build_curves,
    expand_run_dirs,
    words_seen,
)
from antlm_bench.results.display_names import model_name
from antlm_bench.results.seeds import average_seeds


def load_curves(
    paths: Sequence[str | Path], suites: Sequence[str] = ()
) -> tuple[list[LearningCurve], list[str]]:
    """Return learning curves, and the names of models whose words seen are unknown.

    paths: run folders, or folders of them. suites: only these. Raises RunError, and UsageError
    where no run tells its words seen, a suite was not scored, or two checkpoints of a series have
    seen the same number of words.
    """
    opened = [average_seeds(run) for run in read_runs(expand_run_dirs(paths))]
    curves = build_curves(opened)
    left_out = [model_name(run) for run in opened if words_seen(run) is None]
    if not curves:
        hint = "checkpoints named chck_1M, chck_2M, ... (as `train` and BabyLM write them) have one"
        raise UsageError(
            "no run says how many words its checkpoint has seen", location=str(paths[0]), hint=hint
        )
    existing = list(dict.fromkeys(curve.suite for curve in curves))
    if unknown := [suite for suite in suites if suite not in existing]:
        hint = f"there are {', '.join(existing)}"
        raise UsageError(f"no checkpoint has {unknown[0]!r}", location="--suite", hint=hint)
    return [curve for curve in curves if curve.suite in suites or not suites], left_out
