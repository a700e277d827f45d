"""`curve`: what suites say of a model's checkpoints over the words they have seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import (
    model_option,
    split_names,
    table_option,
    with_table_format,
)


@with_table_format()
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
    table_format: str = "table",
) -> None:
    """Show learning curves: a line per suite and model, over the words that its checkpoints have
    seen.
    """
    from antlm_bench.commands.curve import load_curves
    from antlm_bench.reporting.curve_table import build_curve_table
    from antlm_bench.reporting.writers import print_table

    found, lost = load_curves(run, split_names(suite))
    for file, kind in ((svg, "svg"), (png, "png")):
        if file:
            from antlm_bench.reporting.figure_export import write_curves  # slow to import

            write_curves(found, file, kind)
    print_table(build_curve_table(found, lost), table_format)
