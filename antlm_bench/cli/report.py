"""The command `report`: a table, page or figures of run folders."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial as bind_arguments
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from antlm_bench.cli.shared_options import (
    model_option,
    output_option,
    parse_assignments,
    refuse_options,
    split_names,
    with_table_format,
)
from antlm_bench.errors import IncompleteError, UsageError

if TYPE_CHECKING:
    from antlm_bench.results.reports import Report

figure_option = bind_arguments(typer.Option, rich_help_panel="Pages and figures")


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
        bool,
        model_option("--partial", help="Average the members present, and mark the average."),
    ] = False,
    published: Annotated[
        bool, output_option("--published", help="Add the collection's published rows.")
    ] = False,
    baseline: Annotated[
        list[str] | None,
        output_option(
            metavar="TEXT", help="Add published rows whose name contains this. Repeatable, or a,b."
        ),
    ] = None,
    model_index: Annotated[
        bool,
        output_option(
            "--model-index",
            help="Print the results as front matter for a model card.",
        ),
    ] = False,
    provenance: Annotated[
        bool,
        output_option(
            "--provenance",
            help="Print how each result came about: command, machine, seconds, memory.",
        ),
    ] = False,
    html: Annotated[
        Path | None,
        figure_option(
            metavar="FILE", help="Write one HTML page that works offline, instead of a table."
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        figure_option(
            metavar="DIR", help="Write the page's figures as SVG files, instead of a table."
        ),
    ] = None,
    png: Annotated[
        Path | None,
        figure_option(metavar="DIR", help="Write the figures as PNG files, at 300 dots per inch."),
    ] = None,
    training: Annotated[
        list[Path] | None,
        figure_option(
            metavar="DIR", help="Folder that `train` wrote, to draw its losses. Repeatable."
        ),
    ] = None,
    *,
    table_format: str,
) -> None:
    """Show the suites and the macro-average of several runs side by side.

    There is no macro-average if a member is missing; missing members are listed.
    """
    outputs = {"--html": html, "--svg": svg, "--png": png}
    _check_combinations(
        outputs, model_index=model_index, table_format=table_format, collection=collection
    )
    if provenance:
        refuse_options(
            {
                "--collection": collection,
                "--model-index": model_index,
                "--published": published,
                "--baseline": baseline,
                "--member": member,
                "--partial": partial,
                **outputs,
            },
            "cannot be combined with --provenance",
            "run two commands",
        )
        _print_provenance(runs, table_format)
        return
    refuse_options(
        {"--training": training and not any(outputs.values())},
        "losses are shown in figures only",
        "add --html, --svg or --png",
    )
    stand_ins = parse_assignments(member, "--member", "MEMBER=SUITE", "ewok=ewok-fast-2025")
    name_parts = split_names(baseline)

    from antlm_bench.commands.report import build_report
    from antlm_bench.reporting.report_table import build_report_table
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_table
    from antlm_bench.results.model_card import build_model_card

    def print_report(report: Report) -> None:
        if any(outputs.values()):
            facts = _write_outputs(runs, outputs, training or (), report)
            print_table(build_facts_table("report", facts))
        elif model_index:
            sys.stdout.write(build_model_card(report))
        else:
            print_table(build_report_table(report), table_format)

    try:
        report = build_report(
            runs,
            collection=collection,
            stand_ins=stand_ins,
            partial=partial,
            published=name_parts if name_parts or published else None,
        )
    except IncompleteError as error:  # print the results present before the error
        for incomplete_report in error.runs:
            print_report(incomplete_report)
        raise
    print_report(report)


def _print_provenance(run_dirs: Sequence[Path], table_format: str) -> None:
    from antlm_bench.commands.report import list_provenance
    from antlm_bench.reporting.provenance_table import build_provenance_table
    from antlm_bench.reporting.writers import print_table

    print_table(build_provenance_table(list_provenance(run_dirs)), table_format)


def _check_combinations(
    outputs: Mapping[str, Path | None], *, model_index: bool, table_format: str, collection: str
) -> None:
    """Raise UsageError if two outputs were asked for that exclude each other.

    outputs: --html, --svg and --png -> file or folder.
    """
    table_options = ["--model-index"] if model_index else []
    if table_format != "table":
        table_options.append(f"--{table_format}")
    if len(table_options) > 1:
        raise UsageError(
            f"{' and '.join(table_options)} exclude each other", hint="each prints the same rows"
        )
    if table_options and any(outputs.values()):
        raise UsageError(
            "--html, --svg and --png cannot be combined with it",
            location=table_options[0],
            hint="run two commands",
        )
    if collection and any(outputs.values()) and not outputs["--html"]:
        raise UsageError(
            "--svg and --png cannot show a collection", location="--collection", hint="use --html"
        )


def _write_outputs(
    run_dirs: Sequence[Path],
    outputs: Mapping[str, Path | None],
    training_dirs: Sequence[Path],
    report: Report,
) -> dict[str, object]:
    """Write the page and the figures. Return their paths as facts: "page", "svg", "png"."""
    from antlm_bench.reporting.html_data import write_figures, write_page

    facts: dict[str, object] = {}
    for option, path in outputs.items():
        image_format = option.removeprefix("--")
        if path and option == "--html":
            page = write_page(run_dirs, path, training_dirs=training_dirs, report=report)
            facts["page"] = str(page)
        elif path:
            files = write_figures(run_dirs, path, image_format, training_dirs=training_dirs)
            facts[image_format] = list(map(str, files))
    return facts
