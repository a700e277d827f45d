"""Run folders -> one HTML page, or its figures as files: gathers what there is to show, and has it
drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from antlm_bench import runs
from antlm_bench.comparison.summary_check import read_runs
from antlm_bench.errors import NotComparable, UsageError
from antlm_bench.printable import make_printable
from antlm_bench.reporting import results_table
from antlm_bench.reporting.report_data import ReportData, SeedResult, SeriesPair, series_names
from antlm_bench.results.checkpoint_series import (
    build_curves,
    expand_run_dirs,
    format_word_count,
    group_checkpoints,
    words_seen,
)
from antlm_bench.results.display_names import model_name, model_names
from antlm_bench.results.seeds import average_seeds
from antlm_bench.results.training_log import read_training_log
from antlm_bench.scoring.methods import METHODS
from antlm_bench.types import Run

if TYPE_CHECKING:
    from antlm_bench.comparison.results import Comparison
    from antlm_bench.results.reports import Report

IMAGE_FORMATS = ("svg", "png")
# so many checkpoints of one family are a curve; only the last of them stands beside other models
MIN_CURVE_CHECKPOINTS = 3


def write_page(
    paths: Sequence[str | Path],
    out: Path,
    *,
    training_dirs: Sequence[str | Path] = (),
    title: str = "",
    report: Report | None = None,
) -> Path:
    """Write the report of run folders (or folders of them) as one HTML file; returns its path.

    trainings: folders that `train` wrote. report: of the same runs; that of a collection opens the
    page. Raises RunError (a folder that is none or damaged, a file that cannot be written),
    UsageError.
    """
    from antlm_bench.reporting.html import render_page as html

    contents = gather_report_data(paths, training_dirs, title, report)
    used = {part for column in contents.columns for part in column.method.split(" + ")}
    said = {method.name: method.description for method in METHODS if method.name in used}
    runs.write_atomically(out, html(contents, said).encode())
    return out


def write_figures(
    paths: Sequence[str | Path],
    folder: Path,
    image_format: str,
    *,
    training_dirs: Sequence[str | Path] = (),
) -> list[Path]:
    """Write each figure of the report into the folder as `phenomena.blimp.svg`, ...; form: svg or
    png.
    """
    from antlm_bench.reporting.figure_export import render_figures
    from antlm_bench.reporting.figures import build_figures as drawn

    if image_format not in IMAGE_FORMATS:
        raise UsageError(
            f"no figure is written as {image_format!r}", hint=f"one of {', '.join(IMAGE_FORMATS)}"
        )
    runs.make_folder(folder)
    written = []
    for figure in drawn(gather_report_data(paths, training_dirs)):
        path = folder / f"{quote(figure.name, safe='')}.{image_format}"
        runs.write_atomically(path, render_figures([figure], image_format))
        written.append(path)
    return written


def gather_report_data(
    paths: Sequence[str | Path],
    training_dirs: Sequence[str | Path] = (),
    title: str = "",
    report: Report | None = None,
) -> ReportData:
    """Everything that a page of these runs shows."""
    opened = read_runs(expand_run_dirs(paths))
    seeded = {run.path: average_seeds(run) for run in opened}
    whole = [seeded[run.path] for run in opened]
    families = {
        name: members
        for name, members in group_checkpoints(whole).items()
        if len(members) >= MIN_CURVE_CHECKPOINTS
    }
    early = [run for members in families.values() for run in members[:-1]]
    beside = [run for run in whole if all(run is not one for one in early)]
    families_of = {run.path: name for name, members in families.items() for run in members}
    plain = [model_name(run) for run in opened]
    names = _name_runs(beside, families)
    columns, owners = _build_columns(beside, names)
    called = {
        (owner.path, method): name
        for name, owner, column in zip(series_names(columns), owners, columns, strict=True)
        for method in column.method.split(" + ")
    }
    pairs = list(_compare_to_first(beside, opened, called))
    remarks = [
        f"Of {len(members)} checkpoints of {name} the last stands beside other models; all are in "
        "the learning curves."
        for name, members in families.items()
    ]
    remarks += [
        f"{pair.reference} and {pair.other} are not compared: {pair.refusal}"
        for pair in pairs
        if pair.refusal
    ]
    return ReportData(
        title=title or _default_title(names),
        runs=tuple(opened),
        display_names=tuple(
            f"{families_of[run.path]} · {name}" if run.path in families_of else name
            for run, name in zip(opened, plain, strict=True)
        ),
        columns=tuple(columns),
        seeds=tuple(
            _iter_seed_scores(
                [run for run in opened if any(run.path == one.path for one in beside)], called
            )
        ),
        pairs=tuple(pair for pair in pairs if not pair.refusal),
        curves=tuple(build_curves([run for members in families.values() for run in members])),
        trainings=tuple(map(read_training_log, training_dirs)),
        remarks=tuple(remarks),
        report=_select_report_columns(
            report, dict(zip([run.path for run in beside], names, strict=True))
        ),
    )


def _select_report_columns(report: Report | None, names: Mapping[str, str]) -> Report | None:
    """The report of a collection with the columns of these runs (path -> name) and the published
    ones.
    """
    if report is None or report.collection is None:
        return None
    columns = [
        replace(column, model=names.get(column.run, column.model))
        for column in report.columns
        if column.run in names or column.source
    ]
    return replace(report, columns=tuple(columns))


def _default_title(names: Sequence[str]) -> str:
    few = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return " and ".join(part for part in (", ".join(few[:-1]), *few[-1:]) if part) or "Nothing yet"


def _name_runs(
    shown_runs: Sequence[Run], checkpoint_series: Mapping[str, Sequence[Run]]
) -> list[str]:
    """Each run's name; the last checkpoint of a family is called after the family, and says how far
    it is.
    """
    last = {members[-1].path: name for name, members in checkpoint_series.items()}
    plain = model_names(shown_runs)
    return [
        f"{last[run.path]} ({format_word_count(words_seen(run) or 0)} words)"
        if run.path in last
        else name
        for run, name in zip(shown_runs, plain, strict=True)
    ]


def _build_columns(
    shown_runs: Sequence[Run], names: Sequence[str]
) -> tuple[list[results_table.ResultsColumn], list[Run]]:
    """A column per checkpoint and method, and whose it is; one method and one kind of finetuning
    share a column.
    """
    columns, owners = [], []
    for run, name in zip(shown_runs, names, strict=True):
        methods = list(dict.fromkeys(cell.method for cell in run))
        kinds = [_method_kind(method) for method in methods]
        alone = len(set(kinds)) == len(kinds) and "frozen" not in kinds
        for method in [" + ".join(methods)] if alone and methods else methods:
            cells = {cell.suite: cell for cell in run if cell.method in method.split(" + ")}
            columns.append(results_table.ResultsColumn(name, method, cells))
            owners.append(run)
    return columns, owners


def _iter_seed_scores(
    all_runs: Sequence[Run], display_names: Mapping[tuple[str, str], str]
) -> Iterator[SeedResult]:
    for run in all_runs:
        for cell in run:
            if cell.seed is not None:
                summary = cell.summary
                fallen = tuple(
                    make_printable(str(word)) for word in cell.history.get("collapsed", ())
                )
                name = display_names[run.path, cell.method]
                suite = cell.finetuned_task[0]
                yield SeedResult(
                    suite, cell.suite, name, cell.seed, summary.metric, summary.headline, fallen
                )


def _compare_to_first(
    shown_runs: Sequence[Run], all_runs: Sequence[Run], display_names: Mapping[tuple[str, str], str]
) -> Iterator[SeriesPair]:
    """The first run against each other one, suite by suite; what may not be compared is left out,
    with the reason.
    """
    from antlm_bench.comparison.runs import compare_runs

    whole = {run.path: run for run in all_runs}
    for other in shown_runs[1:]:
        first = shown_runs[0]
        ways = _match_methods(first, other)
        together: dict[tuple[str, str], list[Comparison]] = {}
        for suite in _shared_suites(whole[first.path], whole[other.path]):
            try:
                found = compare_runs(
                    whole[first.path], whole[other.path], suites=[suite], methods=ways
                )
            except NotComparable as error:
                yield SeriesPair(
                    model_name(first),
                    model_name(other),
                    (),
                    f"{suite}: {error.message}",
                )
                continue
            for one in found:
                names = (
                    display_names[first.path, one.method_a],
                    display_names[other.path, one.method_b],
                )
                together.setdefault(names, []).append(one)
        yield from (SeriesPair(a, b, tuple(those)) for (a, b), those in together.items())


def _method_kind(method: str) -> str:
    """Return "finetune" or "frozen" for the methods of `finetune`, else "score"."""
    prefix = method.partition("-")[0]
    return prefix if prefix in ("finetune", "frozen") else "score"


def _match_methods(first: Run, other: Run) -> list[tuple[str, str]]:
    """The methods that go together: of each kind the one that a run has, else those of equal
    names.
    """
    ways: list[tuple[str, str]] = []
    for kind in ("score", "finetune", "frozen"):
        a, b = ({c.method for c in run if _method_kind(c.method) == kind} for run in (first, other))
        ways += [(*a, *b)] if len(a) == len(b) == 1 else []  # type: ignore[list-item]
    return ways


def _shared_suites(first: Run, other: Run) -> list[str]:
    """Suites that both hold, the tasks of a collection that was finetuned as one."""
    names = [
        {str(cell.settings.get("collection") or cell.suite): None for cell in run}
        for run in (first, other)
    ]
    return [name for name in names[0] if name in names[1]]
