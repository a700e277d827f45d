"""Run folders -> one HTML page, or its figures as files: gathers what there is to show, and has it drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from antlm_bench import runs
from antlm_bench.commands.curve import amount, curves, expand, grouped, words_seen
from antlm_bench.compare.summary_check import read_runs
from antlm_bench.errors import NotComparable, UsageError
from antlm_bench.reporting import results_table
from antlm_bench.reporting.report_data import Contents, Pair, Seed, series
from antlm_bench.results.seeds import averaged
from antlm_bench.results.training_log import training
from antlm_bench.scoring.probes import METHODS
from antlm_bench.types import Run

if TYPE_CHECKING:
    from antlm_bench.commands.report import Report
    from antlm_bench.compare.comparison import Comparison

FORMS = ("svg", "png")
SWEEP = 3  # so many checkpoints of one family are a curve; only the last of them stands beside other models


def page(
    paths: Sequence[str | Path],
    out: Path,
    *,
    trainings: Sequence[str | Path] = (),
    title: str = "",
    report: Report | None = None,
) -> Path:
    """Write the report of run folders (or folders of them) as one HTML file; returns its path.

    trainings: folders that `train` wrote. report: of the same runs; that of a collection opens the page. Raises
    RunError (a folder that is none or damaged, a file that cannot be written), UsageError.
    """
    from antlm_bench.reporting.html import page as html

    contents = gather(paths, trainings, title, report)
    used = {part for column in contents.beside for part in column.method.split(" + ")}
    said = {name: one.says for name, one in METHODS.items() if name in used}
    runs.write_whole(out, html(contents, said).encode())
    return out


def figures(
    paths: Sequence[str | Path], folder: Path, form: str, *, trainings: Sequence[str | Path] = ()
) -> list[Path]:
    """Write each figure of the report into the folder as `phenomena.blimp.svg`, ...; form: svg or png."""
    from antlm_bench.reporting.figure_export import paper
    from antlm_bench.reporting.figures import figures as drawn

    if form not in FORMS:
        raise UsageError(f"no figure is written as {form!r}", hint=f"one of {', '.join(FORMS)}")
    runs.make(folder)
    written = []
    for figure in drawn(gather(paths, trainings)):
        path = folder / f"{quote(figure.name, safe='')}.{form}"
        runs.write_whole(path, paper([figure], form))
        written.append(path)
    return written


def gather(
    paths: Sequence[str | Path],
    trainings: Sequence[str | Path] = (),
    title: str = "",
    report: Report | None = None,
) -> Contents:
    """Everything that a page of these runs shows."""
    opened = read_runs(expand(paths))
    seeded = {run.path: averaged(run) for run in opened}
    whole = [seeded[run.path] for run in opened]
    families = {name: members for name, members in grouped(whole).items() if len(members) >= SWEEP}
    early = [run for members in families.values() for run in members[:-1]]
    beside = [run for run in whole if all(run is not one for one in early)]
    families_of = {run.path: name for name, members in families.items() for run in members}
    plain = [results_table.model_name(run) for run in opened]
    names = _names(beside, families)
    columns, owners = _columns(beside, names)
    called = {
        (owner.path, method): name
        for name, owner, column in zip(series(columns), owners, columns, strict=True)
        for method in column.method.split(" + ")
    }
    pairs = list(_pairs(beside, opened, called))
    remarks = [
        f"Of {len(members)} checkpoints of {name} the last stands beside other models; all are in the learning curves."
        for name, members in families.items()
    ]
    remarks += [f"{pair.reference} and {pair.other} are not compared: {pair.refused}" for pair in pairs if pair.refused]
    return Contents(
        title=title or _title(names),
        runs=tuple(opened),
        called=tuple(
            f"{families_of[run.path]} · {name}" if run.path in families_of else name
            for run, name in zip(opened, plain, strict=True)
        ),
        beside=tuple(columns),
        seeds=tuple(_seeds([run for run in opened if any(run.path == one.path for one in beside)], called)),
        pairs=tuple(pair for pair in pairs if not pair.refused),
        curves=tuple(curves([run for members in families.values() for run in members])),
        trainings=tuple(map(training, trainings)),
        remarks=tuple(remarks),
        report=_of_these(report, dict(zip([run.path for run in beside], names, strict=True))),
    )


def _of_these(report: Report | None, names: Mapping[str, str]) -> Report | None:
    """The report of a collection with the columns of these runs (path -> name) and the published ones."""
    if report is None or report.collection is None:
        return None
    columns = [
        replace(column, model=names.get(column.run, column.model))
        for column in report.columns
        if column.run in names or column.source
    ]
    return replace(report, columns=tuple(columns))


def _title(names: Sequence[str]) -> str:
    few = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return " and ".join(part for part in (", ".join(few[:-1]), *few[-1:]) if part) or "Nothing yet"


def _names(beside: Sequence[Run], families: Mapping[str, Sequence[Run]]) -> list[str]:
    """Each run's name; the last checkpoint of a family is called after the family, and says how far it is."""
    last = {members[-1].path: name for name, members in families.items()}
    plain = results_table.model_names(beside)
    return [
        f"{last[run.path]} ({amount(words_seen(run) or 0)} words)" if run.path in last else name
        for run, name in zip(beside, plain, strict=True)
    ]


def _columns(beside: Sequence[Run], names: Sequence[str]) -> tuple[list[results_table.Column], list[Run]]:
    """A column per checkpoint and method, and whose it is; one method and one kind of finetuning share a column."""
    columns, owners = [], []
    for run, name in zip(beside, names, strict=True):
        methods = list(dict.fromkeys(cell.method for cell in run))
        tuned = [method for method in methods if method.startswith("finetune-")]
        alone = len(methods) - len(tuned) <= 1 and len(tuned) <= 1
        for method in [" + ".join(methods)] if alone and methods else methods:
            cells = {cell.suite: cell for cell in run if cell.method in method.split(" + ")}
            columns.append(results_table.Column(name, method, cells))
            owners.append(run)
    return columns, owners


def _seeds(opened: Sequence[Run], called: Mapping[tuple[str, str], str]) -> Iterator[Seed]:
    for run in opened:
        for cell in run:
            if cell.seed is not None:
                summary = cell.summary
                fallen = tuple(results_table.printable(str(word)) for word in cell.history.get("collapsed", ()))
                name = called[run.path, cell.method]
                suite = cell.finetuned_task[0]
                yield Seed(suite, cell.suite, name, cell.seed, summary.metric, summary.headline, fallen)


def _pairs(beside: Sequence[Run], opened: Sequence[Run], called: Mapping[tuple[str, str], str]) -> Iterator[Pair]:
    """The first run against each other one, suite by suite; what may not be compared is left out, with the reason."""
    from antlm_bench.compare.comparison import compare

    whole = {run.path: run for run in opened}
    for other in beside[1:]:
        first = beside[0]
        ways = _ways(first, other)
        together: dict[tuple[str, str], list[Comparison]] = {}
        for suite in _shared(whole[first.path], whole[other.path]):
            try:
                found = compare(whole[first.path], whole[other.path], suites=[suite], methods=ways)
            except NotComparable as error:
                yield Pair(
                    results_table.model_name(first), results_table.model_name(other), (), f"{suite}: {error.message}"
                )
                continue
            for one in found:
                names = called[first.path, one.method_a], called[other.path, one.method_b]
                together.setdefault(names, []).append(one)
        yield from (Pair(a, b, tuple(those)) for (a, b), those in together.items())


def _ways(first: Run, other: Run) -> list[tuple[str, str]]:
    """The methods that go together: of each kind the one that a run has, else those of equal names."""
    ways: list[tuple[str, str]] = []
    for tuned in (False, True):
        a, b = ({c.method for c in run if c.method.startswith("finetune-") == tuned} for run in (first, other))
        ways += [(*a, *b)] if len(a) == len(b) == 1 else []  # type: ignore[list-item]
    return ways


def _shared(first: Run, other: Run) -> list[str]:
    """Suites that both hold, the tasks of a collection that was finetuned as one."""
    names = [{str(cell.settings.get("collection") or cell.suite): None for cell in run} for run in (first, other)]
    return [name for name in names[0] if name in names[1]]
