"""Open run folders and check that the summaries in run.json match the predictions files.

A predictions file stores a digest of its summary, so that an edit of run.json is found without
recomputing the summary. Files of older versions have no digest: their summary is recomputed, if the
metric can be computed from predictions alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from antlm_bench import runs
from antlm_bench.arguments import check_arguments
from antlm_bench.comparison.join import (
    UNCLUSTERED_NOTE,
    catalog_name,
    declares_clusters,
    load_table,
)
from antlm_bench.errors import BenchError, RunError
from antlm_bench.metrics import get_metric_spec, load_cell_metric
from antlm_bench.types import Cell, Estimate, Run

ROUNDING_TOLERANCE = 1e-6
"""Summaries are rounded to 12 digits; older versions may have summed in another order."""
RESTORE_HINT = "restore run.json, or repeat the score or finetune command with --again"


@check_arguments("load_run")
def open_verified_run(path: str | Path) -> Run:
    """Open a run folder and check its summaries against its predictions.

    Of a suite that was scored with several limits, the run has the fullest cell. Raises RunError if
    the folder holds no run, if predictions are missing or damaged, or if a summary in run.json does
    not match its predictions.
    """
    return open_verified_runs([path])[0]


def open_verified_runs(paths: Iterable[str | Path], *, keys: Collection[str] = ()) -> list[Run]:
    """Open run folders that are shown together. A suite has the same name in all of them.

    keys: content keys of cells that are shown even if the run has fuller ones. Cells of earlier
    versions, which do not say which items belong together, get a note if their suite declares
    clusters, and cells whose score is undefined for their items get one, too. Raises the same
    errors as `open_verified_run`.
    """
    has_clusters = lru_cache(declares_clusters)
    opened = []
    for path in paths:
        run = runs.select_fullest_cells(open_verified_stored_run(path), keys)
        cells = []
        for cell in run:
            notes = list(_undefined_notes(run, cell))
            if not cell.summary.num_clusters and has_clusters(*catalog_name(cell)):
                notes.append(UNCLUSTERED_NOTE)
            cells.append(_with_notes(cell, notes) if notes else cell)
        opened.append(replace(run, cells=tuple(cells)))
    return runs.distinguish_suites(opened)


def open_verified_stored_run(path: str | Path) -> Run:
    """Open a run folder with all its cells, as they are stored, and check their summaries.

    Raises the same errors as `open_verified_run`.
    """
    run = runs.open_stored_run(path)
    for cell in run:
        check_cell(run, cell)
    return run


def _with_notes(cell: Cell, notes: Iterable[str]) -> Cell:
    return replace(cell, summary=replace(cell.summary, notes=(*cell.summary.notes, *notes)))


def _undefined_notes(run: Run, cell: Cell) -> Iterator[str]:
    """Yield a note if the headline is undefined for its items.

    Earlier versions stored the value of a model without any ability, with the whole range as its
    interval. Only the predictions of such cells are read.
    """
    spec, headline = get_metric_spec(cell.summary.metric), cell.summary.headline
    if not spec.min_gold_values or (headline.low, headline.high) != spec.value_range:
        return
    table = load_table(run, cell)
    reason = load_cell_metric(cell).find_undefined_reason(table, np.ones(len(table.ids), bool))
    if reason:
        value = spec.format(headline.value)
        yield f"{spec.heading} undefined ({reason}): {value} is not a score"


def check_cell(run: Run, cell: Cell) -> None:
    """Raise RunError if a cell's summary in run.json does not match its predictions."""
    digest_matches = runs.summary_matches(run.path, cell)
    if digest_matches:
        return
    value_range = get_metric_spec(cell.summary.metric).value_range
    differing = [
        (name, stored, recomputed)
        for name, stored, recomputed in _pair_with_recomputed(run, cell)
        if not _estimates_agree(stored, recomputed, value_range)
    ]
    if digest_matches is None and not differing:  # None: written before digests existed
        return
    message = f"the summary of {cell.suite} ({cell.method}) does not match its predictions"
    if differing:
        name, stored, recomputed = differing[0]
        shown = f"{_format_estimate(stored)} in run.json, {_format_estimate(recomputed)} recomputed"
        message += f": {name} {shown}"
    raise RunError(message, location=f"{run.path}/run.json", hint=RESTORE_HINT)


def _format_estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.6g} [{estimate.low:.4g}, {estimate.high:.4g}] (n = {estimate.n})"


def _estimates_agree(
    stored: Estimate, recomputed: Estimate, value_range: tuple[float, float]
) -> bool:
    """Return whether the values and n agree, and the stored interval is plausible.

    Older versions computed intervals by other formulas. The stored interval must lie in the
    metric's range. It may be up to three times as wide as the recomputed one, or the whole range,
    which older versions stored for few items.
    """
    tolerance = ROUNDING_TOLERANCE
    lowest, highest = value_range
    max_width = 3 * (recomputed.high - recomputed.low) + tolerance
    has_same_value = math.isclose(
        stored.value, recomputed.value, rel_tol=tolerance, abs_tol=tolerance
    )
    is_in_range = lowest - tolerance <= stored.low <= stored.high <= highest + tolerance
    is_whole_range = (stored.low, stored.high) == value_range
    is_narrow_enough = stored.high - stored.low <= max_width
    has_plausible_interval = is_in_range and (is_whole_range or is_narrow_enough)
    return has_same_value and stored.n == recomputed.n and has_plausible_interval


def _pair_with_recomputed(run: Run, cell: Cell) -> list[tuple[str, Estimate, Estimate]]:
    """Return (name, stored, recomputed) of the headline and of every group.

    Returns [] if the summary cannot be computed from predictions alone (reading times, ages of
    acquisition).
    """
    summary = cell.summary
    try:
        metric, table = load_cell_metric(cell), load_table(run, cell)
        headline = metric.headline(table, summary.macro).estimate
        pairs = [("headline", summary.headline, headline)]
        for level in dict.fromkeys(group.level for group in summary.groups):
            codes, names = table.levels[level]
            estimates = dict(zip(names, metric.by_group(table, codes, names), strict=True))
            pairs += [
                (group.name, group.estimate, recomputed)
                for group in summary.groups
                if group.level == level and (recomputed := estimates[group.name]) is not None
            ]
        return pairs
    except (BenchError, KeyError):
        return []  # only a digest can show an edit of such a summary
