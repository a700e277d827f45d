"""The statistics of runs: intervals of one run and of several seeds, tests between two runs.

Takes arrays, gives numbers; knows nothing of suites, predictions or files.
"""

from antlm_bench.statistics.adjusted_wald import (
    adjusted_wald_interval,
    adjusted_wald_macro_interval,
)
from antlm_bench.statistics.crossed_design import (
    UncertainValue,
    two_level_change,
    two_level_mean,
    two_level_test,
    uncertain_from_interval,
    weighted_mean,
)
from antlm_bench.statistics.intervals import (
    CONFIDENCE_LEVEL,
    DRAWS,
    SEED,
    Interval,
    Z,
    bootstrap_counts_interval,
    bootstrap_interval,
    bootstrap_ratio_interval,
    clustered_interval,
    dirichlet_interval,
    macro_weights,
    normal_interval,
    standard_error,
    wilson_interval,
    wilson_macro_interval,
)
from antlm_bench.statistics.paired import (
    benjamini_hochberg,
    holm,
    macro_permutation_test,
    mcnemar_test,
    min_detectable_difference,
    permutation_test,
)
from antlm_bench.statistics.spearman import (
    spearman_correlation,
    spearman_difference,
    spearman_interval,
)

__all__ = [
    "CONFIDENCE_LEVEL",
    "DRAWS",
    "SEED",
    "Interval",
    "UncertainValue",
    "Z",
    "adjusted_wald_interval",
    "adjusted_wald_macro_interval",
    "benjamini_hochberg",
    "bootstrap_counts_interval",
    "bootstrap_interval",
    "bootstrap_ratio_interval",
    "clustered_interval",
    "dirichlet_interval",
    "holm",
    "macro_permutation_test",
    "macro_weights",
    "mcnemar_test",
    "min_detectable_difference",
    "normal_interval",
    "permutation_test",
    "spearman_correlation",
    "spearman_difference",
    "spearman_interval",
    "standard_error",
    "two_level_change",
    "two_level_mean",
    "two_level_test",
    "uncertain_from_interval",
    "weighted_mean",
    "wilson_interval",
    "wilson_macro_interval",
]
