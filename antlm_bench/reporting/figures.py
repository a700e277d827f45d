"""Build the figures of a report, for the HTML page and for SVG and PNG files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

import vl_convert

from antlm_bench import runs
from antlm_bench.console import print_warning
from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import make_printable
from antlm_bench.reporting import charts, palette, results_table
from antlm_bench.reporting.comparison_table import (
    describe_difference_interval,
    format_interval,
    format_p_value,
)
from antlm_bench.reporting.curve_table import describe_other_items
from antlm_bench.reporting.name_lines import wrap_name
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
    from antlm_bench.results.checkpoint_series import CurvePoint, LearningCurve
    from antlm_bench.results.training_log import TrainingLog

SIGNIFICANCE_LEVEL = 0.05
FILE_WIDTH, PANEL_WIDTH = 640, 300
"""Width in px of a single figure in a file, and of each figure if there are several."""
PANELS_PER_ROW = 3
DPI = 300
FILE_FONT = "Helvetica, Arial, sans-serif"
UNASSIGNED = "\U0010fffd"  # a private-use character, which no font has


def render_figures(
    figures: Sequence[Figure], image_format: str, columns: int = PANELS_PER_ROW
) -> bytes:
    """Render figures for a paper: on white, with a legend, in a font that every system has.

    Several figures become the panels of one image, `columns` per row. image_format: "svg" or "png".
    """
    specification = build_specification(figures, columns)
    if image_format == "svg":
        return str(vl_convert.vegalite_to_svg(specification)).encode()
    missing = find_undrawable_letters(json.dumps(specification, ensure_ascii=False))
    if missing:
        print_warning(
            f"no font of this machine has {missing[:20]!r}, so that the image has boxes in their "
            "place: install one, such as Noto Sans, or write an SVG, which is drawn with the fonts "
            "of the machine that shows it"
        )
    return bytes(vl_convert.vegalite_to_png(specification, ppi=DPI))


def build_specification(figures: Sequence[Figure], columns: int) -> dict[str, Any]:
    """Return figures as one Vega-Lite specification on white, with a legend."""
    if len(figures) == 1:
        style = charts.ChartStyle(FILE_WIDTH, palette.PAPER, FILE_WIDTH)
        chart = figures[0].draw(style)
    else:
        total_width = PANEL_WIDTH * min(columns, len(figures))
        style = charts.ChartStyle(PANEL_WIDTH, palette.PAPER, total_width)
        title_length = int(PANEL_WIDTH / charts.CHARACTER_WIDTH)
        panels = [
            figure.draw(style).properties(title=wrap_name(figure.title, title_length))
            for figure in figures
        ]
        chart = charts.concatenate(panels, columns)
    specification = charts.vega_lite_spec(chart, style) | {"background": palette.PAPER["ground"]}
    specification["config"] |= {"font": FILE_FONT}
    return specification


def find_undrawable_letters(text: str) -> str:
    """Return the different letters of a text that no font of this machine has.

    A letter without a glyph is drawn like any other one, such as UNASSIGNED.
    """
    letters = "".join(dict.fromkeys(c for c in text if c > "\u017f" and category(c)[0] == "L"))
    box = _draw_letter(UNASSIGNED) if letters else b""
    return "".join(letter for letter in letters if _draw_letter(letter) == box)


def _draw_letter(letter: str) -> bytes:
    """Return an image of a letter in the font of figures."""
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40"><text x="5" y="28" '
        f'font-size="20" font-family="{FILE_FONT}">{letter}</text></svg>'
    )
    return bytes(vl_convert.svg_to_png(drawing))


def write_curves(curves: Sequence[LearningCurve], path: Path, image_format: str) -> None:
    """Write learning curves as one image ("svg" or "png"), a panel per suite. Raises RunError."""
    figures = list(learning_curve_figures(curves))
    runs.write_file(path, render_figures(figures, image_format))


def build_figures(report_data: ReportData) -> Iterator[Figure]:
    """Yield all figures that have data, in the order of the page, with unique names."""
    counts: Counter[str] = Counter()
    for figure in _iter_figures(report_data):
        counts[figure.name] += 1
        count = counts[figure.name]
        yield figure if count == 1 else replace(figure, name=f"{figure.name}.{count}")


def _iter_figures(report_data: ReportData) -> Iterator[Figure]:
    yield from _phenomenon_figures(report_data.columns)
    yield from _paradigm_figures(report_data.columns, report_data.chance_levels)
    yield from _difference_figures(report_data.pairs, tuple(series_names(report_data.columns)))
    yield from learning_curve_figures(report_data.curves, _order_of_curves(report_data))
    yield from map(_training_figure, report_data.trainings)
    yield from _seed_figures(report_data.seeds, tuple(series_names(report_data.columns)))


def _phenomenon_figures(columns: Sequence[results_table.ResultsColumn]) -> Iterator[Figure]:
    names = tuple(series_names(columns))
    for block in results_table.build_blocks(columns, "phenomenon"):
        spec = get_metric_spec(block.metric)
        groups = sorted(
            (row for row in block.rows if row.depth),
            key=_mean_value,
            reverse=not spec.lower_is_better,
        )
        if len(groups) < 2:
            continue
        rows = _estimate_rows(groups, block.metric, names)
        cells = [column.cells[block.suite] for column in columns if block.suite in column.cells]
        intervals = "; ".join(dict.fromkeys(map(results_table.name_interval, cells)))
        yield Figure(
            section="phenomena",
            name=f"phenomena.{block.suite}",
            title=make_printable(block.suite),
            caption=f"{_axis_title(block.metric)}, with 95% intervals ({intervals}). The group "
            "with the worst mean over models is last.",
            series=names,
            present_series=_present_series(rows),
            draw=partial(charts.dot_plot, rows, names, title=_axis_title(block.metric)),
            table=_series_table(rows, names, "group"),
        )


def _paradigm_figures(
    columns: Sequence[results_table.ResultsColumn], chance_levels: Mapping[str, float]
) -> Iterator[Figure]:
    names = tuple(series_names(columns))
    for block in results_table.build_blocks(columns, "paradigm"):
        groups = [row for row in block.rows if row.depth]
        rows = _estimate_rows([row for row in groups if row.depth == 2], block.metric, names)
        if get_metric_spec(block.metric).trivial_baseline != "chance" or not rows:
            continue
        chance = chance_levels.get(block.suite)
        colours = (
            "" if chance is None else f": blue above chance ({100 * chance:.4g}), orange below"
        )
        present_series = _present_series(rows)
        present_names = [name for name in names if name in present_series]
        table_rows = []
        for row in groups:
            is_group = row.depth == 1
            cells = [
                _heatmap_cell(estimate, block.metric, None if is_group else chance, is_group)
                for name, estimate in zip(names, row.estimates, strict=True)
                if name in present_series
            ]
            table_rows.append((HeatmapCell(row.name, is_group=is_group), *cells))
        yield Figure(
            section="paradigms",
            name=f"paradigms.{block.suite}",
            title=make_printable(block.suite),
            caption=f"Accuracy in % per paradigm{colours}. The row of a phenomenon is over all its "
            "items.",
            series=names,
            present_series=present_series,
            draw=partial(charts.heatmap, rows, present_names, chance=chance),
            table=FigureTable(("paradigm", *present_names), tuple(table_rows)),
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
            shown = [comparison for _, comparison in comparisons if comparison.suite == suite]
            yield Figure(
                section="differences",
                name=f"differences.{suite}",
                title=make_printable(suite),
                caption=_describe_differences(reference, shown),
                series=names,
                present_series=_present_series(rows),
                draw=partial(
                    charts.dot_plot, rows, names, title=rows[0]["axis_title"], rule_at_zero=True
                ),
                table=_series_table(rows, names, "group"),
            )


def _describe_differences(reference: str, comparisons: Sequence[Comparison]) -> str:
    """Return the caption of the differences of one suite from a reference."""
    interval = describe_difference_interval(comparisons[0])
    groups = [group for c in comparisons for group in _coarsest_groups(c.groups)]
    families = dict.fromkeys(group.family for group in groups if group.family)
    correction = f", adjusted for groups ({', '.join(families)})" if families else ""
    tested = [c.headline.p is not None for c in comparisons] + [g.p is not None for g in groups]
    untested = "" if all(tested) else "; without a test, an interval without 0"
    return (
        f"Difference from {reference} on the same items, with 95% intervals ({interval}). A filled "
        f"mark is significant: p < .05{correction}{untested}."
    )


def _name_curves(curves: Sequence[LearningCurve]) -> dict[tuple[str, str], str]:
    """Return (series, method) -> name of the curve."""
    has_several_methods = len({curve.method for curve in curves}) > 1
    return {
        (curve.series_name, curve.method): f"{curve.series_name} · {curve.method}"
        if has_several_methods
        else curve.series_name
        for curve in curves
    }


def _order_of_curves(report_data: ReportData) -> tuple[str, ...]:
    """Return names in the order of their colours: those of the page's series, then of the curves.

    A curve takes the place of the series of its last checkpoint, so that both have one colour.
    """
    names = series_names(report_data.columns)
    curve_names = _name_curves(report_data.curves)
    for (series, method), name in curve_names.items():
        for index, column in enumerate(report_data.columns):
            is_model = column.model == report_data.names_in_columns.get(series)
            if is_model and method in column.method.split(" + "):
                names[index] = name
    names += [name for name in curve_names.values() if name not in names]
    return tuple(names) if len(set(names)) == len(names) else tuple(curve_names.values())


def learning_curve_figures(
    curves: Sequence[LearningCurve], order: Sequence[str] = ()
) -> Iterator[Figure]:
    """Yield one small figure per suite: every series and method over the words seen.

    order: names that decide the colours, with those of the curves among them.
    """
    display_names = _name_curves(curves)
    names = tuple(order or display_names.values())
    for suite in dict.fromkeys(curve.suite for curve in curves):
        suite_curves = [curve for curve in curves if curve.suite == suite]
        metric = suite_curves[0].metric
        rows = [
            _curve_row(point, display_names[curve.series_name, curve.method], segment, metric)
            for curve in suite_curves
            for segment, points in enumerate(curve.segments)
            for point in points
        ]
        cells = [(row["series"], row["row"], f"{row['words']:,}", row["text"]) for row in rows]
        yield Figure(
            section="curves",
            name=f"curve.{suite}",
            title=make_printable(suite),
            caption=_axis_title(metric)
            + "".join(f". {note}" for note in describe_other_items(suite_curves)),
            series=names,
            present_series=_present_series(rows),
            draw=partial(charts.line_plot, rows, names, title=_axis_title(metric)),
            table=_figure_table(("model", "checkpoint", "words seen", "value"), cells),
            small=True,
        )


def _curve_row(point: CurvePoint, series: str, segment: int, metric: str) -> dict[str, Any]:
    """Return the chart row of a checkpoint. segment: index in the curve's segments."""
    text = results_table.format_estimate(point.estimate, metric)
    if point.duplicate_of:
        text += f", the weights of {point.duplicate_of}"
    return _scaled_values(point.estimate, metric) | {
        "row": point.checkpoint,
        "series": series,
        "words": point.words_seen,
        "segment": segment,
        "hollow": bool(point.duplicate_of),
        "faint": False,
        "text": text,
        "description": f"{series}, {point.checkpoint}: {text}",
    }


def _training_figure(training: TrainingLog) -> Figure:
    names = tuple(dict.fromkeys(loss.objective for loss in training.losses))
    rows = [
        {
            "series": loss.objective,
            "segment": loss.stretch,
            "words": loss.words,
            "value": loss.value,
            "description": f"{loss.objective}, {loss.words:,.0f} words: {loss.value:.3f}",
        }
        for loss in training.losses
    ]
    switches = [{"words": words, "label": f"→ {name}"} for words, name in training.switches]
    final_losses = {loss.objective: loss for loss in training.losses}
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
        "dashed line marks a switch of objectives. Losses of different objectives cannot be "
        "compared.",
        series=names,
        present_series=_present_series(rows),
        draw=partial(charts.loss_plot, rows, switches, names),
        table=_figure_table(("objective", "words seen", "loss"), cells),
    )


def _seed_figures(seeds: Sequence[SeedResult], names: tuple[str, ...]) -> Iterator[Figure]:
    for suite in dict.fromkeys(seed.suite for seed in seeds):
        rows = []
        for seed in (seed for seed in seeds if seed.suite == suite):
            symptoms = f"; collapsed: {', '.join(seed.collapsed)}" if seed.collapsed else ""
            task = f"{seed.task.removeprefix(f'{suite}.')} ({seed.metric})"
            spec = get_metric_spec(seed.metric)
            value, text = spec.scale * seed.estimate.value, spec.format(seed.estimate.value)
            rows.append(
                {
                    "value": value,
                    "low": None,
                    "high": None,
                    "row": make_printable(task),
                    "series": seed.series,
                    "hollow": bool(seed.collapsed),
                    "faint": not seed.collapsed,
                    "text": f"{text}{'×' if seed.collapsed else ''}",
                    "description": f"{task}, {seed.series}, seed {seed.seed}: {text}{symptoms}",
                }
            )
        yield Figure(
            section="seeds",
            name=f"seeds.{suite}",
            title=make_printable(suite),
            caption="One mark per seed. An outline (× in the table) is a collapsed run: it gives "
            "the same answer to every item, or is no better than one class for all. Means include "
            "collapsed runs.",
            series=names,
            present_series=_present_series(rows),
            draw=partial(charts.dot_plot, rows, names, title="score"),
            table=_series_table(rows, names, "task"),
        )


def _present_series(rows: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(row["series"] for row in rows)


def _estimate_rows(
    result_rows: Sequence[results_table.ResultsRow], metric: str, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a chart row per result row and series with a value."""
    rows = []
    for result_row in result_rows:
        for name, estimate in zip(names, result_row.estimates, strict=True):
            if estimate:
                text = results_table.format_estimate(estimate, metric)
                rows.append(
                    _scaled_values(estimate, metric)
                    | {
                        "row": result_row.name,
                        "series": name,
                        "hollow": False,
                        "faint": False,
                        "text": text,
                        "tile": f"{get_metric_spec(metric).scale * estimate.value:.0f}",
                        "description": f"{result_row.name}, {name}: {text}, n {estimate.n:,}",
                    }
                )
    return rows


def _heatmap_cell(
    estimate: Estimate | None, metric: str, chance: float | None, is_group: bool
) -> HeatmapCell:
    """Build a tile. chance: accuracy without any knowledge, None = the tile has no colour."""
    if estimate is None:
        return HeatmapCell("–", is_group=is_group)
    tooltip = f"{results_table.format_estimate(estimate, metric)}, n {estimate.n:,}"
    strength = None
    if chance is not None:
        distance = estimate.value - chance
        strength = distance / (1 - chance if distance > 0 else chance)
    return HeatmapCell(get_metric_spec(metric).format(estimate.value), strength, is_group, tooltip)


def _difference_row(difference: Difference, other: str, comparison: Comparison) -> dict[str, Any]:
    """Return the chart row of a difference, in the metric's scale."""
    spec = get_metric_spec(comparison.metric)
    p = difference.adjusted if difference.adjusted is not None else difference.p
    name = "headline" if difference.level == "headline" else make_printable(difference.name)
    value = spec.scale * difference.value
    low, high = spec.known_interval_of_difference(difference.low, difference.high)
    p_text = "" if p is None else f", p {format_p_value(p)}"
    interval = format_interval(difference, comparison.metric)
    text = f"{spec.format(difference.value, '+')} {interval}{p_text}"
    return {
        "row": name,
        "series": other,
        "value": value,
        "low": None if low is None else spec.scale * low,
        "high": None if high is None else spec.scale * high,
        "hollow": difference.low <= 0 <= difference.high if p is None else p >= SIGNIFICANCE_LEVEL,
        "faint": False,
        "text": text,
        "description": f"{name}, {other}: {text}",
        "axis_title": spec.difference_axis_title,
    }


def _coarsest_groups(groups: Sequence[Difference]) -> list[Difference]:
    """Return the groups of one level: phenomena if there are any, else the first level."""
    levels = list(dict.fromkeys(group.level for group in groups))
    level = "phenomenon" if "phenomenon" in levels else next(iter(levels), "")
    return [group for group in groups if group.level == level]


def _series_table(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], row_label: str
) -> FigureTable:
    """Build a table with a column per series. A cell lists the values of several seeds.

    row_label: header of the column with the names of rows.
    """
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cells.setdefault((row["row"], row["series"]), []).append(str(row["text"]))
    present_series = _present_series(rows)
    present_names = [name for name in names if name in present_series]
    body = [
        (label, *(", ".join(cells.get((label, name), ["–"])) for name in present_names))
        for label in dict.fromkeys(row["row"] for row in rows)
    ]
    return _figure_table((row_label, *present_names), body)


def _figure_table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> FigureTable:
    return FigureTable(headers, tuple(tuple(map(HeatmapCell, row)) for row in rows))


def _scaled_values(estimate: Estimate, metric: str) -> dict[str, Any]:
    spec = get_metric_spec(metric)
    numbers = estimate.value, *spec.known_interval(*estimate.interval)
    scaled = [None if number is None else spec.scale * number for number in numbers]
    return dict(zip(("value", "low", "high"), scaled, strict=True))


def _axis_title(metric: str) -> str:
    spec = get_metric_spec(metric)
    return spec.axis_title or spec.heading


def _mean_value(row: results_table.ResultsRow) -> float:
    values = [estimate.value for estimate in row.estimates if estimate]
    return sum(values) / len(values) if values else 0.0
