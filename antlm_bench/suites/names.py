"""Names of suites, declared ones and those of users' files."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path


def slugify_title(title: str) -> str:
    """Return a title, or a file's name without its ending, as a suite's name.

    Letters with their marks and digits of every script stay, in composed form (NFC); everything
    else becomes a hyphen. "" where there is no letter and no digit.
    """
    composed = unicodedata.normalize("NFC", title)
    name = re.sub("\0+", "-", "".join(c if _is_name_character(c) else "\0" for c in composed))
    start = next((i for i, c in enumerate(name) if unicodedata.category(c)[0] in "LN"), len(name))
    return name[start:]


def validate_name(name: str) -> str:
    """Return a declared name in composed form (NFC). Raises ValueError for an invalid name."""
    composed = unicodedata.normalize("NFC", name)
    if not composed or slugify_title(composed) != composed:
        raise ValueError(
            f"{name!r} should hold letters, digits, '.', '_' and '-', "
            "and begin with a letter or a digit"
        )
    return composed


def absolute_path(path: Path) -> str:
    """Return the absolute path of a user's file as a text that JSON can hold.

    Links among its folders are followed, the file itself may be a link: people name links, caches
    name their targets.
    """
    return to_valid_unicode(str(path.parent.resolve() / path.name))


def to_valid_unicode(path: str) -> str:
    """Return a path as valid Unicode: a byte that is not UTF-8 becomes its escape, "\\xff"."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_name_character(character: str) -> bool:
    return character in "._-" or unicodedata.category(character)[0] in "LMN"
