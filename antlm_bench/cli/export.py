"""The commands `export`, `import`, `track`, `submit` and `preflight`: other tools and trackers, and
the BabyLM leaderboards.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    SHORT_FORMATS,
    Tables,
    parse_assignments,
    prints_tables,
)

RunsArgument = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Run folders, or folders of them.")
]
YearOption = Annotated[str, typer.Option(metavar="YEAR", help="2024, 2025, 2026.")]
TrackOption = Annotated[
    str, typer.Option(metavar="NAME", help="strict-small, strict, multimodal, interaction.")
]


@prints_tables(options=SHORT_FORMATS)
def export_command(
    run: RunsArgument,
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
) -> Tables:
    """Write runs in the format of another tool: ids and numbers, never the text of an item."""
    from antlm_bench.commands.export import export
    from antlm_bench.reporting.table import build_facts_table

    exported = export(run, output_format, out)
    more = "\n..." if len(exported.files) > 20 else ""
    facts = {"files": "\n".join(map(str, exported.files[:20])) + more}
    if exported.notes:
        facts["notes"] = "\n".join(exported.notes)
    yield build_facts_table(f"{len(exported.files)} written", facts)


@prints_tables()
def import_command(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="lm-eval's --output_path (with --log_samples), or its results file.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder to write.")],
) -> Tables:
    """Convert lm-eval's results into a run folder, for `compare` and `check`."""
    from antlm_bench.commands.export import import_results
    from antlm_bench.reporting.results_table import build_results_table
    from antlm_bench.reporting.table import build_facts_table

    run, skipped_tasks = import_results(folder, out)
    facts = {"tasks": "\n".join(skipped_tasks)}
    parts = (build_facts_table("left out", facts),) if skipped_tasks else ()
    yield replace(build_results_table([run], by="suite"), parts=parts)


@prints_tables()
def submit_command(
    run: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders of the final model and its milestones, or a folder of them.",
        ),
    ],
    year: YearOption,
    track: TrackOption,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="File to write, or a folder: the file gets the official name."
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Zero-shot scoring method.",
            show_default="the only one in the runs",
        ),
    ] = "",
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Finetuning seed.",
            show_default="the only one, or 42",
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=FILE", help="Predictions of a part, computed by another tool. Repeatable."
        ),
    ] = None,
    ties: Annotated[
        Literal["first", "random"] | None,
        typer.Option(
            metavar="RULE",
            help="Choice among several best options: first, random.",
            show_default="the official rule",
        ),
    ] = None,
    allow_partial: Annotated[
        bool,
        typer.Option(
            "--allow-partial", help="Write the file even if parts are missing, and list them."
        ),
    ] = False,
    allow_conventions: Annotated[
        bool,
        typer.Option(
            "--allow-conventions",
            help="Accept runs scored by other conventions, with a note.",
        ),
    ] = False,
) -> Tables:
    """Write a leaderboard's submission file from run folders and check it against the schema.

    A missing part is an error, unless --allow-partial is given.
    """
    parts = parse_assignments(part, "--part", "KEY=FILE", "vqa=predictions.json")

    from antlm_bench.commands.submit import submit
    from antlm_bench.reporting.table import build_facts_table

    submission = submit(
        run,
        year=year,
        track=track,
        out=out,
        method=method,
        seed=seed,
        parts=parts,
        allow_partial=allow_partial,
        allow_conventions=allow_conventions,
        ties=ties,
    )
    facts: dict[str, object] = {
        "sha256": submission.digest,
        "notes": "\n".join(submission.notes),
    }
    if submission.missing:
        facts["left out"] = {part.key: f"{part.reason}\n{part.hint}" for part in submission.missing}
    yield build_facts_table(str(submission.path), facts)


@prints_tables()
def preflight_command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="The folder that holds main, chck_1M, chck_2M, ..."),
    ],
    track: TrackOption,
    year: YearOption = "2026",
) -> Tables:
    """Check milestones, names, weights and tokenizers of checkpoints against a track's rules."""
    from antlm_bench.commands.preflight import preflight
    from antlm_bench.reporting.table import build_facts_table

    facts = preflight(folder, track=track, year=year)
    yield build_facts_table(str(folder), facts)


@prints_tables()
def track_command(
    run: RunsArgument,
    to: Annotated[
        Literal["mlflow", "wandb", "trackio"],
        typer.Option("--to", metavar="NAME", help="Tracker: mlflow, wandb, trackio."),
    ],
    project: Annotated[
        str, typer.Option(metavar="NAME", help="Project of the tracker; in MLflow the experiment.")
    ] = "antlm-bench",
) -> Tables:
    """Log the numbers of finished runs to an experiment tracker; again = update."""
    from antlm_bench.commands.track import track
    from antlm_bench.reporting.table import build_records_table

    records = [
        {
            "run": tracked.name,
            "id": tracked.id,
            "words seen": tracked.step or None,
            "numbers": len(tracked.metrics),
        }
        for tracked in track(run, to=to, project=project)
    ]
    yield build_records_table(records, title=f"logged to {to}, {project}")
