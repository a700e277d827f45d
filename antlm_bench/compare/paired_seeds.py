"""Finetuned tasks, several seeds each: differences over seeds x items per task, and their mean over
a collection.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.compare.join import JoinedTables
from antlm_bench.compare.paired_accuracy import PairedResult, logprob_gaps
from antlm_bench.compare.results import HEADLINE, Difference, Flip
from antlm_bench.metrics import FEW_SEEDS_NOTES, resolve_metric
from antlm_bench.metrics.prediction_table import PredictionTable, choice_shares, gold_indices
from antlm_bench.statistics import Interval, UncertainValue
from antlm_bench.types import Cell, Estimate, Floats

CLASS_REDUCTION = "class"  # the reduction of classified texts
TASK_LEVEL = "task"
POWER_FACTOR = (
    1 + 0.8416 / statistics.Z
)  # half a 95% interval, times this, is a true difference shown with 80% power


def collection_name(cell: Cell) -> str:
    """What a finetuned cell's task belongs to: "glue-2025" of "glue-2025.rte"."""
    return cell.finetuned_task[0]


def compare_seeds(tasks: Sequence[JoinedTables], name: str) -> PairedResult:
    """The mean over tasks without weights, each task a group, and what flipped in any of them.

    Tasks are independent, so variances add up (statistics.weighted_mean).
    """
    found = [_compare_task(task) for task in tasks]
    groups = tuple(difference for difference, _, _ in found)
    whole = statistics.weighted_mean([uncertain for _, uncertain, _ in found])
    low, high = whole.interval
    headline = Difference(
        level=HEADLINE,
        name=name,
        within="",
        n=sum(d.n for d in groups),
        a=float(np.mean([d.a for d in groups])),
        b=float(np.mean([d.b for d in groups])),
        value=whole.value,
        low=low,
        high=high,
        p=whole.p,
        gained=sum(d.gained for d in groups),
        lost=sum(d.lost for d in groups),
        detectable=POWER_FACTOR * (high - low) / 2,
    )
    flipped = [flip for _, _, flips in found for flip in flips]
    return (
        headline,
        groups,
        tuple(sorted(flipped, key=lambda flip: (flip.b - flip.a, flip.margin or 0.0))),
    )


def finetuning_notes(tasks: Sequence[JoinedTables]) -> tuple[str, ...]:
    """What the numbers of these tasks must be read with."""
    found = []
    for task in tasks:
        found += [f"{task_name(task)}: {note}" for note in task.notes]
        for run, cells in (("first", task.cells_a), ("second", task.cells_b)):
            fallen = sum(bool(cell.history.get("collapsed")) for cell in cells)
            found += [
                f"{task_name(task)}: {fallen} of {len(cells)} seeds of the {run} run collapsed"
            ] * (fallen > 0)
    chosen_on = {str(cell.settings.get("select")) for task in tasks for cell in task.cells_a}
    if "valid" in chosen_on:
        found.append("epochs were selected on the scored examples: both values are optimistic")
    counts = {len(cells) for task in tasks for cells in (task.cells_a, task.cells_b)}
    found += [doubt for count, doubt in FEW_SEEDS_NOTES.items() if count in counts]
    return tuple(dict.fromkeys(found))


def task_name(task: JoinedTables) -> str:
    return task.cells_a[0].finetuned_task[1]


def _compare_task(task: JoinedTables) -> tuple[Difference, UncertainValue, list[Flip]]:
    cell = task.cells_a[0]
    ties = str(cell.settings.get("ties", "half"))
    measure = resolve_metric(cell.summary.metric, ties, CLASS_REDUCTION)
    a, b = (
        np.stack([measure.per_item(table, CLASS_REDUCTION) for table in side])
        for side in (task.tables_a, task.tables_b)
    )
    right_a, right_b = (
        np.mean([_correct_shares(table, ties) for table in side], axis=0)
        for side in (task.tables_a, task.tables_b)
    )
    moved = [
        np.stack([logprob_gaps(table, CLASS_REDUCTION) for table in side])
        for side in (task.tables_a, task.tables_b)
    ]
    value, interval, p = statistics.two_level_test(a, b)
    uncertain = statistics.two_level_change(a, b)
    if len(task.tables_a) == len(task.tables_b) and all(
        np.array_equal(x.scores, y.scores)
        for x, y in zip(task.tables_a, task.tables_b, strict=True)
    ):  # seed by seed the same model
        uncertain, interval, p = UncertainValue(0.0), Interval(0.0, 0.0), 1.0
    elif not uncertain.variance:  # all items moved alike, or none did, which is no certainty
        change = b.mean(axis=0) - a.mean(axis=0)
        low, high = map(
            float, statistics.adjusted_wald_interval(change.sum(), change @ change, len(change))
        )
        interval = Interval(min(low, value), max(high, value))
        uncertain = statistics.uncertain_from_interval(value, interval)
    changed = right_b - right_a
    difference = Difference(
        level=TASK_LEVEL,
        name=task_name(task),
        within="",
        n=a.shape[1],
        a=float(a.mean()),
        b=float(b.mean()),
        value=value,
        low=interval.low,
        high=interval.high,
        p=p,
        gained=int((changed > 0).sum()),
        lost=int((changed < 0).sum()),
        detectable=POWER_FACTOR * (interval.high - interval.low) / 2,
        margin=_mean_gap_change(*moved),
    )
    by_item = moved[1].mean(axis=0) - moved[0].mean(axis=0)
    flips = [
        Flip(
            id=f"{difference.name}/{task.tables_a[0].ids[row]}",
            labels={TASK_LEVEL: difference.name},
            a=float(right_a[row]),
            b=float(right_b[row]),
            margin=None if np.isnan(by_item[row]) else float(by_item[row]),
        )
        for row in np.flatnonzero(changed).tolist()
    ]
    return difference, uncertain, flips


def _correct_shares(table: PredictionTable, ties: str) -> Floats:
    """Share (n,) of each answer that is right: whole numbers where a metric's contributions are
    not.
    """
    return np.asarray(
        choice_shares(table, ties, CLASS_REDUCTION)[np.arange(len(table.ids)), gold_indices(table)]
    )


def _mean_gap_change(a: Floats, b: Floats) -> Estimate | None:
    if np.isnan(a).any() or np.isnan(b).any() or a.shape[1] < 2:
        return None
    value, (low, high), _ = statistics.two_level_test(a, b)
    return Estimate(value, a.shape[1], low, high)
