"""`curve`: what suites say of a model's checkpoints over the words they have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import (
    CsvOption,
    JsonOption,
    MarkdownOption,
    choose_output_format,
    model_option,
    split_names,
    table_option,
)


def curve_command(
    run: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders of checkpoints, or folders of them."),
    ],
    suite: Annotated[
        list[str] | None,
        model_option(metavar="NAME", help="Only these suites. Repeatable, or a,b."),
    ] = None,
    svg: Annotated[
        Path | None, table_option(metavar="FILE", help="Draw the curves, too: a figure for a page.")
    ] = None,
    png: Annotated[
        Path | None, table_option(metavar="FILE", help="The same in 300 dots per inch.")
    ] = None,
    json: JsonOption = False,
    csv: CsvOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Show learning curves: a line per suite and model, over the words that its checkpoints have
    seen.
    """
    form = choose_output_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.commands.curve import load_curves
    from antlm_bench.reporting.text_curves import show_curves

    found, lost = load_curves(run, split_names(suite))
    for file, kind in ((svg, "svg"), (png, "png")):
        if file:
            from antlm_bench.reporting.figure_export import write_curves  # slow to import

            write_curves(found, file, kind)
    show_curves(found, lost, form)
