"""The console that tables, progress, errors and warnings are printed on."""

from __future__ import annotations

import io
import os
import sys

from rich.console import Console
from rich.text import Text

from antlm_bench.errors import BenchError
from antlm_bench.printable import clean_lines

PIPED_WIDTH = 120
"""Characters per line if the output is not a terminal and COLUMNS is not set."""
PARAGRAPH_WIDTH = 100
"""Characters per line of running text; narrower on a narrow terminal."""


def open_console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr that neither highlights words nor reads markup.

    Output is plain text if the stream is not a terminal or NO_COLOR is set.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # an ASCII terminal then shows "?" for "±"
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPED_WIDTH
    return Console(
        file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True, width=width
    )


def print_paragraph(out: Console, text: str, style: str, indent: int = 1) -> None:
    """Print running text, wrapped and indented."""
    width = max(min(out.width, PARAGRAPH_WIDTH) - indent - 1, 1)
    for line in Text(clean_lines(text), style=style).wrap(out, width, overflow="fold"):
        indented = Text(" " * indent) + line
        indented.rstrip()
        out.print(indented)


def print_warning(text: str) -> None:
    """Print a warning on stderr."""
    print_paragraph(open_console(stderr=True), text, "magenta")


def print_error(error: BenchError) -> None:
    """Print the location, message and hint of an error on stderr."""
    out = open_console(stderr=True)
    location = f"{clean_lines(error.location)}: " if error.location else ""
    out.print(Text("error: ", style="bold red") + Text(location + clean_lines(error.message)))
    if error.hint:
        out.print(Text(" hint: ", style="bold") + Text(clean_lines(error.hint)))
