"""`data list|fetch|verify|where`: the files of the suites."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import Csv, Json, Markdown, one_format

Suites = Annotated[list[str] | None, typer.Argument(metavar="[SUITE]...", help="All of them when none is named.")]


def data_list(suites: Suites = None, json: Json = False, csv: Csv = False, markdown: Markdown = False) -> None:
    """What is here, suite by suite; of named suites, file by file."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.commands.data import status
    from antlm_bench.reporting import catalog

    catalog(status(suites or ()), form)


def data_fetch(
    suites: Annotated[list[str], typer.Argument(metavar="SUITE...", help="Suites or collections.")],
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to fetch into.", show_default="the cache")
    ] = None,
) -> None:
    """Download from the official places, verify, store; a folder given by --to then serves as ANTLM_BENCH_DATA."""
    from antlm_bench.commands.data import fetch
    from antlm_bench.reporting import facts

    for row in fetch(suites, to):
        facts(row.pop("suite"), row)


def data_verify(suites: Suites = None) -> None:
    """Read every file that is here and compare it with what is published."""
    from antlm_bench.commands.data import verify
    from antlm_bench.reporting import catalog

    verify(suites or (), partial(catalog, empty="no data files here"))


def data_where() -> None:
    """The folders that are searched, in order."""
    from antlm_bench.commands.data import where
    from antlm_bench.reporting import catalog

    catalog(where())
