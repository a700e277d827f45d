"""A suite's Summary: the metric that its declaration names, at every level that it names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

from antlm_bench.errors import UsageError
from antlm_bench.metrics.measures import REDUCTIONS, no_interval_note
from antlm_bench.metrics.prediction_table import PredictionTable, build_table, parent_names
from antlm_bench.statistics.spearman import MIN_UNTIED_ITEMS
from antlm_bench.types import Estimate, Floats, Group, Ints, Prediction, Summary

# the reduction of classified texts: their scores are log-probabilities of classes already
CLASS_REDUCTION = "class"
CLASSIFICATION_METRIC = "antlm_bench.metrics.classification:ClassificationMetric"
METRICS: dict[str, str] = {
    "accuracy": "antlm_bench.metrics.measures:Accuracy",  # of classified texts CLASSIFIED
    "spearman": "antlm_bench.metrics.measures:Spearman",
    "f1": CLASSIFICATION_METRIC,
    "macro-f1": CLASSIFICATION_METRIC,
    "mcc": CLASSIFICATION_METRIC,
    "task-score": "antlm_bench.metrics.task_metric:MeanTaskMetric",
    "task-penalty": "antlm_bench.metrics.task_metric:MeanTaskMetric",
    "whole-score": "antlm_bench.metrics.task_metric:MeanTaskMetric",
    "whole-penalty": "antlm_bench.metrics.task_metric:MeanTaskMetric",
    "bits-per-byte": "antlm_bench.metrics.task_metric:BitsPerByte",
}
# Of all others more is better.
LOWER_IS_BETTER = frozenset({"surprisal", "task-penalty", "whole-penalty", "bits-per-byte"})
TIE_RULES: dict[str, str] = {
    "half": "an item whose best score is shared by k options gives 1/k if the right one is among them",
    "strict": "a shared best score is wrong",
    "first": "the first of the best is chosen, as argmax does in lm-eval and BabyLM 2024-2025, where index 0 is right",
    "random": "one of the best is drawn, as in BabyLM 2026, but seeded by the item's id",
}


class Metric(Protocol):
    """What a metric is made of: what each item contributes (n,), the headline with views and
    remarks, and groups.
    """

    def per_item(self, table: PredictionTable, reduction: str) -> Floats: ...

    def headline(
        self, table: PredictionTable, macro: Sequence[str]
    ) -> tuple[Estimate, dict[str, Estimate], tuple[str, ...]]: ...

    def by_group(
        self, table: PredictionTable, codes: Ints, names: Sequence[str]
    ) -> list[Estimate]: ...


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

    macro: levels that the headline averages over without weights, outermost first; () = over items.
    groups: the levels reported, coarse to fine; a group's estimate is over its items (as BabyLM
    prints fields and phenomena), its interval Wilson's. ties: one of TIES. reduction: which score
    decides (measures.REDUCTIONS); the others become views. "class" is for classified texts, whose
    options are classes; its views are accuracy, f1 (beyond two classes macro-f1), mcc, and
    majority: the same metric of always answering the most frequent gold class. Items flagged
    `too-long` were not scored and count as wrong; `flags` counts them. softmax: precision of the
    probabilities that `spearman` ranks.

    Raises UsageError (unknown metric or tie rule), DataError (no predictions, a label that `macro`
    needs is missing, a gold that is no option), CheckpointError (a NaN or +inf score).
    """
    measure = resolve_metric(metric, ties, reduction, softmax)
    table = build_table(predictions, {*macro, *groups}, reduction)
    headline, views, remarks = measure.headline(table, macro)
    lines = []
    for above, level in zip((None, *groups), groups, strict=False):
        codes, names = table.levels[level]
        within = parent_names(table, above, codes, len(names))
        estimates = measure.by_group(table, codes, names)
        lines += [Group(level, n, e, w) for n, e, w in zip(names, estimates, within, strict=True)]
    if metric == "spearman":
        known = [(suite, headline), *((line.name, line.estimate) for line in lines)]
        remarks += no_interval_note(
            [name for name, e in known if (e.low, e.high) == (-1.0, 1.0)],
            "correlation",
            MIN_UNTIED_ITEMS,
        )
    return Summary(
        suite, method, metric, tuple(macro), headline, views, tuple(lines), (*notes, *remarks)
    )


def resolve_metric(metric: str, ties: str, reduction: str, softmax: str = "float64") -> Metric:
    """The metric of that name. Raises UsageError where a name is unknown, or a metric is not of
    that kind of item.
    """
    choices = (
        ("metric", metric, METRICS),
        ("tie rule", ties, TIE_RULES),
        ("reduction", reduction, (*REDUCTIONS, CLASS_REDUCTION)),
    )
    for what, name, known in choices:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise UsageError(f"unknown {what} {name!r}", hint=hint)
    classified = reduction == CLASS_REDUCTION
    if METRICS[metric] == CLASSIFICATION_METRIC and not classified:
        raise UsageError(
            f"{metric} is a metric of classified texts",
            hint=f"accuracy, or reduction = {CLASS_REDUCTION}",
        )
    module, _, attribute = (CLASSIFICATION_METRIC if classified else METRICS[metric]).partition(":")
    make = getattr(import_module(module), attribute)
    options = {"softmax": softmax} if metric == "spearman" else {}
    made: Metric = make(metric, ties) if classified else make(ties, reduction, **options)
    return made
