"""check: a run and its baseline in, a verdict out; no model, no torch, from start to verdict in two seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench import runs
from antlm_bench.commands import baseline
from antlm_bench.compare import Versus, compare
from antlm_bench.compare.comparison import UNPAIRED
from antlm_bench.compare.join import belongs, cells
from antlm_bench.compare.margins import declared
from antlm_bench.compare.verdict import Margins, Status, Verdict, judge, worst
from antlm_bench.errors import BenchError, IncompleteError, Inconclusive, Regression, UsageError
from antlm_bench.reporting.check import sentence
from antlm_bench.reporting.results_table import model_names
from antlm_bench.types import Run


@dataclass(frozen=True, slots=True)
class Checked:
    """A run against its baseline: a verdict per suite, and, in words, the cells of the baseline that the run lacks and
    those to which single items contribute nothing that could be compared."""

    versus: Versus
    verdicts: tuple[Verdict, ...]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...] = ()

    @property
    def status(self) -> Status:
        return worst([verdict.status for verdict in self.verdicts])


def check(
    run: str | Path,
    against: str | Path,
    *,
    margins: Sequence[Margins] = (),
    suites: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    allow_mixed: bool = False,
) -> Checked:
    """Is the run worse than the baseline by more than the margins? Every cell of the baseline is asked for.

    against: a run folder, or the name of a baseline (`baseline.find`). margins: in the order in which they are
    believed, before those of the suites' own TOMLs. suites, methods, allow_mixed: see
    compare.compare. Raises RunError, UsageError, NotComparable; what the verdict is worth, `failure` says.
    """
    old, new = runs.read_all([baseline.find(against), run])
    known = {suite for suite, _ in cells(old)}
    if wrong := [asked for asked in suites if not any(belongs(suite, asked) for suite in known)]:
        hint = f"it holds {', '.join(sorted(known)) or 'nothing'}"
        raise UsageError(f"the baseline has no suite {wrong[0]!r}", place="--suite", hint=hint)
    missing, unjudged, shared = _inventory(old, new, suites, methods)
    names = model_names([old, new])
    made = compare(old, new, suites=shared, methods=methods, allow_mixed=allow_mixed) if shared else []
    versus = Versus(names[0], names[1], old.path, new.path, tuple(made))
    verdicts = tuple(judge(one, *margins, declared(one.suite)) for one in made)
    return Checked(versus, verdicts, tuple(missing), tuple(unjudged))


def failure(checked: Checked, strict: bool = False) -> BenchError | None:
    """What the shell is to be told: the gravest of regression, missing cells, and (`strict`) too little data."""
    lines = {
        status: [sentence(v) for v in checked.verdicts if v.status == status]
        for status in ("regression", "inconclusive")
    }
    if lines["regression"]:
        hint = "antlm-bench compare BASELINE RUN --by paradigm --flips 20 shows where"
        return Regression("\n".join(lines["regression"]), hint=hint)
    if checked.missing:
        message = f"the run lacks what its baseline has: {', '.join(checked.missing)}"
        return IncompleteError(message, place=checked.versus.path_b, hint="score it, or choose suites with --suite")
    if lines["inconclusive"] and strict:
        hint = "a wider --margin, or suites with more items; without --strict this passes"
        return Inconclusive("\n".join(lines["inconclusive"]), hint=hint)
    return None


def _inventory(
    old: Run, new: Run, suites: Sequence[str], methods: Sequence[tuple[str, str]]
) -> tuple[list[str], list[str], list[str]]:
    """In words the cells that the run lacks and those that cannot be paired; the suites of which it has one."""
    there, pairs = cells(new), dict(methods)
    missing, unjudged, shared = [], [], []
    for (suite, method), each in cells(old).items():
        if (suites and not any(belongs(suite, asked) for asked in suites)) or (pairs and method not in pairs):
            continue
        name = f"{suite} · {pairs.get(method, method)}"
        if (suite, pairs.get(method, method)) not in there:
            missing.append(name)
        elif each[0].summary.metric in UNPAIRED:
            unjudged.append(name)
        else:
            shared.append(suite)
    return missing, unjudged, list(dict.fromkeys(shared))
