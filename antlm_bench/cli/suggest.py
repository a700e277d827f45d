"""The command `suggest`: say what a file of sentences is and how it is scored."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import Annotated

import typer

from antlm_bench.cli.shared_options import Tables, prints_tables

LABELS = {
    "what": "what it is",
    "certainty": "how sure",
    "which": "which is right",
    "items": "pairs",
    "toml_file": "or write a TOML",
    "toml": "its content",
}
"""Field of a Suggestion -> its label in tables."""
NEEDED_TOML_LABEL = "write this file"
"""Label of `toml_file` if the command reads it."""
BREAK_BEFORE = (
    "--layout",
    "--good",
    "--columns",
    "--conditions",
    "--position",
    "--by",
    "--out",
    "--per",
)
"""Options before which a long command is broken."""
MAX_LINE = 80
"""Longest command that is printed on one line."""


@prints_tables()
def suggest_command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A .txt, .csv, .tsv, .jsonl or .json of sentences, or a folder of such files.",
        ),
    ],
) -> Tables:
    """Look at a file of sentences, say what it seems to be, and print the command that scores it.

    No model is opened. Where the file does not say which sentence of a pair is right, both choices
    are printed.
    """
    from antlm_bench.commands.suggest import suggest
    from antlm_bench.reporting.table import TableCell, build_facts_table

    suggestions = suggest(file)
    tables = []
    for number, suggestion in enumerate(suggestions, start=1):
        choice = f": choice {number} of {len(suggestions)}" if len(suggestions) > 1 else ""
        command = TableCell(suggestion.command, _break_command(suggestion.command))
        facts = {**suggestion.facts, "command": command}
        toml_file = suggestion.facts.get("toml_file")
        is_needed = toml_file and toml_file in shlex.split(suggestion.command)
        labels = LABELS | ({"toml_file": NEEDED_TOML_LABEL} if is_needed else {})
        tables.append(build_facts_table(file + choice, facts, labels=labels))
    yield from tables


def _break_command(command: str) -> str:
    """Return a command with a line per option if it is long. A terminal would break a long line,
    and a copy of that would be two commands.
    """
    if len(command) <= MAX_LINE:
        return command
    lines = []
    for words in map(shlex.split, command.split("\n")):
        breaks = [n for n, word in enumerate(words) if word in BREAK_BEFORE]
        bounds = pairwise([0, *breaks, len(words)])
        lines.append(" \\\n  ".join(shlex.join(words[start:end]) for start, end in bounds))
    return "\n".join(lines)
