"""Compare two runs on the same items, and judge whether the second got worse.

The input is run folders. The output is differences with intervals and tests (`compare_runs`), and
the verdict of a check (`verdict`). Models, tables and pages are no part of this package.
"""

from antlm_bench.comparison.compare import compare_runs
from antlm_bench.comparison.results import Comparison, Difference, Flip, RunComparison

__all__ = ["Comparison", "Difference", "Flip", "RunComparison", "compare_runs"]
