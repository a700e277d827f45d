"""From predictions to the numbers that get published: credit per item, macro-average, interval,
flags.

Everything here is recomputed from stored predictions at will; nothing needs the model or the texts.
"""

from antlm_bench.metrics.classification import (
    FEW_SEEDS_NOTES,
    SeedSummary,
    collapse_warnings,
    contributions_by_seed,
    summarize_seeds,
)
from antlm_bench.metrics.summary import (
    LOWER_IS_BETTER,
    METRICS,
    TIE_RULES,
    resolve_metric,
    summarize,
)

__all__ = [
    "FEW_SEEDS_NOTES",
    "LOWER_IS_BETTER",
    "METRICS",
    "TIE_RULES",
    "SeedSummary",
    "collapse_warnings",
    "contributions_by_seed",
    "resolve_metric",
    "summarize",
    "summarize_seeds",
]
