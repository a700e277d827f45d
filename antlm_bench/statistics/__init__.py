"""Statistics on arrays: intervals of one run and of several seeds, tests between two runs."""

from antlm_bench.statistics.crossed_design import (
    UncertainValue,
    two_level_change,
    two_level_mean,
    uncertain_from_interval,
    weighted_mean,
)
from antlm_bench.statistics.intervals import (
    CONFIDENCE_LEVEL,
    DRAWS,
    SEED,
    Interval,
    Z,
    clustered_interval,
    clustered_test,
    dirichlet_interval,
    macro_weights,
    normal_interval,
    one_sided_p,
    ratio_interval,
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
    sampled_groups_interval,
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
    "clustered_interval",
    "clustered_test",
    "count_items",
    "dirichlet_interval",
    "holm",
    "macro_weights",
    "min_detectable_difference",
    "normal_interval",
    "one_sided_p",
    "ratio_interval",
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
    "uncertain_from_interval",
    "weighted_mean",
    "welch_test",
]
