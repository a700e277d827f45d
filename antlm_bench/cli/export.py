"""`export` and `import`: other tools' files out of run folders, and a run folder out of lm-eval's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export_command(
    run: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders, or folders of them.")
    ],
    output_format: Annotated[
        Literal["lm-eval", "csv", "model-index", "every-eval-ever"],
        typer.Option(
            "--format",
            metavar="NAME",
            help="lm-eval (results and samples), csv (one row per item, for R), model-index, every-eval-ever.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="PATH", help="A folder; of csv and model-index the file.")
    ],
) -> None:
    """Write runs in other tools' formats: ids and numbers, never the text of an item."""
    from antlm_bench.commands.export import export
    from antlm_bench.reporting import print_fields

    done = export(run, output_format, out)
    shown = {
        "files": "\n".join(map(str, done.files[:20])) + ("\n..." if len(done.files) > 20 else "")
    }
    print_fields(
        f"{len(done.files)} written",
        shown | ({"notes": "\n".join(done.notes)} if done.notes else {}),
    )


def import_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="lm-eval's --output_path with --log_samples, or its results."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to write.")],
) -> None:
    """Make a run folder of lm-eval's results, so that `compare` and `check` work on them."""
    from antlm_bench.commands.export import import_results
    from antlm_bench.reporting import print_fields, show_runs

    run, left_out = import_results(folder, out)
    show_runs([run], by="suite")
    if left_out:
        print_fields("left out", {"tasks": "\n".join(left_out)})
