"""Compare two runs on the same items, and judge whether the second got worse.

The input is run folders. The output is differences with intervals and tests (`compare_runs`), and
the verdict of a check (`verdict`). Models, tables and pages are no part of this package.

Names are imported when they are first used: `compare_runs` needs scipy, and checking the summaries
of a run (`summary_check`) does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antlm_bench.comparison.compare import compare_runs
    from antlm_bench.comparison.results import Comparison, Difference, Flip, RunComparison

__all__ = ["Comparison", "Difference", "Flip", "RunComparison", "compare_runs"]


def __getattr__(name: str) -> Any:
    """Import a name of this package when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = "compare" if name == "compare_runs" else "results"
    return getattr(import_module(f"{__name__}.{module}"), name)
