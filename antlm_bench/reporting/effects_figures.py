"""Figures of an experiment: surprisal along the sentence, means of regions, effects.

A figure has a panel per group (model, construction). Conditions are its series.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from antlm_bench.errors import UsageError
from antlm_bench.packages import require_packages
from antlm_bench.printable import format_decimals, make_printable
from antlm_bench.reporting import charts
from antlm_bench.reporting.effects_table import build_effects_table, format_mean_interval
from antlm_bench.reporting.figures import (
    PANELS_PER_ROW,
    SIGNIFICANCE_LEVEL,
    render_figures,
)
from antlm_bench.reporting.html import build_figure_context, render_template
from antlm_bench.reporting.report_data import Figure, FigureTable, HeatmapCell
from antlm_bench.reporting.table import Table
from antlm_bench.results.effects import CellMean, DesignResult, Effect, WordMean
from antlm_bench.runs import write_file
from antlm_bench.runs.table_files import check_suffix
from antlm_bench.statistics import MeanOverItems

PLOTS = ("sentence", "regions", "critical", "effects")
"""Kinds of figures: see `plot`."""
FILE_SUFFIXES = (".png", ".svg", ".html")


@dataclass(frozen=True, slots=True)
class DesignPlot:
    """A figure that shows itself in a notebook, and can be saved."""

    kind: str
    """One of PLOTS."""
    title: str
    panels: tuple[Figure, ...]
    columns: int = PANELS_PER_ROW
    """Panels per row."""

    def save(self, path: str | Path) -> None:
        """Write a .svg, .png or .html file. Raises UsageError for another ending, RunError."""
        write_plots([self], Path(path))

    def render_svg(self) -> str:
        """Return the figure as an SVG document."""
        return render_figures(self.panels, "svg", self.columns).decode()

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        return {"image/svg+xml": self.render_svg(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"<DesignPlot {self.kind}: {self.title}>"


@require_packages()
def plot(
    result: DesignResult,
    kind: str | None = None,
    *,
    regions: Sequence[str] | str | None = None,
    item: str | None = None,
) -> DesignPlot:
    """Draw the result of `effects`: a figure that shows itself in Jupyter.

    kind: "sentence" (surprisal word by word, a line per condition), "regions" (means of all regions
    by condition), "critical" (bars of the first region) or "effects" (differences with paired
    intervals); None = "regions" if the table has several, else "critical". regions: those of the
    result that are drawn; for "sentence", words are aligned at the first of them, and positions
    that fewer than half of the items have are left out. item: for "sentence", one item, whose words
    label the axis.
    Intervals are 95% intervals over items.

        antlm_bench.plot(result, "sentence").save("sentence.png")

    Raises UsageError for an unknown kind, region or item.
    """
    if not isinstance(result, DesignResult):
        raise UsageError(
            f"a {type(result).__name__} is not a result of `effects`",
            location="plot",
            hint="antlm_bench.plot(antlm_bench.effects(table))",
        )
    kind = kind or ("regions" if len(result.regions) > 1 else "critical")
    if kind not in PLOTS:
        hint = f"one of {', '.join(PLOTS)}"
        raise UsageError(f"unknown figure {kind!r}", location="--plot", hint=hint)
    if item is not None and kind != "sentence":
        raise UsageError(
            "a single item has no interval and no mean",
            location="--item",
            hint="--plot sentence shows the words of one item",
        )
    chosen = [regions] if isinstance(regions, str) else list(regions or ())
    for region in chosen:
        if region not in result.regions:
            names = ", ".join(map(repr, result.regions))
            raise UsageError(
                f"unknown region {region!r}", location="--region", hint=f"there are {names}"
            )
    if kind == "sentence":
        return _plot_sentence(result, chosen, item)
    if kind == "effects":
        return _plot_effects(result, chosen or list(result.regions))
    return _plot_regions(result, kind, chosen or list(result.regions))


def write_plots(plots: Sequence[DesignPlot], path: Path, page: DesignResult | None = None) -> None:
    """Write figures into a file. A .svg or .png holds the first of them, a .html all.

    page: the result whose effects stand below the figures of a .html. Raises UsageError, RunError.
    """
    suffix = check_figure_suffix(path)
    if suffix == ".html":
        data = _build_page(plots, page).encode()
    else:
        data = render_figures(plots[0].panels, suffix[1:], plots[0].columns)
    write_file(path, data)


def check_figure_suffix(path: Path) -> str:
    """Return the ending of a figure's file. Raises UsageError for an unknown one."""
    return check_suffix(path, FILE_SUFFIXES, "figure", "--figure")


def _plot_sentence(result: DesignResult, regions: Sequence[str], item: str | None) -> DesignPlot:
    """Draw the surprisal of each word. Texts are aligned at the first of `regions`, else at the
    first region with a name, if some words have none.
    """
    table_regions = result.experiment.regions
    align = regions[0] if regions else None
    if align is None and "" in table_regions:
        align = next((region for region in result.regions if region), None)
    means = result.word_means(align, item)
    if item is None:
        items = result.experiment.items_by_group()
        means = [m for m in means if 2 * m.mean.n >= len(items[tuple(m.group.values())])]
    labels = {
        tuple(group.values()): _word_labels([mean for mean in means if mean.group == group])
        for group in (result.groups if item is not None else ())
    }
    rows = [
        {
            **_row(result, mean.condition, mean.mean, " / ".join(mean.words[:3])),
            "x": labels[tuple(mean.group.values())][mean.position]
            if labels
            else str(mean.position),
            "order": mean.position,
            "group": mean.group,
        }
        for mean in means
    ]
    title = f"item {item}" if item is not None else "word by word"
    x_title = "word" if item is not None else "number of the word"
    if align and item is None:
        x_title += f" (0: first word of {make_printable(align)})"
    return _build_plot(result, "sentence", title, rows, "line", x_title)


def _word_labels(means: Sequence[WordMean]) -> dict[int, str]:
    """Return position -> the words there, e.g. `showed / that`, each label only once.

    Labels that look alike get spaces at the end, because each is a category of the axis.
    """
    words: dict[int, dict[str, None]] = {}
    for mean in means:
        words.setdefault(mean.position, {}).update(dict.fromkeys(mean.words))
    labels: dict[int, str] = {}
    used: set[str] = set()
    for position in sorted(words):
        label = " / ".join(words[position])
        while label in used:
            label += " "
        used.add(label)
        labels[position] = label
    return labels


def _plot_regions(result: DesignResult, kind: str, regions: Sequence[str]) -> DesignPlot:
    """Draw the means of regions as points, or those of the first region as bars."""
    if kind == "critical":
        regions = regions[:1]
    means = [mean for mean in result.means if mean.region in regions]
    group_columns = tuple(result.groups[0])
    per = [column for column in group_columns if column != "model"]
    rows = [
        {
            **_row(result, mean.condition, mean.mean, mean.region),
            "x": _bar_category(mean, per) if kind == "critical" else mean.region or "text",
            "order": index if kind == "critical" else regions.index(mean.region),
            # A panel of bars holds all values of `per` of a model.
            "group": {
                column: value
                for column, value in mean.group.items()
                if kind != "critical" or column not in per
            },
        }
        for index, mean in enumerate(means)
    ]
    name = regions[0] or "text"
    if kind == "critical":
        return _build_plot(result, kind, name, rows, "bar", ", ".join(per))
    return _build_plot(result, kind, "regions", rows, "point", "region")


def _plot_effects(result: DesignResult, regions: Sequence[str]) -> DesignPlot:
    """Draw the effects with their paired intervals: a row per effect and region, a mark per model.

    An outlined mark is not significant after the correction.
    """
    effects = [effect for effect in result.effects if effect.region in regions]
    models = tuple(dict.fromkeys(effect.group.get("model", "") for effect in effects))
    has_several_effects = len({effect.name for effect in effects}) > 1
    title = "surprisal difference" + (f", {result.unit}" if result.unit else "")
    if not has_several_effects:
        title = f"{make_printable(effects[0].name)}" + (f", {result.unit}" if result.unit else "")
    rows = []
    for effect in effects:
        values = [value for column, value in effect.group.items() if column != "model"]
        label = " · ".join(
            filter(None, [*values, effect.region, effect.name if has_several_effects else ""])
        )
        row = _row(result, effect.group.get("model", ""), effect.mean, label, is_difference=True)
        row |= {"row": make_printable(label or effect.name), "low": effect.mean.low}
        row["hollow"] = effect.adjusted is None or effect.adjusted >= SIGNIFICANCE_LEVEL
        rows.append(row)
    figure = Figure(
        section="effects",
        name="effects",
        title="effects",
        caption=_describe_effects(effects),
        series=models,
        present_series=frozenset(models),
        draw=partial(_draw_effects, rows, models, title),
        table=FigureTable(
            ("effect", "model", title),
            tuple(
                tuple(map(HeatmapCell, (row["row"], row["series"], row["text"]))) for row in rows
            ),
        ),
    )
    return DesignPlot("effects", "effects", (figure,))


def _describe_effects(effects: Sequence[Effect]) -> str:
    """Return the caption of effects. Models can have families of different sizes, or no test."""
    caption = "Differences with 95% intervals, paired by items."
    families = dict.fromkeys(effect.family for effect in effects if effect.family)
    if not families:
        return f"{caption} No effect is tested: one item has no interval and no test."
    corrections = " or ".join(families)
    per_model = ", per model" * (len({effect.group.get("model") for effect in effects}) > 1)
    return (
        f"{caption} A filled mark is significant: p < .05 after the correction "
        f"({corrections}{per_model})."
    )


def _draw_effects(
    rows: Sequence[Mapping[str, Any]], models: Sequence[str], title: str, style: charts.ChartStyle
) -> Any:
    """Draw the effects. A single model needs no legend."""
    style = replace(style, legend_width=style.legend_width * (len(models) > 1))
    return charts.dot_plot(rows, models, style, title, rule_at_zero=True)


def _bar_category(mean: CellMean, per: Sequence[str]) -> str:
    return ", ".join(mean.group[column] for column in per) or mean.region or "text"


def _row(
    result: DesignResult,
    condition: str,
    mean: MeanOverItems,
    label: str,
    is_difference: bool = False,
) -> dict[str, Any]:
    interval = format_mean_interval(mean, is_difference)
    sign = "+" if is_difference else ""
    words = (format_decimals(mean.value, f"{sign}.2f"), interval, result.unit)
    text = " ".join(filter(None, words))
    return {
        "series": condition,
        "value": mean.value,
        "low": mean.low,
        "high": mean.high,
        "hollow": False,
        "faint": False,
        "text": text,
        "description": f"{condition}, {label}: {text}, {mean.n} items",
    }


def _build_plot(
    result: DesignResult,
    kind: str,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    mark: charts.IntervalMark,
    x_title: str,
) -> DesignPlot:
    """Build a panel per group, with the same y-axis."""
    y_title = f"surprisal, {result.unit}" if result.unit else "surprisal"
    # The values of a single item are not means and have no intervals.
    has_intervals = any(row["low"] is not None for row in rows)
    values = "Means with 95% intervals over items" if has_intervals else "Values"
    present = {tuple(row["group"].items()) for row in rows}
    in_order = [tuple(group.items()) for group in result.groups]
    groups = [group for group in in_order if group in present] or sorted(present)
    panels = []
    for group in groups:
        panel_rows = [
            {key: value for key, value in row.items() if key != "group"}
            for row in rows
            if tuple(row["group"].items()) == group
        ]
        name = make_printable(" · ".join(value for _, value in group) or title)
        panels.append(
            Figure(
                section=kind,
                name=f"{kind}.{name}",
                title=name,
                caption=f"{values}, {title}.",
                series=result.conditions,
                present_series=frozenset(row["series"] for row in panel_rows),
                draw=partial(
                    charts.interval_plot,
                    panel_rows,
                    result.conditions,
                    mark=mark,
                    titles=(x_title, y_title),
                    domain_rows=[dict(row, group="") for row in rows],
                ),
                table=FigureTable(
                    (x_title or "category", "condition", y_title),
                    tuple(
                        tuple(map(HeatmapCell, (row["x"].strip(), row["series"], row["text"])))
                        for row in panel_rows
                    ),
                ),
            )
        )
    others = {tuple(pair for pair in group if pair[0] != "model") for group in groups}
    columns = len(others) if 1 < len(others) < len(groups) else PANELS_PER_ROW  # a model per row
    return DesignPlot(kind, title, tuple(panels), min(columns, PANELS_PER_ROW + 1))


def _build_page(plots: Sequence[DesignPlot], result: DesignResult | None) -> str:
    """Return a page that holds figures, their values and the effects."""
    sections = []
    for each in plots:
        panels = [
            # One figure of all effects is wide; the others have a panel per group.
            replace(panel, caption="", small=each.kind != "effects")
            for panel in each.panels
        ]
        sections.append(
            {
                "key": each.kind,
                "title": make_printable(each.title),
                "lead": each.panels[0].caption,
                "figures": list(map(build_figure_context, panels)),
            }
        )
    tables = []
    if result is not None:
        table = build_effects_table(result, title="effects")
        tables = [_build_table_context(part.narrow or part) for part in (table, *table.parts)]
    return render_template(
        "effects.html.j2",
        kicker="antlm-bench effects",
        title="Effects of conditions",
        sections_start=plots[0].kind,
        sections=sections,
        tables=tables,
    )


def _build_table_context(table: Table) -> dict[str, Any]:
    """Return the template's values for a table."""
    return {
        "title": make_printable(table.title),
        "legend": [make_printable(line) for line in table.legend],
        "grid": FigureTable(
            tuple(make_printable(" ".join(column.label_lines)) for column in table.columns),
            tuple(
                tuple(
                    HeatmapCell(make_printable(cell.shown), is_group=row.emphasis == "strong")
                    for cell in row.cells
                )
                for row in table.rows
            ),
        ),
    }
