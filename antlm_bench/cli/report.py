"""`report`: run folders as the table that the field publishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial as with_panel
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from antlm_bench.cli.shared_options import Csv, Json, Markdown, one_format, split, table, what
from antlm_bench.errors import IncompleteError, UsageError

if TYPE_CHECKING:
    from antlm_bench.commands.report import Report

Latex = Annotated[bool, table("--latex", help="LaTeX (booktabs) instead of a table.")]
drawn = with_panel(typer.Option, rich_help_panel="What is drawn")
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
    html: Annotated[Path | None, drawn(metavar="FILE", help="One page that works offline, instead of a table.")] = None,
    svg: Annotated[Path | None, drawn(metavar="DIR", help="Its figures, one file each, instead of a table.")] = None,
    png: Annotated[Path | None, drawn(metavar="DIR", help="The same in 300 dots per inch.")] = None,
    training: Annotated[
        list[Path] | None, drawn(metavar="DIR", help="Folders of `train`, for its losses. Repeatable.")
    ] = None,
) -> None:
    """Show suites and macro-average of runs side by side; what is missing is said, not averaged over."""
    forms = {"json": json, "csv": csv, "markdown": markdown, "latex": latex, "model-index": model_index}
    form = one_format(**forms)
    stand_ins = _stand_ins(member)
    words = split(baseline)
    asked: dict[str, Any] = {"collection": collection, "stand_ins": stand_ins, "partial": partial}
    asked |= {"published": words if words or published else None}
    if html or svg or png:
        if form != "terminal":
            raise UsageError("a page is no table", place=f"--{form}", hint="two commands")
        if collection and not html:
            raise UsageError("a collection is a table, and no figure", place="--collection", hint="goes with --html")
    elif training:
        raise UsageError("losses are drawn, not tabulated", place="--training", hint="goes with --html, --svg or --png")

    from antlm_bench.commands.report import report
    from antlm_bench.reporting.report import show_report

    def show(made: Report) -> None:
        if html or svg or png:
            _draw(runs, html, {"svg": svg, "png": png}, training or (), made)
        else:
            show_report(made, form)

    try:
        made = report(runs, **asked)
    except IncompleteError as error:  # what is there is shown before what is missing is said
        for unfinished in error.runs:
            show(unfinished)
        raise
    show(made)


def _draw(
    runs: Sequence[Path],
    html: Path | None,
    folders: Mapping[str, Path | None],
    trainings: Sequence[Path],
    report: Report,
) -> None:
    from antlm_bench.reporting import facts
    from antlm_bench.reporting.html_data import figures, page

    made: dict[str, object] = {}
    if html:
        made["page"] = str(page(runs, html, trainings=trainings, report=report))
    for form, folder in folders.items():
        if folder:
            made[form] = [str(file) for file in figures(runs, folder, form, trainings=trainings)]
    facts("report", made)


def _stand_ins(values: list[str] | None) -> dict[str, str]:
    """`ewok=ewok-fast-2025` -> {"ewok": "ewok-fast-2025"}."""
    pairs = [value.partition("=") for value in values or ()]
    if wrong := [name for name, _, suite in pairs if not (name and suite)]:
        hint = "e.g. --member ewok=ewok-fast-2025"
        raise UsageError(f"{wrong[0]!r} is not member=suite", place="--member", hint=hint)
    return {name: suite for name, _, suite in pairs}
