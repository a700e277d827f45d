"""The commands `curve` and `acquisition`: results over the checkpoints of a training run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import (
    Tables,
    model_option,
    output_option,
    prints_tables,
    split_names,
)

RunArgument = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Run folders of checkpoints, or folders of them."),
]


@prints_tables()
def curve_command(
    run: RunArgument,
    suite: Annotated[
        list[str] | None,
        model_option(metavar="NAME", help="Only these suites. Repeatable, or a,b."),
    ] = None,
    svg: Annotated[
        Path | None, output_option(metavar="FILE", help="Also draw the curves as one SVG figure.")
    ] = None,
    png: Annotated[
        Path | None,
        output_option(metavar="FILE", help="Also draw the curves as PNG, at 300 dots per inch."),
    ] = None,
) -> Tables:
    """Show learning curves over the words seen, one line per suite and model."""
    from antlm_bench.reporting.curve_table import build_curve_table
    from antlm_bench.results.checkpoint_series import load_curves

    curves, unplaced_checkpoints = load_curves(run, split_names(suite))
    for file, image_format in ((svg, "svg"), (png, "png")):
        if file:
            from antlm_bench.reporting.figures import write_curves  # slow to import

            write_curves(curves, file, image_format)
    yield build_curve_table(curves, unplaced_checkpoints)


@prints_tables()
def acquisition_command(
    run: RunArgument,
    suite: Annotated[
        str, model_option(metavar="NAME", help="Rules to apply: aoa-2026 or aoa-2025.")
    ] = "aoa-2026",
    out: Annotated[
        Path | None,
        output_option("--out", metavar="FILE", help="Table of all words: .csv .tsv .parquet"),
    ] = None,
) -> Tables:
    """Correlate the ages at which a model and children acquire words.

    The model's ages come from scored checkpoints. The result is written into a run folder.
    """
    from antlm_bench.commands.acquisition import compute_acquisition
    from antlm_bench.metrics import get_metric_spec
    from antlm_bench.reporting.results_table import estimate_cell
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.runs.table_files import check_table_suffix, write_table

    if out:
        check_table_suffix(out)
    results = compute_acquisition(run, suite)
    tables = []
    for result in results:
        summary = result.cell.summary
        correlation = estimate_cell(summary.headline, summary.metric)
        facts = {
            "method": result.cell.method,
            suite: replace(correlation, detail=get_metric_spec(summary.metric).label),
            "how": "\n".join(summary.notes),
            "kept in": result.run_dir,
        }
        tables.append(build_facts_table(result.model, facts))
    yield from tables
    if out:
        rows = [
            {"model": result.model, "method": result.cell.method, **row}
            for result in results
            for row in result.word_rows()
        ]
        write_table(out, rows)
