"""The statistics of runs: intervals of one run, and tests between two."""

from antlm_bench.statistics.intervals import (
    DRAWS,
    LEVEL,
    SEED,
    Interval,
    Z,
    bootstrap,
    bootstrap_spearman,
    closed_form,
    clustered,
    macro_weights,
    spearman,
    wilson,
    wilson_macro,
)

__all__ = [
    "DRAWS",
    "LEVEL",
    "SEED",
    "Interval",
    "Z",
    "bootstrap",
    "bootstrap_spearman",
    "closed_form",
    "clustered",
    "macro_weights",
    "spearman",
    "wilson",
    "wilson_macro",
]
