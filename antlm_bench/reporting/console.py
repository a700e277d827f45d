"""The console that tables, errors and warnings are printed on."""

from __future__ import annotations

import io
import os
import sys

from rich.console import Console
from rich.text import Text

PIPED_WIDTH = 120
"""Characters of a line where nobody says how wide the output is."""
PARAGRAPH_WIDTH = 100
"""Characters of a line of running text, however wide the terminal is."""


def open_console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr that leaves words as they are.

    Output is plain text where the stream is no terminal or NO_COLOR is set.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # an ASCII terminal shows "?" for "±", no traceback
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


def clean_lines(text: str) -> str:
    """Return text without control characters and spaces at the end of lines."""
    return "\n".join(replace_control_characters(line).rstrip() for line in text.splitlines())


def replace_control_characters(text: str) -> str:
    """Return text with "\N{REPLACEMENT CHARACTER}" for each character that is not printable."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
