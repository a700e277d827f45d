"""Names of suites: what a name may hold, and what the name of a user's file makes of itself."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path


def slugify_title(title: str) -> str:
    """Return a title, or a file's name without its ending, as a suite's name; "" where it has no
    letter and no digit.

    Letters, their marks and digits of every script stay, in composed form (NFC); all else becomes a
    hyphen.
    """
    kept = "".join(
        c if _is_name_character(c) else "\0" for c in unicodedata.normalize("NFC", title)
    )
    name = re.sub("\0+", "-", kept)
    start = next((at for at, c in enumerate(name) if unicodedata.category(c)[0] in "LN"), len(name))
    return name[start:]


def validate_name(name: str) -> str:
    """Return a declared name in composed form. ValueError where a name cannot be so."""
    composed = unicodedata.normalize("NFC", name)
    if not composed or slugify_title(composed) != composed:
        raise ValueError(
            f"{name!r} should hold letters, digits, '.', '_' and '-', and begin with a letter or a digit"
        )
    return composed


def absolute_path(path: Path) -> str:
    """Return the absolute path of a user's file as a text that JSON can hold; of links only those
    among its folders are followed, for a link is named by people and its target perhaps by a cache.
    """
    return to_valid_unicode(str(path.parent.resolve() / path.name))


def to_valid_unicode(path: str) -> str:
    """Return a path as valid Unicode: a byte that is no UTF-8 becomes its escape, "\\xff"."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_name_character(character: str) -> bool:
    return character in "._-" or unicodedata.category(character)[0] in "LMN"
