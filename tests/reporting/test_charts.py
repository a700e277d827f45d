"""Charts show every row once, in colours that can be told apart, and say in words what each mark
is.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antlm_bench.reporting import charts, figures, palette
from antlm_bench.reporting.charts import ChartStyle
from antlm_bench.reporting.html import render_svg
from antlm_bench.reporting.name_lines import fold_name
from antlm_bench.reporting.report_data import Figure, FigureTable

NAMES = ["one", "two", "three"]
WIDE, PHONE = ChartStyle(880, palette.LIGHT), ChartStyle(340, palette.LIGHT)


def row(name: str, series: str, value: float, **more: Any) -> dict[str, Any]:
    about = {
        "row": name,
        "series": series,
        "value": value,
        "low": value - 5,
        "high": value + 3,
        "hollow": False,
    }
    return (
        about
        | {"faint": False, "text": "t", "words": value * 1e6}
        | {"description": f"{name}, {series}: {value}"}
        | more
    )


def svg(chart: Any, look: ChartStyle) -> ElementTree.Element:
    return ElementTree.fromstring(render_svg(charts.vega_lite_spec(chart, look), "x", "label"))


def marks(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.get("data-label")]


def luminance(colour: str) -> float:
    """WCAG 2.1's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return float(
        sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    )


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK, palette.PAPER])
def test_every_colour_stands_out_from_its_ground(colours: palette.Colours) -> None:
    marks = {
        role: contrast(colour, colours["ground"])
        for role, colour in colours.items()
        if "series" in role
    }
    assert min(marks.values()) >= 3, marks
    assert contrast(colours["ink"], colours["ground"]) >= 7
    assert contrast(colours["muted"], colours["ground"]) >= 4.5
    assert contrast(colours["warn"], colours["ground"]) >= 3


@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK])
def test_numbers_stay_readable_on_the_darkest_tile(colours: palette.Colours) -> None:
    for role in ("above", "below"):  # at most 65% of it, over the ground
        mixed = [
            round(
                0.65 * int(colours[role][i : i + 2], 16)
                + 0.35 * int(colours["ground"][i : i + 2], 16)
            )
            for i in (1, 3, 5)
        ]
        assert contrast("#{:02x}{:02x}{:02x}".format(*mixed), colours["ink"]) >= 4.5, role


def test_series_differ_in_shape_where_they_share_a_colour() -> None:
    pairs = {(palette.colour_role(index), palette.shape(index)) for index in range(40)}
    assert len(pairs) == 40
    assert len({(palette.colour_role(index), palette.glyph(index)) for index in range(40)}) == 40


@pytest.mark.long
@pytest.mark.parametrize("look", [WIDE, PHONE])
def test_a_dot_and_an_interval_per_row(look: ChartStyle) -> None:
    rows = [row(f"phenomenon_{i}", name, 50 + i) for i in range(4) for name in NAMES]
    root = svg(charts.dot_plot(rows, NAMES, look, "% right"), look)
    assert sorted(mark.get("data-label", "") for mark in marks(root)) == sorted(
        r["description"] for r in rows
    )
    assert float(root.get("width", "0")) <= look.width + 5  # padding
    colours = {mark.get("stroke") for mark in marks(root)}
    assert colours == {palette.LIGHT[palette.colour_role(index)] for index in range(3)}
    rules = [line for line in root.iter("line") if line.get("stroke") in colours]
    assert len(rules) == len(rows)


@pytest.mark.long
def test_an_absent_series_takes_no_room_and_changes_no_colour() -> None:
    rows = [row("a", "three", 50), row("b", "three", 60)]
    root = svg(charts.dot_plot(rows, NAMES, WIDE, "% right"), WIDE)
    assert {mark.get("stroke") for mark in marks(root)} == {palette.LIGHT["series-3"]}
    alone = svg(charts.dot_plot(rows, ["three"], WIDE, "% right"), WIDE)
    assert root.get("height") == alone.get("height")


def test_what_may_be_chance_is_an_outline_and_a_seed_has_no_interval() -> None:
    rows = [
        row("a", "one", 1, hollow=True),
        row("b", "one", 2),
        row("c", "one", 3, low=None, high=None, faint=True),
    ]
    root = svg(charts.dot_plot(rows, ["one"], WIDE, "points", rule_at_zero=True), WIDE)
    fills = {
        mark.get("data-label", "")[0]: (mark.get("fill"), mark.get("opacity"))
        for mark in marks(root)
    }
    blue = palette.LIGHT["series-1"]
    assert fills == {"a": (palette.LIGHT["raised"], "1"), "b": (blue, "1"), "c": (blue, "0.45")}
    assert len([line for line in root.iter("line") if line.get("stroke") == blue]) == 2


def test_lines_are_cut_at_gaps_and_bridged_by_dashes() -> None:
    look = ChartStyle(290, palette.LIGHT)
    rows = [
        row(f"chck_{n}M", "one", n, segment=0 if n < 4 else 1, hollow=n == 2)
        for n in (1, 2, 3, 6, 7)
    ]
    root = svg(charts.line_plot(rows, ["one"], look, "% right"), look)
    assert len(marks(root)) == 5
    drawn = [
        path
        for path in root.iter("path")
        if path.get("fill") is None and path.get("stroke-width") == "1.8"
    ]
    assert [path.get("d", "").count("L") for path in drawn] == [2, 1]
    assert [
        path.get("d", "").count("L") for path in root.iter("path") if path.get("stroke-dasharray")
    ] == [4]


def test_switches_of_objectives_are_ruled_and_named() -> None:
    rows = [
        row("", "clm", 3, segment=0),
        row("", "clm", 4, segment=0),
        row("", "mlm", 5, segment=1),
    ]
    look = ChartStyle(880, palette.LIGHT)
    root = svg(
        charts.loss_plot(rows, [{"words": 4.5e6, "label": "→ mlm"}], ["clm", "mlm"], look), look
    )
    assert "→ mlm" in {text.text for text in root.iter("text")}
    assert len([line for line in root.iter("line") if line.get("stroke-dasharray")]) == 1


def test_tiles_hold_their_numbers() -> None:
    rows = [row("a", "one", 80, tile="80"), row("a", "two", 20, tile="20")]
    root = svg(charts.heatmap(rows, ["one", "two"], WIDE, 0.5), WIDE)
    assert {"80", "20", "one", "two", "a"} <= {text.text for text in root.iter("text")}
    assert len(marks(root)) == 2


def test_tiles_are_coloured_against_chance() -> None:
    rows = [row("a", "one", 20, tile="20"), row("a", "two", 90, tile="90")]
    by_chance = {}
    for chance in (0.2, 0.5, None):
        drawn = marks(svg(charts.heatmap(rows, ["one", "two"], WIDE, chance), WIDE))
        by_chance[chance] = [mark.get("fill") for mark in drawn]
    at_chance, above = by_chance[0.2]
    assert by_chance[None] == [at_chance, at_chance]
    assert above != at_chance
    assert by_chance[0.5][0] != at_chance


def test_a_drawing_says_what_it_is_and_shares_no_id() -> None:
    specification = charts.vega_lite_spec(
        charts.dot_plot([row("a", "one", 1)], ["one"], WIDE, "x"), WIDE
    )
    first, second = (
        ElementTree.fromstring(render_svg(specification, name, "All of it")) for name in ("a", "b")
    )
    assert (first.get("role"), first.get("aria-label")) == ("img", "All of it")
    ids = [
        [element.get("id") for element in root.iter() if element.get("id")]
        for root in (first, second)
    ]
    assert not set(ids[0]) & set(ids[1])


LONG_NAMES = [f"determiner_noun_agreement_with_adjective_irregular_{i}" for i in range(70)]


def axis_labels(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter("text")]


def left_edges(root: ElementTree.Element) -> dict[str, float]:
    """Return text -> x of its left edge, with 6.5 px per character."""
    edges: dict[str, float] = {}

    def visit(element: ElementTree.Element, x: float) -> None:
        moved = re.search(r"translate\(([-\d.]+)", element.get("transform", ""))
        x += float(moved[1]) if moved else 0
        if element.tag == "text":
            lines = [line.text or "" for line in element.iter("tspan")] or [element.text or ""]
            width = 6.5 * max(map(len, lines))
            shift = {"end": width, "middle": width / 2}.get(element.get("text-anchor", ""), 0)
            edges[" ".join(lines)] = x - shift
        for child in element:
            visit(child, x)

    visit(root, 0)
    return edges


@given(
    first=st.integers(0, 10**11),
    factor=st.one_of(st.just(1.0), st.floats(1, 10_000)),
    most=st.integers(2, 8),
)
def test_an_axis_of_words_has_two_ticks_or_more(first: int, factor: float, most: int) -> None:
    last = first * factor
    ticks, (low, high) = charts.choose_word_ticks(first, last, most)
    assert 2 <= len(ticks) <= most + 2
    assert ticks == sorted(set(ticks))
    assert low <= min(first, *ticks) and max(last, *ticks) <= high


@pytest.mark.parametrize("value", [0.0, 50.0, 100.0, 0.0001, -3.0])
def test_one_value_has_an_axis_with_several_ticks(value: float) -> None:
    rows = [row("a", "one", value, low=None, high=None)]
    root = svg(charts.dot_plot(rows, ["one"], WIDE, "score"), WIDE)
    assert len([text for text in axis_labels(root) if re.search(r"\d", text)]) >= 2


def test_one_checkpoint_has_axes_with_several_ticks() -> None:
    look = ChartStyle(290, palette.LIGHT)
    rows = [row("chck_10M", "one", 10, low=10, high=10, segment=0)]
    labels = axis_labels(svg(charts.line_plot(rows, ["one"], look, "% right"), look))
    assert len([text for text in labels if text.endswith("M")]) >= 2
    assert len([text for text in labels if re.fullmatch(r"[\d.]+", text)]) >= 2


@pytest.mark.parametrize("look", [WIDE, PHONE])
def test_long_names_stay_inside_the_drawing(look: ChartStyle) -> None:
    rows = [row(name, "one", 50) for name in LONG_NAMES[:5]]
    root = svg(charts.dot_plot(rows, ["one"], look, "% right"), look)
    edges = left_edges(root)
    assert min(edges.values()) >= 0, edges
    assert float(root.get("width", "0")) <= look.width + 5
    assert sum("determiner" in text for text in edges) == 5


def test_names_that_fold_alike_keep_their_rows() -> None:
    rows = [row("x" * 40 + middle + "x" * 40, "one", 50) for middle in "ab"]
    root = svg(charts.dot_plot(rows, ["one"], PHONE, "% right"), PHONE)
    lines = [line for line in root.iter("tspan") if "x" in (line.text or "")]
    assert len(lines) == 4  # two per name


def test_a_heatmap_names_each_of_70_rows() -> None:
    rows = [row(name, "one", 50, tile="50") for name in LONG_NAMES]
    root = svg(charts.heatmap(rows, ["one"], PHONE, 0.5), PHONE)
    assert sum("determiner" in text for text in left_edges(root)) == 70


def test_a_legend_of_long_names_stays_inside_the_figure() -> None:
    look = ChartStyle(640, palette.PAPER, legend_width=640)
    names = [f"a long name of a model with seed {i} and words" for i in range(4)]
    rows = [row("a", name, 50) for name in names]
    root = svg(charts.dot_plot(rows, names, look, "% right"), look)
    edges = left_edges(root)
    assert all(edges[name] + 6.5 * len(name) <= look.width for name in names)


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("主谓一致_" * 3, "主谓一致_\n…一致_主谓一致_"),  # an East Asian letter is two columns wide
        ("é" * 16, "é" * 16),  # a combining mark has no width
        ("short", "short"),
        ("subject_verb_agreement", "subject_verb_\nagreement"),
        ("x" * 20, "x" * 16 + "\n" + "x" * 4),
        ("irregular_forms_" + "y" * 20, "irregular_forms_\n…" + "y" * 15),
    ],
)
def test_names_fold_at_underscores(name: str, folded: str) -> None:
    assert fold_name(name, 16) == folded


def test_early_hyphen_is_better_than_a_cut_word() -> None:
    assert fold_name("physical-interactions", 19) == "physical-\ninteractions"


def test_letters_without_a_font_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter that no font has looks like any other such letter."""
    fonts = "ЖĐ"
    monkeypatch.setattr(
        figures, "_draw_letter", lambda letter: letter.encode() if letter in fonts else b"box"
    )
    assert figures.find_undrawable_letters("Ж 中文 abc é 中 ±") == "中文"


def test_latin_letters_have_a_font() -> None:
    assert figures._draw_letter("a") not in (figures._draw_letter("b"), figures._draw_letter(" "))
    assert figures.find_undrawable_letters("abc é") == ""


def test_the_interval_of_a_lone_checkpoint_is_drawn() -> None:
    look = ChartStyle(290, palette.LIGHT)
    rows = [row(f"chck_{n}M", "one", n, segment=n > 2) for n in (1, 2, 6)]
    root = svg(charts.line_plot(rows, ["one"], look, "% right"), look)
    blue = palette.LIGHT["series-1"]
    assert len([line for line in root.iter("line") if line.get("stroke") == blue]) == 1


LONG_MODELS = [
    f"organisation/a-baseline-of-one-hundred-million-words-{kind}-focus@chck_900M"
    for kind in ("causal", "masked")
]


def all_text(root: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in root.iter("text")]


def test_a_legend_shows_names_that_are_wider_than_the_figure_in_whole() -> None:
    look = ChartStyle(640, palette.PAPER, legend_width=640)
    rows = [row("a", name, 50) for name in LONG_MODELS]
    root = svg(charts.dot_plot(rows, LONG_MODELS, look, "% right"), look)
    assert set(LONG_MODELS) <= set(all_text(root))


@pytest.mark.parametrize("count", [2, 12])  # names in lines, and vertical names
def test_a_heatmap_shows_whole_names_inside_the_image(count: int) -> None:
    look = ChartStyle(640, palette.PAPER)
    names = [f"{name}-{i}" for name in LONG_MODELS for i in range(count // 2)]
    rows = [row("a", name, 50, tile="50") for name in names]
    root = svg(charts.heatmap(rows, names, look, 0.5), look)
    assert set(names) <= set(all_text(root))
    assert float(root.get("width", "0")) <= look.width + 5
    if count == 2:
        edges = left_edges(root)
        right_ends = [
            edges[" ".join(lines)] + 6.5 * max(map(len, lines))
            for lines in ([line.text or "" for line in text] for text in root.iter("text"))
            if lines
        ]
        assert right_ends and max(right_ends) <= look.width


def test_panels_have_whole_titles() -> None:
    figure = Figure(
        section="effects",
        name="x",
        title=f"{LONG_MODELS[0]} · NP/Z",
        caption="",
        series=("one",),
        present_series=frozenset(["one"]),
        draw=lambda style: charts.dot_plot([row("a", "one", 50)], ["one"], style, "% right"),
        table=FigureTable((), ()),
    )
    panels = [figure, dataclasses.replace(figure, title=f"{LONG_MODELS[0]} · NP/S")]
    image = ElementTree.fromstring(figures.render_figures(panels, "svg"))
    texts = ["".join(e.itertext()) for e in image.iter("{http://www.w3.org/2000/svg}text")]
    assert {panel.title.replace(" ", "") for panel in panels} <= {t.replace(" ", "") for t in texts}


def test_row_names_in_two_lines_do_not_overlap() -> None:
    names = [f"determiner_noun_agreement_{i}" for i in range(3)]
    root = svg(
        charts.dot_plot([row(name, "one", 50) for name in names], ["one"], PHONE, "x"), PHONE
    )
    tops = [
        float(match[1])
        for text in root.iter("text")
        if len(list(text)) == 2
        and (match := re.search(r"translate\([-\d.]+,([-\d.]+)", text.get("transform", "")))
    ]
    assert len(tops) == 3
    assert min(b - a for a, b in itertools.pairwise(sorted(tops))) >= 2 * 13
