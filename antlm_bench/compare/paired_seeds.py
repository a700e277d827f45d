"""Finetuned tasks, several seeds each: differences over seeds x items per task, and their mean over a collection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antlm_bench import statistics
from antlm_bench.compare.join import Joined
from antlm_bench.compare.paired_accuracy import Found, margins
from antlm_bench.compare.results import HEADLINE, Difference, Flip
from antlm_bench.metrics import FEW_SEEDS, resolve
from antlm_bench.metrics.prediction_table import Table, chosen, gold_options
from antlm_bench.statistics import Interval, Uncertain
from antlm_bench.types import Cell, Estimate, Floats

CLASS = "class"  # the reduction of classified texts
TASK = "task"
POWERED = 1 + 0.8416 / statistics.Z  # half a 95% interval, times this, is a true difference shown with 80% power


def collection(cell: Cell) -> str:
    """What a finetuned cell's task belongs to: "glue-2025" of "glue-2025.rte"."""
    return cell.finetuned_task[0]


def seeded(tasks: Sequence[Joined], name: str) -> Found:
    """The mean over tasks without weights, each task a group, and what flipped in any of them.

    Tasks are independent, so variances add up (statistics.mean_of).
    """
    found = [_task(task) for task in tasks]
    groups = tuple(difference for difference, _, _ in found)
    whole = statistics.mean_of([uncertain for _, uncertain, _ in found])
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
        detectable=POWERED * (high - low) / 2,
    )
    flipped = [flip for _, _, flips in found for flip in flips]
    return headline, groups, tuple(sorted(flipped, key=lambda flip: (flip.b - flip.a, flip.margin or 0.0)))


def remarks(tasks: Sequence[Joined]) -> tuple[str, ...]:
    """What the numbers of these tasks must be read with."""
    found = []
    for task in tasks:
        found += [f"{task_name(task)}: {note}" for note in task.notes]
        for run, cells in (("first", task.cells_a), ("second", task.cells_b)):
            fallen = sum(bool(cell.history.get("collapsed")) for cell in cells)
            found += [f"{task_name(task)}: {fallen} of {len(cells)} seeds of the {run} run collapsed"] * (fallen > 0)
    chosen_on = {str(cell.settings.get("select")) for task in tasks for cell in task.cells_a}
    if "valid" in chosen_on:
        found.append("epochs were selected on the scored examples: both values are optimistic")
    counts = {len(cells) for task in tasks for cells in (task.cells_a, task.cells_b)}
    found += [doubt for count, doubt in FEW_SEEDS.items() if count in counts]
    return tuple(dict.fromkeys(found))


def task_name(task: Joined) -> str:
    return task.cells_a[0].finetuned_task[1]


def _task(task: Joined) -> tuple[Difference, Uncertain, list[Flip]]:
    cell = task.cells_a[0]
    ties = str(cell.settings.get("ties", "half"))
    measure = resolve(cell.summary.metric, ties, CLASS)
    a, b = (np.stack([measure.values(table, CLASS) for table in side]) for side in (task.a, task.b))
    right_a, right_b = (np.mean([_right(table, ties) for table in side], axis=0) for side in (task.a, task.b))
    moved = [np.stack([margins(table, CLASS) for table in side]) for side in (task.a, task.b)]
    value, interval, p = statistics.two_level_difference(a, b)
    uncertain = statistics.two_level_change(a, b)
    if len(task.a) == len(task.b) and all(
        np.array_equal(x.scores, y.scores) for x, y in zip(task.a, task.b, strict=True)
    ):  # seed by seed the same model
        uncertain, interval, p = Uncertain(0.0), Interval(0.0, 0.0), 1.0
    elif not uncertain.variance:  # all items moved alike, or none did, which is no certainty
        change = b.mean(axis=0) - a.mean(axis=0)
        low, high = map(float, statistics.adjusted_wald(change.sum(), change @ change, len(change)))
        interval = Interval(min(low, value), max(high, value))
        uncertain = statistics.from_interval(value, interval)
    changed = right_b - right_a
    difference = Difference(
        level=TASK,
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
        detectable=POWERED * (interval.high - interval.low) / 2,
        margin=_margin(*moved),
    )
    by_item = moved[1].mean(axis=0) - moved[0].mean(axis=0)
    flips = [
        Flip(
            id=f"{difference.name}/{task.a[0].ids[row]}",
            labels={TASK: difference.name},
            a=float(right_a[row]),
            b=float(right_b[row]),
            margin=None if np.isnan(by_item[row]) else float(by_item[row]),
        )
        for row in np.flatnonzero(changed).tolist()
    ]
    return difference, uncertain, flips


def _right(table: Table, ties: str) -> Floats:
    """Share (n,) of each answer that is right: whole numbers where a metric's contributions are not."""
    return np.asarray(chosen(table, ties, CLASS)[np.arange(len(table.ids)), gold_options(table)])


def _margin(a: Floats, b: Floats) -> Estimate | None:
    if np.isnan(a).any() or np.isnan(b).any() or a.shape[1] < 2:
        return None
    value, (low, high), _ = statistics.two_level_difference(a, b)
    return Estimate(value, a.shape[1], low, high)
