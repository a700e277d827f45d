"""`submit` and `preflight`: what a leaderboard wants, from run folders and from a folder of
checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    with_table_format,
)
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
            help="Run folders: the final model's and its milestones', or a folder of them.",
        ),
    ],
    year: YearOption,
    track: TrackOption,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The file, or a folder for one with the official name."),
    ],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The zero-shot method of the file.",
            show_default="the only one there",
        ),
    ] = "",
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="The finetuning seed of the file.",
            show_default="the only one, or 42",
        ),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=FILE", help="A part made elsewhere, as JSON. Repeatable."),
    ] = None,
    ties: Annotated[
        Literal["first", "random"] | None,
        typer.Option(
            metavar="RULE",
            help="Of several best options: first, random.",
            show_default="as officially",
        ),
    ] = None,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Write a file with holes, and say which.")
    ] = False,
    allow_conventions: Annotated[
        bool,
        typer.Option(
            "--allow-conventions", help="Write runs of other conventions than the year's, marked."
        ),
    ] = False,
    table_format: str = "table",
) -> None:
    """Write a BabyLM leaderboard's file from run folders, checked against its schema; holes are
    refused.
    """
    pairs = [given.partition("=") for given in part or ()]
    if wrong := [key for key, _, file in pairs if not file]:
        raise UsageError(
            f"{wrong[0]!r} is not KEY=FILE", location="--part", hint="--part vqa=predictions.json"
        )
    from antlm_bench.commands.submit import submit
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table

    done = submit(
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
    holes = {missing.key: f"{missing.reason}\n{missing.hint}" for missing in done.missing}
    shown = {"sha256": done.digest, "notes": "\n".join(done.notes)} | (
        {"empty": holes} if holes else {}
    )
    print_table(build_facts_table(str(done.path), shown), table_format)


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
    """Check a folder of checkpoints against a track's rules: milestones, names, weights,
    tokenizers.
    """
    from antlm_bench.commands.preflight import preflight
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table

    facts = preflight(folder, track=track, year=year)
    print_table(build_facts_table(str(folder), facts), table_format)
