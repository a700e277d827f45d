"""Two runs -> how much better is the second, where, and how sure can one be? Every number is one of paired items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from antlm_bench.compare.join import Joined, join, match
from antlm_bench.compare.multiple_testing import adjusted
from antlm_bench.compare.paired_accuracy import Found, credited
from antlm_bench.compare.paired_correlation import correlated, without_test
from antlm_bench.compare.paired_reading_times import explained
from antlm_bench.compare.paired_seeds import TASK, collection, remarks, seeded
from antlm_bench.compare.paired_surprisal import words
from antlm_bench.compare.paired_task_metrics import measured
from antlm_bench.compare.results import Comparison, Difference, Flip, Versus
from antlm_bench.errors import NotComparable
from antlm_bench.metrics import LOWER_IS_BETTER
from antlm_bench.types import Run

__all__ = ["DATA", "UNPAIRED", "Comparison", "Difference", "Flip", "Versus", "compare"]

UNPAIRED = ("acquisition",)  # metrics to which single items contribute nothing that could be paired: curves
DATA = ("delta-r2",)  # metrics of which a run is one half: the suite's data must be at hand
# How the runs of a metric differ; of all others items earn credit.
DIFFERENCES: dict[str, Callable[[Joined], Found]] = {
    "spearman": correlated,
    "delta-r2": explained,
    "task-score": measured,
    "task-penalty": measured,
    "whole-score": measured,
    "whole-penalty": measured,
    "bits-per-byte": measured,
    "surprisal": words,
}


def compare(
    a: Run,
    b: Run,
    *,
    suites: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    allow_mixed: bool = False,
) -> list[Comparison]:
    """Every suite that both runs answered, b minus a, in the order of the first run; finetuned tasks come last.

    suites: only these ("glue-2025" stands for its tasks). methods: pairs of methods that go together, () = equal ones.
    allow_mixed: compare what two differing cells share, and say so. Raises UsageError, NotComparable, RunError.
    """
    found: list[Comparison] = []
    tasks: dict[tuple[str, str, str], list[Joined]] = {}
    for cells_a, cells_b in match(a, b, suites, methods):
        if cells_a[0].summary.metric in UNPAIRED:
            if suites:
                message = f"single items of {cells_a[0].suite} contribute nothing that could be paired"
                raise NotComparable(message, hint="its interval stands in each run: antlm-bench report RUN...")
            continue
        joined = join(a, b, cells_a, cells_b, allow_mixed)
        if cells_a[0].seed is None:
            try:
                found.append(_scored(joined))
            except NotComparable:
                if suites:  # data that is not at hand refuses the suite that was asked for, and no other
                    raise
        else:
            tasks.setdefault((collection(cells_a[0]), cells_a[0].method, cells_b[0].method), []).append(joined)
    return found + [_finetuned(name, each) for (name, _, _), each in tasks.items()]


def _scored(joined: Joined) -> Comparison:
    """One scored suite: a table on each side."""
    summary = joined.cells_a[0].summary
    made = DIFFERENCES.get(summary.metric, credited)(joined)
    notes = joined.notes + (without_test(made) if summary.metric == "spearman" else ())
    return _comparison(joined.suite, [joined], made, notes, summary.macro)


def _finetuned(name: str, tasks: Sequence[Joined]) -> Comparison:
    """The tasks of a collection, under one attention each."""
    return _comparison(name, tasks, seeded(tasks, name), remarks(tasks), (TASK,))


def _comparison(
    suite: str, parts: Sequence[Joined], made: Found, notes: tuple[str, ...], macro: tuple[str, ...]
) -> Comparison:
    metrics = {part.cells_a[0].summary.metric for part in parts}
    lower = metrics <= LOWER_IS_BETTER
    headline, groups = adjusted(
        replace(made[0], lower_is_better=lower), [replace(group, lower_is_better=lower) for group in made[1]]
    )
    return Comparison(
        suite=suite,
        method_a=parts[0].cells_a[0].method,
        method_b=parts[0].cells_b[0].method,
        metric=metrics.pop() if len(metrics) == 1 else "mixed",
        seeds=(min(len(part.a) for part in parts), min(len(part.b) for part in parts)),
        headline=headline,
        groups=groups,
        flipped=made[2],
        notes=notes,
        macro=macro,
    )
