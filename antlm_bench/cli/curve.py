"""The command `curve`: learning curves of a model's checkpoints over the words seen."""

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
        Path | None, table_option(metavar="FILE", help="Also draw the curves as one SVG figure.")
    ] = None,
    png: Annotated[
        Path | None,
        table_option(metavar="FILE", help="Also draw the curves as PNG, at 300 dots per inch."),
    ] = None,
    table_format: str = "table",
) -> None:
    """Show learning curves over the words seen, one line per suite and model."""
    from antlm_bench.commands.curve import load_curves
    from antlm_bench.reporting.curve_table import build_curve_table
    from antlm_bench.reporting.writers import print_table

    curves, unplaced_checkpoints = load_curves(run, split_names(suite))
    for file, kind in ((svg, "svg"), (png, "png")):
        if file:
            from antlm_bench.reporting.figures import write_curves  # slow to import

            write_curves(curves, file, kind)
    print_table(build_curve_table(curves, unplaced_checkpoints), table_format)
