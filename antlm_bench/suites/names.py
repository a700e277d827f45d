"""Names of suites: validation, names for users' files, suites with equal names in one call."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from antlm_bench.errors import UsageError


class LoadedSuite(Protocol):
    """A loaded suite or classification task."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def origin(self) -> tuple[str, ...]: ...


S = TypeVar("S", bound=LoadedSuite)


def slugify_title(title: str) -> str:
    """Return the name of a suite for a title, or for a file's name without its extension.

    Letters (with combining marks) and digits of every script are kept, in composed form (NFC), and
    so are '.', '_' and '-'. Any other sequence of characters becomes a hyphen. The name begins with
    the first letter or digit; it is "" if there is none.
    """
    composed = unicodedata.normalize("NFC", title)
    name = re.sub("\0+", "-", "".join(c if _is_name_character(c) else "\0" for c in composed))
    for index, character in enumerate(name):
        if unicodedata.category(character)[0] in "LN":
            return name[index:]
    return ""


def validate_name(name: str) -> str:
    """Return a declared name in composed form (NFC). Raises ValueError for an invalid name."""
    composed = unicodedata.normalize("NFC", name)
    if not composed or slugify_title(composed) != composed:
        raise ValueError(
            f"{name!r} is not a valid name: use letters, digits, '.', '_' and '-', "
            "and begin with a letter or a digit"
        )
    return composed


def absolute_path(path: Path) -> str:
    """Return the absolute path of a user's file, as valid Unicode for JSON.

    Links among its folders are resolved. A link in the last position is not: users choose its name,
    while caches name its target by a hash.
    """
    return to_valid_unicode(str(path.parent.resolve() / path.name))


def to_valid_unicode(path: str) -> str:
    """Return a path as valid Unicode: a byte that is not UTF-8 becomes its escape, "\\xff"."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def deduplicate_suites(suites: Iterable[S]) -> list[S]:
    """Return the suites or tasks of a call without repetitions of a suite or file.

    Raises UsageError for two suites with the same key in a run folder: two suites of the catalog
    with the same name, or two files of the user with the same name and items.
    """
    suites_by_key: dict[tuple[str, str], S] = {}
    for suite in suites:
        name = getattr(suite, "full_name", suite.name)
        key = (name, suite.digest if suite.origin else "")
        first = suites_by_key.setdefault(key, suite)
        if first.digest == suite.digest and _have_same_files(first, suite):
            continue
        if suite.origin:
            raise UsageError(
                f"{suite.origin[0]} and {first.origin[0]} have the same name and items",
                location="--suite",
                hint="name one of them only, or rename a file",
            )
        raise UsageError(
            f"two suites are called {name!r}",
            location="--suite",
            hint="score them in two commands with different --out",
        )
    return list(suites_by_key.values())


def _have_same_files(first: LoadedSuite, second: LoadedSuite) -> bool:
    first_paths = [Path(path).resolve() for path in first.origin]
    return first_paths == [Path(path).resolve() for path in second.origin]


def _is_name_character(character: str) -> bool:
    return character in "._-" or unicodedata.category(character)[0] in "LMN"
