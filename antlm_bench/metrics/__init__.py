"""From predictions to the numbers that get published.

Takes predictions (or their table), gives a Summary: the number of a suite and of its groups, with
intervals and flags. Everything is recomputed from stored predictions; nothing needs a model or the
texts. `records` says everything about each metric and is light to import.
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
