"""The statistics of runs: intervals of one run, of several seeds, and tests between two runs."""

from antlm_bench.statistics.adjusted_wald import adjusted_macro, adjusted_wald
from antlm_bench.statistics.crossed_design import (
    Uncertain,
    from_interval,
    mean_of,
    two_level,
    two_level_change,
    two_level_difference,
)
from antlm_bench.statistics.intervals import (
    DRAWS,
    LEVEL,
    SEED,
    Interval,
    Z,
    bootstrap,
    bootstrap_counts,
    bootstrap_ratio,
    closed_form,
    clustered,
    macro_weights,
    standard_error,
    unseen_counts,
    wilson,
    wilson_macro,
)
from antlm_bench.statistics.multiplicity import benjamini_hochberg, holm
from antlm_bench.statistics.paired import detectable, macro_p, mcnemar, permutation
from antlm_bench.statistics.spearman import spearman, spearman_difference, spearman_interval

__all__ = [
    "DRAWS",
    "LEVEL",
    "SEED",
    "Interval",
    "Uncertain",
    "Z",
    "adjusted_macro",
    "adjusted_wald",
    "benjamini_hochberg",
    "bootstrap",
    "bootstrap_counts",
    "bootstrap_ratio",
    "closed_form",
    "clustered",
    "detectable",
    "from_interval",
    "holm",
    "macro_p",
    "macro_weights",
    "mcnemar",
    "mean_of",
    "permutation",
    "spearman",
    "spearman_difference",
    "spearman_interval",
    "spearman_p",
    "standard_error",
    "two_level",
    "two_level_change",
    "two_level_difference",
    "unseen_counts",
    "wilson",
    "wilson_macro",
]
