"""Build the figures of a report, for the HTML page and for files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import make_printable
from antlm_bench.reporting import charts, results_table
from antlm_bench.reporting.report_data import (
    Figure,
    FigureTable,
    HeatmapCell,
    ReportData,
    SeedResult,
    SeriesPair,
    series_names,
)
from antlm_bench.types import Estimate

if TYPE_CHECKING:
    from antlm_bench.comparison.results import Comparison, Difference
    from antlm_bench.results.checkpoint_series import LearningCurve
    from antlm_bench.results.training_log import TrainingLog

SIGNIFICANCE_LEVEL = 0.05


def build_figures(report_data: ReportData) -> Iterator[Figure]:
    """Yield all figures that have data, in reading order, with unique names."""
    counts: Counter[str] = Counter()
    for figure in _iter_figures(report_data):
        counts[figure.name] += 1
        count = counts[figure.name]
        yield figure if count == 1 else replace(figure, name=f"{figure.name}.{count}")


def _iter_figures(report_data: ReportData) -> Iterator[Figure]:
    yield from _phenomenon_figures(report_data.columns)
    yield from _paradigm_figures(report_data.columns)
    yield from _difference_figures(report_data.pairs, tuple(series_names(report_data.columns)))
    yield from learning_curve_figures(report_data.curves)
    yield from map(_training_figure, report_data.trainings)
    yield from _seed_figures(report_data.seeds, tuple(series_names(report_data.columns)))


def _phenomenon_figures(columns: Sequence[results_table.ResultsColumn]) -> Iterator[Figure]:
    names = tuple(series_names(columns))
    for block in results_table.build_blocks(columns, "phenomenon"):
        groups = sorted((row for row in block.rows if row.depth), key=_mean_value, reverse=True)
        if len(groups) < 2:
            continue
        rows = _estimate_rows(groups, block.metric, names)
        yield Figure(
            section="phenomena",
            name=f"phenomena.{block.suite}",
            title=make_printable(block.suite),
            caption=f"{_axis_title(block.metric)}, with 95% intervals over its items; the hardest "
            "stands last.",
            series=names,
            present_series=_present_series(rows),
            draw=partial(charts.dot_plot, rows, names, title=_axis_title(block.metric)),
            table=_series_table(rows, names),
        )


def _paradigm_figures(columns: Sequence[results_table.ResultsColumn]) -> Iterator[Figure]:
    names = tuple(series_names(columns))
    for block in results_table.build_blocks(columns, "paradigm"):
        groups = [row for row in block.rows if row.depth]
        rows = _estimate_rows([row for row in groups if row.depth == 2], block.metric, names)
        if get_metric_spec(block.metric).trivial_baseline != "chance" or not rows:
            continue
        present = [index for index, name in enumerate(names) if name in _present_series(rows)]
        table_rows = []
        for row in groups:
            is_group = row.depth == 1
            cells = [_heatmap_cell(row.estimates[i], block.metric, is_group) for i in present]
            table_rows.append((HeatmapCell(row.name, is_group=is_group), *cells))
        yield Figure(
            section="paradigms",
            name=f"paradigms.{block.suite}",
            title=make_printable(block.suite),
            caption="% right per paradigm: blue above 50, orange below. A phenomenon's line is "
            "over all its items.",
            series=names,
            present_series=_present_series(rows),
            draw=partial(charts.heatmap, rows, [names[index] for index in present]),
            table=FigureTable(("", *(names[index] for index in present)), tuple(table_rows)),
            is_heatmap=True,
        )


def _difference_figures(pairs: Sequence[SeriesPair], names: tuple[str, ...]) -> Iterator[Figure]:
    for reference in dict.fromkeys(pair.reference for pair in pairs):
        comparisons = [
            (pair.other, comparison)
            for pair in pairs
            if pair.reference == reference
            for comparison in pair.comparisons
        ]
        for suite in dict.fromkeys(comparison.suite for _, comparison in comparisons):
            rows = [
                _difference_row(difference, other, comparison)
                for other, comparison in comparisons
                if comparison.suite == suite
                for difference in (comparison.headline, *_coarsest_groups(comparison.groups))
            ]
            yield Figure(
                section="differences",
                name=f"differences.{suite}",
                title=make_printable(suite),
                caption=f"Difference from {reference}, paired by item, with 95% intervals. Filled: "
                "p below 5% after "
                "correction for the number of rows; an outline may be chance.",
                series=names,
                present_series=_present_series(rows),
                draw=partial(charts.dot_plot, rows, names, title=rows[0]["axis_title"], zero=True),
                table=_series_table(rows, names),
            )


def learning_curve_figures(curves: Sequence[LearningCurve]) -> Iterator[Figure]:
    """Yield one small figure per suite: every series and method over the words seen."""
    several_methods = len({curve.method for curve in curves}) > 1
    display_names = {
        (c.series_name, c.method): f"{c.series_name} · {c.method}"
        if several_methods
        else c.series_name
        for c in curves
    }
    names = tuple(display_names.values())
    for suite in dict.fromkeys(curve.suite for curve in curves):
        suite_curves = [curve for curve in curves if curve.suite == suite]
        metric = suite_curves[0].metric
        rows = [
            _scaled_values(point.estimate, metric)
            | {
                "row": point.checkpoint,
                "series": display_names[c.series_name, c.method],
                "words": point.words_seen,
                "stretch": segment,
                "hollow": bool(point.duplicate_of),
                "faint": False,
                "text": _format_estimate(point.estimate, metric)
                + (f", the weights of {point.duplicate_of}" if point.duplicate_of else ""),
            }
            for c in suite_curves
            for segment, points in enumerate(c.segments)
            for point in points
        ]
        for row in rows:
            row["says"] = f"{row['series']}, {row['row']}: {row['text']}"
        cells = [(row["series"], row["row"], f"{row['words']:,}", row["text"]) for row in rows]
        yield Figure(
            section="curves",
            name=f"curve.{suite}",
            title=make_printable(suite),
            caption=_axis_title(metric),
            series=names,
            present_series=_present_series(rows),
            draw=partial(charts.line_plot, rows, names, title=_axis_title(metric)),
            table=_figure_table(("model", "checkpoint", "words seen", "value"), cells),
            small=True,
        )


def _training_figure(training: TrainingLog) -> Figure:
    names = tuple(dict.fromkeys(loss.objective for loss in training.losses))
    rows = [
        {
            "series": loss.objective,
            "stretch": loss.stretch,
            "words": loss.words,
            "value": loss.value,
            "says": f"{loss.objective}, {loss.words:,.0f} words: {loss.value:.3f}",
        }
        for loss in training.losses
    ]
    switches = [{"words": words, "label": f"→ {name}"} for words, name in training.switches]
    final_losses = {loss.objective: loss for loss in training.losses}  # the last one stays
    cells = [
        (loss.objective, f"{loss.words:,.0f}", f"{loss.value:.3f}")
        for loss in final_losses.values()
    ]
    cells += [(f"switch to {name}", f"{words:,.0f}", "") for words, name in training.switches]
    return Figure(
        section="training",
        name=f"training.{training.name}",
        title=training.name,
        caption=f"Each point is the mean of neighbouring steps ({training.steps:,} were logged). A "
        "dashed rule is a "
        "switch of objectives; losses of different objectives cannot be compared with one another.",
        series=names,
        present_series=_present_series(rows),
        draw=partial(charts.loss_plot, rows, switches, names),
        table=_figure_table(("objective", "words seen", "loss"), cells),
    )


def _seed_figures(seeds: Sequence[SeedResult], names: tuple[str, ...]) -> Iterator[Figure]:
    for suite in dict.fromkeys(seed.suite for seed in seeds):
        rows = []
        for seed in (seed for seed in seeds if seed.suite == suite):
            collapsed = f"; collapsed: {', '.join(seed.collapsed)}" if seed.collapsed else ""
            task = f"{seed.task.removeprefix(f'{suite}.')} ({seed.metric})"
            value = get_metric_spec(seed.metric).scale * seed.estimate.value
            rows.append(
                {
                    "value": value,
                    "low": None,
                    "high": None,
                    "row": make_printable(task),
                    "series": seed.series,
                    "hollow": bool(collapsed),
                    "faint": not collapsed,
                    "text": f"{value:.1f}{'×' if collapsed else ''}",
                    "says": f"{task}, {seed.series}, seed {seed.seed}: {value:.1f}{collapsed}",
                }
            )
        yield Figure(
            section="seeds",
            name=f"seeds.{suite}",
            title=make_printable(suite),
            caption="One mark per seed. An outline (× in the table) is a run that collapsed: one "
            "constant answer, or "
            "no better than one class for all. Collapsed runs are counted in every mean.",
            series=names,
            present_series=_present_series(rows),
            draw=partial(charts.dot_plot, rows, names, title="score"),
            table=_series_table(rows, names),
        )


def _present_series(rows: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(row["series"] for row in rows)


def _estimate_rows(
    result_rows: Sequence[results_table.ResultsRow], metric: str, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a chart row per result row and series with a value."""
    return [
        _scaled_values(estimate, metric)
        | {
            "row": row.name,
            "series": name,
            "hollow": False,
            "faint": False,
            "text": f"{get_metric_spec(metric).scale * estimate.value:.0f}",
            "says": f"{row.name}, {name}: {_format_estimate(estimate, metric)}, n {estimate.n:,}",
        }
        for row in result_rows
        for name, estimate in zip(names, row.estimates, strict=True)
        if estimate
    ]


def _heatmap_cell(estimate: Estimate | None, metric: str, is_group: bool) -> HeatmapCell:
    if estimate is None:
        return HeatmapCell("–", is_group=is_group)
    tooltip = f"{_format_estimate(estimate, metric)}, n {estimate.n:,}"
    share = None if is_group else estimate.value
    return HeatmapCell(f"{100 * estimate.value:.1f}", share, is_group, tooltip)


def _difference_row(difference: Difference, other: str, comparison: Comparison) -> dict[str, Any]:
    """Return a chart row of a difference, in the metric's scale."""
    spec = get_metric_spec(comparison.metric)
    digits = spec.decimals
    p = difference.adjusted if difference.adjusted is not None else difference.p
    name = "headline" if difference.level == "headline" else make_printable(difference.name)
    value, low, high = (
        spec.scale * number for number in (difference.value, difference.low, difference.high)
    )
    p_text = "" if p is None else f", p {'< .001' if p < 0.001 else f'= {p:.3f}'}"
    text = f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}{p_text})"
    return {
        "row": name,
        "series": other,
        "value": value,
        "low": low,
        "high": high,
        "hollow": p >= SIGNIFICANCE_LEVEL if p is not None else low <= 0 <= high,
        "faint": False,
        "text": text,
        "says": f"{name}, {other}: {text}",
        "axis_title": spec.difference_axis_title,
    }


def _coarsest_groups(groups: Sequence[Difference]) -> list[Difference]:
    """Return the groups of one level: phenomena if there are any, else the first level."""
    levels = list(dict.fromkeys(group.level for group in groups))
    level = "phenomenon" if "phenomenon" in levels else next(iter(levels), "")
    return [group for group in groups if group.level == level]


def _series_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> FigureTable:
    """Build the table of chart rows by series. Several values of a cell (seeds) are listed."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cells.setdefault((row["row"], row["series"]), []).append(_cell_text(row))
    present = [name for name in names if name in _present_series(rows)]
    body = [
        (label, *(", ".join(cells.get((label, name), ["–"])) for name in present))
        for label in dict.fromkeys(row["row"] for row in rows)
    ]
    return _figure_table(("", *present), body)


def _figure_table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> FigureTable:
    return FigureTable(headers, tuple(tuple(map(HeatmapCell, row)) for row in rows))


def _cell_text(row: Mapping[str, Any]) -> str:
    if row.get("low") is None or "correlation" in row:
        return str(row["text"])
    return f"{row['value']:.1f} ({row['low']:.1f}–{row['high']:.1f})"


def _scaled_values(estimate: Estimate, metric: str) -> dict[str, Any]:
    scale = get_metric_spec(metric).scale
    return {
        "value": scale * estimate.value,
        "low": scale * estimate.low,
        "high": scale * estimate.high,
    }


def _format_estimate(estimate: Estimate | None, metric: str) -> str:
    """Return `63.4 (63.0–63.8)`: the value and its interval."""
    if estimate is None:
        return "–"
    value, low, high = map(
        get_metric_spec(metric).format, (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low}–{high})"


def _axis_title(metric: str) -> str:
    spec = get_metric_spec(metric)
    return spec.axis_title or spec.heading


def _mean_value(row: results_table.ResultsRow) -> float:
    values = [estimate.value for estimate in row.estimates if estimate]
    return sum(values) / len(values) if values else 0.0
