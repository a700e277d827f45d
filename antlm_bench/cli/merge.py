"""The command `merge`: put shards and runs of one checkpoint together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import Tables, prints_tables, run_folder_option
from antlm_bench.errors import IncompleteError


@prints_tables()
def merge_command(
    parts: Annotated[
        list[str],
        typer.Argument(metavar="PART...", help="Folders of shards, run folders, folders of them."),
    ],
    out: Annotated[
        Path,
        run_folder_option(
            "--out",
            metavar="DIR",
            help="Run folder, or a URL of an object store; cells are added to its own.",
        ),
    ],
    allow_incomplete: Annotated[
        bool,
        run_folder_option(
            "--allow-incomplete", help="Write the complete cells if others lack chunks."
        ),
    ] = False,
    replace_cells: Annotated[
        bool,
        run_folder_option("--replace-cells", help="Replace cells of --out that differ."),
    ] = False,
) -> Tables:
    """Put shards (score --shard) and runs of one checkpoint together into one run folder."""
    from antlm_bench.commands.merge import merge_runs
    from antlm_bench.reporting.shards_table import build_merge_table

    try:
        run = merge_runs(parts, out, allow_incomplete=allow_incomplete, replace_cells=replace_cells)
    except IncompleteError as error:  # print the complete cells before the error
        for incomplete_run in error.runs:
            yield build_merge_table(incomplete_run)
        raise
    yield build_merge_table(run)
