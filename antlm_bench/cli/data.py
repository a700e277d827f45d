"""`data list|fetch|verify|where`: the files of the suites."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import (
    CsvOption,
    JsonOption,
    MarkdownOption,
    choose_output_format,
)

SuitesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[SUITE]...", help="All of them when none is named.")
]


def data_list_command(
    suites: SuitesArgument = None,
    json: JsonOption = False,
    csv: CsvOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """What is here, suite by suite; of named suites, file by file."""
    form = choose_output_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.commands.data import list_file_status
    from antlm_bench.reporting import print_rows

    print_rows(list_file_status(suites or ()), form)


def data_fetch_command(
    suites: Annotated[list[str], typer.Argument(metavar="SUITE...", help="Suites or collections.")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to fetch into.", show_default="the cache"),
    ] = None,
) -> None:
    """Download from the official places, verify, store; a folder given by --to then serves as
    ANTLM_BENCH_DATA.
    """
    from antlm_bench.commands.data import fetch_suites
    from antlm_bench.reporting import print_fields

    for row in fetch_suites(suites, to):
        print_fields(row.pop("suite"), row)


def data_verify_command(suites: SuitesArgument = None) -> None:
    """Read every file that is here and compare it with what is published."""
    from antlm_bench.commands.data import verify_files
    from antlm_bench.reporting import print_rows

    verify_files(suites or (), partial(print_rows, empty="no data files here"))


def data_where_command() -> None:
    """The folders that are searched, in order."""
    from antlm_bench.commands.data import list_data_dirs
    from antlm_bench.reporting import print_rows

    print_rows(list_data_dirs())
