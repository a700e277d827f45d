"""The commands `submit` and `preflight`: write and check a submission to a BabyLM leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import with_table_format
from antlm_bench.errors import UsageError

YearOption = Annotated[str, typer.Option(metavar="YEAR", help="2024, 2025, 2026.")]
TrackOption = Annotated[
    str, typer.Option(metavar="NAME", help="strict-small, strict, multimodal, interaction.")
]


@with_table_format()
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
            metavar="KEY=FILE", help="JSON of a part computed by another tool. Repeatable."
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
            "--allow-conventions", help="Accept runs not scored by the year's conventions, marked."
        ),
    ] = False,
    table_format: str = "table",
) -> None:
    """Write a leaderboard's submission file from run folders and check it against the schema.

    A missing part is an error, unless --allow-partial is given.
    """
    pairs = [value.partition("=") for value in part or ()]
    if wrong := [key for key, _, file in pairs if not file]:
        raise UsageError(
            f"{wrong[0]!r} is not KEY=FILE", location="--part", hint="--part vqa=predictions.json"
        )
    from antlm_bench.commands.submit import submit
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table

    submission = submit(
        run,
        year=year,
        track=track,
        out=out,
        method=method,
        seed=seed,
        parts={key: file for key, _, file in pairs},
        allow_partial=allow_partial,
        allow_conventions=allow_conventions,
        ties=ties,
    )
    facts: dict[str, object] = {
        "sha256": submission.digest,
        "notes": "\n".join(submission.notes),
    }
    if submission.missing:
        facts["empty"] = {hole.key: f"{hole.reason}\n{hole.hint}" for hole in submission.missing}
    print_table(build_facts_table(str(submission.path), facts), table_format)


@with_table_format()
def preflight_command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="The folder that holds main, chck_1M, chck_2M, ..."),
    ],
    track: TrackOption,
    year: YearOption = "2026",
    table_format: str = "table",
) -> None:
    """Check milestones, names, weights and tokenizers of checkpoints against a track's rules."""
    from antlm_bench.commands.preflight import preflight
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table

    facts = preflight(folder, track=track, year=year)
    print_table(build_facts_table(str(folder), facts), table_format)
