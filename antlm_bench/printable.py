"""Make text from outside (names of models, suites, files) safe to print."""

from __future__ import annotations


def make_printable(text: str) -> str:
    """Return text with "\N{REPLACEMENT CHARACTER}" for each character that is not printable.

    Control characters in a name could steer a terminal or break a row.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def clean_lines(text: str) -> str:
    """Return text with every line made printable and without trailing spaces."""
    return "\n".join(make_printable(line).rstrip() for line in text.splitlines())
