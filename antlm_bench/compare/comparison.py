"""Two runs -> how much better is the second, where, and how sure can one be? Every number is one of paired items."""

from __future__ import annotations

from collections.abc import Sequence

from antlm_bench.compare.correlated import correlated
from antlm_bench.compare.credited import credited
from antlm_bench.compare.difference import Comparison, Difference, Flip
from antlm_bench.compare.join import Joined, join, match
from antlm_bench.types import Run

__all__ = ["Comparison", "Difference", "Flip", "compare"]


def compare(
    a: Run,
    b: Run,
    *,
    suites: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    allow_mixed: bool = False,
) -> list[Comparison]:
    """Every suite that both runs answered, b minus a, in the order of the first run.

    suites: only these ("glue-2025" stands for its tasks). methods: pairs of methods that go together, () = equal ones.
    allow_mixed: compare what two differing cells share, and say so. Raises UsageError, NotComparable, RunError.
    """
    joined = [join(a, b, x, y, allow_mixed) for x, y in match(a, b, suites, methods)]
    return [_scored(one) for one in joined]


def _scored(joined: Joined) -> Comparison:
    """One scored suite: a table on each side."""
    cell_a, cell_b = joined.cells_a[0], joined.cells_b[0]
    metric = cell_a.summary.metric
    headline, groups, flipped = correlated(joined) if metric == "spearman" else credited(joined)
    return Comparison(
        suite=joined.suite,
        method_a=cell_a.method,
        method_b=cell_b.method,
        metric=metric,
        seeds=(1, 1),
        headline=headline,
        groups=groups,
        flipped=flipped,
        notes=joined.notes,
        macro=cell_a.summary.macro,
    )
