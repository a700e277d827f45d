"""`report`: run folders as the table that the field publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from antlm_bench.errors import IncompleteError, UsageError
from antlm_bench.options import one_format, split
from antlm_bench.verbs.panels import Csv, Json, Markdown, table, what

Latex = Annotated[bool, table("--latex", help="LaTeX (booktabs) instead of a table.")]
ModelIndex = Annotated[bool, table("--model-index", help="Front matter for the model card of one checkpoint.")]


def report_verb(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders that hold them.")],
    collection: Annotated[
        str, what(metavar="NAME", help="babylm-2024, another of `list collections`, or a .toml.", show_default="none")
    ] = "",
    member: Annotated[
        list[str] | None, what(metavar="MEMBER=SUITE", help="Show another suite in a member's place. Repeatable.")
    ] = None,
    partial: Annotated[bool, what("--partial", help="Average the members that are there, marked.")] = False,
    published: Annotated[bool, table("--published", help="The collection's published rows beside.")] = False,
    baseline: Annotated[
        list[str] | None, table(metavar="TEXT", help="Only published rows with this in their name. Repeatable, or a,b.")
    ] = None,
    json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
    latex: Latex = False,
    model_index: ModelIndex = False,
) -> None:
    """Show suites and macro-average of runs side by side; what is missing is said, not averaged over."""
    forms = {"json": json, "csv": csv, "markdown": markdown, "latex": latex, "model-index": model_index}
    form = one_format(**forms)
    stand_ins = _stand_ins(member)

    from antlm_bench.commands.report import report
    from antlm_bench.rendering.report import show_report

    words = split(baseline)
    rows = words if words or published else None
    try:
        made = report(runs, collection=collection, published=rows, stand_ins=stand_ins, partial=partial)
    except IncompleteError as error:  # what is there is shown before what is missing is said
        for unfinished in error.runs:
            show_report(unfinished, form)
        raise
    show_report(made, form)


def _stand_ins(values: list[str] | None) -> dict[str, str]:
    """`ewok=ewok-fast-2025` -> {"ewok": "ewok-fast-2025"}."""
    pairs = [value.partition("=") for value in values or ()]
    if wrong := [name for name, _, suite in pairs if not (name and suite)]:
        hint = "e.g. --member ewok=ewok-fast-2025"
        raise UsageError(f"{wrong[0]!r} is not member=suite", place="--member", hint=hint)
    return {name: suite for name, _, suite in pairs}
