"""Names of suites, declared ones and those of users' files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from antlm_bench.errors import UsageError


class LoadedSuite(Protocol):
    """A suite, or a classification task, as it was loaded."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def origin(self) -> tuple[str, ...]: ...


S = TypeVar("S", bound=LoadedSuite)


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


def deduplicate_suites(suites: Iterable[S]) -> list[S]:
    """Return the suites (or tasks) of a call; a file that was named twice occurs once.

    Raises UsageError for suites that would share a cell: two suites of one name that are no files
    of the user's, or two files that hold the same items under one name.
    """
    suites_by_key: dict[tuple[str, str], S] = {}
    for suite in suites:
        name = getattr(suite, "full_name", suite.name)
        first = suites_by_key.setdefault((name, suite.digest if suite.origin else ""), suite)
        if first is suite or (
            first.digest == suite.digest and _same_files(first.origin, suite.origin)
        ):
            continue
        if suite.origin:
            raise UsageError(
                f"{suite.origin[0]} holds the same questions as {first.origin[0]}, under the same"
                " name",
                location="--suite",
                hint="name one of them only, or rename a file",
            )
        hint = "score them in two commands, with an --out of its own for each"
        raise UsageError(f"two suites are called {name!r}", location="--suite", hint=hint)
    return list(suites_by_key.values())


def _same_files(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether two origins name the same files, perhaps through links."""
    return [Path(path).resolve() for path in first] == [Path(path).resolve() for path in second]


def _is_name_character(character: str) -> bool:
    return character in "._-" or unicodedata.category(character)[0] in "LMN"
