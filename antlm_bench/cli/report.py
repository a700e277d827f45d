"""The command `report`: a table, page or figures of run folders."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial as bind_arguments
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

output_option = bind_arguments(typer.Option, rich_help_panel="Pages and figures")
ModelIndexOption = Annotated[
    bool,
    table_option("--model-index", help="Print front matter for the model card of one checkpoint."),
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
        model_option(metavar="MEMBER=SUITE", help="Replace a member by another suite. Repeatable."),
    ] = None,
    partial: Annotated[
        bool, model_option("--partial", help="Average the members present, and mark the average.")
    ] = False,
    published: Annotated[
        bool, table_option("--published", help="Add the collection's published rows.")
    ] = False,
    baseline: Annotated[
        list[str] | None,
        table_option(
            metavar="TEXT", help="Add published rows whose name contains this. Repeatable, or a,b."
        ),
    ] = None,
    model_index: ModelIndexOption = False,
    html: Annotated[
        Path | None,
        output_option(
            metavar="FILE", help="Write one HTML page that works offline, instead of a table."
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        output_option(
            metavar="DIR", help="Write the page's figures as SVG files, instead of a table."
        ),
    ] = None,
    png: Annotated[
        Path | None,
        output_option(metavar="DIR", help="Write the figures as PNG files, at 300 dots per inch."),
    ] = None,
    training: Annotated[
        list[Path] | None,
        output_option(
            metavar="DIR", help="Folder that `train` wrote, to draw its losses. Repeatable."
        ),
    ] = None,
    table_format: str = "table",
) -> None:
    """Show suites and macro-average of runs side by side.

    Missing members are listed, never averaged over.
    """
    if model_index and table_format != "table":
        raise UsageError(
            f"--model-index and --{table_format} exclude each other",
            hint="each prints the same rows",
        )
    name_parts = split_names(baseline)
    arguments: dict[str, Any] = {
        "collection": collection,
        "stand_ins": _parse_member_replacements(member),
        "partial": partial,
        "published": name_parts if name_parts or published else None,
    }
    if html or svg or png:
        if model_index or table_format != "table":
            option = "--model-index" if model_index else f"--{table_format}"
            raise UsageError(
                "--html, --svg and --png cannot be combined with it",
                location=option,
                hint="run two commands",
            )
        if collection and not html:
            raise UsageError(
                "--svg and --png cannot show a collection",
                location="--collection",
                hint="use --html",
            )
    elif training:
        raise UsageError(
            "losses are shown in figures only",
            location="--training",
            hint="add --html, --svg or --png",
        )

    from antlm_bench.commands.report import build_report
    from antlm_bench.reporting.report_table import build_report_table
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table
    from antlm_bench.results.model_card import build_model_card

    def print_report(report: Report) -> None:
        if html or svg or png:
            files = _write_page_and_figures(
                runs, html, {"svg": svg, "png": png}, training or (), report
            )
            print_table(build_facts_table("report", files))
        elif model_index:
            sys.stdout.write(build_model_card(report))
        else:
            print_table(build_report_table(report), table_format)

    try:
        report = build_report(runs, **arguments)
    except IncompleteError as error:  # print the results present before the error
        for incomplete_report in error.runs:
            print_report(incomplete_report)
        raise
    print_report(report)


def _write_page_and_figures(
    runs: Sequence[Path],
    html: Path | None,
    folders: Mapping[str, Path | None],
    training_dirs: Sequence[Path],
    report: Report,
) -> dict[str, object]:
    """Write the files asked for. Return their paths as facts: "page", "svg", "png"."""
    from antlm_bench.reporting.html_data import write_figures, write_page

    facts: dict[str, object] = {}
    if html:
        facts["page"] = str(write_page(runs, html, training_dirs=training_dirs, report=report))
    for image_format, folder in folders.items():
        if folder:
            files = write_figures(runs, folder, image_format, training_dirs=training_dirs)
            facts[image_format] = list(map(str, files))
    return facts


def _parse_member_replacements(values: list[str] | None) -> dict[str, str]:
    """Parse `ewok=ewok-fast-2025` into {"ewok": "ewok-fast-2025"}. Raises UsageError."""
    pairs = [value.partition("=") for value in values or ()]
    if wrong := [name for name, _, suite in pairs if not (name and suite)]:
        hint = "e.g. --member ewok=ewok-fast-2025"
        raise UsageError(f"{wrong[0]!r} is not member=suite", location="--member", hint=hint)
    return {name: suite for name, _, suite in pairs}
