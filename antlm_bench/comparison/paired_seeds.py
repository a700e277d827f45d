"""Paired comparison of finetuned tasks with several seeds: the difference of each task, and the
mean difference over the tasks of a collection.

    a seed collapsed            the seeds of each run are a mixture; they are not paired
    two shared seeds or more    the shared seeds are paired: differences per seed and item; other
                                seeds are left out
    one seed in each run        score test over items, because seeds do not vary
    otherwise                   the seeds of the two runs are independent

See `statistics.crossed_design`. Interval and p-value of a difference come from one statistic, so
p < .05 if and only if the 95% interval excludes 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from antlm_bench import statistics
from antlm_bench.comparison.join import JoinedTables
from antlm_bench.comparison.paired import logprob_gaps
from antlm_bench.comparison.results import HEADLINE, Difference, Flip, PairedResult
from antlm_bench.metrics import load_cell_metric
from antlm_bench.metrics.classification import FEW_SEEDS_NOTES, ONE_UNCOLLAPSED_NOTE
from antlm_bench.metrics.prediction_table import gold_credits
from antlm_bench.metrics.records import CLASS_REDUCTION
from antlm_bench.statistics import Interval, UncertainValue
from antlm_bench.suites.classification_loader import read_trainings
from antlm_bench.types import Bools, Cell, Estimate, Floats

TASK_LEVEL = "task"


def collection_name(cell: Cell) -> str:
    """Return the collection of a finetuned cell's task: "glue-2025" for "glue-2025.rte"."""
    return cell.finetuned_task[0]


def select_shared_seeds(task: JoinedTables) -> JoinedTables:
    """Return the seeds that are in both runs, in the same order, so that they can be paired.

    All seeds are kept if fewer than two are shared. They are also kept if any seed collapsed,
    because the share of collapsed seeds is then part of each run's mean.
    """
    seeds_a, seeds_b = ([cell.seed for cell in cells] for cells in (task.cells_a, task.cells_b))
    shared = [seed for seed in seeds_a if seed in seeds_b]
    if len(shared) < 2 or _has_collapsed(task):
        return task
    rows_a, rows_b = ([seeds.index(seed) for seed in shared] for seeds in (seeds_a, seeds_b))
    left_out = [
        f"{', '.join(str(seed) for seed in seeds if seed not in shared)} of the {run} run"
        for run, seeds in (("first", seeds_a), ("second", seeds_b))
        if len(seeds) > len(shared)
    ]
    shared_text = f"only seeds {', '.join(map(str, shared))} are in both runs and are compared"
    notes = (f"{shared_text}, not {' and '.join(left_out)}",) if left_out else ()
    return replace(
        task,
        cells_a=tuple(task.cells_a[row] for row in rows_a),
        cells_b=tuple(task.cells_b[row] for row in rows_b),
        tables_a=tuple(task.tables_a[row] for row in rows_a),
        tables_b=tuple(task.tables_b[row] for row in rows_b),
        notes=(*task.notes, *notes),
    )


def compare_seeds(tasks: Sequence[JoinedTables], name: str) -> PairedResult:
    """Compare the unweighted mean over tasks. Each task is a group.

    tasks: results of `select_shared_seeds`. name: name of the suite. The variances of tasks
    are added (statistics.weighted_mean); tasks that share their trainings vary together over seeds.
    """
    results = [_compare_task(task) for task in tasks]
    groups = tuple(difference for difference, _, _ in results)
    training_by_task = read_trainings(name)
    trainings = [training_by_task.get(group.name, group.name) for group in groups]
    mean = statistics.weighted_mean([uncertain for _, uncertain, _ in results], None, trainings)
    low, high = mean.interval
    p: float | None = mean.p
    df = mean.tail_df if np.isfinite(mean.tail_df) else None
    if len(groups) == 1:  # a single task keeps its own test
        low, high, p, df = groups[0].low, groups[0].high, groups[0].p, groups[0].df
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
        p=p,
        gained=sum(d.gained for d in groups),
        lost=sum(d.lost for d in groups),
        detectable=_detectable_change(mean.interval, mean.df, tasks),
        df=df,
    )
    flips = [flip for _, _, flipped in results for flip in flipped]
    flips.sort(key=lambda flip: (flip.b - flip.a, flip.margin or 0.0))
    missing = [task for task in training_by_task if task not in {group.name for group in groups}]
    notes = _seed_notes(tasks)
    if missing:
        notes = (
            f"mean of {len(groups)} of {len(training_by_task)} tasks, without {', '.join(missing)}",
            *notes,
        )
    return PairedResult(headline, groups, tuple(flips), notes)


def _seed_notes(tasks: Sequence[JoinedTables]) -> tuple[str, ...]:
    """Return notes on the results of these tasks."""
    notes = []
    for task in tasks:
        name = _task_name(task)
        notes += [f"{name}: {note}" for note in task.notes]
        for run, cells in (("first", task.cells_a), ("second", task.cells_b)):
            collapsed = int(collapsed_seeds(cells).sum())
            if collapsed:
                notes.append(
                    f"{name}: {collapsed} of {len(cells)} seeds of the {run} run collapsed"
                )
            if _has_one_uncollapsed_seed(cells):
                notes.append(f"{name}: {ONE_UNCOLLAPSED_NOTE}")
            elif 0 < collapsed < len(cells):
                notes.append(
                    f"{name}: the interval is that of a mixture of seeds that collapse and others"
                )
    selected_on = {str(cell.settings.get("select")) for task in tasks for cell in task.cells_a}
    if "valid" in selected_on:
        notes.append("epochs were selected on the scored examples: both values are optimistic")
    if any(_is_paired(task) for task in tasks):
        notes.append("seeds are paired: each seed of one run with the same seed of the other")
    seed_cells = [cells for task in tasks for cells in (task.cells_a, task.cells_b)]
    seed_counts = {len(cells) for cells in seed_cells if not cells[0].is_frozen}
    notes += [note for count, note in FEW_SEEDS_NOTES.items() if count in seed_counts]
    return tuple(dict.fromkeys(notes))


def collapsed_seeds(cells: Sequence[Cell]) -> Bools:
    """Return which seeds (S,) of a task collapsed, from the record of their finetuning."""
    return np.array([bool(cell.history.get("collapsed")) for cell in cells])


def _has_collapsed(task: JoinedTables) -> bool:
    return bool(collapsed_seeds((*task.cells_a, *task.cells_b)).any())


def _is_paired(task: JoinedTables) -> bool:
    """Return whether the same seeds, two or more, are in both runs and none collapsed."""
    seeds_a, seeds_b = ([cell.seed for cell in cells] for cells in (task.cells_a, task.cells_b))
    return len(seeds_a) > 1 and seeds_a == seeds_b and not _has_collapsed(task)


def _compare_values(task: JoinedTables, a: Floats, b: Floats) -> UncertainValue:
    """Return the mean change of values (seeds, n), with paired or independent seeds."""
    if _is_paired(task):
        return statistics.two_level_change(a, b, paired=True)
    return statistics.two_level_change(
        a,
        b,
        collapsed_a=collapsed_seeds(task.cells_a),
        collapsed_b=collapsed_seeds(task.cells_b),
    )


def _has_one_uncollapsed_seed(cells: Sequence[Cell]) -> bool:
    """Return whether all seeds of a task but one collapsed, so that there is no interval."""
    return len(cells) > 1 and int(collapsed_seeds(cells).sum()) == len(cells) - 1


def _task_name(task: JoinedTables) -> str:
    return task.cells_a[0].finetuned_task[1]


def _compare_task(task: JoinedTables) -> tuple[Difference, UncertainValue, list[Flip]]:
    """Return the difference of a task, the same for means over tasks, and its flipped items."""
    metric = load_cell_metric(task.cells_a[0])
    tables_by_run = (task.tables_a, task.tables_b)
    a, b = (np.stack([metric.per_item(table) for table in tables]) for tables in tables_by_run)
    ties = metric.settings.ties
    # Flips are changes of credit, because contributions to F1 or MCC are not right or wrong.
    credit_a, credit_b = (
        np.mean([gold_credits(table, ties, CLASS_REDUCTION) for table in tables], axis=0)
        for tables in tables_by_run
    )
    gaps_a, gaps_b = (
        np.stack([logprob_gaps(table, CLASS_REDUCTION) for table in tables])
        for tables in tables_by_run
    )
    change = b.mean(axis=0) - a.mean(axis=0)
    uncertain, interval, p = _test_change(task, a, b, metric.spec.value_range)
    credit_change, name = credit_b - credit_a, _task_name(task)
    difference = Difference(
        TASK_LEVEL,
        name,
        "",
        n=len(change),
        a=float(a.mean()),
        b=float(b.mean()),
        value=uncertain.value,
        low=interval.low,
        high=interval.high,
        p=p,
        gained=int((credit_change > 0).sum()),
        lost=int((credit_change < 0).sum()),
        detectable=_detectable_change(interval, uncertain.df, [task]),
        df=uncertain.tail_df if np.isfinite(uncertain.tail_df) else None,
        margin=_mean_gap_change(task, gaps_a, gaps_b),
    )
    gap_change = gaps_b.mean(axis=0) - gaps_a.mean(axis=0)
    return difference, uncertain, _find_flips(task, credit_a, credit_b, gap_change)


def _find_flips(task: JoinedTables, a: Floats, b: Floats, gap_change: Floats) -> list[Flip]:
    """Return the items whose credit, a and b (n,) as means over seeds, changed."""
    name = _task_name(task)
    return [
        Flip(
            id=f"{name}/{task.tables_a[0].ids[row]}",
            labels={TASK_LEVEL: name},
            a=float(a[row]),
            b=float(b[row]),
            margin=None if np.isnan(gap_change[row]) else float(gap_change[row]),
        )
        for row in np.flatnonzero(b - a).tolist()
    ]


def _detectable_change(
    interval: Interval, df: float, tasks: Sequence[JoinedTables]
) -> float | None:
    """Return the true change of the mean over tasks that is detected with a power of 80%; None if
    no possible change is, or if a task has no interval."""
    cells = [cells for task in tasks for cells in (task.cells_a, task.cells_b)]
    if any(map(_has_one_uncollapsed_seed, cells)):
        return None
    low, high = load_cell_metric(tasks[0].cells_a[0]).spec.value_range
    return statistics.detectable_by_t(interval, df, largest=high - low)


def _test_change(
    task: JoinedTables, a: Floats, b: Floats, value_range: tuple[float, float]
) -> tuple[UncertainValue, Interval, float | None]:
    """Return the mean change of values (seeds, n) of both runs, its interval and p-value.

    value_range: of the metric. Without a known interval, it is the range of changes and p is None.
    """
    change, clusters = b.mean(axis=0) - a.mean(axis=0), task.clusters
    varies = _compare_values(task, a, b).variance > 0
    a, b = (statistics.contributions_of_clusters(values, clusters) for values in (a, b))
    uncertain = _compare_values(task, a, b)
    interval = uncertain.interval
    p: float | None = uncertain.p
    if np.isinf(interval.low):  # no interval: a single seed of a run did not collapse
        low, high = value_range
        interval, p = Interval(low - high, high - low), None
        uncertain = statistics.uncertain_from_interval(uncertain.value, interval)
    if _has_same_scores(task):
        uncertain, interval, p = UncertainValue(0.0), Interval(0.0, 0.0), 1.0
    elif (
        not (varies and uncertain.variance)
        or all(np.ptp(run, 0).max() == 0 for run in (a, b))
        or statistics.has_one_large_cluster(clusters)
    ):
        # Only items vary: one seed, or equal seeds. The score interval has a width even if all
        # items changed alike.
        bound = max(1.0, float(np.abs(change).max()))
        one_stratum = np.zeros(len(change), np.int32)
        interval, p = statistics.score_test(
            change, one_stratum, np.ones(1), (-bound, bound), clusters
        )
        uncertain = statistics.uncertain_from_interval(uncertain.value, interval)
    return uncertain, interval, p


def _has_same_scores(task: JoinedTables) -> bool:
    """Return whether both runs have the same scores, seed by seed."""
    return len(task.tables_a) == len(task.tables_b) and all(
        np.array_equal(table_a.scores, table_b.scores)
        for table_a, table_b in zip(task.tables_a, task.tables_b, strict=True)
    )


def _mean_gap_change(task: JoinedTables, a: Floats, b: Floats) -> Estimate | None:
    """Return the mean change of `logprob_gaps` (seeds, n); None if a gap is nan, or n < 2."""
    num_items = a.shape[1]
    if np.isnan(a).any() or np.isnan(b).any() or num_items < 2:
        return None
    a, b = (statistics.contributions_of_clusters(values, task.clusters) for values in (a, b))
    change = _compare_values(task, a, b)
    if np.isinf(change.interval.low):
        return None
    return Estimate(change.value, num_items, *change.interval)
