"""Draw charts with Altair: dots with intervals, lines over words seen, heat maps.

The functions take rows with computed values. `description` of a row describes its mark in words,
for screen readers and tooltips. Names of models and suites come from outside, so they are used as
data values only, never in a Vega expression.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from antlm_bench.printable import make_printable
from antlm_bench.reporting import palette
from antlm_bench.reporting.name_lines import count_columns, fold_name, wrap_name

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
ChartRow = Mapping[str, Any]
"""A mark: field -> value. Each function lists the fields that it needs."""
IntervalMark = Literal["line", "point", "bar"]
CHARACTER_WIDTH = 7.4
"""Mean width in px of a column of a row name, in the widest font of FONT. Vega measures text in its
own font, the browser draws it in another one."""
LABEL_PADDING = 12
"""Distance in px of row names from the plot, so that a mark at its edge does not touch them."""
TILE_SHARE = 0.65
"""Share of the colour in a tile that is all right or all wrong: its number stays readable."""
POINT_AREA = 46
"""Area of a point in square pixels."""


@dataclass(frozen=True, slots=True)
class ChartStyle:
    """How a chart is drawn."""

    width: int
    """Total width in px."""
    colours: palette.Colours
    legend_width: int = 0
    """Width in px of the legend in the chart; 0 = no legend. The HTML page has its own."""

    @property
    def is_narrow(self) -> bool:
        return self.width < 500

    @property
    def label_width(self) -> int:
        """Largest width in px of the row names on the left."""
        return round(self.width * (0.42 if self.is_narrow else 0.32))

    @property
    def label_length(self) -> int:
        """Largest number of columns (see `count_columns`) in a line of a row name."""
        return int(self.label_width / CHARACTER_WIDTH)


def dot_plot(
    rows: Sequence[ChartRow],
    names: Sequence[str],
    style: ChartStyle,
    title: str,
    rule_at_zero: bool = False,
) -> alt.Chart:
    """Draw dots with 95% intervals: a line per name in `row`, a dot per series.

    Fields of rows: row, series, value, low, high (None = no interval), description, hollow (whether
    the dot is an outline), faint (whether the dot is one of several seeds).

    names: all series, which fixes their colours. rule_at_zero: draw a vertical line at 0, for
    differences.
    """
    rows = _fold_row_names(rows, style)
    order = list(dict.fromkeys(row["row"] for row in rows))
    axis = _row_axis(order, grid=True, gridDash=[1, 3], tickBand="extent")
    y = alt.Y(
        "row:N",
        sort=order,
        title=None,
        axis=axis,
        scale=alt.Scale(paddingInner=0.25, paddingOuter=0.15),
    )
    present = _present_series(rows, names)
    lanes = alt.YOffset("series:N", sort=present, scale=alt.Scale(domain=present, paddingOuter=0.2))
    fields = ("value", "low", "high")
    scale = _value_scale(rows, fields, [0.0] if rule_at_zero else [])
    x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=6))
    base = alt.Chart(_inline_data(rows)).encode(
        y=y, yOffset=lanes, color=_series_colour(names, style, _present_series(rows, names))
    )
    intervals = base.transform_filter("datum.low != null").mark_rule(strokeWidth=1.6, aria=False)
    layers = [
        intervals.encode(x=alt.X("low:Q", title=title), x2="high:Q"),
        _draw_points(base, names, style, present).encode(x=x),
    ]
    if rule_at_zero:
        rule = alt.Chart(_inline_data([{"zero": 0}])).mark_rule(
            color=style.colours["strong-rule"], aria=False
        )
        layers.insert(0, rule.encode(x="zero:Q"))
    row_height = max(_name_height(order, 24), 13 * len(present) + 9)
    return alt.layer(*layers).properties(height=row_height * len(order), width=style.width)


def line_plot(
    rows: Sequence[ChartRow], names: Sequence[str], style: ChartStyle, title: str
) -> alt.Chart:
    """Draw values over words seen (log axis) with a band of 95% intervals.

    A dashed line bridges missing checkpoints.

    Fields of rows: series, segment (index of a series of checkpoints without gaps), words, value,
    low, high, description, hollow (whether the weights equal those of an earlier checkpoint).
    """
    x = _words_axis(rows, style)
    scale = _value_scale(rows, ("value", "low", "high"))
    y = alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    base = alt.Chart(_inline_data(rows)).encode(
        x=x, color=_series_colour(names, style, _present_series(rows, names))
    )
    segments = [alt.Detail("series:N"), alt.Detail("segment:N")]
    band = base.mark_area(opacity=0.14, aria=False).encode(
        alt.Y("low:Q", title=title), y2="high:Q", detail=segments
    )
    bridge = base.mark_line(strokeDash=[2, 3], strokeWidth=1, aria=False).encode(
        y=y, detail="series:N"
    )
    line = base.mark_line(strokeWidth=1.8, aria=False).encode(y=y, detail=segments)
    points = _draw_points(base, names, style, _present_series(rows, names), 0.55).encode(y=y)
    # A band needs two points.
    lone = _lone_intervals(base, rows, ("series", "segment")).encode(alt.Y("low:Q"), y2="high:Q")
    layers = [band, lone, bridge, line, points]
    return alt.layer(*layers).properties(height=170, width=style.width)


def loss_plot(
    rows: Sequence[ChartRow], switches: Sequence[ChartRow], names: Sequence[str], style: ChartStyle
) -> alt.Chart:
    """Draw the losses of a training run over words seen.

    A labelled vertical line marks each switch between objectives.

    Fields of rows: series (the objective), segment (index of the part of the run between two
    switches), words, value, description. Fields of switches: words, label.
    """
    x = alt.X(
        "words:Q",
        title="words seen",
        axis=alt.Axis(labelExpr=SHORT_NUMBER_EXPR, tickCount=5),
        scale=_value_scale([*rows, *switches], ("words",), nice=False),
    )
    y = alt.Y("value:Q", title="loss, nats per target", scale=_value_scale(rows, ("value",)))
    base = alt.Chart(_inline_data(rows)).encode(
        x=x, y=y, color=_series_colour(names, style, _present_series(rows, names))
    )
    line = base.mark_line(strokeWidth=1.5, aria=False).encode(
        detail=[alt.Detail("series:N"), alt.Detail("segment:N")]
    )
    points = base.mark_point(size=30, opacity=0, filled=True).encode(description="description:N")
    layers: list[alt.Chart] = [line, points]
    if switches:
        switch_base = alt.Chart(_inline_data(switches)).encode(x=x)
        layers.append(
            switch_base.mark_rule(strokeDash=[3, 3], color=style.colours["strong-rule"], aria=False)
        )
        text = switch_base.mark_text(
            align="left",
            baseline="top",
            dx=4,
            fontSize=11,
            color=style.colours["muted"],
            aria=False,
        )
        layers.append(text.encode(text="label:N", y=alt.value(2)))
    return alt.layer(*layers).properties(height=230, width=style.width)


def interval_plot(
    rows: Sequence[ChartRow],
    names: Sequence[str],
    style: ChartStyle,
    mark: IntervalMark,
    titles: tuple[str, str],
    domain_rows: Sequence[ChartRow] | None = None,
) -> alt.Chart:
    """Draw values with 95% intervals over categories on the x-axis.

    mark: "line" joins the values of a series and draws the intervals as a band; "point" and "bar"
    draw the series of a category side by side. titles: of the x-axis and of the y-axis.
    domain_rows: rows that decide the range of the y-axis, so that panels can be compared; None =
    `rows`.

    Fields of rows: x (the category, in the order of the rows), order (its rank on the axis),
    series, value, low, high (None = no interval), description, hollow, faint.
    """
    present = _present_series(rows, names)
    rows, x_axis = _fold_categories(rows, style)
    categories = [row["x"] for row in sorted(rows, key=lambda row: row["order"])]
    padding = {"padding": 0.5} if mark == "line" else {"paddingInner": 0.25, "paddingOuter": 0.15}
    kind = {"type": "point"} if mark == "line" else {"type": "band"}
    x = alt.X(
        "x:N",
        sort=list(dict.fromkeys(categories)),
        title=titles[0],
        axis=x_axis,
        scale=alt.Scale(**kind, **padding),
    )
    fields = ("value", "low", "high")
    scale = _value_scale(domain_rows or rows, fields, [0.0] if mark == "bar" else [])
    y = alt.Y("value:Q", title=titles[1], scale=scale, axis=alt.Axis(tickCount=5))
    low, high = alt.Y("low:Q", title=titles[1], scale=scale), alt.Y2("high:Q")
    colour = _series_colour(names, style, present)
    base = alt.Chart(_inline_data(rows)).encode(x=x, color=colour)
    with_interval = base.transform_filter("datum.low != null")
    points = _draw_points(base, names, style, present, 0.7 if mark == "line" else 1)
    if mark == "line":
        opacity = 0.14 if len(present) < 3 else 0.08  # of bands that cover each other
        band = with_interval.mark_area(opacity=opacity, aria=False).encode(low, high)
        line = base.mark_line(strokeWidth=1.8, aria=False).encode(y=y)
        lone = _lone_intervals(base, rows, ("series",)).encode(low, high)
        layers = [band, lone, line, points.encode(y=y)]
    else:
        lanes = alt.XOffset("series:N", sort=present, scale=alt.Scale(domain=present))
        intervals = with_interval.mark_rule(strokeWidth=1.6, aria=False)
        layers = [intervals.encode(low, high, xOffset=lanes), points.encode(y=y, xOffset=lanes)]
    if mark == "bar":
        bars = base.mark_bar().encode(y=y, xOffset=lanes, description="description:N")
        ink = alt.value(style.colours["ink"])
        layers = [
            bars,
            with_interval.mark_rule(strokeWidth=1.4, aria=False).encode(
                low, high, xOffset=lanes, color=ink
            ),
        ]
    return alt.layer(*layers).properties(height=190, width=style.width)


def heatmap(
    rows: Sequence[ChartRow], names: Sequence[str], style: ChartStyle, chance: float | None
) -> alt.Chart:
    """Draw a heat map of percentages: a tile with its value per name in `row` and series.

    Tiles are orange below chance (a fraction) and blue above; without it they have no colour.

    Fields of rows: row, series, value (percent), tile (the text on it), description.
    """
    rows = _fold_row_names(rows, style)
    order = list(dict.fromkeys(row["row"] for row in rows))
    y = alt.Y("row:N", sort=order, title=None, axis=_row_axis(order))
    wrapped = _wrap_column_names(names, order, style)
    headers = wrapped or {name: name for name in names}
    rows = [{**row, "series": headers[row["series"]]} for row in rows]
    header = alt.Axis(
        orient="top",
        labelExpr="split(datum.label, '\\n')",
        labelAngle=-90 if wrapped is None else 0,
        labelLimit=0,
        labelLineHeight=13,
        labelPadding=6 + 13 * max((text.count("\n") for text in headers.values()), default=0),
        labelOverlap=False,
    )
    x = alt.X("series:N", sort=list(headers.values()), title=None, axis=header)
    ground = style.colours["ground"]
    tones = [palette.mix(style.colours[role], ground, TILE_SHARE) for role in ("below", "above")]
    colours = [ground] * 3 if chance is None else [tones[0], ground, tones[1]]
    domain = [0, 50 if chance is None else 100 * chance, 100]
    colour = alt.Color(
        "value:Q",
        legend=None,
        scale=alt.Scale(domain=domain, range=colours, interpolate="rgb"),
    )
    base = alt.Chart(_inline_data(rows)).encode(x=x, y=y)
    text = base.mark_text(fontSize=10, color=style.colours["ink"], aria=False).encode(text="tile:N")
    tiles = alt.layer(base.mark_rect().encode(color=colour, description="description:N"), text)
    height = _name_height(order, 18) * len(order)
    return tiles.properties(height=height, width=style.width)


def _name_height(names: Sequence[str], single: int) -> int:
    """Return the height in px of a row for names of one line (`single`) or two."""
    return 28 if any("\n" in name for name in names) else single


def _lone_intervals(base: alt.Chart, rows: Sequence[ChartRow], fields: Sequence[str]) -> alt.Chart:
    """Draw the intervals of rows that share the values of `fields` with no other row."""
    counts = Counter(tuple(row[field] for field in fields) for row in rows)
    lone = [row for row in rows if counts[tuple(row[field] for field in fields)] == 1]
    chart = base.properties(data=_inline_data(lone)).transform_filter("datum.low != null")
    return chart.mark_rule(strokeWidth=1.6, aria=False)


def concatenate(charts: Sequence[alt.Chart], columns: int) -> alt.Chart:
    """Arrange small charts in rows of one figure."""
    return alt.concat(*charts, columns=columns)


SHORT_NUMBER_EXPR = (
    "datum.value >= 1e9 ? format(datum.value / 1e9, '~g') + 'B' : datum.value >= 1e6 ? "
    "format(datum.value / 1e6, '~g') + 'M' : datum.value >= 1e3 ? format(datum.value / 1e3, '~g') "
    "+ 'k' : datum.label"
)
"""Vega expression for labels of an axis: 2,000,000 -> 2M."""


def _fold_row_names(rows: Sequence[ChartRow], style: ChartStyle) -> list[ChartRow]:
    """Break long names in `row` into two lines, at underscores and spaces if possible.

    Names that look alike then get spaces at the end, so that each keeps its row.
    """
    folded: dict[str, str] = {}
    for name in dict.fromkeys(row["row"] for row in rows):
        text = fold_name(name, style.label_length)
        while text in folded.values():
            text += " "
        folded[name] = text
    return [{**row, "row": folded[row["row"]]} for row in rows]


def _fold_categories(
    rows: Sequence[ChartRow], style: ChartStyle
) -> tuple[Sequence[ChartRow], alt.Axis]:
    """Return the rows and the x-axis of their categories `x`.

    Labels that are too wide are broken into two lines, or else written at an angle.
    """
    names = list(dict.fromkeys(row["x"] for row in rows))
    room = int(0.9 * style.width / max(len(names), 1) / CHARACTER_WIDTH)
    is_crowded = any(len(name) > room for name in names)
    folded = {name: fold_name(name, room) for name in names} if is_crowded and room > 6 else {}
    fits = len(set(folded.values())) == len(names) and all(
        "\n" not in name or (name.split("\n")[0][-1] in "_- ." and "…" not in name)
        for name in folded.values()
    )
    if is_crowded and fits:
        rows = [{**row, "x": folded[row["x"]]} for row in rows]
    is_number = all(name.lstrip("-").isdecimal() for name in names)
    axis = alt.Axis(
        labelExpr="split(datum.label, '\\n')",
        labelAngle=-40 if is_crowded and not fits and not is_number else 0,
        labelLimit=150,
        labelOverlap=is_number,
        labelPadding=6,
        grid=False,
        domain=True,
    )
    return rows, axis


def _row_axis(names: Sequence[str], **options: Any) -> alt.Axis:
    """Build the axis of row names. Names of several lines hold newlines."""
    longest = max((count_columns(line) for name in names for line in name.split("\n")), default=0)
    return alt.Axis(
        labelExpr="split(datum.label, '\\n')",
        labelBaseline=alt.condition(
            "isString(datum.value) && indexof(datum.value, '\\n') > 0",
            alt.value("bottom"),
            alt.value("middle"),
        ),
        labelLimit=0,
        labelOverlap=False,
        labelLineHeight=13,
        labelPadding=LABEL_PADDING,
        minExtent=round(longest * CHARACTER_WIDTH) + LABEL_PADDING,
        **options,
    )


def _wrap_column_names(
    names: Sequence[str], rows: Sequence[str], style: ChartStyle
) -> dict[str, str] | None:
    """Return name -> name in lines that fit a column of a heat map; None if columns are narrow.

    rows: row names, in lines. Columns are narrow if they have no room for ten letters.
    """
    longest = max((count_columns(line) for row in rows for line in row.split("\n")), default=0)
    room = style.width - longest * CHARACTER_WIDTH - LABEL_PADDING
    length = int(0.95 * room / max(len(names), 1) / CHARACTER_WIDTH)
    if length < 10:
        return None
    return {name: "\n".join(wrap_name(name, length)) for name in names}


def _value_scale(
    rows: Sequence[ChartRow], fields: Sequence[str], also: Sequence[float] = (), nice: bool = True
) -> alt.Scale:
    """Build a linear scale over fields of rows, wide enough for several ticks if all are equal.

    also: further values that the scale must hold. nice: whether it ends at round numbers.
    """
    present = [row[field] for row in rows for field in fields if row.get(field) is not None]
    values = [value for value in (*present, *also) if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        margin = max(0.1 * abs(low), 0.5)
        low, high = low - margin, high + margin
    return alt.Scale(domain=[low, high], zero=False, nice=nice)


def _words_axis(rows: Sequence[ChartRow], style: ChartStyle) -> alt.X:
    """Build the log axis of words seen (symlog if a checkpoint has seen none)."""
    words = [row["words"] for row in rows]
    ticks, domain = choose_word_ticks(min(words), max(words), 6 if style.width > 300 else 4)
    axis = alt.Axis(values=ticks, labelExpr=SHORT_NUMBER_EXPR, grid=False, ticks=True, domain=True)
    kind = {"type": "log"} if domain[0] > 0 else {"type": "symlog", "constant": ticks[1]}
    scale = alt.Scale(nice=False, domain=domain, **kind)
    return alt.X("words:Q", title="words seen", scale=scale, axis=axis)


def choose_word_ticks(first: float, last: float, most: int) -> tuple[list[float], list[float]]:
    """Return (at least two ticks, first and last value of the axis) for words from first to last.

    Ticks are 1, 3 or 1, 2, 5 times powers of ten, as many as possible up to `most`. If fewer than
    two lie between first and last, the axis extends to the next ones.
    """
    low = first if first > 0 else last / 100 if last > 0 else 1
    high = max(low, last)
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5)):
        candidates = [float(digit * 10**power) for power in range(13) for digit in digits]
        inner = [tick for tick in candidates if 0.999 * low <= tick <= 1.001 * high]
        if len(inner) < 2:
            below = max((tick for tick in candidates if tick < low), default=candidates[0])
            above = min((tick for tick in candidates if tick > high), default=candidates[-1])
            inner = sorted({below, *inner, above})
        if not ticks or len(inner) <= most:
            ticks = inner
    if len(ticks) > most:
        ticks = ticks[:: math.ceil(len(ticks) / most)]
    padding = (max(high, ticks[-1]) / min(low, ticks[0])) ** 0.04
    domain = [min(low, ticks[0]) / padding, max(high, ticks[-1]) * padding]
    return ([0.0, *ticks], [0.0, domain[1]]) if first <= 0 else (ticks, domain)


def _present_series(rows: Sequence[ChartRow], names: Sequence[str]) -> list[str]:
    """Return the series that have rows, in the order of `names`."""
    present = {row["series"] for row in rows}
    return [name for name in names if name in present]


def _series_colour(names: Sequence[str], style: ChartStyle, present: Sequence[str]) -> alt.Color:
    """Encode the series as a colour.

    The domain is all names, so that a series has the same colour in every figure.
    """
    colours = [style.colours[palette.colour_role(index)] for index in range(len(names))]
    return alt.Color(
        "series:N",
        scale=alt.Scale(domain=list(names), range=colours),
        legend=_series_legend(style, present),
    )


def _series_legend(style: ChartStyle, present: Sequence[str]) -> alt.Legend | None:
    """Build the legend, with whole names: a name that is too wide is broken into lines."""
    if not style.legend_width:
        return None
    name_width = CHARACTER_WIDTH * max(map(count_columns, present), default=0)
    padding = 10 + round(0.2 * name_width)  # Vega measures in a font that may be narrower
    # The legend starts above the plot.
    room = style.legend_width - (60 if style.is_narrow else style.label_width)
    length = max(1, int((room - 30) / CHARACTER_WIDTH))
    return alt.Legend(
        orient="top",
        title=None,
        columns=max(1, min(3, int(room / (30 + name_width + padding)))),
        columnPadding=padding,
        labelLimit=0,
        labelExpr=_wrapping_expr(length, max(map(len, present), default=0)),
        values=list(present),
        symbolOpacity=1,
    )


def _wrapping_expr(length: int, longest: int) -> str:
    """Return a Vega expression for labels in lines of `length` characters, at most `longest`."""
    conditions: list[str] = []
    lines = [f"slice(datum.label, 0, {length})"]
    for start in range(length, longest, length):
        lines.append(f"slice(datum.label, {start}, {start + length})")
        conditions.append(f"length(datum.label) > {start} ? [{', '.join(lines)}] : ")
    return "".join([*reversed(conditions), "datum.label"])


def _draw_points(
    chart: alt.Chart,
    names: Sequence[str],
    style: ChartStyle,
    present: Sequence[str],
    scale: float = 1,
) -> alt.Chart:
    """Draw points in the shape of their series: an outline if the row is hollow, else filled."""
    shapes = alt.Scale(
        domain=list(names), range=[palette.shape(index) for index in range(len(names))]
    )
    hollow = alt.value(style.colours["raised"])
    return chart.mark_point(size=POINT_AREA * scale, strokeWidth=1.4).encode(
        opacity=alt.condition("datum.faint", alt.value(0.45), alt.value(1)),
        shape=alt.Shape("series:N", scale=shapes, legend=_series_legend(style, present)),
        fill=alt.condition("datum.hollow", hollow, _series_colour(names, style, present)),
        description="description:N",
    )


def _inline_data(rows: Sequence[ChartRow]) -> alt.Data:
    return alt.Data(values=[dict(row) for row in rows])


def vega_lite_spec(chart: alt.Chart, style: ChartStyle) -> dict[str, Any]:
    """Return the chart as a Vega-Lite specification in the style's colours."""
    ink, muted, rule = (style.colours[role] for role in ("ink", "muted", "rule"))
    axis = {
        "domain": False,
        "ticks": False,
        "gridColor": rule,
        "domainColor": rule,
        "tickColor": rule,
        "labelColor": ink,
        "titleColor": muted,
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titlePadding": 8,
        "labelOverlap": True,
        "labelFlush": False,
    }
    legend = {"labelColor": ink, "labelFontSize": 12, "symbolStrokeWidth": 1.4}
    title = {
        "color": ink,
        "fontSize": 13,
        "anchor": "start",
        "fontWeight": 600,
        "limit": style.width,
    }
    styled = chart.configure(background="transparent", font=FONT, padding=2)
    styled = styled.configure_axis(**axis).configure_legend(**legend).configure_title(**title)
    spec: dict[str, Any] = _escape_for_vega(dict(styled.configure_view(stroke=None).to_dict()))
    if "concat" not in spec:  # the width includes the names on the left
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def _escape_for_vega(value: Any) -> Any:
    """Replace strings in a specification that Vega cannot draw.

    XML forbids control characters: the renderer would abort the process. Characters above U+FFFF
    are replaced by their code points, because Vega may cut a long label between the two halves of
    one. The name `if` gets a zero-width space, because Vega would read it as a function in the
    domain of a scale.
    """
    if isinstance(value, dict):
        return {_escape_for_vega(key): _escape_for_vega(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(_escape_for_vega, value))
    if not isinstance(value, str):
        return value
    if value == "if":
        return "if\u200b"
    lines = map(make_printable, value.split("\n"))
    return "".join(c if c <= "\uffff" else f"U+{ord(c):X}" for c in "\n".join(lines))
