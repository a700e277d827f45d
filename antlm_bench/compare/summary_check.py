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
from antlm_bench.compare.join import load_table
from antlm_bench.errors import BenchError, RunError
from antlm_bench.metrics import resolve_metric
from antlm_bench.metrics.surprisal import SURPRISAL, summarize_surprisal
from antlm_bench.types import Cell, Estimate, Run

ROUNDING_TOLERANCE = (
    1e-6  # summaries are rounded to 12 digits; older versions may have added up in another order
)
METRIC_RANGES, UNBOUNDED = (
    ((0.0, 1.0), (-1.0, 1.0)),
    (-math.inf, math.inf),
)  # of proportions, correlations, nats
DEFAULT_SETTINGS = {"ties": "half", "reduction": "sum"}  # of cells that say nothing
RESTORE_HINT = "restore run.json, or repeat the score or finetune command with --again"


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
    estimates = _recompute(run, cell)
    differing = [line for line in estimates if not _estimates_agree(*line[1:])]
    if bound is None and not differing:
        return
    message = f"the summary of {cell.suite} ({cell.method}) is not that of its predictions"
    if differing:
        name, stored, estimate = differing[0]
        message += f": {name} {_format_estimate(stored)} in run.json, {_format_estimate(estimate)} recomputed"
    raise RunError(message, location=str(Path(run.path) / "run.json"), hint=RESTORE_HINT)


def _format_estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.6g} [{estimate.low:.4g}, {estimate.high:.4g}] of {estimate.n}"


def _estimates_agree(stored: Estimate, recomputed: Estimate) -> bool:
    """Whether two estimates have the same value, and intervals that two versions of this program
    may have computed.

    An interval lies within the metric's range and is at most three times as wide, or it is the
    whole range: another version may have had another formula, or none for so few items.
    """
    lowest, highest = next(
        (r for r in METRIC_RANGES if r[0] <= recomputed.low and recomputed.high <= r[1]), UNBOUNDED
    )
    whole = (stored.low, stored.high) in METRIC_RANGES
    narrow = stored.high - stored.low <= 3 * (recomputed.high - recomputed.low) + ROUNDING_TOLERANCE
    possible = (
        lowest - ROUNDING_TOLERANCE <= stored.low <= stored.high <= highest + ROUNDING_TOLERANCE
        and (whole or narrow)
    )
    same = math.isclose(
        stored.value, recomputed.value, rel_tol=ROUNDING_TOLERANCE, abs_tol=ROUNDING_TOLERANCE
    )
    return same and stored.n == recomputed.n and possible


def _recompute(run: Run, cell: Cell) -> list[tuple[str, Estimate, Estimate]]:
    """(name, stored, recomputed) of the headline and of every group; nothing where predictions do
    not suffice.

    Regressions on reading times and ages of acquisition need the suite's data: those are not
    recomputed.
    """
    summary = cell.summary
    try:
        if summary.metric == SURPRISAL:
            headline = summarize_surprisal(
                runs.read_predictions(run.path, cell), suite=cell.suite, method=cell.method
            ).headline
            return [("headline", summary.headline, headline)]
        ties, reduction = (
            str(cell.settings.get(name, default)) for name, default in DEFAULT_SETTINGS.items()
        )
        measure = resolve_metric(
            summary.metric, ties, "class" if cell.seed is not None else reduction
        )
        table = load_table(run, cell)
        compared = [("headline", summary.headline, measure.headline(table, summary.macro)[0])]
        for level in dict.fromkeys(group.level for group in summary.groups):
            groups = [group for group in summary.groups if group.level == level]
            codes, names = table.levels[level]
            parts = dict(zip(names, measure.by_group(table, codes, names), strict=True))
            compared += [(group.name, group.estimate, parts[group.name]) for group in groups]
        return compared
    except (BenchError, KeyError):
        return []  # another kind of number: it is bound to its file or older than that
