"""Export figures for papers: SVG or PNG on white, with a legend, in a font of every system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import vl_convert

from antlm_bench import runs
from antlm_bench.reporting import charts, palette
from antlm_bench.reporting.figures import learning_curve_figures
from antlm_bench.reporting.report_data import Figure

if TYPE_CHECKING:
    from antlm_bench.results.checkpoint_series import LearningCurve

WIDTH, SMALL_WIDTH = 640, 300
"""Width in px of a single figure, and of one of several."""
SMALL_FIGURES_PER_ROW = 3
DPI = 300


def render_figures(figures: Sequence[Figure], image_format: str) -> bytes:
    """Render one figure, or several small ones side by side. image_format: "svg" or "png"."""
    width = SMALL_WIDTH if len(figures) > 1 else WIDTH
    style = charts.ChartStyle(width, palette.PAPER, legend=True)
    if len(figures) == 1:
        chart = figures[0].draw(style)
    else:
        panels = [figure.draw(style).properties(title=figure.title) for figure in figures]
        chart = charts.concatenate(panels, SMALL_FIGURES_PER_ROW)
    specification = charts.vega_lite_spec(chart, style) | {"background": palette.PAPER["ground"]}
    specification["config"] |= {"font": "Helvetica, Arial, sans-serif"}
    if image_format == "svg":
        return str(vl_convert.vegalite_to_svg(specification)).encode()
    return bytes(vl_convert.vegalite_to_png(specification, ppi=DPI))


def write_curves(curves: Sequence[LearningCurve], path: Path, image_format: str) -> None:
    """Write learning curves as one figure ("svg" or "png"), a panel per suite. Raises RunError."""
    figures = list(learning_curve_figures(curves))
    runs.write_atomically(path, render_figures(figures, image_format))
