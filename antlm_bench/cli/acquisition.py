"""`acquisition`: when a model's checkpoints acquired the words of the CDI, beside children."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import (
    model_option,
    table_option,
    with_table_format,
)


@with_table_format()
def acquisition_command(
    run: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run folders of checkpoints, or folders of them."),
    ],
    suite: Annotated[
        str, model_option(metavar="NAME", help="aoa-2026 or aoa-2025: whose rules.")
    ] = "aoa-2026",
    out: Annotated[
        Path | None, table_option("--out", metavar="FILE", help="Every word: .csv .tsv .parquet")
    ] = None,
    table_format: str = "table",
) -> None:
    """Correlate the order in which a model and children acquire words, from scored checkpoints;
    kept in a run.
    """
    from antlm_bench.commands.acquisition import compute_acquisition
    from antlm_bench.reporting.table import TableCell, build_facts_table
    from antlm_bench.reporting.writers import print_tables
    from antlm_bench.runs.table_files import check_table_suffix, write_table

    if out:
        check_table_suffix(out)
    found = compute_acquisition(run, suite)
    tables = []
    for one in found:
        score = one.cell.summary.headline
        text = f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
        facts = {
            "method": one.cell.method,
            suite: TableCell(score.value, text, score.low, score.high, unit="Pearson's r"),
            "how": "\n".join(one.cell.summary.notes),
            "kept in": one.run_dir,
        }
        tables.append(build_facts_table(one.model, facts))
    print_tables(tables, table_format)
    if out:
        rows = [
            {"model": one.model, "method": one.cell.method, **row}
            for one in found
            for row in one.word_rows()
        ]
        write_table(out, rows)
