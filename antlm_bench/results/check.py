"""The result of a regression gate: a run against its baseline."""

from __future__ import annotations

from dataclasses import dataclass

from antlm_bench.compare import RunComparison
from antlm_bench.compare.verdict import Status, Verdict, worst_status


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A run against its baseline: a verdict per suite."""

    run_comparison: RunComparison
    verdicts: tuple[Verdict, ...]
    missing_cells: tuple[str, ...]
    """Cells of the baseline that the run lacks, as "suite · method"."""
    unpaired_cells: tuple[str, ...] = ()
    """Cells of a metric to which single items contribute nothing that could be compared."""

    @property
    def status(self) -> Status:
        """The worst status of all verdicts."""
        return worst_status([verdict.status for verdict in self.verdicts])
