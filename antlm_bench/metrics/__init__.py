"""Compute the score of a suite and of its groups, with intervals and flags, from predictions.

`summarize` returns them as a Summary. Scores are recomputed from stored predictions, without a
model or the texts. `records` describes each metric and is fast to import.
"""

from antlm_bench.metrics.records import (
    METRICS,
    TIE_RULES,
    ItemKind,
    LmEvalFormat,
    MetricSpec,
    get_metric_spec,
)
from antlm_bench.metrics.summary import (
    Metric,
    MetricSettings,
    load_cell_metric,
    load_metric,
    summarize,
)

__all__ = [
    "METRICS",
    "TIE_RULES",
    "ItemKind",
    "LmEvalFormat",
    "Metric",
    "MetricSettings",
    "MetricSpec",
    "get_metric_spec",
    "load_cell_metric",
    "load_metric",
    "summarize",
]
