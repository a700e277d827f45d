"""Compare two runs on the same items, and judge whether the second got worse.

Takes run folders, gives differences with intervals and tests (`compare_runs`) and a gate's verdict
(`verdict`). Knows nothing of models, tables or pages.
"""

from antlm_bench.compare.comparison import compare_runs
from antlm_bench.compare.results import Comparison, Difference, Flip, RunComparison

__all__ = ["Comparison", "Difference", "Flip", "RunComparison", "compare_runs"]
