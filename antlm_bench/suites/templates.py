"""Templates of a declaration: "{field}" stands for a field of the record, and braces hold nothing else.

`{file}` and `{stem}` are the name of the data file with and without its ending, `{each}` is one entry of the list that
`item.each` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from antlm_bench.declarations import nearest
from antlm_bench.errors import DataError


def fields_of(template: str) -> list[str]:
    """The field names in a template. ValueError where its braces do not close or hold more than a plain name."""
    names = []
    for _, name, form, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name or name.isdigit() or form or conversion or any(c in name for c in "{}[]."):
            raise ValueError(f"in the template {template!r}, {{...}} must hold the name of a field and nothing else")
        names.append(name)
    return names


def checked(text: str) -> str:
    """The template itself, if it is one. ValueError as `fields_of`."""
    fields_of(text)
    return text


def below(where: tuple[str, ...]) -> tuple[str, ...]:
    """Templates of paths below a data root, if they are. ValueError where one has other fields or climbs out."""
    for path in where:
        if not set(fields_of(path)) <= {"file", "stem"}:
            raise ValueError(f"{path!r}: only {{file}} and {{stem}} stand in a path")
        if path.startswith(("/", "\\", "~")) or ".." in path.replace("\\", "/").split("/"):
            raise ValueError(f"{path!r} leaves the data root")
    return where


def text_of(template: str, fields: Iterable[str], record: Mapping[str, Any], place: str) -> str:
    """A template whose `fields` are filled with the texts of a record. DataError, naming `place`, where one is none."""
    for field in fields:
        value = value_of(record, field, place)
        if not isinstance(value, str):
            raise DataError(f"{field!r} must be a text, not {described(value)}", place=place)
    return clean(template.format_map(record), template, place)


def clean(text: str, template: str, place: str) -> str:
    """The text itself. DataError where it holds what no tokenizer takes."""
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise DataError(f"{template!r} gives a NUL or half a surrogate pair, which is no text", place=place)
    return text


def value_of(record: Mapping[str, Any], field: str, place: str) -> Any:
    """A field of a record. DataError, with the nearest there is, where it is missing."""
    try:
        return record[field]
    except KeyError:
        known = [name for name in record if name not in ("file", "stem")]
        hint = nearest(field, known) or f"there are {', '.join(map(repr, known[:20]))}"
        raise DataError(f"the field {field!r} is missing", place=place, hint=hint) from None


def described(value: Any) -> str:
    """A wrong value in an error's words."""
    return "empty" if value in ("", None) else f"{value!r:.40} ({type(value).__name__})"
