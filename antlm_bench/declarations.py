"""TOML -> typed declarations: one strict reader whose errors name the file, the key and the nearest
right key.

A declaration is looked up by name in the folders of ANTLM_BENCH_PATH, then in what we ship; never
in the current directory, so that the same command means the same thing wherever it is typed.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Strict, ValidationError, model_validator

from antlm_bench.errors import BenchError, DeclarationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DeclarationKind = Literal["tasks", "models"]

T = TypeVar("T")
TomlTuple = Annotated[
    tuple[T, ...], Strict(False)
]  # TOML has arrays, a frozen declaration holds tuples


class Declaration(BaseModel):
    """Base of every table that is read from TOML: frozen, strict (no coercion), and no key that
    nobody reads.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_keys(cls, table: Any) -> Any:
        if isinstance(table, dict):
            known_keys = [field.alias or name for name, field in cls.model_fields.items()]
            for key in table:
                if key not in known_keys:
                    close = (
                        suggest_name(key, known_keys)
                        or f"known are {', '.join(sorted(known_keys))}"
                    )
                    raise ValueError(f"unknown key {key!r}: {close}")
        return table


D = TypeVar("D", bound=Declaration)


def read_toml(path: Path, model: type[D]) -> D:
    """The declaration at `path`. DeclarationError names the file with the line (syntax) or the key
    (content).
    """
    return validate_tables(parse_toml(path), model, path)


def parse_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, unchecked. DeclarationError names the file and the line."""
    try:
        text = decode_utf8(path.read_bytes(), str(path))
    except OSError as error:
        raise DeclarationError(
            f"cannot be read: {error.strerror or error}", location=str(path)
        ) from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise DeclarationError(
            "tables or arrays are nested too deeply", location=str(path)
        ) from None
    except ValueError as error:  # TOMLDecodeError is one; so is an integer of thousands of digits
        where = re.search(r"\(at line (\d+), column \d+\)", str(error))
        place = f"{path}:{where[1]}" if where else str(path)
        raise DeclarationError(f"not valid TOML: {error}", location=place) from None


def parse_toml_value(text: str, location: str) -> Any:
    """One TOML value as typed on a command line; a bare word is a string. DeclarationError names
    `place`.
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        if re.fullmatch(r"[\w./+-]*", text):
            return text
        raise DeclarationError(
            f"{text!r} is no TOML value", location=location, hint="quote strings: '\"a b\"'"
        ) from None


def validate_tables(tables: dict[str, Any], model: type[D], path: Path) -> D:
    """Tables as a typed declaration; `path` is what an error names."""
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        raise _validation_failure(path, tables, error) from None


def catalog(kind: DeclarationKind) -> dict[str, Path]:
    """Every declaration of a kind that a name can reach: name -> file, sorted; a folder of
    ANTLM_BENCH_PATH wins.
    """
    found: dict[str, Path] = {}
    for folder in _search_folders(kind):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find_declaration(kind: DeclarationKind, name_or_path: str) -> Path:
    """The file behind a name of the catalog or a path (anything with a separator or ending in
    .toml).
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path or os.sep in name_or_path:
        path = expand_user_path(name_or_path)
        if not is_file(path):
            raise DeclarationError("there is no such file", location=name_or_path)
        return path
    known = catalog(kind)
    if name_or_path not in known:
        what = "suite" if kind == "tasks" else "recipe"
        raise DeclarationError(
            f"unknown {what} {name_or_path!r}",
            hint=suggest_name(name_or_path, known) or f"known: {', '.join(known)}",
        )
    return known[name_or_path]


def shipped_declaration(kind: DeclarationKind, name: str) -> Path | None:
    """Return our own declaration of a name, whatever ANTLM_BENCH_PATH holds; None where we ship
    none.
    """
    path = _shipped_folder(kind) / f"{name}.toml"
    return path if is_file(path) else None


def expand_user_path(text: str) -> Path:
    """A path as a user writes it: ~ is the home folder; ~nobody stays as it is, to be reported as
    absent.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def suggest_name(word: str, candidates: Iterable[str]) -> str:
    """`did you mean 'x'?`, or nothing where no known word is near."""
    lowered = {name.lower(): name for name in candidates}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f"did you mean {lowered[close[0]]!r}?" if close else ""


def decode_utf8(raw: bytes, location: str, error: type[BenchError] = DeclarationError) -> str:
    """UTF-8 text of a file, or an error that names the line and the byte that is not."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as bad:
        line = raw.count(b"\n", 0, bad.start) + 1
        raise error(
            f"not UTF-8: byte 0x{raw[bad.start]:02x} at offset {bad.start}",
            location=f"{location}:{line}",
            hint="save the file as UTF-8",
        ) from None


def _search_folders(kind: DeclarationKind) -> list[Path]:
    listed = os.environ.get("ANTLM_BENCH_PATH", "").split(os.pathsep)
    return [*(expand_user_path(entry) / kind for entry in listed if entry), _shipped_folder(kind)]


def _shipped_folder(kind: DeclarationKind) -> Path:
    here = Path(__file__).resolve().parent
    wheel = here / "_share" / kind
    return wheel if wheel.is_dir() else here.parent / kind


def _validation_failure(path: Path, tables: Any, error: ValidationError) -> DeclarationError:
    first = error.errors(include_url=False)[0]
    keys = []
    for part in first[
        "loc"
    ]:  # where a value may be of two types, pydantic adds the type's name: no key of the file
        inside = tables[part] if _has_key(tables, part) else None
        if inside is None and first["type"] != "missing":
            break
        keys.append(str(part))
        tables = inside
    place = ".".join(keys)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = re.sub(r"^Value error, ", "", first["msg"])
    return DeclarationError(message + more, location=f"{path}: {place}" if place else str(path))


def _has_key(tables: Any, key: str | int) -> bool:
    return (
        key in tables
        if isinstance(tables, dict)
        else isinstance(tables, list) and isinstance(key, int)
    )


def is_file(path: str | Path) -> bool:
    """Is it one? A text that no system takes for a path is none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False
