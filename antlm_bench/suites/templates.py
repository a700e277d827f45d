"""Templates of a declaration: "{field}" stands for a field of the record, and braces hold nothing
else.

`{file}` and `{stem}` are the name of the data file with and without its ending, `{each}` is one
entry of the list that `item.each` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError


def template_fields(template: str) -> list[str]:
    """The field names in a template. ValueError where its braces do not close or hold more than a
    plain name.
    """
    names = []
    for _, name, form, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name or name.isdigit() or form or conversion or any(c in name for c in "{}[]."):
            raise ValueError(
                f"in the template {template!r}, {{...}} must hold the name of a field and nothing else"
            )
        names.append(name)
    return names


def validate_template(text: str) -> str:
    """The template itself, if it is one. ValueError as `template_fields`."""
    template_fields(text)
    return text


def validate_paths(path_templates: tuple[str, ...]) -> tuple[str, ...]:
    """Templates of paths below a data root, if they are. ValueError where one has other fields or
    climbs out.
    """
    for path in path_templates:
        if not set(template_fields(path)) <= {"file", "stem"}:
            raise ValueError(f"{path!r}: only {{file}} and {{stem}} stand in a path")
        if path.startswith(("/", "\\", "~")) or ".." in path.replace("\\", "/").split("/"):
            raise ValueError(f"{path!r} leaves the data root")
    return path_templates


def fill_template(
    template: str, fields: Iterable[str], record: Mapping[str, Any], location: str
) -> str:
    """A template whose `fields` are filled with the texts of a record. DataError, naming `place`,
    where one is none.
    """
    for field in fields:
        value = get_field(record, field, location)
        if not isinstance(value, str):
            raise DataError(
                f"{field!r} must be a text, not {describe_value(value)}", location=location
            )
    return check_text(template.format_map(record), template, location)


def check_text(text: str, template: str, location: str) -> str:
    """The text itself. DataError where it holds what no tokenizer takes."""
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise DataError(
            f"{template!r} gives a NUL or half a surrogate pair, which is no text",
            location=location,
        )
    return text


def get_field(record: Mapping[str, Any], field: str, location: str) -> Any:
    """A field of a record. DataError, with the nearest there is, where it is missing."""
    try:
        return record[field]
    except KeyError:
        known = [name for name in record if name not in ("file", "stem")]
        hint = suggest_name(field, known) or f"there are {', '.join(map(repr, known[:20]))}"
        raise DataError(f"the field {field!r} is missing", location=location, hint=hint) from None


def describe_value(value: Any) -> str:
    """A wrong value in an error's words."""
    return "empty" if value in ("", None) else f"{value!r:.40} ({type(value).__name__})"
