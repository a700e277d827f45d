"""Check the texts, pairs and options that are given to a Scorer or to `surprisal`.

A wrong argument raises UsageError, which names the argument, its type and the fix.
"""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields
from numbers import Integral
from os import PathLike
from typing import Any, get_type_hints

import numpy as np

from antlm_bench.arguments import check_value, describe_argument
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.runs.table_files import frame_rows, is_frame
from antlm_bench.suites.pair_layouts import DEFAULT_LAYOUT, LAYOUTS

TEXT_COLUMNS = ("text", "sentence")
"""Names of the column of texts in a data frame."""
PAIR_COLUMNS = LAYOUTS[DEFAULT_LAYOUT].columns
"""Column of pairs -> its recognised names in a data frame: those in a file."""
SURROGATE_HINT = "replace it: text.encode('utf-8', 'replace').decode()"


def check_string(value: object, location: str, hint: str) -> None:
    """Raise UsageError if an argument is not a string."""
    if not isinstance(value, str):
        raise UsageError(
            f"{describe_argument(value)} is not a string", location=location, hint=hint
        )


def check_path(value: object, location: str) -> None:
    """Raise UsageError if an argument cannot be the path of a file or folder."""
    try:
        is_path = isinstance(value, str | PathLike) and b"\0" not in os.fsencode(value)
    except (TypeError, UnicodeEncodeError):  # a path of bytes; half a surrogate pair
        is_path = False
    if not is_path or isinstance(os.fspath(value), bytes):  # type: ignore[call-overload]
        raise UsageError(
            f"{describe_argument(value)} is not a path",
            location=location,
            hint="give a str or Path",
        )


def check_columns(columns: Any) -> None:
    """Raise UsageError if names of columns are not a mapping of strings to strings."""
    is_mapping = isinstance(columns, Mapping)
    if not is_mapping or any(
        not isinstance(text, str) for pair in columns.items() for text in pair
    ):
        raise UsageError(
            f"{describe_argument(columns)} does not map names of columns to names of columns",
            location="columns",
            hint='give a dict, as {"sentence": "text"}',
        )


def check_options(options: object, options_class: type, settings: Mapping[str, object]) -> None:
    """Raise UsageError if `options` are neither None nor of the dataclass, or a keyword is not one
    of its fields.
    """
    if options is not None and not isinstance(options, options_class):
        raise UsageError(
            f"{describe_argument(options)} is not of type {options_class.__name__}",
            location="options",
            hint="give options by name, as device='cpu'",
        )
    check_option_names(options_class, settings)


def check_texts(texts: object, location: str = "texts") -> list[str]:
    """Return texts as a list.

    texts: an iterable of strings in a fixed order, or a data frame with one of TEXT_COLUMNS. Raises
    UsageError for anything else (a single string, a dict, a set), and DataError for half a
    surrogate pair.
    """
    if is_frame(texts):
        texts = [row[0] for row in _frame_columns(texts, {"text": TEXT_COLUMNS}, {}, location)]
    values = _list_elements(texts, location, "texts", "give [text]")
    return [_check_text(value, f"{location}[{index}]") for index, value in enumerate(values)]


def check_pairs(
    pairs: object, location: str = "pairs", columns: Mapping[str, str] | None = None
) -> list[tuple[str, str]]:
    """Return pairs of texts as a list.

    pairs: an iterable of pairs, or a data frame with the columns good and bad (PAIR_COLUMNS).
    columns: for a frame, our column -> its column. Raises as `check_texts`, also for a pair that is
    a dict.
    """
    if columns is not None:
        check_columns(columns)
    if is_frame(pairs):
        pairs = _frame_columns(pairs, PAIR_COLUMNS, columns or {}, location)
    elif columns:
        raise UsageError("a list of pairs has no columns", location="columns", hint="leave it out")
    checked = []
    values = _list_elements(pairs, location, "pairs", "give [(good, bad)]")
    for index, pair in enumerate(values):
        pair_location = f"{location}[{index}]"
        is_array = isinstance(pair, np.ndarray) and pair.ndim == 1
        is_sequence = isinstance(pair, Sequence) and not isinstance(pair, str | bytes)
        if not (is_array or is_sequence) or len(pair) != 2:
            raise UsageError(
                f"{describe_argument(pair)} is not a pair of texts",
                location=pair_location,
                hint="give a tuple (good, bad)",
            )
        good, bad = (_check_text(text, pair_location) for text in pair)
        checked.append((good, bad))
    return checked


def _frame_columns(
    frame: Any, names: Mapping[str, Sequence[str]], columns: Mapping[str, str], location: str
) -> list[tuple[Any, ...]]:
    """Return the values of some columns of a data frame, row by row.

    names: our column -> its recognised names in the frame. columns: our column -> its name, which
    replaces the recognised ones. Raises UsageError for an unknown or missing column.
    """
    for name in columns:
        if name not in names:
            hint = suggest_name(name, names) or f"one of {', '.join(names)}"
            raise UsageError(f"unknown column {name!r}", location="columns", hint=hint)
    present = [str(name) for name in frame.columns]
    chosen = []
    for name, recognised in names.items():
        wanted = [columns[name]] if name in columns else recognised
        column = next((each for each in wanted if each in present), None)
        if column is None:
            example = f"table[{present[0]!r}]" if present and len(names) == 1 else ""
            raise UsageError(
                f"the table has no column {' or '.join(map(repr, wanted))}",
                location=location,
                hint=suggest_name(wanted[0], present)
                or (f"give a column, as {example}" if example else f'columns={{"{name}": ...}}'),
            )
        chosen.append(column)
    return [tuple(row[column] for column in chosen) for row in frame_rows(frame)]


def _is_iterable(value: object) -> bool:
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0  # arrays may have 0 axes


def _list_elements(values: Any, location: str, noun: str, hint: str) -> list[Any]:
    """Return the elements of a list, or of another iterable with a fixed order."""
    is_table = hasattr(values, "columns") or isinstance(values, Mapping)  # elements are names
    is_ordered = _is_iterable(values) and not isinstance(values, Set)
    is_string = isinstance(values, str | bytes | bytearray)
    if is_ordered and not is_table and not is_string:
        return list(values)
    if is_table and noun == "pairs":
        hint = "give a list, as list(zip(table['good'], table['bad']))"
    elif is_table:
        hint = "give a list, as list(table['text'])"
    raise UsageError(
        f"{describe_argument(values)} is not a list of {noun}", location=location, hint=hint
    )


def _check_text(text: object, location: str) -> str:
    if not isinstance(text, str):
        raise UsageError(
            f"{describe_argument(text)} is not a string",
            location=location,
            hint="give texts as strings",
        )
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(
            f"{reprlib.repr(text)} has half a surrogate pair, which no tokenizer reads",
            location=location,
            hint=SURROGATE_HINT,
        )
    return text


def check_option_names(options_class: Any, settings: Mapping[str, object]) -> None:
    """Raise UsageError for a keyword that is not a field of the dataclass of options."""
    names = [field.name for field in fields(options_class)]
    for name in settings:
        if name not in names:
            hint = suggest_name(name, names) or f"one of {', '.join(names)}"
            raise UsageError("unknown option", location=name, hint=hint)


def check_option_types(options: Any) -> None:
    """Raise UsageError if a field of a dataclass of options has a value of another type.

    `device` is checked where it is resolved, because it may be an object of torch.
    """
    for name, annotation in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if name == "device":
            continue
        if isinstance(value, Integral) and abs(int(value)) > sys.maxsize:
            raise UsageError("the number is too large", location=name, hint="give a smaller one")
        check_value(type(options).__name__, name, value, annotation)
