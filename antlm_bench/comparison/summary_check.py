"""Open a run folder and check that the numbers in run.json are those of its predictions.

A file of predictions carries a digest of the numbers that were computed from it, so an edit of
run.json shows without computing anything again. Files from before this digest existed are
summarised again, as far as predictions suffice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from antlm_bench import runs
from antlm_bench.arguments import check_arguments
from antlm_bench.comparison.join import load_table
from antlm_bench.errors import BenchError, RunError
from antlm_bench.metrics import get_metric_spec, load_cell_metric
from antlm_bench.types import Cell, Estimate, Run

ROUNDING_TOLERANCE = 1e-6
"""Summaries are rounded to 12 digits; older versions may have added up in another order."""
RESTORE_HINT = "restore run.json, or repeat the score or finetune command with --again"


@check_arguments("load_run")
def read_run(path: str | Path) -> Run:
    """Open a run folder whose numbers will be shown.

    Raises RunError as `runs.read`, for predictions that are missing or damaged, and for a summary
    in run.json that is not the one of its predictions.
    """
    return read_runs([path])[0]


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """Open run folders that are shown together: one suite has one name in all. Raises as
    `read_run`.
    """
    opened = [runs.open_stored_run(path) for path in paths]
    for run in opened:
        for cell in run:
            check_cell(run, cell)
    return runs.distinguish_suites(opened)


def check_cell(run: Run, cell: Cell) -> None:
    """Raise RunError unless a cell's summary is the one of its predictions; see `read_run`."""
    bound = runs.summary_matches(run.path, cell)
    if bound:
        return
    value_range = get_metric_spec(cell.summary.metric).value_range
    differing = [
        line for line in _recompute(run, cell) if not _estimates_agree(*line[1:], value_range)
    ]
    if bound is None and not differing:
        return
    message = f"the summary of {cell.suite} ({cell.method}) is not that of its predictions"
    if differing:
        name, stored, estimate = differing[0]
        shown = f"{_format_estimate(stored)} in run.json, {_format_estimate(estimate)} recomputed"
        message += f": {name} {shown}"
    raise RunError(message, location=str(Path(run.path) / "run.json"), hint=RESTORE_HINT)


def _format_estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.6g} [{estimate.low:.4g}, {estimate.high:.4g}] of {estimate.n}"


def _estimates_agree(
    stored: Estimate, recomputed: Estimate, value_range: tuple[float, float]
) -> bool:
    """Return whether two estimates have the same value, and intervals that two versions of this
    program may have computed.

    An interval lies within the metric's range and is at most three times as wide, or it is the
    whole range: another version may have had another formula, or none for so few items.
    """
    tolerance = ROUNDING_TOLERANCE
    lowest, highest = value_range
    widest = 3 * (recomputed.high - recomputed.low) + tolerance
    whole = (stored.low, stored.high) == value_range
    possible = lowest - tolerance <= stored.low <= stored.high <= highest + tolerance
    same = math.isclose(stored.value, recomputed.value, rel_tol=tolerance, abs_tol=tolerance)
    narrow = stored.high - stored.low <= widest
    return same and stored.n == recomputed.n and possible and (whole or narrow)


def _recompute(run: Run, cell: Cell) -> list[tuple[str, Estimate, Estimate]]:
    """Return (name, stored, recomputed) of the headline and of every group; nothing where
    predictions do not suffice, as for reading times and ages of acquisition."""
    summary = cell.summary
    try:
        metric, table = load_cell_metric(cell), load_table(run, cell)
        headline = metric.headline(table, summary.macro).estimate
        compared = [("headline", summary.headline, headline)]
        for level in dict.fromkeys(group.level for group in summary.groups):
            codes, names = table.levels[level]
            estimates = dict(zip(names, metric.by_group(table, codes, names), strict=True))
            compared += [
                (group.name, group.estimate, estimates[group.name])
                for group in summary.groups
                if group.level == level
            ]
        return compared
    except (BenchError, KeyError):
        return []  # another kind of number: it is bound to its file or older than that
