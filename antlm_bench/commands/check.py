"""`check`: judge a run against its baseline. Needs neither a model nor torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from antlm_bench import runs
from antlm_bench.commands.baseline import find_baseline
from antlm_bench.comparison import RunComparison, compare_runs
from antlm_bench.comparison.join import group_cells, suite_matches
from antlm_bench.comparison.margins import load_margins, load_suite_margins
from antlm_bench.comparison.runs import is_paired
from antlm_bench.comparison.verdict import CheckResult, correct_for_suites, judge
from antlm_bench.errors import UsageError
from antlm_bench.results.display_names import model_names
from antlm_bench.types import Run, RunLike, run_folder


def check(
    run: RunLike,
    against: RunLike,
    *,
    margin: float | None = None,
    group_margin: float | None = None,
    policy: str | Path = "",
    suites: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    allow_mixed: bool = False,
) -> CheckResult:
    """Judge whether a run is worse than a baseline by more than a margin, suite by suite.

    against: a run, its folder, or the name of a saved baseline. margin: how much worse a suite may
    be, in points; a point is 0.01 of an accuracy, a correlation or a nat. By default the margin of
    the policy, else of the suite's TOML, else 1 point. group_margin: the same for each phenomenon;
    a phenomenon without a margin in any of these places is not judged. policy: a TOML of margins by
    suite and group. methods: pairs (method of the baseline, method of the run). suites,
    allow_mixed: see `compare`.

        result = antlm_bench.check("reports/new", against="main", margin=0.5)
        result.status  # "pass", "regression" or "inconclusive"

    Raises RunError, UsageError, DeclarationError, NotComparable. A regression is a result,
    not an error.
    """
    margins = load_margins(policy, margin, group_margin)
    baseline_run, new_run = runs.open_runs([find_baseline(run_folder(against)), run_folder(run)])
    existing = {suite for suite, _ in group_cells(baseline_run)}
    if unknown := [
        requested
        for requested in suites
        if not any(suite_matches(suite, requested) for suite in existing)
    ]:
        hint = f"it holds {', '.join(sorted(existing)) or 'nothing'}"
        raise UsageError(f"the baseline has no suite {unknown[0]!r}", location="--suite", hint=hint)
    missing, unpaired, comparable_suites = _classify_cells(baseline_run, new_run, suites, methods)
    comparisons = (
        compare_runs(
            baseline_run,
            new_run,
            suites=comparable_suites,
            methods=methods,
            allow_mixed=allow_mixed,
        )
        if comparable_suites
        else []
    )
    names = model_names([baseline_run, new_run])
    run_comparison = RunComparison(
        names[0], names[1], baseline_run.path, new_run.path, tuple(comparisons)
    )
    # The first source that declares a margin wins: options, policy file, the suite's TOML.
    verdicts = correct_for_suites(
        [
            judge(comparison, *margins, load_suite_margins(comparison.suite))
            for comparison in comparisons
        ]
    )
    return CheckResult(run_comparison, verdicts, tuple(missing), tuple(unpaired))


def _classify_cells(
    baseline_run: Run, new_run: Run, suites: Sequence[str], methods: Sequence[tuple[str, str]]
) -> tuple[list[str], list[str], list[str]]:
    """Split the baseline's (suite, method) cells into missing, unpaired and comparable ones.

    Returns the cells that the new run lacks and those whose metric has no values per item to pair,
    as "suite · method", and the names of the suites that can be compared.
    """
    new_cells, method_pairs = group_cells(new_run), dict(methods)
    missing, unpaired, comparable_suites = [], [], []
    for (suite, method), cells in group_cells(baseline_run).items():
        if suites and not any(suite_matches(suite, requested) for requested in suites):
            continue
        if method_pairs and method not in method_pairs:
            continue
        new_method = method_pairs.get(method, method)
        if (suite, new_method) not in new_cells:
            missing.append(f"{suite} · {new_method}")
        elif not is_paired(cells[0].summary.metric):
            unpaired.append(f"{suite} · {new_method}")
        else:
            comparable_suites.append(suite)
    return missing, unpaired, list(dict.fromkeys(comparable_suites))
