"""Figures as files for a paper: SVG or PNG on white, with their legend, in a font that every system
has.
"""

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

WIDTH, SMALL_WIDTH, SMALL_FIGURES_PER_ROW, DPI = (
    640,
    300,
    3,
    300,
)  # px of a figure, of one among several, how many of these, dots/inch


def render_figures(figures: Sequence[Figure], image_format: str) -> bytes:
    """The bytes of one figure, or of several small ones beside one another. form: svg or png."""
    look = charts.ChartStyle(SMALL_WIDTH if len(figures) > 1 else WIDTH, palette.PAPER, legend=True)
    drawn = [figure.draw(look) for figure in figures]
    if len(drawn) > 1:
        drawn = [
            chart.properties(title=figure.title)
            for chart, figure in zip(drawn, figures, strict=True)
        ]
    chart = drawn[0] if len(drawn) == 1 else charts.concatenate(drawn, SMALL_FIGURES_PER_ROW)
    specification = charts.vega_lite_spec(chart, look) | {"background": palette.PAPER["ground"]}
    specification["config"] |= {"font": "Helvetica, Arial, sans-serif"}
    if image_format == "svg":
        return str(vl_convert.vegalite_to_svg(specification)).encode()
    return bytes(vl_convert.vegalite_to_png(specification, ppi=DPI))


def write_curves(curves: Sequence[LearningCurve], path: Path, image_format: str) -> None:
    """Write learning curves as one figure ("svg" or "png"), a panel per suite. Raises RunError."""
    figures = list(learning_curve_figures(curves))
    runs.write_atomically(path, render_figures(figures, image_format))
