"""The parts that several verbs share: panels of their help, and the options that choose an output format."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

what = partial(typer.Option, rich_help_panel="What is scored")
how = partial(typer.Option, rich_help_panel="How it is scored")
run_folder = partial(typer.Option, rich_help_panel="The run")
table = partial(typer.Option, rich_help_panel="What is shown")

Json = Annotated[bool, table("--json", help="JSON instead of a table.")]
Csv = Annotated[bool, table("--csv", help="CSV instead of a table.")]
Markdown = Annotated[bool, table("--markdown", help="Markdown instead of a table.")]
