"""Check the arguments of the functions of the Python API against their annotations.

The names of the command line are keywords, too: `method` for `methods` (COMMAND_LINE_NAMES). An
unknown keyword, a value of another type and an empty argument are UsageErrors that name the
function, the argument and what it takes.
"""

from __future__ import annotations

import inspect
import numbers
import os
import reprlib
import sys
import types
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import suppress
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import UsageError
from antlm_bench.keywords import COMMAND_LINE_NAMES, OUTPUT_OPTIONS
from antlm_bench.packages import require_packages
from antlm_bench.printable import make_printable
from antlm_bench.types import Names, as_list

P = ParamSpec("P")
R = TypeVar("R")
Options = TypeVar("Options")
TYPE_NAMES: dict[Any, str] = {
    Any: "anything",
    bool: "True or False",
    float: "a number",
    int: "an integer",
    str: "a string",
    types.NoneType: "None",
    Path: "a path",
}
# Classes whose values are shown in a message; a value of another class may fill the screen.
SHOWN_CLASSES = (
    str,
    bytes,
    numbers.Integral,
    numbers.Real,
    list,
    tuple,
    dict,
    set,
    frozenset,
    type(None),
)


def check_arguments(
    name: str = "", options: type | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that checks the arguments of a function of the Python API.

    name: of the function in `antlm_bench`; "" = its own name. options: dataclass whose fields are
    keywords, too. The decorated function gets arguments of the annotated types: numbers of numpy
    and iterators are converted. It raises UsageError.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        location = f"{name or function.__name__}()"

        @wraps(function)
        def checked_function(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = _bind_arguments(location, function, options, args, kwargs)
            with require_packages():
                return function(*bound.args, **bound.kwargs)

        return checked_function

    return decorate


def describe_argument(value: object) -> str:
    """Return a value with its type, in one line, or only its type."""
    type_name = type(value).__name__
    if not isinstance(value, SHOWN_CLASSES):
        return f"a value of type {type_name}"
    try:
        text = make_printable(" ".join(reprlib.repr(value).split()))
    except ValueError:  # an integer of more than 4300 digits
        return f"a value of type {type_name}"
    return f"{text} ({type_name})"


def apply_settings(options: Options, settings: Mapping[str, Any]) -> Options:
    """Return a dataclass of options with some values replaced."""
    result: Options = replace(options, **settings)  # type: ignore[type-var]
    return result


def split_methods(methods: Names) -> list[str]:
    """Return the names of some methods; "causal,mlm" are two."""
    return [part for name in as_list(methods) for part in name.split(",") if part]


def _bind_arguments(
    location: str,
    function: Callable[..., Any],
    options: type | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> inspect.BoundArguments:
    """Return the converted arguments of a call. Raises UsageError."""
    signature, hints = _read_signature(function, options)
    keywords = _resolve_keywords(location, kwargs, hints)
    variadic = [p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL]
    if not args and variadic and variadic[0] in keywords:
        args = [keywords.pop(variadic[0])]
    try:
        bound = signature.bind(*args, **keywords)
    except TypeError as error:
        hint = f"it takes {', '.join(_list_names(signature))}"
        raise UsageError(str(error), location=location, hint=hint) from None
    for parameter in signature.parameters.values():
        key = parameter.name
        if key not in bound.arguments:
            continue
        value = bound.arguments[key]
        if parameter.kind is parameter.VAR_KEYWORD:
            new_value: Any = {k: check_value(location, k, v, hints[k]) for k, v in value.items()}
        elif parameter.kind is parameter.VAR_POSITIONAL:
            new_value = tuple(check_value(location, key, v, hints[key]) for v in value)
        else:
            new_value = check_value(location, key, value, hints[key])
            is_required = parameter.default is parameter.empty
            if is_required and isinstance(new_value, str | Sequence) and not len(new_value):
                expected = describe_type(hints[key])
                raise UsageError(f"{key} is empty; it must be {expected}", location=location)
        if key == "options" and options and isinstance(new_value, options):
            fields = get_type_hints(options)
            checked = {f: check_value(location, f, getattr(value, f), fields[f]) for f in fields}
            new_value = replace(new_value, **checked)  # type: ignore[type-var]
        bound.arguments[key] = new_value
    return bound


def _list_names(signature: inspect.Signature) -> list[str]:
    """Return the names of the parameters, without **settings."""
    return [p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]


@cache
def _read_signature(
    function: Callable[..., Any], options: type | None
) -> tuple[inspect.Signature, dict[str, Any]]:
    """Return the signature of a function, and keyword -> its type."""
    signature = inspect.signature(function)
    # The annotation of **settings is imported by type checkers only; `options` has the same fields.
    annotations = {name: function.__annotations__[name] for name in _list_names(signature)}
    holder = types.SimpleNamespace(__annotations__=annotations)
    hints = get_type_hints(holder, vars(sys.modules[function.__module__]))
    return signature, {**hints, **(get_type_hints(options) if options else {})}


def _resolve_keywords(
    location: str, kwargs: Mapping[str, Any], hints: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keywords by their own names. Raises UsageError for unknown and double ones."""
    aliases = {
        alias: name
        for alias, name in COMMAND_LINE_NAMES.items()
        if name in hints and alias not in hints
    }
    keywords: dict[str, Any] = {}
    for given_name, value in kwargs.items():
        name = aliases.get(given_name, given_name)
        if name not in hints:
            choices = [*hints, *aliases]
            hint = suggest_name(given_name, choices) or f"one of {', '.join(choices)}"
            if given_name in OUTPUT_OPTIONS:
                hint = "an option of the command line's output; the function returns data"
            raise UsageError(f"there is no keyword {given_name!r}", location=location, hint=hint)
        if name in keywords:
            both = " and ".join(k for k in kwargs if aliases.get(k, k) == name)
            raise UsageError(f"{both} are the same", location=location, hint="give one of them")
        keywords[name] = value
    return keywords


def check_value(location: str, name: str, value: Any, hint: Any, *, is_toml: bool = False) -> Any:
    """Return a value as the annotated type. Raises UsageError, which names the argument.

    is_toml: the value stands in a TOML file, whose types have names of their own.
    """
    try:
        return _convert(value, hint)
    except TypeError:
        raise UsageError(
            f"{name} is {describe_argument(value)}; it must be {describe_type(hint, is_toml)}",
            location=location,
        ) from None


def _convert(value: Any, hint: Any) -> Any:
    """Return a value as the annotated type. Raises TypeError for a value of another type."""
    origin, parameters = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_to_any_of(value, parameters)
    if origin is Literal and value in parameters:
        return value
    if origin is Sequence and _is_series(value):
        values = [_convert(v, parameters[0]) for v in value]
        return tuple(values) if isinstance(value, tuple) else values
    if origin is Mapping and isinstance(value, Mapping):
        return {_convert(k, parameters[0]): _convert(v, parameters[1]) for k, v in value.items()}
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(parameters):
        return tuple(_convert(v, p) for v, p in zip(value, parameters, strict=True))
    if origin is None:
        return _convert_to_class(value, hint)
    raise TypeError


def _convert_to_any_of(value: Any, hints: Sequence[Any]) -> Any:
    """Return a value as it is if one of the types is its class, else as the first that takes it."""
    classes = [hint for hint in hints if get_origin(hint) is None and hint not in (int, float)]
    if isinstance(value, tuple(classes)):
        return value
    for hint in hints:
        with suppress(TypeError):
            return _convert(value, hint)
    raise TypeError


def _convert_to_class(value: Any, hint: type) -> Any:
    is_bool = isinstance(value, bool | np.bool_)
    if hint is bool and is_bool:
        return bool(value)
    if hint is int and isinstance(value, numbers.Integral) and not is_bool:
        return int(value)
    if hint is float and isinstance(value, numbers.Real) and not is_bool:
        return float(value)
    if hint is str and isinstance(value, os.PathLike) and isinstance(os.fspath(value), str):
        return os.fspath(value)
    if hint not in (bool, int, float) and isinstance(value, hint):
        return value
    raise TypeError


def _is_series(value: Any) -> bool:
    """Return whether a value is a list or the like: ordered, and neither a text nor a table."""
    if isinstance(value, str | bytes | bytearray | Mapping):
        return False
    is_vector = hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1
    return is_vector or isinstance(value, Sequence | Iterator | KeysView | ValuesView)


def describe_type(hint: Any, is_toml: bool = False) -> str:
    """Describe an annotation in words: `int | None` is "an integer or None".

    is_toml: in TOML's words. It has no None: who wants the default leaves the key out.
    """
    origin, parameters = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(repr, parameters))
    if is_toml:
        parameters = tuple(each for each in parameters if each is not type(None))
    names = [describe_type(each, is_toml) for each in parameters if each is not ...]
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(names))
    if origin is Sequence:
        return f"an array (each {names[0]})" if is_toml else f"a sequence (each {names[0]})"
    if origin is Mapping:
        name = "table" if is_toml else "mapping"
        return f"a {name} from {names[0]} to {names[1]}"
    if origin is tuple:
        return f"{'an array' if is_toml else 'a tuple'} ({', '.join(names)})"
    return TYPE_NAMES.get(hint) or f"a {hint.__name__}"
