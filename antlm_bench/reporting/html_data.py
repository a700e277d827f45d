"""Gather the data of a report from run folders, and write it as an HTML page or as figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import quote

from antlm_bench import runs
from antlm_bench.comparison.summary_check import open_verified_runs
from antlm_bench.errors import NotComparable, UsageError
from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import format_count, make_printable
from antlm_bench.reporting import results_table
from antlm_bench.reporting.report_data import ReportData, SeedResult, SeriesPair, series_names
from antlm_bench.reporting.report_table import describe_comparisons
from antlm_bench.results.checkpoint_series import (
    build_curves,
    expand_run_dirs,
    format_word_count,
    group_checkpoints,
    words_seen,
)
from antlm_bench.results.display_names import model_name, model_names
from antlm_bench.results.seeds import average_seeds, average_trainings
from antlm_bench.results.training_log import read_training_log
from antlm_bench.scoring.methods import METHODS
from antlm_bench.types import Run

if TYPE_CHECKING:
    from antlm_bench.comparison.results import Comparison
    from antlm_bench.results.reports import Report

IMAGE_FORMATS = ("svg", "png")
MIN_CURVE_CHECKPOINTS = 3
"""Fewest checkpoints of one model that are drawn as a curve. Only the last one of them is compared
with other models."""
MAX_TITLE_LENGTH = 60
"""Most characters of names of several models in the title of a page."""
MAX_COMPARED_RUNS = 50
"""Most runs that are compared with the first. A comparison takes half of a run's bytes in the page,
and most of its time."""


def write_page(
    paths: Sequence[str | Path],
    out: Path,
    *,
    training_dirs: Sequence[str | Path] = (),
    title: str = "",
    report: Report | None = None,
    recipes: Mapping[Path, str] = MappingProxyType({}),
) -> Path:
    """Write the report of run folders (or folders of them) as one HTML file. Return its path.

    training_dirs: folders that `train` wrote. recipes: run folder -> recipe of its model; models of
    one recipe differ in their seed only. report: the report of the same runs; the page starts
    with its table if it reports a collection. Raises RunError (a folder is not a run, or damaged, a
    file cannot be written), UsageError.
    """
    from antlm_bench.reporting.html import render_page  # slow to import

    report_data = gather_report_data(paths, training_dirs, title, report, recipes)
    methods = {method for column in report_data.columns for method in column.method.split(" + ")}
    descriptions = {spec.name: spec.description for spec in METHODS if spec.name in methods}
    runs.write_file(out, render_page(report_data, descriptions).encode())
    return out


def write_figures(
    paths: Sequence[str | Path],
    folder: Path,
    image_format: str,
    *,
    training_dirs: Sequence[str | Path] = (),
) -> list[Path]:
    """Write each figure of the report into a folder, e.g. as `phenomena.blimp.svg`.

    image_format: "svg" or "png". Return the paths. Raises RunError, UsageError.
    """
    from antlm_bench.reporting.figures import build_figures, render_figures  # slow to import

    if image_format not in IMAGE_FORMATS:
        raise UsageError(
            f"unknown image format {image_format!r}", hint=f"one of {', '.join(IMAGE_FORMATS)}"
        )
    runs.make_folder(folder)
    image_paths = []
    for figure in build_figures(gather_report_data(paths, training_dirs)):
        path = folder / f"{quote(figure.name, safe='')}.{image_format}"
        runs.write_atomically(path, render_figures([figure], image_format))
        image_paths.append(path)
    return image_paths


def gather_report_data(
    paths: Sequence[str | Path],
    training_dirs: Sequence[str | Path] = (),
    title: str = "",
    report: Report | None = None,
    recipes: Mapping[Path, str] = MappingProxyType({}),
) -> ReportData:
    """Gather the data of a page. Arguments and errors are those of `write_page`."""
    all_runs = open_verified_runs(expand_run_dirs(paths))
    averaged_by_path = {run.path: average_seeds(run) for run in all_runs}
    averaged_runs = [averaged_by_path[run.path] for run in all_runs]
    checkpoint_series = {
        name: checkpoints
        for name, checkpoints in group_checkpoints(averaged_runs).items()
        if len(checkpoints) >= MIN_CURVE_CHECKPOINTS
    }
    early_paths = {
        run.path for checkpoints in checkpoint_series.values() for run in checkpoints[:-1]
    }
    shown_runs = [run for run in averaged_runs if run.path not in early_paths]
    shown_paths = {run.path for run in shown_runs}
    series_by_path = {run.path: name for name, group in checkpoint_series.items() for run in group}
    names = _name_runs(shown_runs, checkpoint_series)
    names_by_path = {run.path: name for run, name in zip(shown_runs, names, strict=True)}
    columns, column_runs = _build_columns(shown_runs, names)
    display_names = {
        (run.path, method): name
        for name, run, column in zip(series_names(columns), column_runs, columns, strict=True)
        for method in column.method.split(" + ")
    }
    compared_runs = shown_runs[: 1 + MAX_COMPARED_RUNS]
    pairs = list(_compare_to_first(compared_runs, all_runs, names_by_path, display_names))
    remarks = [
        *_describe_series(checkpoint_series),
        *_describe_trainings(columns, column_runs, recipes),
        *_describe_uncompared(names, pairs),
    ]
    suites = dict.fromkeys(suite for column in columns for suite in column.cells)
    values_per_suite = [sum(suite in column.cells for column in columns) for suite in suites]
    if comparisons := describe_comparisons(values_per_suite):
        remarks.append(comparisons)
    return ReportData(
        title=title or _default_title(names),
        runs=tuple(all_runs),
        display_names=tuple(
            f"{series_by_path[run.path]} · {model_name(run)}"
            if run.path in series_by_path
            else names_by_path[run.path]
            for run in all_runs
        ),
        columns=tuple(columns),
        seeds=tuple(
            _iter_seed_scores([run for run in all_runs if run.path in shown_paths], display_names)
        ),
        pairs=tuple(pair for pair in pairs if not pair.refusal),
        curves=tuple(build_curves([run for group in checkpoint_series.values() for run in group])),
        trainings=tuple(map(read_training_log, training_dirs)),
        remarks=tuple(remarks),
        chance_levels=_read_chance_levels(shown_runs),
        report=_select_report_columns(report, names_by_path),
        names_in_columns={
            name: names_by_path[series[-1].path] for name, series in checkpoint_series.items()
        },
    )


def _describe_series(checkpoint_series: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    """Yield one sentence on all series."""
    names_by_count: dict[int, list[str]] = {}
    for name, checkpoints in checkpoint_series.items():
        names_by_count.setdefault(len(checkpoints), []).append(name)
    if names_by_count:
        series = "; ".join(
            f"{', '.join(names)} ({count} checkpoints{' each' * (len(names) > 1)})"
            for count, names in names_by_count.items()
        )
        yield (
            f"{series}: only the last checkpoint is compared with other models; the learning "
            "curves show all of them."
        )


def _describe_trainings(
    columns: Sequence[results_table.ResultsColumn],
    column_runs: Sequence[Run],
    recipes: Mapping[Path, str],
) -> Iterator[str]:
    """Yield a sentence per recipe and method with the means over its trainings.

    The table has a row per training: its intervals are over items, and those here over trainings.
    """
    groups: dict[tuple[str, str], list[results_table.ResultsColumn]] = {}
    for column, run in zip(columns, column_runs, strict=True):
        if recipe := recipes.get(Path(run.path)):
            groups.setdefault((recipe, column.method), []).append(column)
    for (recipe, method), group in groups.items():
        texts = []
        for suite in dict.fromkeys(suite for column in group for suite in column.cells):
            cells = [column.cells[suite] for column in group if suite in column.cells]
            metric = cells[0].summary.metric
            if len(cells) == len(group) > 1:
                values = [cell.estimate.value for cell in cells]
                mean, interval = average_trainings(values, metric)
                ends = interval or (None, None)
                text = get_metric_spec(metric).format_estimate(mean, *ends)
                texts.append(f"{suite} {text}")
        if texts:
            yield (
                f"{recipe} ({method}), mean over {len(group)} trainings that differ in their seed, "
                f"with t intervals over trainings on the same items: {', '.join(texts)}."
            )


def _describe_uncompared(names: Sequence[str], pairs: Sequence[SeriesPair]) -> Iterator[str]:
    """Yield a sentence if there are too many runs, and per pair that cannot be compared.

    names: of the runs, the reference first.
    """
    if len(names) - 1 > MAX_COMPARED_RUNS:
        yield (
            f"{names[0]} is compared with the next {MAX_COMPARED_RUNS} of {len(names) - 1:,} "
            "others only; antlm-bench compare compares all."
        )
    for pair in pairs:
        if pair.refusal:
            yield f"{pair.reference} and {pair.other} are not compared: {pair.refusal}"


def _read_chance_levels(shown_runs: Sequence[Run]) -> dict[str, float]:
    """Return suite -> score at chance: 1/2, or 1 / the number of options in the predictions.

    Suites whose items have different numbers of options are left out.
    """
    levels: dict[str, float] = {}
    for run in shown_runs:
        for cell in run:
            baseline = get_metric_spec(cell.summary.metric).trivial_baseline
            if baseline == "half":
                levels[cell.suite] = 0.5
            is_classified = cell.is_finetuned or cell.is_frozen
            if cell.suite in levels or baseline != "chance" or is_classified:
                continue
            counts = set(runs.read_predictions(run.path, cell).option_counts.tolist())
            if len(counts) == 1:
                levels[cell.suite] = 1 / counts.pop()
    return levels


def _select_report_columns(report: Report | None, names: Mapping[str, str]) -> Report | None:
    """Return the report with the published columns and the columns of the runs in `names`.

    names: path of a run -> its display name. None if the report has no collection.
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
    """Return `a, b and c`, `a, b and 4 more`, or `6 models` if their names are long."""
    parts = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    if len(parts) < 2:
        return parts[0] if parts else "Nothing yet"
    title = f"{', '.join(parts[:-1])} and {parts[-1]}"
    return title if len(title) <= MAX_TITLE_LENGTH else format_count(len(names), "model")


def _name_runs(
    shown_runs: Sequence[Run], checkpoint_series: Mapping[str, Sequence[Run]]
) -> list[str]:
    """Name the runs. The last checkpoint of a series is named `SERIES (100M words)`."""
    series_by_path = {group[-1].path: name for name, group in checkpoint_series.items()}
    return [
        f"{series_by_path[run.path]} ({format_word_count(words_seen(run) or 0)} words)"
        if run.path in series_by_path
        else name
        for run, name in zip(shown_runs, model_names(shown_runs), strict=True)
    ]


def _build_columns(
    shown_runs: Sequence[Run], names: Sequence[str]
) -> tuple[list[results_table.ResultsColumn], list[Run]]:
    """Build a column per checkpoint and method. Return the columns and the run of each.

    A scoring method and a kind of finetuning share a column if the run has only one of each.
    """
    columns, column_runs = [], []
    for run, name in zip(shown_runs, names, strict=True):
        methods = list(dict.fromkeys(cell.method for cell in run))
        kinds = [_method_kind(method) for method in methods]
        share_column = len(set(kinds)) == len(kinds) and "frozen" not in kinds
        for method in [" + ".join(methods)] if share_column and methods else methods:
            cells = {cell.suite: cell for cell in run if cell.method in method.split(" + ")}
            columns.append(results_table.ResultsColumn(name, method, cells))
            column_runs.append(run)
    return columns, column_runs


def _iter_seed_scores(
    all_runs: Sequence[Run], display_names: Mapping[tuple[str, str], str]
) -> Iterator[SeedResult]:
    """Yield the score of every finetuning seed. display_names: (path, method) -> series."""
    for run in all_runs:
        for cell in run:
            if cell.seed is None:
                continue
            symptoms = cell.history.get("collapsed", ())
            yield SeedResult(
                suite=cell.finetuned_task[0],
                task=cell.suite,
                series=display_names[run.path, cell.method],
                seed=cell.seed,
                metric=cell.summary.metric,
                estimate=cell.summary.headline,
                collapsed=tuple(make_printable(str(symptom)) for symptom in symptoms),
            )


def _compare_to_first(
    shown_runs: Sequence[Run],
    all_runs: Sequence[Run],
    names_by_path: Mapping[str, str],
    display_names: Mapping[tuple[str, str], str],
) -> Iterator[SeriesPair]:
    """Compare the first run with each other run, suite by suite.

    Yields a pair with a refusal for each suite that cannot be compared. names_by_path: path ->
    model. display_names: (path, method) -> series.
    """
    from antlm_bench.comparison.compare import compare_runs
    from antlm_bench.comparison.join import cache_tables

    runs_by_path = {run.path: run for run in all_runs}
    load_reference_table = cache_tables()
    for other in shown_runs[1:]:
        first = shown_runs[0]
        a, b = runs_by_path[first.path], runs_by_path[other.path]
        methods = _match_methods(first, other)
        comparisons: dict[tuple[str, str], list[Comparison]] = {}
        for suite in _shared_suites(a, b):
            try:
                suite_comparisons = compare_runs(
                    a,
                    b,
                    suites=[suite],
                    methods=methods,
                    load_reference_table=load_reference_table,
                )
            except NotComparable as error:
                refusal = f"{suite}: {error.message}"
                first_name, other_name = names_by_path[first.path], names_by_path[other.path]
                yield SeriesPair(first_name, other_name, (), refusal)
                continue
            for comparison in suite_comparisons:
                names = (
                    display_names[first.path, comparison.method_a],
                    display_names[other.path, comparison.method_b],
                )
                comparisons.setdefault(names, []).append(comparison)
        for (reference, name), group in comparisons.items():
            yield SeriesPair(reference, name, tuple(group))


def _method_kind(method: str) -> str:
    """Return "finetune" or "frozen" for the methods of `finetune`, else "score"."""
    prefix = method.partition("-")[0]
    return prefix if prefix in ("finetune", "frozen") else "score"


def _match_methods(first: Run, other: Run) -> list[tuple[str, str]]:
    """Pair the methods of a kind if each run has exactly one method of that kind.

    If the result is empty, `compare_runs` pairs methods of equal names.
    """
    pairs: list[tuple[str, str]] = []
    for kind in ("score", "finetune", "frozen"):
        first_methods = {cell.method for cell in first if _method_kind(cell.method) == kind}
        other_methods = {cell.method for cell in other if _method_kind(cell.method) == kind}
        if len(first_methods) == len(other_methods) == 1:
            pairs.append((first_methods.pop(), other_methods.pop()))
    return pairs


def _shared_suites(first: Run, other: Run) -> list[str]:
    """Return the suites of both runs. The finetuned tasks of a collection are one suite."""
    names = [
        {str(cell.settings.get("collection") or cell.suite): None for cell in run}
        for run in (first, other)
    ]
    return [name for name in names[0] if name in names[1]]
