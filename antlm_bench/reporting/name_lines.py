"""Break names of models and groups into lines, for figures."""

from __future__ import annotations

from unicodedata import combining, east_asian_width


def count_columns(text: str) -> int:
    """Return the width of a text in columns: 2 per East Asian letter, 0 per combining mark.

    A character above U+FFFF has the width of `U+1F600`, which is drawn for it (see `charts`).
    """
    return sum(
        len(f"U+{ord(c):X}")
        if c > "\uffff"
        else 0
        if combining(c)
        else 1 + (east_asian_width(c) in "WF")
        for c in text
    )


def _count_fitting(text: str, columns: int) -> int:
    """Return how many characters at the start of a text fit into that many columns."""
    return max(i for i in range(len(text) + 1) if count_columns(text[:i]) <= columns)


def fold_name(name: str, length: int) -> str:
    """Return a name in at most two lines of `length` columns.

    In a longer name "…" replaces the middle, because paradigms differ in their last letters.
    """
    if count_columns(name) <= length:
        return name
    end = _first_line(name, length)
    rest = name[end:]
    if count_columns(rest) > length:
        rest = "…" + rest[len(rest) - _count_fitting(rest[::-1], length - 1) :]
    return f"{name[:end]}\n{rest}"


def wrap_name(name: str, length: int) -> list[str]:
    """Return a whole name in lines of `length` columns."""
    lines = []
    while count_columns(name) > length:
        end = _first_line(name, length)
        lines.append(name[:end].rstrip())
        name = name[end:]
    return [*lines, name]


def _first_line(name: str, length: int) -> int:
    """Return the number of characters of the first line. It ends after a `_- ./@` if possible."""
    end = max(1, _count_fitting(name, length))
    while end > 1 and "\N{ZERO WIDTH JOINER}" in name[end - 1 : end + 1]:
        end -= 1
    breaks = [i + 1 for i, c in enumerate(name[:end]) if c in "_- ./@"]
    rest = count_columns(name[breaks[-1] :]) if breaks else 0
    if breaks and (2 * breaks[-1] >= end or rest <= length):
        end = breaks[-1]
    return end
