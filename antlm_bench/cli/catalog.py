"""The commands `list`, `show` and `doctor`: describe suites, recipes and checkpoints."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    AdapterOption,
    AllowMissingOption,
    AllowPickleOption,
    AllowUnusedOption,
    ModelsOption,
    OriginalLayoutOption,
    RevisionOption,
    TokenizerOption,
    TrustRemoteCodeOption,
    build_options,
    with_table_format,
)

recipe_option = partial(typer.Option, rich_help_panel="For a recipe")


@with_table_format()
def list_command(
    kind: Annotated[
        Literal["suites", "collections", "models", "methods", "architectures"],
        typer.Argument(
            metavar="KIND",
            help="suites, collections, models (training recipes), methods or architectures.",
        ),
    ] = "suites",
    table_format: str = "table",
) -> None:
    """List suites, collections, training recipes, scoring methods or architectures."""
    from antlm_bench.commands.list import list_catalog
    from antlm_bench.reporting.table import build_records_table
    from antlm_bench.reporting.writers import print_table

    print_table(build_records_table(list_catalog(kind), empty=f"no {kind} yet"), table_format)


@with_table_format()
def show_command(
    name: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] NAME", help="A suite, collection, recipe, method, or a .toml."
        ),
    ],
    scale: Annotated[
        str,
        recipe_option(
            metavar="NAME", help="A smaller version that the recipe declares: nano, small."
        ),
    ] = "",
    change: Annotated[
        list[str] | None,
        recipe_option(
            "--set", metavar="KEY=VALUE", help="Change a number of the recipe. Repeatable."
        ),
    ] = None,
    words: Annotated[
        int | None,
        recipe_option(metavar="N", min=1, help="Words of the corpus.", show_default="10,000,000"),
    ] = None,
    table_format: str = "table",
) -> None:
    """Show one declaration: its values, its size or cost, its citation, the location of its data.

    For a recipe, also list the differences from its paper.
    """
    from antlm_bench.commands.show import describe_entry, list_recipe_differences
    from antlm_bench.reporting.table import build_facts_table, build_records_table
    from antlm_bench.reporting.writers import print_table

    title, facts = describe_entry(name, scale=scale, overrides=change or (), corpus_words=words)
    differences = list_recipe_differences(name, scale, change or ())
    parts = [build_records_table(differences)] if differences else []
    print_table(build_facts_table(title, facts, parts), table_format)


@with_table_format()
def doctor_command(
    model: ModelsOption,
    revision: RevisionOption = None,
    trust_remote_code: TrustRemoteCodeOption = False,
    allow_pickle: AllowPickleOption = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnusedOption = False,
    allow_missing: AllowMissingOption = False,
    original_layout: OriginalLayoutOption = None,
    table_format: str = "table",
) -> None:
    """Open checkpoints without scoring; print architecture, methods, special tokens and dtype."""
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.doctor import inspect_checkpoints
    from antlm_bench.reporting.table import build_facts_table
    from antlm_bench.reporting.writers import print_tables

    checkpoints = inspect_checkpoints(model, build_options(OpenOptions, locals()))
    facts = ({**checkpoint} for checkpoint in checkpoints)
    print_tables((build_facts_table(str(f.pop("name")), f) for f in facts), table_format)
