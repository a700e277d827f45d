"""The marks of a result: dots with intervals, lines over words, tiles. Rows in, an Altair chart
out, nothing computed.

A chart says in words what each mark shows (`says`), for screen readers and for the page's hover.
Names come from outside and are only ever values of a fixed field, never part of an expression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from antlm_bench.reporting import palette

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
ChartRow = Mapping[str, Any]
POINT_AREA = 46  # area of a mark in square pixels


@dataclass(frozen=True, slots=True)
class ChartStyle:
    """How a chart is drawn: total width in px, colours by role, with a legend of its own or not."""

    width: int
    colours: palette.Colours
    legend: bool = False

    @property
    def is_narrow(self) -> bool:
        return self.width < 500

    @property
    def label_width(self) -> int:
        """Room for the names on the left: half of a phone, a third of a page."""
        return round(self.width * (0.42 if self.is_narrow else 0.32))


def dot_plot(
    rows: Sequence[ChartRow],
    names: Sequence[str],
    style: ChartStyle,
    title: str,
    zero: bool = False,
) -> alt.Chart:
    """A line of dots with 95% intervals per `row`, one dot per series. zero: with a rule at 0, for
    differences.

    rows: row, series, value, low, high (None = no interval), says; hollow (an outline), faint (one
    of several seeds).
    """
    order = list(dict.fromkeys(row["row"] for row in rows))
    axis = alt.Axis(
        grid=True, gridDash=[1, 3], labelLimit=style.label_width, labelPadding=8, tickBand="extent"
    )
    y = alt.Y(
        "row:N",
        sort=order,
        title=None,
        axis=axis,
        scale=alt.Scale(paddingInner=0.25, paddingOuter=0.15),
    )
    present = _present_series(rows, names)
    lanes = alt.YOffset("series:N", sort=present, scale=alt.Scale(domain=present, paddingOuter=0.2))
    x = alt.X(
        "value:Q", title=title, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=6)
    )
    drawn = alt.Chart(_inline_data(rows)).encode(
        y=y, yOffset=lanes, color=_series_colour(names, style, _present_series(rows, names))
    )
    intervals = drawn.transform_filter("datum.low != null").mark_rule(strokeWidth=1.6, aria=False)
    layers = [
        intervals.encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        _draw_points(drawn, names, style, present).encode(x=x),
    ]
    if zero:
        rule = alt.Chart(_inline_data([{"zero": 0}])).mark_rule(
            color=style.colours["strong-rule"], aria=False
        )
        layers.insert(0, rule.encode(x="zero:Q"))
    height = max(24, 13 * len(present) + 9) * len(order)
    return alt.layer(*layers).properties(height=height, width=style.width)


def line_plot(
    rows: Sequence[ChartRow], names: Sequence[str], style: ChartStyle, title: str
) -> alt.Chart:
    """Values over words seen (log axis) with a band of 95% intervals; dashed where checkpoints
    between are missing.

    rows: series, stretch (a run of neighbours), words, value, low, high, says, hollow (True:
    weights seen before).
    """
    x = _words_axis(rows, style)
    y = alt.Y(
        "value:Q", title=title, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=5)
    )
    drawn = alt.Chart(_inline_data(rows)).encode(
        x=x, color=_series_colour(names, style, _present_series(rows, names))
    )
    neighbours = [alt.Detail("series:N"), alt.Detail("stretch:N")]
    band = drawn.mark_area(opacity=0.14, aria=False).encode(
        alt.Y("low:Q", title=title), y2="high:Q", detail=neighbours
    )
    bridge = drawn.mark_line(strokeDash=[2, 3], strokeWidth=1, aria=False).encode(
        y=y, detail="series:N"
    )
    line = drawn.mark_line(strokeWidth=1.8, aria=False).encode(y=y, detail=neighbours)
    points = _draw_points(drawn, names, style, _present_series(rows, names), 0.55).encode(y=y)
    return alt.layer(band, bridge, line, points).properties(height=170, width=style.width)


def loss_plot(
    rows: Sequence[ChartRow], switches: Sequence[ChartRow], names: Sequence[str], style: ChartStyle
) -> alt.Chart:
    """Losses of a training run over words seen; a rule at each switch of objectives, named above.

    rows: series (the objective), stretch, words, value, says. switches: words, label.
    """
    x = alt.X(
        "words:Q",
        title="words seen",
        axis=alt.Axis(labelExpr=SHORT_NUMBER_EXPR, tickCount=5),
        scale=alt.Scale(nice=False),
    )
    y = alt.Y("value:Q", title="loss, nats per target", scale=alt.Scale(zero=False, nice=True))
    drawn = alt.Chart(_inline_data(rows)).encode(
        x=x, y=y, color=_series_colour(names, style, _present_series(rows, names))
    )
    line = drawn.mark_line(strokeWidth=1.5, aria=False).encode(
        detail=[alt.Detail("series:N"), alt.Detail("stretch:N")]
    )
    marks = drawn.mark_point(size=30, opacity=0, filled=True).encode(description="says:N")
    layers: list[alt.Chart] = [line, marks]
    if switches:
        at = alt.Chart(_inline_data(switches)).encode(x=x)
        layers.append(
            at.mark_rule(strokeDash=[3, 3], color=style.colours["strong-rule"], aria=False)
        )
        text = at.mark_text(
            align="left",
            baseline="top",
            dx=4,
            fontSize=11,
            color=style.colours["muted"],
            aria=False,
        )
        layers.append(text.encode(text="label:N", y=alt.value(2)))
    return alt.layer(*layers).properties(height=230, width=style.width)


def heatmap(rows: Sequence[ChartRow], names: Sequence[str], style: ChartStyle) -> alt.Chart:
    """A heat map of percentages: one tile per `row` and series, its number in it; orange below 50,
    blue above.

    rows: row, series, value (percent), text, says.
    """
    order = list(dict.fromkeys(row["row"] for row in rows))
    y = alt.Y(
        "row:N", sort=order, title=None, axis=alt.Axis(labelLimit=style.label_width, labelPadding=8)
    )
    head = alt.Axis(orient="top", labelAngle=-30, labelLimit=160, labelAlign="left", labelPadding=4)
    x = alt.X("series:N", sort=list(names), title=None, axis=head)
    ground = [style.colours["below"], style.colours["ground"], style.colours["above"]]
    colour = alt.Color(
        "value:Q",
        legend=None,
        scale=alt.Scale(domain=[0, 50, 100], range=ground, interpolate="rgb"),
    )
    drawn = alt.Chart(_inline_data(rows)).encode(x=x, y=y)
    text = drawn.mark_text(fontSize=10, color=style.colours["ink"], aria=False).encode(
        text="text:N"
    )
    tiled = alt.layer(drawn.mark_rect().encode(color=colour, description="says:N"), text)
    return tiled.properties(height=18 * len(order), width=style.width)


def concatenate(charts: Sequence[alt.Chart], columns: int) -> alt.Chart:
    """Small charts as one figure, row by row."""
    return alt.concat(*charts, columns=columns)


# 2,000,000 -> 2M, on an axis.
SHORT_NUMBER_EXPR = (
    "datum.value >= 1e9 ? format(datum.value / 1e9, '~g') + 'B' : datum.value >= 1e6 ? "
    "format(datum.value / 1e6, '~g') + 'M' : datum.value >= 1e3 ? format(datum.value / 1e3, '~g') "
    "+ 'k' : datum.label"
)


def _words_axis(rows: Sequence[ChartRow], style: ChartStyle) -> alt.X:
    """The log axis of words seen, ticks at round numbers of checkpoints only."""
    first, last = min(row["words"] for row in rows), max(row["words"] for row in rows)
    steps = (1, 3) if style.width > 300 and last / first < 1e4 else (1,)
    ticks = [
        n * 10**power
        for power in range(3, 13)
        for n in steps
        if 0.7 * first <= n * 10**power <= 1.5 * last
    ]
    axis = alt.Axis(values=ticks, labelExpr=SHORT_NUMBER_EXPR, grid=False, ticks=True, domain=True)
    scale = alt.Scale(type="log", nice=False, padding=8)
    return alt.X("words:Q", title="words seen", scale=scale, axis=axis)


def _present_series(rows: Sequence[ChartRow], names: Sequence[str]) -> list[str]:
    """The series that have a row; the others keep their colour, that it may mean the same in every
    figure.
    """
    found = {row["series"] for row in rows}
    return [name for name in names if name in found]


def _series_colour(names: Sequence[str], style: ChartStyle, present: Sequence[str]) -> alt.Color:
    colours = [style.colours[palette.colour_role(index)] for index in range(len(names))]
    return alt.Color(
        "series:N",
        scale=alt.Scale(domain=list(names), range=colours),
        legend=_series_legend(style, present),
    )


def _series_legend(style: ChartStyle, present: Sequence[str]) -> alt.Legend | None:
    if not style.legend:
        return None
    columns = 1 if style.is_narrow else 3
    return alt.Legend(
        orient="top",
        title=None,
        columns=columns,
        labelLimit=260,
        values=list(present),
        symbolOpacity=1,
    )


def _draw_points(
    chart: alt.Chart,
    names: Sequence[str],
    style: ChartStyle,
    present: Sequence[str],
    scale: float = 1,
) -> alt.Chart:
    """Each series' own shape; filled, or an outline where the row is hollow."""
    shapes = alt.Scale(
        domain=list(names), range=[palette.shape(index) for index in range(len(names))]
    )
    hollow = alt.value(style.colours["raised"])
    return chart.mark_point(size=POINT_AREA * scale, strokeWidth=1.4).encode(
        opacity=alt.condition("datum.faint", alt.value(0.45), alt.value(1)),
        shape=alt.Shape("series:N", scale=shapes, legend=_series_legend(style, present)),
        fill=alt.condition("datum.hollow", hollow, _series_colour(names, style, present)),
        description="says:N",
    )


def _inline_data(rows: Sequence[ChartRow]) -> alt.Data:
    return alt.Data(values=[dict(row) for row in rows])


def vega_lite_spec(chart: alt.Chart, style: ChartStyle) -> dict[str, Any]:
    """The chart as Vega-Lite, in the look's colours."""
    ink, muted, rule = (style.colours[role] for role in ("ink", "muted", "rule"))
    axis = {
        "domain": False,
        "ticks": False,
        "gridColor": rule,
        "domainColor": rule,
        "tickColor": rule,
    }
    axis |= {
        "labelColor": ink,
        "titleColor": muted,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
    }
    axis |= {"titleFontSize": 12, "titlePadding": 8, "labelOverlap": True}
    legend = {"labelColor": ink, "labelFontSize": 12, "symbolStrokeWidth": 1.4}
    title = {
        "color": ink,
        "fontSize": 13,
        "anchor": "start",
        "fontWeight": 600,
        "limit": style.width,
    }
    dressed = chart.configure(background="transparent", font=FONT, padding=2)
    dressed = dressed.configure_axis(**axis).configure_legend(**legend).configure_title(**title)
    made: dict[str, Any] = _escape_for_vega(dict(dressed.configure_view(stroke=None).to_dict()))
    if "concat" not in made:  # the width includes the names on the left
        made["autosize"] = {"type": "fit-x", "contains": "padding"}
    return made


def _escape_for_vega(value: Any) -> Any:
    """The same with texts on which Vega breaks spelled otherwise.

    Characters beyond 16 bits become their code points: a long label is cut through the middle of
    one, and then cannot be drawn. A name that is `if` gets a mark of no width: in the order of a
    scale it would be taken for the function.
    """
    if isinstance(value, dict):
        return {_escape_for_vega(key): _escape_for_vega(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [_escape_for_vega(inside) for inside in value]
    if not isinstance(value, str):
        return value
    return (
        "if\u200b"
        if value == "if"
        else "".join(c if c <= "\uffff" else f"U+{ord(c):X}" for c in value)
    )
