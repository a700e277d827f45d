"""Compare two runs: how much better is the second, where, and how sure is that?

All numbers are computed from the items that both runs have (paired items), which `join` finds. The
record of a metric (`metrics.METRICS`) names the function that compares its items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from antlm_bench.comparison.join import JoinedTables, LoadTable, join_tables, match_cells
from antlm_bench.comparison.multiple_testing import adjust_p_values
from antlm_bench.comparison.paired_seeds import (
    TASK_LEVEL,
    collection_name,
    compare_seeds,
    select_shared_seeds,
)
from antlm_bench.comparison.results import Comparison, Difference, PairedResult
from antlm_bench.errors import NotComparable
from antlm_bench.metrics import METRICS, get_metric_spec
from antlm_bench.metrics.summary import round_value
from antlm_bench.registry import load_target
from antlm_bench.types import Run


def compare_runs(
    a: Run,
    b: Run,
    *,
    suites: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    allow_mixed: bool = False,
    load_reference_table: LoadTable | None = None,
) -> list[Comparison]:
    """Compare every suite that both runs contain. Differences are b minus a.

    suites: only these ("glue-2025" stands for its tasks). methods: (method of a, method of b) pairs
    to compare; () = the same method in both. allow_mixed: if the settings or the items of two cells
    differ, compare the shared items and add a note, instead of raising NotComparable.
    load_reference_table: as for `join_tables`. The order is that of run a, with finetuned tasks
    last. Raises UsageError, NotComparable, RunError.
    """
    comparisons: list[Comparison] = []
    tasks_by_collection: dict[tuple[str, str, str], list[JoinedTables]] = {}
    for cells_a, cells_b in match_cells(a, b, suites, methods):
        cell_a = cells_a[0]
        if not is_paired(cell_a.summary.metric):
            if suites:
                raise NotComparable(
                    f"the metric of {cell_a.suite} has no values per item, so two runs cannot be "
                    "paired on it",
                    hint="compare the intervals of the two runs: antlm-bench report RUN...",
                )
            continue
        joined = join_tables(a, b, cells_a, cells_b, allow_mixed, load_reference_table)
        if cell_a.seed is not None:  # only cells of finetuned tasks have a seed
            key = (collection_name(cell_a), cell_a.method, cells_b[0].method)
            tasks_by_collection.setdefault(key, []).append(select_shared_seeds(joined))
            continue
        try:
            comparisons.append(_compare_scored_suite(joined))
        except NotComparable:
            # E.g. its data files are not on this machine. Skip it unless the user named it.
            if suites:
                raise
    return comparisons + [
        _build_comparison(name, joined, compare_seeds(joined, name), (TASK_LEVEL,))
        for (name, _, _), joined in tasks_by_collection.items()
    ]


def is_paired(metric: str) -> bool:
    """Return whether a metric has a value per item, so that two runs can be paired on it."""
    return get_metric_spec(metric).comparison is not None


def _compare_scored_suite(joined: JoinedTables) -> Comparison:
    summary = joined.cells_a[0].summary
    # Not "": `is_paired` was checked.
    compare = load_target(METRICS[summary.metric].comparison or "")
    result: PairedResult = compare(joined)
    result = result._replace(notes=joined.notes + result.notes)
    return _build_comparison(joined.suite, [joined], result, summary.macro)


def _build_comparison(
    suite: str, joined: Sequence[JoinedTables], result: PairedResult, macro_levels: tuple[str, ...]
) -> Comparison:
    metrics = {part.cells_a[0].summary.metric for part in joined}
    specs = [get_metric_spec(metric) for metric in metrics]
    lower_is_better = all(spec.lower_is_better for spec in specs)
    largest = max(spec.value_range[1] - spec.value_range[0] for spec in specs)
    headline, groups = adjust_p_values(
        _finish_difference(result.headline, lower_is_better, largest),
        [_finish_difference(group, lower_is_better, largest) for group in result.groups],
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
        flipped=result.flipped,
        notes=result.notes,
        macro=macro_levels,
    )


def _finish_difference(difference: Difference, lower_is_better: bool, largest: float) -> Difference:
    """Return a difference with its direction, and with the values of both runs as their summaries
    hold them: a mean over groups depends on the order of its sum.

    largest: the largest difference that the metrics can have; the interval ends there.
    """
    a, b = round_value(difference.a), round_value(difference.b)
    low, high = max(difference.low, -largest), min(difference.high, largest)
    return replace(difference, a=a, b=b, low=low, high=high, lower_is_better=lower_is_better)
