"""`list`, `show` and `doctor`: what there is, before anything is computed."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import typer

from antlm_bench.cli.shared_options import (
    AdapterOption,
    AllowMissing,
    AllowPickle,
    AllowUnused,
    Checkpoints,
    Csv,
    Json,
    Markdown,
    OriginalLayout,
    Revision,
    TokenizerOption,
    TrustRemoteCode,
    one_format,
    said,
)

recipe_option = partial(typer.Option, rich_help_panel="Of a recipe")


def list_verb(
    kind: Annotated[
        Literal["suites", "collections", "models", "methods"],
        typer.Argument(metavar="KIND", help="suites, collections, models (training recipes) or methods."),
    ] = "suites",
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """List what can be scored, and how."""
    form = one_format(json=json, csv=csv, markdown=markdown)
    from antlm_bench.commands.list import listing
    from antlm_bench.reporting import catalog

    catalog(listing(kind), form, empty=f"no {kind} yet")


def show_verb(
    name: Annotated[
        list[str], typer.Argument(metavar="[KIND] NAME", help="A suite, collection, recipe, method, or a .toml.")
    ],
    scale: Annotated[str, recipe_option(metavar="NAME", help="A smaller version that it declares: nano, small.")] = "",
    change: Annotated[
        list[str] | None, recipe_option("--set", metavar="KEY=VALUE", help="Change a number of it. Repeatable.")
    ] = None,
    words: Annotated[
        int | None, recipe_option(metavar="N", min=1, help="Of the corpus.", show_default="10,000,000")
    ] = None,
) -> None:
    """Show one declaration: what it says, what it counts or costs, whom to cite, where its data lies.

    Of a recipe also a table of what differs from its paper.
    """
    from antlm_bench.commands.show import details, differences
    from antlm_bench.reporting import catalog, facts

    facts(*details(name, scale=scale, changes=change or (), words=words))
    if rows := differences(name, scale, change or ()):
        catalog(rows)


def doctor_verb(
    model: Checkpoints,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    peft: AdapterOption = None,
    tokenizer: TokenizerOption = None,
    allow_unused: AllowUnused = False,
    allow_missing: AllowMissing = False,
    original_layout: OriginalLayout = None,
) -> None:
    """Open checkpoints and print what was found, without scoring: architecture, methods, special tokens, dtype."""
    from antlm_bench.checkpoints import OpenOptions
    from antlm_bench.commands.doctor import examine
    from antlm_bench.reporting import facts

    for found in examine(model, said(OpenOptions, locals())):
        facts(str(found["name"]), {key: value for key, value in found.items() if key != "name"})
