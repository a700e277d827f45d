"""A suite's Summary: the metric that its declaration names, at every level that it names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

from antlm_bench.errors import UsageError
from antlm_bench.metrics.measures import REDUCTIONS, untold
from antlm_bench.metrics.prediction_table import Table, parents, tabulate
from antlm_bench.statistics.spearman import OUTSIDE
from antlm_bench.types import Estimate, Floats, Group, Ints, Prediction, Summary

CLASS = "class"  # the reduction of classified texts: their scores are log-probabilities of classes already
CLASSIFIED = "antlm_bench.metrics.classification:Classified"
METRICS: dict[str, str] = {
    "accuracy": "antlm_bench.metrics.measures:Accuracy",  # of classified texts CLASSIFIED
    "spearman": "antlm_bench.metrics.measures:Spearman",
    "f1": CLASSIFIED,
    "macro-f1": CLASSIFIED,
    "mcc": CLASSIFIED,
    "task-score": "antlm_bench.metrics.task_metric:Judged",
    "task-penalty": "antlm_bench.metrics.task_metric:Judged",
    "whole-score": "antlm_bench.metrics.task_metric:Judged",
    "whole-penalty": "antlm_bench.metrics.task_metric:Judged",
    "bits-per-byte": "antlm_bench.metrics.task_metric:BitsPerByte",
}
# Of all others more is better.
LOWER_IS_BETTER = frozenset({"surprisal", "task-penalty", "whole-penalty", "bits-per-byte"})
TIES: dict[str, str] = {
    "half": "an item whose best score is shared by k options gives 1/k if the right one is among them",
    "strict": "a shared best score is wrong",
    "first": "the first of the best is chosen, as argmax does in lm-eval and BabyLM 2024-2025, where index 0 is right",
    "random": "one of the best is drawn, as in BabyLM 2026, but seeded by the item's id",
}


class Metric(Protocol):
    """What a metric is made of: what each item contributes (n,), the headline with views and remarks, and groups."""

    def values(self, table: Table, reduction: str) -> Floats: ...

    def whole(self, table: Table, macro: Sequence[str]) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]: ...

    def parts(self, table: Table, codes: Ints, names: Sequence[str]) -> list[Estimate]: ...


def summarize(
    predictions: Sequence[Prediction],
    *,
    suite: str,
    method: str,
    metric: str,
    macro: Sequence[str],
    groups: Sequence[str],
    ties: str = "half",
    reduction: str = "sum",
    softmax: str = "float64",
    notes: Sequence[str] = (),
) -> Summary:
    """The Summary of one suite under one method.

    macro: levels that the headline averages over without weights, outermost first; () = over items. groups: the levels
    reported, coarse to fine; a group's estimate is over its items (as BabyLM prints fields and phenomena), its interval
    Wilson's. ties: one of TIES. reduction: which score decides (measures.REDUCTIONS); the others become views.
    "class" is for classified texts, whose options are classes; its views are accuracy, f1 (beyond two classes
    macro-f1), mcc, and majority: the same metric of always answering the most frequent gold class. Items flagged
    `too-long` were not scored and count as wrong; `flags` counts them. softmax: precision of the probabilities that
    `spearman` ranks.

    Raises UsageError (unknown metric or tie rule), DataError (no predictions, a label that `macro` needs is missing, a
    gold that is no option), CheckpointError (a NaN or +inf score).
    """
    measure = resolve(metric, ties, reduction, softmax)
    table = tabulate(predictions, {*macro, *groups}, reduction)
    headline, views, remarks = measure.whole(table, macro)
    lines = []
    for above, level in zip((None, *groups), groups, strict=False):
        codes, names = table.levels[level]
        within = parents(table, above, codes, len(names))
        estimates = measure.parts(table, codes, names)
        lines += [Group(level, n, e, w) for n, e, w in zip(names, estimates, within, strict=True)]
    if metric == "spearman":
        known = [(suite, headline), *((line.name, line.estimate) for line in lines)]
        remarks += untold([name for name, e in known if (e.low, e.high) == (-1.0, 1.0)], "correlation", OUTSIDE)
    return Summary(suite, method, metric, tuple(macro), headline, views, tuple(lines), (*notes, *remarks))


def resolve(metric: str, ties: str, reduction: str, softmax: str = "float64") -> Metric:
    """The metric of that name. Raises UsageError where a name is unknown, or a metric is not of that kind of item."""
    choices = (
        ("metric", metric, METRICS),
        ("tie rule", ties, TIES),
        ("reduction", reduction, (*REDUCTIONS, CLASS)),
    )
    for what, name, known in choices:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise UsageError(f"unknown {what} {name!r}", hint=hint)
    classified = reduction == CLASS
    if METRICS[metric] == CLASSIFIED and not classified:
        raise UsageError(f"{metric} is a metric of classified texts", hint=f"accuracy, or reduction = {CLASS}")
    module, _, attribute = (CLASSIFIED if classified else METRICS[metric]).partition(":")
    make = getattr(import_module(module), attribute)
    options = {"softmax": softmax} if metric == "spearman" else {}
    made: Metric = make(metric, ties) if classified else make(ties, reduction, **options)
    return made
