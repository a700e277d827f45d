"""Templates in declarations: "{field}" is replaced by a field of the record.

`{file}` and `{stem}` are the name of the data file with and without its ending, `{each}` is one
entry of the list that `item.each` names. Braces hold nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError


def template_fields(template: str) -> list[str]:
    """Return the field names in a template.

    Raises ValueError where its braces do not close or hold more than a plain name.
    """
    names = []
    for _, name, form, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not name or name.isdigit() or form or conversion or any(c in name for c in "{}[]."):
            raise ValueError(
                f"in the template {template!r}, "
                "{...} must hold the name of a field and nothing else"
            )
        names.append(name)
    return names


def validate_template(text: str) -> str:
    """Return the template. Raises ValueError as `template_fields`."""
    template_fields(text)
    return text


def validate_paths(path_templates: tuple[str, ...]) -> tuple[str, ...]:
    """Return templates of paths below a data root.

    Raises ValueError where one has other fields than {file} and {stem}, or leaves the root.
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
    """Fill the `fields` of a template with the texts of a record.

    Raises DataError, naming the location, where a field is missing or no text.
    """
    for field in fields:
        value = get_field(record, field, location)
        if not isinstance(value, str):
            message = f"{field!r} must be a text, not {describe_value(value)}"
            raise DataError(message, location=location)
    return check_text(template.format_map(record), template, location)


def check_text(text: str, template: str, location: str) -> str:
    """Return the text. Raises DataError where it holds characters that no tokenizer takes."""
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        message = f"{template!r} gives a NUL or half a surrogate pair, which is no text"
        raise DataError(message, location=location)
    return text


def get_field(record: Mapping[str, Any], field: str, location: str) -> Any:
    """Return a field of a record. Raises DataError, with a suggestion, where it is missing."""
    try:
        return record[field]
    except KeyError:
        names = [name for name in record if name not in ("file", "stem")]
        hint = suggest_name(field, names) or f"there are {', '.join(map(repr, names[:20]))}"
        raise DataError(f"the field {field!r} is missing", location=location, hint=hint) from None


def describe_value(value: Any) -> str:
    """Return a wrong value as an error message names it."""
    return "empty" if value in ("", None) else f"{value!r:.40} ({type(value).__name__})"
