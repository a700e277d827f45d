"""antlm-bench: evaluate small language models, with fast and comparable scores.

    import antlm_bench

    [run] = antlm_bench.score("path/to/checkpoint", "blimp")
    run["blimp"].estimate.value
    run.predictions("blimp").to_pandas()
    antlm_bench.Scorer("path/to/checkpoint").logprobs(["The cats sleep."])

Every name of `__all__` is imported when it is first used.
"""

from __future__ import annotations

from antlm_bench.architectures.import_hook import install_import_hook

__version__ = "0.1.0"
__all__ = [
    "BenchError",
    "CheckResult",
    "Comparison",
    "Report",
    "Run",
    "RunComparison",
    "Scorer",
    "Suite",
    "__version__",
    "check",
    "compare",
    "effects",
    "finetune",
    "load_run",
    "load_suite",
    "merge",
    "plot",
    "report",
    "score",
    "surprisal",
    "train",
]

install_import_hook()  # registers our architectures once transformers is imported

TYPE_CHECKING = False  # typing takes a few milliseconds to import
if TYPE_CHECKING:
    from typing import Any

    from antlm_bench.commands.check import check
    from antlm_bench.commands.compare import compare
    from antlm_bench.commands.effects import effects
    from antlm_bench.commands.finetune import finetune
    from antlm_bench.commands.merge import merge_runs as merge
    from antlm_bench.commands.report import build_report as report
    from antlm_bench.commands.score import score
    from antlm_bench.commands.surprisal import surprisal
    from antlm_bench.commands.train import train
    from antlm_bench.comparison.results import Comparison, RunComparison
    from antlm_bench.comparison.summary_check import open_verified_run as load_run
    from antlm_bench.comparison.verdict import CheckResult
    from antlm_bench.errors import BenchError
    from antlm_bench.reporting.effects_figures import plot
    from antlm_bench.results.reports import Report
    from antlm_bench.scorer import Scorer
    from antlm_bench.suites.loader import load_suite
    from antlm_bench.suites.task_types import Suite
    from antlm_bench.types import Run

_TARGETS = {
    "BenchError": "errors:BenchError",
    "CheckResult": "comparison.verdict:CheckResult",
    "Comparison": "comparison.results:Comparison",
    "Report": "results.reports:Report",
    "Run": "types:Run",
    "RunComparison": "comparison.results:RunComparison",
    "Scorer": "scorer:Scorer",
    "Suite": "suites.task_types:Suite",
    "check": "commands.check:check",
    "compare": "commands.compare:compare",
    "effects": "commands.effects:effects",
    "finetune": "commands.finetune:finetune",
    "load_run": "comparison.summary_check:open_verified_run",
    "load_suite": "suites.loader:load_suite",
    "merge": "commands.merge:merge_runs",
    "plot": "reporting.effects_figures:plot",
    "report": "commands.report:build_report",
    "score": "commands.score:score",
    "surprisal": "commands.surprisal:surprisal",
    "train": "commands.train:train",
}


def __getattr__(name: str) -> Any:
    """Import a name of the Python API when it is first used."""
    if name not in _TARGETS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from antlm_bench.packages import require_packages

    module, _, attribute = _TARGETS[name].partition(":")
    with require_packages():
        return getattr(import_module(f"antlm_bench.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
