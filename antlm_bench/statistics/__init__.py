"""The statistics of runs: intervals of one run and of several seeds, tests between two runs.

Takes arrays, gives numbers; knows nothing of suites, predictions or files.
"""

from antlm_bench.statistics.crossed_design import (
    UncertainValue,
    mixture_interval,
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
    bootstrap_ratio_interval,
    clustered_interval,
    clustered_test,
    dirichlet_interval,
    macro_weights,
    normal_interval,
    one_sided_p,
    sampled_groups_interval,
    standard_error,
    welch_test,
)
from antlm_bench.statistics.paired import (
    benjamini_hochberg,
    holm,
    min_detectable_difference,
)
from antlm_bench.statistics.spearman import (
    spearman_correlation,
    spearman_difference,
    spearman_interval,
)
from antlm_bench.statistics.stratified_score import (
    count_items,
    score_interval,
    score_intervals,
    score_test,
    score_tests_by_group,
    separate_averages,
)

__all__ = [
    "CONFIDENCE_LEVEL",
    "DRAWS",
    "SEED",
    "Interval",
    "UncertainValue",
    "Z",
    "benjamini_hochberg",
    "bootstrap_counts_interval",
    "bootstrap_ratio_interval",
    "clustered_interval",
    "clustered_test",
    "count_items",
    "dirichlet_interval",
    "holm",
    "macro_weights",
    "min_detectable_difference",
    "mixture_interval",
    "normal_interval",
    "one_sided_p",
    "sampled_groups_interval",
    "score_interval",
    "score_intervals",
    "score_test",
    "score_tests_by_group",
    "separate_averages",
    "spearman_correlation",
    "spearman_difference",
    "spearman_interval",
    "standard_error",
    "two_level_change",
    "two_level_mean",
    "two_level_test",
    "uncertain_from_interval",
    "weighted_mean",
    "welch_test",
]
