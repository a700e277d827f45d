"""Two runs -> how much better is the second, where, and how sure can one be? Every number is one of
paired items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from antlm_bench.compare.join import JoinedTables, join_tables, match_cells
from antlm_bench.compare.multiple_testing import adjust_p_values
from antlm_bench.compare.paired_accuracy import PairedResult, compare_accuracy
from antlm_bench.compare.paired_correlation import compare_correlations, no_test_note
from antlm_bench.compare.paired_reading_times import compare_reading_times
from antlm_bench.compare.paired_seeds import (
    TASK_LEVEL,
    collection_name,
    compare_seeds,
    finetuning_notes,
)
from antlm_bench.compare.paired_surprisal import compare_surprisal
from antlm_bench.compare.paired_task_metrics import compare_task_metrics
from antlm_bench.compare.results import Comparison, Difference, Flip, RunComparison
from antlm_bench.errors import NotComparable
from antlm_bench.metrics import LOWER_IS_BETTER
from antlm_bench.types import Run

__all__ = [
    "METRICS_NEEDING_DATA",
    "UNPAIRED_METRICS",
    "Comparison",
    "Difference",
    "Flip",
    "RunComparison",
    "compare_runs",
]

UNPAIRED_METRICS = (
    "acquisition",
)  # metrics to which single items contribute nothing that could be paired: curves
METRICS_NEEDING_DATA = (
    "delta-r2",
)  # metrics of which a run is one half: the suite's data must be at hand
# How the runs of a metric differ; of all others items earn credit.
PAIRED_TESTS: dict[str, Callable[[JoinedTables], PairedResult]] = {
    "spearman": compare_correlations,
    "delta-r2": compare_reading_times,
    "task-score": compare_task_metrics,
    "task-penalty": compare_task_metrics,
    "whole-score": compare_task_metrics,
    "whole-penalty": compare_task_metrics,
    "bits-per-byte": compare_task_metrics,
    "surprisal": compare_surprisal,
}


def compare_runs(
    a: Run,
    b: Run,
    *,
    suites: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    allow_mixed: bool = False,
) -> list[Comparison]:
    """Every suite that both runs answered, b minus a, in the order of the first run; finetuned
    tasks come last.

    suites: only these ("glue-2025" stands for its tasks). methods: pairs of methods that go
    together, () = equal ones. allow_mixed: compare what two differing cells share, and say so.
    Raises UsageError, NotComparable, RunError.
    """
    found: list[Comparison] = []
    tasks: dict[tuple[str, str, str], list[JoinedTables]] = {}
    for cells_a, cells_b in match_cells(a, b, suites, methods):
        if cells_a[0].summary.metric in UNPAIRED_METRICS:
            if suites:
                message = (
                    f"single items of {cells_a[0].suite} contribute nothing that could be paired"
                )
                raise NotComparable(
                    message, hint="its interval stands in each run: antlm-bench report RUN..."
                )
            continue
        joined = join_tables(a, b, cells_a, cells_b, allow_mixed)
        if cells_a[0].seed is None:
            try:
                found.append(_compare_scored_suite(joined))
            except NotComparable:
                if (
                    suites
                ):  # data that is not at hand refuses the suite that was asked for, and no other
                    raise
        else:
            tasks.setdefault(
                (collection_name(cells_a[0]), cells_a[0].method, cells_b[0].method), []
            ).append(joined)
    return found + [_compare_finetuned_tasks(name, each) for (name, _, _), each in tasks.items()]


def _compare_scored_suite(joined: JoinedTables) -> Comparison:
    """One scored suite: a table on each side."""
    summary = joined.cells_a[0].summary
    made = PAIRED_TESTS.get(summary.metric, compare_accuracy)(joined)
    notes = joined.notes + (no_test_note(made) if summary.metric == "spearman" else ())
    return _build_comparison(joined.suite, [joined], made, notes, summary.macro)


def _compare_finetuned_tasks(name: str, tasks: Sequence[JoinedTables]) -> Comparison:
    """The tasks of a collection, under one attention each."""
    return _build_comparison(
        name, tasks, compare_seeds(tasks, name), finetuning_notes(tasks), (TASK_LEVEL,)
    )


def _build_comparison(
    suite: str,
    joined: Sequence[JoinedTables],
    result: PairedResult,
    notes: tuple[str, ...],
    macro: tuple[str, ...],
) -> Comparison:
    metrics = {part.cells_a[0].summary.metric for part in joined}
    lower = metrics <= LOWER_IS_BETTER
    headline, groups = adjust_p_values(
        replace(result[0], lower_is_better=lower),
        [replace(group, lower_is_better=lower) for group in result[1]],
    )
    return Comparison(
        suite=suite,
        method_a=joined[0].cells_a[0].method,
        method_b=joined[0].cells_b[0].method,
        metric=metrics.pop() if len(metrics) == 1 else "mixed",
        seeds=(
            min(len(part.tables_a) for part in joined),
            min(len(part.tables_b) for part in joined),
        ),
        headline=headline,
        groups=groups,
        flipped=result[2],
        notes=notes,
        macro=macro,
    )
