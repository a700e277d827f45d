"""`curve`: run folders of a model's checkpoints -> what each suite says of it over the words it has
seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from antlm_bench import runs
from antlm_bench.compare.summary_check import read_runs
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
    """(curves, names of runs that are in none: nothing says how many words they have seen).

    paths: run folders, or folders of them. suites: only these. Raises RunError, and UsageError
    where no run can be placed, a suite was not scored, or two checkpoints of a family claim one
    place.
    """
    opened = [average_seeds(run) for run in read_runs(expand_run_dirs(paths))]
    found = build_curves(opened)
    lost = [model_name(run) for run in opened if words_seen(run) is None]
    if not found:
        hint = "checkpoints named chck_1M, chck_2M, ... (as `train` and BabyLM write them) have one"
        raise UsageError(
            "no run says how many words its checkpoint has seen", location=str(paths[0]), hint=hint
        )
    if unknown := [suite for suite in suites if suite not in {one.suite for one in found}]:
        known = ", ".join(dict.fromkeys(one.suite for one in found))
        raise UsageError(
            f"no checkpoint has {unknown[0]!r}", location="--suite", hint=f"there are {known}"
        )
    return [one for one in found if one.suite in suites or not suites], lost


def draw_curves(learning_curves: Sequence[LearningCurve], path: Path, image_format: str) -> None:
    """Write the curves as one figure, a panel per suite. form: svg or png. Raises RunError."""
    from antlm_bench.reporting.figure_export import render_figures
    from antlm_bench.reporting.figures import learning_curve_figures

    runs.write_atomically(
        path, render_figures(list(learning_curve_figures(learning_curves)), image_format)
    )
