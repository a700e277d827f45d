"""Paired comparison of finetuned tasks with several seeds: the difference of each task, and the
mean difference over a collection of tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.comparison.join import JoinedTables
from antlm_bench.comparison.paired import logprob_gaps
from antlm_bench.comparison.results import HEADLINE, POWER_FACTOR, Difference, Flip, PairedResult
from antlm_bench.metrics import load_cell_metric
from antlm_bench.metrics.classification import FEW_SEEDS_NOTES
from antlm_bench.metrics.prediction_table import gold_credits
from antlm_bench.metrics.records import CLASS_REDUCTION
from antlm_bench.statistics import Interval, UncertainValue
from antlm_bench.types import Cell, Estimate, Floats, Ints

TASK_LEVEL = "task"


def collection_name(cell: Cell) -> str:
    """Return the collection of a finetuned cell's task: "glue-2025" for "glue-2025.rte"."""
    return cell.finetuned_task[0]


def compare_seeds(tasks: Sequence[JoinedTables], name: str) -> PairedResult:
    """Compare the unweighted mean over tasks. Each task is a group.

    Tasks are independent, so their variances are added (statistics.weighted_mean).
    """
    results = [_compare_task(task) for task in tasks]
    groups = tuple(difference for difference, _, _ in results)
    mean = statistics.weighted_mean([uncertain for _, uncertain, _ in results])
    low, high = mean.interval
    headline = Difference(
        HEADLINE,
        name,
        "",
        n=sum(d.n for d in groups),
        a=float(np.mean([d.a for d in groups])),
        b=float(np.mean([d.b for d in groups])),
        value=mean.value,
        low=low,
        high=high,
        p=mean.p,
        gained=sum(d.gained for d in groups),
        lost=sum(d.lost for d in groups),
        detectable=POWER_FACTOR * (high - low) / 2,
    )
    flips = [flip for _, _, flipped in results for flip in flipped]
    flips.sort(key=lambda flip: (flip.b - flip.a, flip.margin or 0.0))
    return PairedResult(headline, groups, tuple(flips), _seed_notes(tasks))


def _seed_notes(tasks: Sequence[JoinedTables]) -> tuple[str, ...]:
    """Return notes on the results of these tasks."""
    notes = []
    for task in tasks:
        name = _task_name(task)
        notes += [f"{name}: {note}" for note in task.notes]
        for run, cells in (("first", task.cells_a), ("second", task.cells_b)):
            collapsed = sum(bool(cell.history.get("collapsed")) for cell in cells)
            if collapsed:
                notes.append(
                    f"{name}: {collapsed} of {len(cells)} seeds of the {run} run collapsed"
                )
    selected_on = {str(cell.settings.get("select")) for task in tasks for cell in task.cells_a}
    if "valid" in selected_on:
        notes.append("epochs were selected on the scored examples: both values are optimistic")
    seed_cells = [cells for task in tasks for cells in (task.cells_a, task.cells_b)]
    seed_counts = {len(cells) for cells in seed_cells if not cells[0].is_frozen}
    notes += [note for count, note in FEW_SEEDS_NOTES.items() if count in seed_counts]
    return tuple(dict.fromkeys(notes))


def _task_name(task: JoinedTables) -> str:
    return task.cells_a[0].finetuned_task[1]


def _compare_task(task: JoinedTables) -> tuple[Difference, UncertainValue, list[Flip]]:
    metric = load_cell_metric(task.cells_a[0])
    tables_by_run = (task.tables_a, task.tables_b)
    a, b = (np.stack([metric.per_item(table) for table in tables]) for tables in tables_by_run)
    ties = metric.settings.ties
    # Flips are changes of credit: the metric's values per item (F1, MCC) are not right or wrong.
    credit_a, credit_b = (
        np.mean([gold_credits(table, ties, CLASS_REDUCTION) for table in tables], axis=0)
        for tables in tables_by_run
    )
    gaps_a, gaps_b = (
        np.stack([logprob_gaps(table, CLASS_REDUCTION) for table in tables])
        for tables in tables_by_run
    )
    change, clusters = b.mean(axis=0) - a.mean(axis=0), task.clusters
    varies = statistics.two_level_change(a, b).variance > 0
    a, b = (statistics.contributions_of_clusters(values, clusters) for values in (a, b))
    value, interval, p = statistics.two_level_test(a, b)
    uncertain = statistics.two_level_change(a, b)
    if _has_same_scores(task):
        uncertain, interval, p = UncertainValue(0.0), Interval(0.0, 0.0), 1.0
    elif not (varies and uncertain.variance):
        # All items changed by the same amount, or none changed: the difference is still uncertain.
        bound = max(1.0, float(np.abs(change).max()))
        one_stratum = np.zeros(len(change), np.int32)
        interval, p = statistics.score_test(
            change, one_stratum, np.ones(1), (-bound, bound), clusters
        )
        uncertain = statistics.uncertain_from_interval(value, interval)
    credit_change, name = credit_b - credit_a, _task_name(task)
    difference = Difference(
        TASK_LEVEL,
        name,
        "",
        n=len(change),
        a=float(a.mean()),
        b=float(b.mean()),
        value=value,
        low=interval.low,
        high=interval.high,
        p=p,
        gained=int((credit_change > 0).sum()),
        lost=int((credit_change < 0).sum()),
        detectable=POWER_FACTOR * (interval.high - interval.low) / 2,
        margin=_mean_gap_change(gaps_a, gaps_b, clusters),
    )
    gap_change = gaps_b.mean(axis=0) - gaps_a.mean(axis=0)
    flips = [
        Flip(
            id=f"{name}/{task.tables_a[0].ids[row]}",
            labels={TASK_LEVEL: name},
            a=float(credit_a[row]),
            b=float(credit_b[row]),
            margin=None if np.isnan(gap_change[row]) else float(gap_change[row]),
        )
        for row in np.flatnonzero(credit_change).tolist()
    ]
    return difference, uncertain, flips


def _has_same_scores(task: JoinedTables) -> bool:
    """Return whether both runs have the same scores, seed by seed."""
    return len(task.tables_a) == len(task.tables_b) and all(
        np.array_equal(table_a.scores, table_b.scores)
        for table_a, table_b in zip(task.tables_a, task.tables_b, strict=True)
    )


def _mean_gap_change(a: Floats, b: Floats, clusters: Ints | None) -> Estimate | None:
    """Return the mean change of `logprob_gaps` (seeds, n); None if one is nan, or n < 2."""
    num_items = a.shape[1]
    if np.isnan(a).any() or np.isnan(b).any() or num_items < 2:
        return None
    a, b = (statistics.contributions_of_clusters(values, clusters) for values in (a, b))
    value, (low, high), _ = statistics.two_level_test(a, b)
    return Estimate(value, num_items, low, high)
