"""`report`: run folders as the table that the field publishes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial as with_panel
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from antlm_bench.cli.shared_options import (
    model_option,
    split_names,
    table_option,
    with_table_format,
)
from antlm_bench.errors import IncompleteError, UsageError

if TYPE_CHECKING:
    from antlm_bench.results.reports import Report

output_option = with_panel(typer.Option, rich_help_panel="What is drawn")
ModelIndexOption = Annotated[
    bool, table_option("--model-index", help="Front matter for the model card of one checkpoint.")
]


@with_table_format()
def report_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold them.")
    ],
    collection: Annotated[
        str,
        model_option(
            metavar="NAME",
            help="babylm-2024, another of `list collections`, or a .toml.",
            show_default="none",
        ),
    ] = "",
    member: Annotated[
        list[str] | None,
        model_option(
            metavar="MEMBER=SUITE", help="Show another suite in a member's place. Repeatable."
        ),
    ] = None,
    partial: Annotated[
        bool, model_option("--partial", help="Average the members that are there, marked.")
    ] = False,
    published: Annotated[
        bool, table_option("--published", help="The collection's published rows beside.")
    ] = False,
    baseline: Annotated[
        list[str] | None,
        table_option(
            metavar="TEXT", help="Only published rows with this in their name. Repeatable, or a,b."
        ),
    ] = None,
    model_index: ModelIndexOption = False,
    html: Annotated[
        Path | None,
        output_option(metavar="FILE", help="One page that works offline, instead of a table."),
    ] = None,
    svg: Annotated[
        Path | None,
        output_option(metavar="DIR", help="Its figures, one file each, instead of a table."),
    ] = None,
    png: Annotated[
        Path | None, output_option(metavar="DIR", help="The same in 300 dots per inch.")
    ] = None,
    training: Annotated[
        list[Path] | None,
        output_option(metavar="DIR", help="Folders of `train`, for its losses. Repeatable."),
    ] = None,
    table_format: str = "table",
) -> None:
    """Show suites and macro-average of runs side by side; what is missing is said, not averaged
    over.
    """
    if model_index and table_format != "table":
        raise UsageError(
            f"--model-index and --{table_format} exclude each other",
            hint="each prints the same rows",
        )
    stand_ins = _parse_member_replacements(member)
    words = split_names(baseline)
    asked: dict[str, Any] = {"collection": collection, "stand_ins": stand_ins, "partial": partial}
    asked |= {"published": words if words or published else None}
    if html or svg or png:
        if model_index or table_format != "table":
            option = "--model-index" if model_index else f"--{table_format}"
            raise UsageError("a page is no table", location=option, hint="two commands")
        if collection and not html:
            raise UsageError(
                "a collection is a table, and no figure",
                location="--collection",
                hint="goes with --html",
            )
    elif training:
        raise UsageError(
            "losses are drawn, not tabulated",
            location="--training",
            hint="goes with --html, --svg or --png",
        )

    from antlm_bench.commands.report import build_report
    from antlm_bench.reporting.report_table import build_report_table
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table
    from antlm_bench.results.model_card import build_model_card

    def show(made: Report) -> None:
        if html or svg or png:
            written = _write_page_and_figures(
                runs, html, {"svg": svg, "png": png}, training or (), made
            )
            print_table(build_facts_table("report", written))
        elif model_index:
            sys.stdout.write(build_model_card(made))
        else:
            print_table(build_report_table(made), table_format)

    try:
        made = build_report(runs, **asked)
    except IncompleteError as error:  # what is there is shown before what is missing is said
        for unfinished in error.runs:
            show(unfinished)
        raise
    show(made)


def _write_page_and_figures(
    runs: Sequence[Path],
    html: Path | None,
    folders: Mapping[str, Path | None],
    trainings: Sequence[Path],
    report: Report,
) -> dict[str, object]:
    from antlm_bench.reporting.html_data import write_figures, write_page

    made: dict[str, object] = {}
    if html:
        made["page"] = str(write_page(runs, html, training_dirs=trainings, report=report))
    for form, folder in folders.items():
        if folder:
            made[form] = [
                str(file) for file in write_figures(runs, folder, form, training_dirs=trainings)
            ]
    return made


def _parse_member_replacements(values: list[str] | None) -> dict[str, str]:
    """`ewok=ewok-fast-2025` -> {"ewok": "ewok-fast-2025"}."""
    pairs = [value.partition("=") for value in values or ()]
    if wrong := [name for name, _, suite in pairs if not (name and suite)]:
        hint = "e.g. --member ewok=ewok-fast-2025"
        raise UsageError(f"{wrong[0]!r} is not member=suite", location="--member", hint=hint)
    return {name: suite for name, _, suite in pairs}
