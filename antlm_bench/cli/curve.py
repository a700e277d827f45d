"""`curve`: what suites say of a model's checkpoints over the words they have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import Csv, Json, Markdown, one_format, split, table, what


def curve_verb(
    run: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders of checkpoints, or folders of them.")
    ],
    suite: Annotated[list[str] | None, what(metavar="NAME", help="Only these suites. Repeatable, or a,b.")] = None,
    svg: Annotated[Path | None, table(metavar="FILE", help="Draw the curves, too: a figure for a page.")] = None,
    png: Annotated[Path | None, table(metavar="FILE", help="The same in 300 dots per inch.")] = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Show learning curves: a line per suite and model, over the words that its checkpoints have seen."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.commands.curve import curve, draw
    from antlm_bench.reporting.text_curves import show_curves

    found, lost = curve(run, split(suite))
    for file, kind in ((svg, "svg"), (png, "png")):
        if file:
            draw(found, file, kind)
    show_curves(found, lost, form)
