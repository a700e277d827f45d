"""check: a run and its baseline in, a verdict out; no model, no torch, from start to verdict in two seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench import runs
from antlm_bench.commands import baseline
from antlm_bench.compare import Versus, compare
from antlm_bench.compare.join import belongs, cells
from antlm_bench.compare.verdict import Margins, Status, Verdict, judge, worst
from antlm_bench.errors import BenchError, IncompleteError, Inconclusive, Regression, UsageError
from antlm_bench.rendering.check import sentence
from antlm_bench.rendering.tables import model_names
from antlm_bench.types import Run


@dataclass(frozen=True, slots=True)
class Checked:
    """A run against its baseline: a verdict per suite, and the cells of the baseline that the run lacks, in words."""

    versus: Versus
    verdicts: tuple[Verdict, ...]
    missing: tuple[str, ...]

    @property
    def status(self) -> Status:
        return worst([verdict.status for verdict in self.verdicts])


def check(
    run: str | Path,
    against: str | Path,
    *,
    margins: Margins | None = None,
    suites: Sequence[str] = (),
    methods: Sequence[tuple[str, str]] = (),
    allow_mixed: bool = False,
) -> Checked:
    """Is the run worse than the baseline by more than the margins? Every cell of the baseline is asked for.

    against: a run folder, or the name of a baseline (`baseline.find`). suites, methods, allow_mixed: see
    compare.compare. Raises RunError, UsageError, NotComparable; what the verdict is worth, `failure` says.
    """
    old, new = runs.read(baseline.find(against)), runs.read(run)
    known = {suite for suite, _ in cells(old)}
    if wrong := [asked for asked in suites if not any(belongs(suite, asked) for suite in known)]:
        hint = f"it holds {', '.join(sorted(known)) or 'nothing'}"
        raise UsageError(f"the baseline has no suite {wrong[0]!r}", place="--suite", hint=hint)
    missing, shared = _inventory(old, new, suites, methods)
    names = model_names([old, new])
    made = compare(old, new, suites=shared, methods=methods, allow_mixed=allow_mixed) if shared else []
    versus = Versus(names[0], names[1], old.path, new.path, tuple(made))
    return Checked(versus, tuple(judge(one, margins or Margins()) for one in made), tuple(missing))


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
) -> tuple[list[str], list[str]]:
    """The cells that the run lacks, in words, and the suites of which it has one at least."""
    there, pairs = cells(new), dict(methods)
    missing, shared = [], []
    for suite, method in cells(old):
        if (suites and not any(belongs(suite, asked) for asked in suites)) or (pairs and method not in pairs):
            continue
        if (suite, pairs.get(method, method)) in there:
            shared.append(suite)
        else:
            missing.append(f"{suite} · {pairs.get(method, method)}")
    return missing, list(dict.fromkeys(shared))
