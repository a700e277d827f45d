"""The colours of pages and figures: by role, so that one drawing serves light, dark and paper.

Series colours are Okabe & Ito's (2008, "Color Universal Design"), darkened or lightened until each
stands out at 3:1 or more from its ground (WCAG 2.1, 1.4.11); every series also has a shape of its
own, so that no reading rests on colour.
"""

from __future__ import annotations

from collections.abc import Mapping

Colours = Mapping[str, str]

_LIGHT_SERIES = (
    "#0072b2",
    "#d55e00",
    "#00825f",
    "#b0568b",
    "#8f6a00",
    "#2b8cc4",
    "#7a5195",
    "#5c5c57",
)
_DARK_SERIES = (
    "#5cb3f0",
    "#ff9248",
    "#2fc79a",
    "#e69ac6",
    "#e0ad2e",
    "#8fd3ff",
    "#b79ae0",
    "#b8b6ad",
)
_VEGA_SHAPES = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "triangle-down",
    "cross",
    "triangle-right",
    "triangle-left",
)
_GLYPHS = "●■◆▲▼✚▶◀"


def _series_colours(colours: tuple[str, ...]) -> dict[str, str]:
    return {f"series-{index}": colour for index, colour in enumerate(colours, 1)}


LIGHT: Colours = {
    "ground": "#fcfcfa",
    "raised": "#ffffff",
    "ink": "#1d1d1b",
    "muted": "#66655f",
    "rule": "#e3e1d9",
    "strong-rule": "#a5a39a",
    "above": "#3a86c0",
    "below": "#e08a3c",
    "warn": "#a4480a",
    **_series_colours(_LIGHT_SERIES),
}
DARK: Colours = {
    "ground": "#161615",
    "raised": "#1e1e1c",
    "ink": "#eceae3",
    "muted": "#a3a198",
    "rule": "#34332f",
    "strong-rule": "#75736b",
    "above": "#2f78b4",
    "below": "#b5651d",
    "warn": "#ffab70",
    **_series_colours(_DARK_SERIES),
}
PAPER: Colours = {
    **LIGHT,
    "ground": "#ffffff",
    "raised": "#ffffff",
}  # a figure of its own, for a page of a journal
PAGE: Colours = {role: f"var(--{role})" for role in LIGHT}  # the style sheet decides: light or dark


def colour_role(index: int) -> str:
    """The colour role of the index-th series; they come round again after eight, with another
    shape.
    """
    return f"series-{index % len(_LIGHT_SERIES) + 1}"


def _shape_index(index: int) -> int:
    return (index + index // len(_VEGA_SHAPES)) % len(_VEGA_SHAPES)


def shape(index: int) -> str:
    """The index-th series' mark, as Vega calls it."""
    return _VEGA_SHAPES[_shape_index(index)]


def glyph(index: int) -> str:
    """The same mark as a character (text presentation, never an emoji)."""
    return _GLYPHS[_shape_index(index)] + "\N{VARIATION SELECTOR-15}"
