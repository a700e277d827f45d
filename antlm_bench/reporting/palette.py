"""Define the colours and shapes of pages and figures.

Drawings name a colour by its role, so that one drawing serves light, dark and printed pages. The
colours of series are from Okabe & Ito (2008, "Color Universal Design"), darkened or lightened to a
contrast of at least 3:1 with the background (WCAG 2.1, 1.4.11). Every series also has its own
shape, because some readers cannot tell the colours apart.
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
PAPER: Colours = {**LIGHT, "ground": "#ffffff", "raised": "#ffffff"}
"""Colours of a figure in a file, for a paper."""
PAGE: Colours = {role: f"var(--{role})" for role in LIGHT}
"""CSS variables: the style sheet of the page chooses light or dark."""


def colour_role(index: int) -> str:
    """Return the colour role of the index-th series. Colours repeat after eight series."""
    return f"series-{index % len(_LIGHT_SERIES) + 1}"


def mix(colour: str, ground: str, share: float) -> str:
    """Mix a share of a colour into another one, both as "#rrggbb"."""
    pairs = [(int(colour[i : i + 2], 16), int(ground[i : i + 2], 16)) for i in (1, 3, 5)]
    channels = [round(share * above + (1 - share) * below) for above, below in pairs]
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _shape_index(index: int) -> int:
    """Return the index of a series' shape.

    It is shifted each time the colours repeat, so that every pair of colour and shape is unique.
    """
    return (index + index // len(_VEGA_SHAPES)) % len(_VEGA_SHAPES)


def shape(index: int) -> str:
    """Return Vega's name for the shape of the index-th series."""
    return _VEGA_SHAPES[_shape_index(index)]


def glyph(index: int) -> str:
    """Return the shape of the index-th series as a character (as text, never as an emoji)."""
    return _GLYPHS[_shape_index(index)] + "\N{VARIATION SELECTOR-15}"
