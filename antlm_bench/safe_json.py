"""Parse JSON that a stranger may have written, with bounded numbers and nesting."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 100
"""Levels of nesting. Deeper values break functions that recurse, such as a copy or `json.dumps`."""
MAX_INTEGER = 2**63
"""Integers from -MAX_INTEGER to below MAX_INTEGER are read, as Arrow and numpy can hold them."""
MAX_INTEGER_DIGITS = 20
"""A longer text is not converted: Python needs quadratic time."""


class _Unreadable:
    """Stands for a number that cannot be held, until its location is known."""

    def __init__(self, digits: str) -> None:
        self.digits = digits


def parse_json(text: str | bytes, *, allow_nan: bool = False) -> Any:
    """Parse JSON.

    allow_nan: accept NaN and infinities, which Python writes although JSON has none. Raises
    ValueError for text that is not JSON, for a number that no 64-bit integer or float holds (with
    its keys), and for values that are nested deeper than MAX_DEPTH.
    """
    unreadable: list[_Unreadable] = []

    def keep_unreadable(digits: str) -> _Unreadable:
        unreadable.append(_Unreadable(digits))
        return unreadable[-1]

    def parse_integer(digits: str) -> object:
        is_short = len(digits) <= MAX_INTEGER_DIGITS
        is_held = is_short and -MAX_INTEGER <= int(digits) < MAX_INTEGER
        return int(digits) if is_held else keep_unreadable(digits)

    def parse_float(digits: str) -> object:
        number = float(digits)
        return keep_unreadable(digits) if math.isinf(number) else number

    def parse_constant(name: str) -> object:
        return float(name) if allow_nan else keep_unreadable(name)

    try:
        value = json.loads(
            text, parse_int=parse_integer, parse_float=parse_float, parse_constant=parse_constant
        )
    except RecursionError:
        raise ValueError(_NESTING_MESSAGE) from None
    if _count_brackets(text) > MAX_DEPTH:
        _check_depth(value)
    if unreadable:
        _check_numbers(value)
    return value


_NESTING_MESSAGE = f"nested deeper than {MAX_DEPTH} levels"


def _count_brackets(text: str | bytes) -> int:
    """Return an upper bound of the depth of a JSON text. It is cheap, and low for most records."""
    if isinstance(text, bytes):
        return text.count(b"[") + text.count(b"{")
    return text.count("[") + text.count("{")


def _check_depth(value: Any) -> None:
    """Raise ValueError for values that are nested too deeply. Not recursive."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return
    raise ValueError(_NESTING_MESSAGE)


def _check_numbers(value: Any, keys: str = "") -> None:
    """Raise ValueError for an unreadable number, with its keys."""
    if isinstance(value, _Unreadable):
        number = f"{value.digits:.20}" + ("..." if len(value.digits) > 20 else "")
        location = f"{keys.removeprefix('.')}: " if keys else ""
        raise ValueError(f"{location}should be a finite number of 64 bits, not {number}")
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in entries:
            _check_numbers(child, f"{keys}.{key}")
