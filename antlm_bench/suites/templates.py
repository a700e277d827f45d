"""Templates in declarations, in which "{field}" is replaced by a field of a record.

Fields of the data file's name, FILE_FIELDS, are available in every record. `{each}` is an entry of
the list that `item.each` names. Format specifications and attributes are not allowed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import Any

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError

FILE_FIELDS = ("file", "stem", "folder")
"""Fields of a file's name: de/x.txt has the file de/x.txt, the stem x and the folder de."""


def split_file_name(file: str) -> dict[str, str]:
    """Return FILE_FIELDS of a file's name. The folder of a name without one is "."."""
    folder, _, name = file.rpartition("/")
    return {"file": file, "stem": name.rpartition(".")[0] or name, "folder": folder or "."}


def template_fields(template: str) -> list[str]:
    """Return the names of the fields in a template.

    Raises ValueError if braces are not closed, or contain more than the name of a field.
    """
    names = []
    for _, name, format_spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        is_plain = name and not name.isdigit() and not any(c in name for c in "{}[].")
        if not is_plain or format_spec or conversion:
            raise ValueError(
                f"in the template {template!r}, "
                "{...} must hold the name of a field and nothing else"
            )
        names.append(name)
    return names


def validate_template(text: str) -> str:
    """Return the template unchanged. Raises ValueError as `template_fields`."""
    template_fields(text)
    return text


def validate_paths(path_templates: tuple[str, ...]) -> tuple[str, ...]:
    """Return templates of paths below a data root, unchanged.

    Raises ValueError if one has fields other than FILE_FIELDS, or leaves the root.
    """
    for path in path_templates:
        if not set(template_fields(path)) <= set(FILE_FIELDS):
            fields = ", ".join(f"{{{field}}}" for field in FILE_FIELDS)
            raise ValueError(f"{path!r} may contain only the fields {fields}")
        if path.startswith(("/", "\\", "~")) or ".." in path.replace("\\", "/").split("/"):
            raise ValueError(f"{path!r} must be a relative path without '..'")
    return path_templates


def fill_template(
    template: str, fields: Iterable[str], record: Mapping[str, Any], location: str
) -> str:
    """Return a template filled with the texts of a record. fields: `template_fields` of it.

    Raises DataError with the location if a field is missing or not a text.
    """
    for field in fields:
        value = get_field(record, field, location)
        if not isinstance(value, str):
            message = f"{field!r} must be a text, not {describe_value(value)}"
            raise DataError(message, location=location)
    return check_text(template.format_map(record), template, location)


def hash_cluster(
    templates: Mapping[str, Iterable[str]], record: Mapping[str, Any], location: str
) -> str:
    """Return a hash of the texts that a record shares with those that it belongs to.

    templates: template -> its `template_fields`. The order of the texts does not matter, because
    two records may hold the same texts in other fields (EWoK). Texts are stripped. Returns "" if
    all are empty. Raises DataError for a field that is missing, or neither a text nor a whole
    number nor empty.
    """
    texts = set()
    for template, fields in templates.items():
        values = {field: get_field(record, field, location) for field in fields}
        for field, value in values.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
                message = f"{field!r} must be a text or a whole number, not {describe_value(value)}"
                raise DataError(message, location=location)
        if any(value not in ("", None) for value in values.values()):
            filled = template.format_map({k: "" if v is None else v for k, v in values.items()})
            texts.add(check_text(filled, template, location).strip())
    return hash_texts(texts)


def hash_texts(texts: Iterable[str]) -> str:
    """Return a short hash of a set of texts (Item.cluster), "" if all are empty."""
    distinct = sorted({text for text in texts if text})
    return hashlib.sha256(json.dumps(distinct).encode()).hexdigest()[:16] if distinct else ""


def hash_document(document: Any) -> str:
    """Return the cluster that equal lm-eval documents share."""
    return hash_texts([json.dumps(document, sort_keys=True, default=str)])


def drop_single_clusters(clusters: Sequence[str]) -> list[str]:
    """Return the clusters (n,) of items, "" for an item that shares its cluster with no other."""
    sizes = Counter(clusters)
    return [cluster if sizes[cluster] > 1 else "" for cluster in clusters]


def check_text(text: str, template: str, location: str) -> str:
    """Return the text. Raises DataError if it has characters that no tokenizer accepts."""
    has_surrogate = not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)
    if "\0" in text or has_surrogate:
        message = f"{template!r} gives a NUL or half a surrogate pair, which is not text"
        raise DataError(message, location=location)
    return text


def get_field(record: Mapping[str, Any], field: str, location: str) -> Any:
    """Return a field of a record. Raises DataError with a suggestion if it is missing."""
    try:
        return record[field]
    except KeyError:
        names = [name for name in record if name not in FILE_FIELDS]
        hint = suggest_name(field, names) or f"there are {', '.join(map(repr, names[:20]))}"
        raise DataError(f"the field {field!r} is missing", location=location, hint=hint) from None


def describe_value(value: Any) -> str:
    """Return an invalid value with its type, for an error message."""
    return "empty" if value in ("", None) else f"{value!r:.40} ({type(value).__name__})"
