"""Make text from outside (names of models, suites, files) safe to print."""

from __future__ import annotations

import re
from unicodedata import bidirectional


def make_printable(text: str) -> str:
    """Return text with "\N{REPLACEMENT CHARACTER}" for each character that is not printable.

    Control characters in a name could steer a terminal or break a row, and bidirectional controls
    could reorder it. Joiners stay inside an emoji or a word of a script that needs them: between
    two visible characters outside ASCII. Elsewhere they could make two names look alike.
    """
    return "".join(
        c if c.isprintable() or _is_joiner(text, i) else "\N{REPLACEMENT CHARACTER}"
        for i, c in enumerate(text)
    )


def _is_joiner(text: str, index: int) -> bool:
    """Return whether text[index] is ZWJ or ZWNJ between two visible characters outside ASCII."""
    if text[index] not in "\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}":
        return False
    neighbours = text[max(index - 1, 0) : index] + text[index + 1 : index + 2]
    return len(neighbours) == 2 and all(c.isprintable() and c > "\x7f" for c in neighbours)


def has_right_to_left(text: str) -> bool:
    """Return whether a text has letters or digits that are written from right to left."""
    return not text.isascii() and any(bidirectional(c) in ("R", "AL", "AN") for c in text)


def clean_lines(text: str) -> str:
    """Return text with every line made printable and without trailing spaces."""
    lines = "\n".join(make_printable(line).rstrip() for line in text.splitlines())
    return hide_workflow_commands(lines)


def hide_workflow_commands(text: str) -> str:
    """Return text without lines that GitHub's log would carry out as commands.

    A command is a line that begins with `::`, or holds `##[`. The first character of either is
    replaced.
    """
    return re.sub(r"(?m)^(\s*):(?=:)|#(?=#\[)", "\\1\N{REPLACEMENT CHARACTER}", text)


def pluralize(word: str) -> str:
    """Return the plural of a noun."""
    irregular = {"phenomenon": "phenomena"}
    return irregular.get(word, f"{word}s")


def format_count(count: int, noun: str) -> str:
    """Return `1 item` or `1,200 items`."""
    return f"{count:,} {noun if count == 1 else pluralize(noun)}"


CSV_COMMAND = re.compile(r"'*(?:[=+\-@]|::)")
"""Start of a text that a spreadsheet would compute, or GitHub's log would carry out."""


def to_csv_text(text: str) -> str:
    """Return text as a CSV field that no spreadsheet computes.

    Text that begins like a formula (= + - @) or like `::` gets an apostrophe in front, as
    spreadsheets write text; one that already has apostrophes there gets one more.
    `from_csv_text` removes it.
    """
    return f"'{text}" if CSV_COMMAND.match(text) else text


def from_csv_text(field: str) -> str:
    """Return the text of a CSV field (the inverse of `to_csv_text`)."""
    return field[1:] if field.startswith("'") and CSV_COMMAND.match(field) else field


def format_decimals(value: float, spec: str) -> str:
    """Return format(value, spec), e.g. "+.2f", without a sign if it rounds to 0: never "-0.00"."""
    text = format(value, spec)
    return text if text.strip("+-0.") else text.lstrip("+-")
