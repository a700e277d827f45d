"""Read TOML files as typed declarations. Errors name the file, the key and the nearest valid key.

A declaration is looked up by name in the folders of ANTLM_BENCH_PATH, then among the shipped ones,
but never in the current directory: a command means the same in every directory.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Strict, ValidationError, model_validator

from antlm_bench.errors import BenchError, DeclarationError
from antlm_bench.safe_files import read_regular_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DeclarationKind = Literal["tasks", "models"]
"""Folder of the declarations: tasks/ has suites and collections, models/ has training recipes."""

NOUNS: dict[DeclarationKind, str] = {"tasks": "suite", "models": "recipe"}
SOURCES: dict[DeclarationKind, str] = {
    "tasks": "a name (antlm-bench list suites), a .toml, a SyntaxGym .json, or pairs: "
    "a .csv, .tsv, .jsonl, .txt, or a folder of them",
    "models": "a name (antlm-bench list models) or a .toml",
}
"""What a suite or a recipe can be given as, for hints."""

USER_FOLDERS_VARIABLE = "ANTLM_BENCH_PATH"
"""Environment variable with the user's folders of declarations, separated as in PATH."""
MAX_TOML_BYTES = 10_000_000
"""Largest TOML file that is read; the shipped ones have less than 100 kB."""
MAX_LISTED_FILES = 5
"""Largest number of files that the hint of a missing file names."""
T = TypeVar("T")
TomlTuple = Annotated[tuple[T, ...], Strict(False)]
"""A TOML array as a tuple, so that a declaration is immutable."""


class Declaration(BaseModel):
    """Base class of every TOML table: frozen, without type coercion, without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, table: Any) -> Any:
        if isinstance(table, dict):
            known_keys = [field.alias or name for name, field in cls.model_fields.items()]
            for key in table:
                if key not in known_keys:
                    valid_keys = f"valid keys: {', '.join(sorted(known_keys))}"
                    hint = suggest_name(key, known_keys) or valid_keys
                    raise ValueError(f"unknown key {key!r}: {hint}")
        return table


D = TypeVar("D", bound=Declaration)


def read_toml(path: Path, declaration_class: type[D]) -> D:
    """Read the declaration at `path`.

    Raises DeclarationError. It names the file, and the line of a syntax error or the invalid key.
    """
    return validate_tables(parse_toml(path), declaration_class, path)


def parse_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file, unchecked. Raises DeclarationError with file and line.

    A process reads each shipped file once. The caller may change the tables.
    """
    return copy.deepcopy(_parse_shipped_toml(path)) if is_shipped(path) else _parse_toml(path)


@cache
def _parse_shipped_toml(path: Path) -> dict[str, Any]:
    return _parse_toml(path)


def _parse_toml(path: Path) -> dict[str, Any]:
    try:
        raw = read_regular_file(path, MAX_TOML_BYTES)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise missing_file_error(path) from None
        raise DeclarationError(
            f"cannot be read: {error.strerror or error}", location=str(path)
        ) from None
    return parse_toml_bytes(raw, path)


def missing_file_error(path: Path) -> DeclarationError:
    """Return the error for a missing file, with a hint at the files of its folder."""
    folder = path.parent
    files = _list_toml_files(folder) if is_folder(folder) else ()
    stems = [file.stem for file in files if file.name != path.name]  # it may be a broken link
    if not is_folder(folder):
        hint = f"there is no folder {str(folder)!r}"
    elif suggestion := suggest_name(path.stem, stems):
        hint = suggestion.removesuffix("'?") + ".toml'?"
    else:
        names = [f"{stem}.toml" for stem in stems[:MAX_LISTED_FILES]]
        file_names = ", ".join(names) + (", ..." if len(stems) > MAX_LISTED_FILES else "")
        folder_name = "this folder" if folder == Path() else repr(str(folder))
        hint = f"{folder_name} holds {file_names or 'no .toml'}"
    return DeclarationError("there is no such file", location=str(path), hint=hint)


def parse_toml_bytes(raw: bytes, path: Path) -> dict[str, Any]:
    """Parse the bytes of a TOML file. path: for errors, which are those of `parse_toml`."""
    # Editors of Windows write a byte order mark.
    text = decode_utf8(raw, str(path)).removeprefix("\ufeff")
    try:
        tables = tomllib.loads(text)
        _check_values(tables)
        return tables
    except RecursionError:
        raise DeclarationError(
            "tables or arrays are nested too deeply", location=str(path)
        ) from None
    # TOMLDecodeError, or the error of Python for an integer of thousands of digits.
    except ValueError as error:
        line = re.search(r"\(at line (\d+), column \d+\)", str(error))
        location = f"{path}:{line[1]}" if line else str(path)
        raise DeclarationError(f"not valid TOML: {error}", location=location) from None


def _check_values(value: Any, keys: str = "") -> None:
    """Raise ValueError for an integer beyond 64 bits, which TOML does not have, with its keys."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in entries:
            _check_values(child, f"{keys}.{key}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{keys.removeprefix('.')} is an integer of more than 64 bits")


def parse_toml_value(text: str, location: str) -> Any:
    """Parse a TOML value from a command line; a bare word is a string.

    location: what a DeclarationError names, e.g. an option.
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        if re.fullmatch(r"[\w./+-]*", text):
            return text
        raise DeclarationError(
            f"{text!r} is not a TOML value", location=location, hint="quote strings: '\"a b\"'"
        ) from None


def validate_tables(tables: dict[str, Any], declaration_class: type[D], path: Path) -> D:
    """Convert tables to a typed declaration. Raises DeclarationError that names `path`."""
    try:
        return declaration_class.model_validate(tables)
    except ValidationError as error:
        raise _convert_validation_error(path, tables, error) from None


def list_declarations(kind: DeclarationKind) -> dict[str, Path]:
    """Return name -> file of every declaration in tasks/ or in models/, sorted by name.

    Of several files with the same name, the first folder of ANTLM_BENCH_PATH wins.
    """
    files: dict[str, Path] = {}
    for folder in (*(folder / kind for folder in list_user_folders()), _shipped_folder(kind)):
        list_files = _list_shipped_files if folder == _shipped_folder(kind) else _list_toml_files
        for path in list_files(folder):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))


def read_declarations(
    kind: DeclarationKind, read: Callable[[str, Path], T]
) -> tuple[dict[str, T], dict[str, BenchError]]:
    """Read all declarations. Return name -> declaration, and name -> error.

    read: function of (name, file). Only declarations of users may be invalid, so that one of them
    does not hide all others. Raises the error of a shipped one.
    """
    declarations: dict[str, T] = {}
    errors: dict[str, BenchError] = {}
    for name, path in list_declarations(kind).items():
        try:
            declarations[name] = read(name, path)
        except BenchError as error:
            if path == shipped_declaration(kind, name):
                raise
            errors[name] = error
    return declarations, errors


@cache
def _list_shipped_files(folder: Path) -> tuple[Path, ...]:
    """Return the shipped declarations, which do not change while a process runs."""
    return _list_toml_files(folder)


def _list_toml_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.toml")))


def is_shipped(path: Path) -> bool:
    """Return whether a file is one of the shipped declarations."""
    return path.parent in (_shipped_folder("tasks"), _shipped_folder("models"))


def find_declaration(kind: DeclarationKind, name_or_path: str) -> Path:
    """Return the file of a declaration, given its name in the catalog or a path.

    Text with a separator, or that ends in .toml, is a path; `kind` is then ignored. Raises
    DeclarationError if there is no such file, or if the file is no TOML.
    """
    files = list_declarations(kind)
    if name_or_path in files:
        return files[name_or_path]
    path = expand_user_path(name_or_path)
    is_path = name_or_path.endswith(".toml") or "/" in name_or_path or os.sep in name_or_path
    if is_path and path.suffix in ("", ".toml") and is_file(path):
        return path
    noun, sources = NOUNS[kind], f"a {NOUNS[kind]} is {SOURCES[kind]}"
    if is_folder(path):
        raise DeclarationError(f"a folder is not a {noun}", location=name_or_path, hint=sources)
    if is_file(path):
        message = f"a file {path.suffix!r} is not a {noun}" if path.suffix else f"not a {noun}"
        raise DeclarationError(message, location=name_or_path, hint=sources)
    if is_path:
        raise missing_file_error(path)
    raise DeclarationError(
        f"unknown {noun} {name_or_path!r}", hint=suggest_name(name_or_path, files) or sources
    )


def shipped_declaration(kind: DeclarationKind, name: str) -> Path | None:
    """Return the file of a shipped declaration, whatever ANTLM_BENCH_PATH holds; None if we ship no
    declaration of that name.
    """
    path = _shipped_folder(kind) / f"{name}.toml"
    return path if is_file(path) else None


def expand_user_path(text: str) -> Path:
    """Replace ~ by the home folder. A path with an unknown ~user stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def suggest_name(word: str, candidates: Iterable[str]) -> str:
    """Return "did you mean 'x'?" for the closest candidate; "" if none is close."""
    lowered = {name.lower(): name for name in candidates}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f"did you mean {lowered[close[0]]!r}?" if close else ""


def decode_utf8(raw: bytes, location: str, error: type[BenchError] = DeclarationError) -> str:
    """Decode the bytes of a file. Raises `error` that names the first invalid byte and its line."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as invalid:
        line = raw.count(b"\n", 0, invalid.start) + 1
        raise error(
            f"not UTF-8: byte 0x{raw[invalid.start]:02x} at offset {invalid.start}",
            location=f"{location}:{line}",
            hint="save the file as UTF-8",
        ) from None


def list_user_folders() -> list[Path]:
    """Return the folders of ANTLM_BENCH_PATH."""
    folders = os.environ.get(USER_FOLDERS_VARIABLE, "").split(os.pathsep)
    return [expand_user_path(folder) for folder in folders if folder]


@cache
def _shipped_folder(kind: DeclarationKind) -> Path:
    package = Path(__file__).resolve().parent
    in_wheel = package / "_share" / kind
    return in_wheel if in_wheel.is_dir() else package.parent / kind


def _convert_validation_error(path: Path, tables: Any, error: ValidationError) -> DeclarationError:
    """Convert the first of pydantic's errors, with the path of its key in the file."""
    first = error.errors(include_url=False)[0]
    keys = []
    value = tables
    for key in first["loc"]:
        value = value[key] if _has_key(value, key) else None
        # A missing key is not in the file, but belongs to the location. Otherwise, a key that is
        # not in the file is the name of a type, which pydantic appends for a union of types.
        if value is None and first["type"] != "missing":
            break
        keys.append(str(key))
    location = f"{path}: {'.'.join(keys)}" if keys else str(path)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = re.sub(r"^Value error, ", "", first["msg"])
    if first["type"] == "tuple_type":  # TOML has arrays and tables, no tuples
        message = "this is no array: write [...], or [[NAME]] above each of several tables"
    return DeclarationError(message + more, location=location)


def _has_key(value: Any, key: str | int) -> bool:
    if isinstance(value, dict):
        return key in value
    return isinstance(value, list) and isinstance(key, int)


def is_folder(path: str | Path) -> bool:
    """Return whether a path is an existing folder; False for text that cannot be a path."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def is_file(path: str | Path) -> bool:
    """Return whether a path is an existing file; False for text that cannot be a path."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False
