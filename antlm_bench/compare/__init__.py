"""Two runs on the same items: their differences with intervals and tests, and what a gate makes of
them.
"""

from antlm_bench.compare.comparison import Comparison, Difference, Flip, RunComparison, compare_runs

__all__ = ["Comparison", "Difference", "Flip", "RunComparison", "compare_runs"]
