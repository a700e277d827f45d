"""The result of a regression gate: a run against its baseline."""

from __future__ import annotations

from dataclasses import dataclass

from antlm_bench.compare import RunComparison
from antlm_bench.compare.verdict import Status, Verdict, worst_status
from antlm_bench.notebook import to_html_table


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

    def _repr_html_(self) -> str:
        columns = ("suite", "verdict", "difference", "low", "high", "margin", "n")
        rows = []
        for verdict in self.verdicts:
            difference = verdict.headline.difference
            numbers = (difference.value, difference.low, difference.high)
            values = [float(number) for number in numbers]
            margin = float(verdict.headline.tolerance)
            rows.append((verdict.comparison.suite, verdict.status, *values, margin, difference.n))
        notes = [f"missing: {cell}" for cell in self.missing_cells]
        return to_html_table(columns, rows, title=self.status, notes=notes)
