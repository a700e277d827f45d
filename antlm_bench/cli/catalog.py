"""The commands `list`, `show`, `doctor` and `data`: describe suites, recipes and checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from antlm_bench.cli.configuration import DEFAULTS_KEY, ConfiguredDefaults, list_settings
from antlm_bench.cli.shared_options import (
    OptionValues,
    OverridesOption,
    ScaleOption,
    Tables,
    build_options,
    check_overrides,
    model_option,
    output_option,
    prints_tables,
    with_open_options,
    with_table_format,
)
from antlm_bench.configuration import CHECK_TABLE

if TYPE_CHECKING:
    from antlm_bench.reporting.table import Table

SuitesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[SUITE]...", help="Suites. Default: all.")
]
CHECKPOINT_LABELS = {
    "given": "given as",
    "weights": "weights (sha256)",
    "base_weights": "base weights (sha256)",
    "adapter_weights": "adapter weights (sha256)",
    "adapter_config": "adapter config (sha256)",
    "weight_files": "weight files",
    "config": "config (sha256)",
    "tokenizer": "tokenizer (sha256)",
    "tokenizer_class": "tokenizer class",
    "tokenizer_source": "tokenizer from",
    "vocabulary": "embeddings",
    "max_length": "longest text (tokens)",
    "layout": "layout of batches",
    "original_layout": "layout of its authors",
    "bos": "BOS rule (--bos)",
    "specials": "special tokens",
    "specials_under": "special tokens by BOS rule",
    "mask": "mask token",
    "unk": "unknown token",
    "words_seen": "words seen",
    "self_test": "self-test",
    "self_test.largest_nats_below": "differences below (nats)",
}
"""Fact about a checkpoint -> its label in formats for people."""


@with_table_format()
def list_command(
    kind: Annotated[
        Literal[
            "suites",
            "collections",
            "models",
            "methods",
            "architectures",
            "metrics",
            "task-types",
            "formats",
        ],
        typer.Argument(
            metavar="KIND",
            help="suites, collections, models (training recipes), methods, architectures, metrics, "
            "task-types (kinds of suites) or formats (of output).",
        ),
    ] = "suites",
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", help="Only rows that contain each of these texts."),
    ] = None,
    language: Annotated[
        str,
        output_option(metavar="TAG", help="Only suites of this language: en, de, zh."),
    ] = "",
    *,
    table_format: str,
) -> None:
    """List suites, collections, training recipes, or records such as methods and metrics.

    Records of installed packages are listed with ours. On a terminal, suites are grouped by
    language, and the many suites of one collection are one row; a text or --language lists all.
    """
    from antlm_bench.commands.catalog import filter_rows, list_catalog, list_catalog_problems
    from antlm_bench.console import print_warning
    from antlm_bench.reporting.table import build_records_table
    from antlm_bench.reporting.writers import list_formats, print_table

    rows = list_formats() if kind == "formats" else list_catalog(kind)
    is_filtered = bool(text or language)
    rows = filter_rows(rows, text or (), language)
    if kind == "suites" and table_format == "table" and not is_filtered:
        _print_grouped_suites(rows)
    else:
        empty = f"no {kind} with this text" if is_filtered else f"no {kind} yet"
        print_table(build_records_table(rows, empty=empty), table_format)
    for problem in list_catalog_problems(kind):
        print_warning(problem)


def _print_grouped_suites(rows: Sequence[dict[str, Any]]) -> None:
    from antlm_bench.commands.catalog import fold_collections, group_by_language
    from antlm_bench.reporting.table import build_records_table
    from antlm_bench.reporting.writers import print_tables

    groups = group_by_language(fold_collections(rows))
    print_tables(build_records_table(group, title=title) for title, group in groups.items())


@prints_tables()
def show_command(
    name: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] NAME",
            help="A suite, collection, recipe, method, architecture, or a .toml.",
        ),
    ],
    scale: ScaleOption = "",
    overrides: OverridesOption = None,
    words: Annotated[
        int | None,
        model_option(
            metavar="N",
            min=1,
            help="Number of words of the corpus of a recipe.",
            show_default="10,000,000",
        ),
    ] = None,
) -> Tables:
    """Show a suite, collection, recipe, method or architecture.

    The table holds its settings, size or cost, citation and data files. For a recipe, also list the
    differences from its paper.
    """
    from antlm_bench.commands.catalog import describe_entry, list_recipe_differences
    from antlm_bench.reporting.table import build_facts_table, build_records_table

    check_overrides(overrides)
    title, facts = describe_entry(name, scale, overrides or (), words)
    differences = list_recipe_differences(name, scale, overrides or ())
    parts = [build_records_table(differences)] if differences else []
    yield build_facts_table(title, facts, parts)


@with_table_format()
@with_open_options(without=("bos", "max_length", "device", "dtype", "batch_tokens"))
def doctor_command(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        model_option(
            metavar="CKPT",
            help="Folder, hub id, glob, folder of checkpoints. Repeatable. Without it: this "
            "installation, and the configuration file with its values.",
        ),
    ] = None,
    *,
    open_options: OptionValues,
    table_format: str,
) -> None:
    """Open checkpoints without scoring; print architecture, methods, special tokens and dtype.

    Without --model, print the versions of this installation, what torch was built for and finds
    (devices, threads), which configuration file is read, and each value with its origin.
    """
    from antlm_bench.reporting.writers import print_table, print_tables

    if not model:
        print_table(_build_settings_table(context), table_format)
        return

    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.catalog import inspect_checkpoints

    checkpoints = inspect_checkpoints(model, build_options(OpenOptions, open_options))
    print_tables(_facts_tables(checkpoints, "name", CHECKPOINT_LABELS), table_format)


def _build_settings_table(context: typer.Context) -> Table:
    """Build the table of the installation and the configuration. Raises DeclarationError for an
    invalid value.
    """
    from antlm_bench.commands.installation import describe_installation
    from antlm_bench.comparison.margins import load_margins
    from antlm_bench.reporting.table import build_records_table

    defaults: ConfiguredDefaults = context.meta[DEFAULTS_KEY]
    commands = context.find_root().command.commands  # type: ignore[attr-defined]
    rows: list[Mapping[str, object]] = [
        {"key": name, "value": value, "from": "installation", "sets": ""}
        for name, value in describe_installation().items()
    ]
    rows += list_settings(defaults, commands, context)
    file = defaults.configuration.file
    if file is None:
        title = "no configuration file is read"
    else:
        title = f"configuration: {file}"
        if CHECK_TABLE in defaults.configuration.values:
            load_margins(file)
    return build_records_table(rows, title=title)


@prints_tables()
def data_list_command(suites: SuitesArgument = None) -> Tables:
    """List the local data files: one row per suite, or one per file of the named suites."""
    from antlm_bench.commands.data import list_file_status
    from antlm_bench.reporting.table import build_records_table

    rows = list_file_status(suites or ())
    yield build_records_table([*_with_sizes(rows)], units={"size": "bytes"})


@with_table_format()
def data_fetch_command(
    suites: Annotated[list[str], typer.Argument(metavar="SUITE...", help="Suites or collections.")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to download into.", show_default="the cache"),
    ] = None,
    *,
    table_format: str,
) -> None:
    """Download the files of suites from their official sources and verify them.

    Other commands read files in the folder of --to if ANTLM_BENCH_DATA names it.
    """
    from antlm_bench.commands.data import fetch_suites
    from antlm_bench.reporting.writers import print_tables

    print_tables(_facts_tables(_with_sizes(fetch_suites(suites, to)), "suite"), table_format)


@prints_tables()
def data_verify_command(suites: SuitesArgument = None) -> Tables:
    """Compare every local file with the published one."""
    from antlm_bench.commands.data import raise_on_bad_files, verify_files
    from antlm_bench.reporting.table import build_records_table

    suite_rows, bad_files = verify_files(suites or ())
    parts = (build_records_table(bad_files),) if bad_files else ()
    units = {"size": "bytes"}
    table = build_records_table([*_with_sizes(suite_rows)], units=units, empty="no data files here")
    yield replace(table, parts=parts)
    raise_on_bad_files(bad_files, suites or ())


@prints_tables()
def data_where_command() -> Tables:
    """List the folders that are searched for data, in order."""
    from antlm_bench.commands.data import list_data_dirs
    from antlm_bench.reporting.table import build_records_table

    yield build_records_table(list_data_dirs())


def _facts_tables(
    rows: Iterable[Mapping[str, Any]], title: str, labels: Mapping[str, str] | None = None
) -> Iterator[Table]:
    """Yield a table of facts per row, whose title is the row's value of the column `title`."""
    from antlm_bench.reporting.table import build_facts_table

    for row in rows:
        facts = {name: value for name, value in row.items() if name != title}
        yield build_facts_table(str(row[title]), facts, labels=labels)


def _with_sizes(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows with readable sizes: `12.3 MB`."""
    from antlm_bench.reporting.table import TableCell

    for row in rows:
        size = row.get("size")
        if size is None:
            yield {**row}
            continue
        if size >= 1e6:
            text = f"{size / 1e6:,.1f} MB"
        else:
            text = f"{size / 1e3:,.0f} kB" if size else "–"
        yield {**row, "size": TableCell(size, text)}
