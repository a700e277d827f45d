"""Templates of a declaration: "{field}" stands for a field of the record, and braces hold nothing else.

`{file}` and `{stem}` are the name of the data file with and without its ending, `{each}` is one entry of the list that
`item.each` names.
"""

from __future__ import annotations

from string import Formatter


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
