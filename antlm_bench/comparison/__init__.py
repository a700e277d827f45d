"""Compare two runs on the same items, and judge whether the second got worse.

Takes run folders, gives differences with intervals and tests (`compare_runs`) and a gate's verdict
(`verdict`). Knows nothing of models, tables or pages.
"""

from antlm_bench.comparison.results import Comparison, Difference, Flip, RunComparison
from antlm_bench.comparison.runs import compare_runs

__all__ = ["Comparison", "Difference", "Flip", "RunComparison", "compare_runs"]
