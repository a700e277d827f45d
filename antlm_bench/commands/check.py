"""check: a run and its baseline in, a verdict out; no model, no torch, from start to verdict in two
seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench import runs
from antlm_bench.commands import baseline
from antlm_bench.compare import RunComparison, compare_runs
from antlm_bench.compare.comparison import is_paired
from antlm_bench.compare.join import group_cells, suite_matches
from antlm_bench.compare.margins import load_suite_margins
from antlm_bench.compare.verdict import Margins, Status, Verdict, judge, worst_status
from antlm_bench.errors import (
    BenchError,
    IncompleteError,
    Inconclusive,
    PerformanceRegression,
    UsageError,
)
from antlm_bench.reporting.check import summarize_verdict
from antlm_bench.reporting.results_table import model_names
from antlm_bench.types import Run


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A run against its baseline: a verdict per suite, and, in words, the cells of the baseline
    that the run lacks and those to which single items contribute nothing that could be compared.
    """

    run_comparison: RunComparison
    verdicts: tuple[Verdict, ...]
    missing_cells: tuple[str, ...]
    unpaired_cells: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        return worst_status([verdict.status for verdict in self.verdicts])


def check(
    run: str | Path,
    against: str | Path,
    *,
    margins: Sequence[Margins] = (),
    suites: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    allow_mixed: bool = False,
) -> CheckResult:
    """Is the run worse than the baseline by more than the margins? Every cell of the baseline is
    asked for.

    against: a run folder, or the name of a baseline (`baseline.find`). margins: in the order in
    which they are believed, before those of the suites' own TOMLs. suites, methods, allow_mixed:
    see compare.compare_runs. Raises RunError, UsageError, NotComparable; what the verdict is worth,
    `failure` says.
    """
    old, new = runs.open_runs([baseline.find_baseline(against), run])
    known = {suite for suite, _ in group_cells(old)}
    if wrong := [
        asked for asked in suites if not any(suite_matches(suite, asked) for suite in known)
    ]:
        hint = f"it holds {', '.join(sorted(known)) or 'nothing'}"
        raise UsageError(f"the baseline has no suite {wrong[0]!r}", location="--suite", hint=hint)
    missing, unjudged, shared = _classify_cells(old, new, suites, methods)
    names = model_names([old, new])
    made = (
        compare_runs(old, new, suites=shared, methods=methods, allow_mixed=allow_mixed)
        if shared
        else []
    )
    versus = RunComparison(names[0], names[1], old.path, new.path, tuple(made))
    verdicts = tuple(judge(one, *margins, load_suite_margins(one.suite)) for one in made)
    return CheckResult(versus, verdicts, tuple(missing), tuple(unjudged))


def exit_error(result: CheckResult, strict: bool = False) -> BenchError | None:
    """What the shell is to be told: the gravest of regression, missing cells, and (`strict`) too
    little data.
    """
    lines = {
        status: [summarize_verdict(v) for v in result.verdicts if v.status == status]
        for status in ("regression", "inconclusive")
    }
    if lines["regression"]:
        hint = "antlm-bench compare BASELINE RUN --by paradigm --flips 20 shows where"
        return PerformanceRegression("\n".join(lines["regression"]), hint=hint)
    if result.missing_cells:
        message = f"the run lacks what its baseline has: {', '.join(result.missing_cells)}"
        return IncompleteError(
            message,
            location=result.run_comparison.path_b,
            hint="score it, or choose suites with --suite",
        )
    if lines["inconclusive"] and strict:
        hint = "a wider --margin, or suites with more items; without --strict this passes"
        return Inconclusive("\n".join(lines["inconclusive"]), hint=hint)
    return None


def _classify_cells(
    old: Run, new: Run, suites: Sequence[str], methods: Sequence[tuple[str, str]]
) -> tuple[list[str], list[str], list[str]]:
    """In words the cells that the run lacks and those that cannot be paired; the suites of which it
    has one.
    """
    there, pairs = group_cells(new), dict(methods)
    missing, unjudged, shared = [], [], []
    for (suite, method), each in group_cells(old).items():
        if (suites and not any(suite_matches(suite, asked) for asked in suites)) or (
            pairs and method not in pairs
        ):
            continue
        name = f"{suite} · {pairs.get(method, method)}"
        if (suite, pairs.get(method, method)) not in there:
            missing.append(name)
        elif not is_paired(each[0].summary.metric):
            unjudged.append(name)
        else:
            shared.append(suite)
    return missing, unjudged, list(dict.fromkeys(shared))
