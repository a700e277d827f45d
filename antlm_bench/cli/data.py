"""The commands `data list|fetch|verify|where`: the data files of the suites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from antlm_bench.cli.shared_options import with_table_format

SuitesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[SUITE]...", help="Suites. Default: all.")
]


@with_table_format()
def data_list_command(
    suites: SuitesArgument = None,
    table_format: str = "table",
) -> None:
    """List the data files present: one row per suite, or per file of the suites given."""
    from antlm_bench.commands.data import list_file_status
    from antlm_bench.reporting.table import build_records_table
    from antlm_bench.reporting.writers import print_table

    rows = list_file_status(suites or ())
    print_table(build_records_table([*_with_sizes(rows)], units={"size": "bytes"}), table_format)


@with_table_format()
def data_fetch_command(
    suites: Annotated[list[str], typer.Argument(metavar="SUITE...", help="Suites or collections.")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to download into.", show_default="the cache"),
    ] = None,
    table_format: str = "table",
) -> None:
    """Download the files of suites from their official sources and verify them.

    To use a folder given by --to, set ANTLM_BENCH_DATA to it.
    """
    from antlm_bench.commands.data import fetch_suites
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_tables

    facts = _with_sizes(fetch_suites(suites, to))
    print_tables((build_facts_table(str(f.pop("suite")), f) for f in facts), table_format)


@with_table_format()
def data_verify_command(suites: SuitesArgument = None, table_format: str = "table") -> None:
    """Compare every local file with the published one."""
    from antlm_bench.commands.data import raise_on_bad_files, verify_files
    from antlm_bench.reporting.table import build_records_table
    from antlm_bench.reporting.writers import print_table

    suite_rows, doubtful_files = verify_files(suites or ())
    parts = (build_records_table(doubtful_files),) if doubtful_files else ()
    units = {"size": "bytes"}
    table = build_records_table([*_with_sizes(suite_rows)], units=units, empty="no data files here")
    print_table(replace(table, parts=parts), table_format)
    raise_on_bad_files(doubtful_files, are_required=bool(suites))


@with_table_format()
def data_where_command(table_format: str = "table") -> None:
    """List the folders that are searched for data, in order."""
    from antlm_bench.commands.data import list_data_dirs
    from antlm_bench.reporting.table import build_records_table
    from antlm_bench.reporting.writers import print_table

    print_table(build_records_table(list_data_dirs()), table_format)


def _with_sizes(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows with readable sizes: `12.3 MB`."""
    from antlm_bench.reporting.table import TableCell

    for row in rows:
        size = row.get("size")
        if size is None:
            yield {**row}
            continue
        text = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB" if size else "–"
        yield {**row, "size": TableCell(size, text)}
