"""The commands `export` and `import`: convert run folders to other tools' files, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import SHORT_FORMATS, with_table_format


@with_table_format(options=SHORT_FORMATS)
def export_command(
    run: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, or folders of them.")
    ],
    output_format: Annotated[
        Literal["lm-eval", "csv", "model-index", "every-eval-ever"],
        typer.Option(
            "--format",
            metavar="NAME",
            help="lm-eval (results and samples), csv (one row per item, for R), model-index, "
            "every-eval-ever.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="PATH", help="Folder to write; for csv and model-index a file.")
    ],
    table_format: str = "table",
) -> None:
    """Write runs in other tools' formats: ids and numbers, never the text of an item."""
    from antlm_bench.commands.export import export
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table

    exported = export(run, output_format, out)
    more = "\n..." if len(exported.files) > 20 else ""
    facts = {"files": "\n".join(map(str, exported.files[:20])) + more}
    if exported.notes:
        facts["notes"] = "\n".join(exported.notes)
    print_table(build_facts_table(f"{len(exported.files)} written", facts), table_format)


@with_table_format()
def import_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="lm-eval's --output_path (with --log_samples), or its results file.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to write.")],
    table_format: str = "table",
) -> None:
    """Convert lm-eval's results into a run folder, for `compare` and `check`."""
    from antlm_bench.commands.export import import_results
    from antlm_bench.reporting.results_table import build_results_table
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table

    run, left_out = import_results(folder, out)
    facts = {"tasks": "\n".join(left_out)}
    parts = (build_facts_table("left out", facts),) if left_out else ()
    print_table(replace(build_results_table([run], by="suite"), parts=parts), table_format)
