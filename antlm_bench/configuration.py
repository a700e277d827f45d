"""Find and read the configuration file of a user. `cli.configuration` has its keys.

Only the command line reads it. Functions of the Python API read no file, and workers of a sweep use
what sweep.json records.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from antlm_bench.errors import DeclarationError
from antlm_bench.safe_files import read_regular_file

CONFIGURATION_FILE = "antlm-bench.toml"
PYPROJECT_FILE = "pyproject.toml"
TABLE = "antlm-bench"
"""The table of pyproject.toml: [tool.antlm-bench]."""
CHECK_TABLE = "check"
"""The table with the margins of `check`, with the keys of a policy file."""
MAX_CONFIGURATION_BYTES = 1_000_000
"""Largest configuration file that is read."""

_used_configuration: ContextVar[Mapping[str, Any] | None] = ContextVar(
    "configuration", default=None
)


@contextmanager
def use_configuration(facts: Mapping[str, Any]) -> Iterator[None]:
    """Record a configuration in the provenance of what is computed within the block.

    facts: {"file": ..., "values": {key: value}}; {} = none is in use.
    """
    token = _used_configuration.set(facts)
    try:
        yield
    finally:
        _used_configuration.reset(token)


def describe_used_configuration() -> dict[str, Any]:
    """Return the facts of `use_configuration`, as JSON values; {} if none is in use."""
    return dict(_used_configuration.get() or {})


def find_configuration(folder: Path) -> Path | None:
    """Return the nearest configuration file in a folder or above it; None if there is none.

    A pyproject.toml without [tool.antlm-bench] does not count, nor does a file of another user in a
    folder in which everybody can write. Raises DeclarationError if a folder has two configurations,
    and for a file that cannot be read.
    """
    for parent in (folder, *folder.parents):
        file, pyproject = parent / CONFIGURATION_FILE, parent / PYPROJECT_FILE
        has_file = _is_trusted_file(file)
        has_table = _is_trusted_file(pyproject) and _has_tool_table(pyproject)
        if has_file and has_table:
            raise DeclarationError(
                f"there are two configurations: {CONFIGURATION_FILE}, and [tool.{TABLE}] in "
                f"{PYPROJECT_FILE}",
                location=str(parent),
                hint="remove one of them, or choose with --config FILE",
            )
        if has_file or has_table:
            return file if has_file else pyproject
    return None


def _is_trusted_file(path: Path) -> bool:
    """Return whether a path exists, and not as a file of another user (but root) in a folder in
    which every user can write.
    """
    try:
        owner, folder_mode = path.lstat().st_uid, path.parent.stat().st_mode
    except OSError:
        return os.path.lexists(path)
    is_shared = hasattr(os, "getuid") and bool(folder_mode & stat.S_IWOTH)
    return not is_shared or owner in (os.getuid(), 0)


def read_configuration(path: Path) -> dict[str, Any]:
    """Return the keys of a configuration file; in a pyproject.toml, those of [tool.antlm-bench].

    Raises DeclarationError for invalid TOML and for a pyproject.toml without this table.
    """
    return select_configuration(_parse(path, _read_bytes(path)), path)


def select_configuration(tables: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the part of a file's tables that is the configuration. Raises DeclarationError."""
    if path.name != PYPROJECT_FILE:
        return tables
    tool = tables.get("tool")
    table = tool.get(TABLE) if isinstance(tool, dict) else None
    if not isinstance(table, dict):
        raise DeclarationError(f"there is no table [tool.{TABLE}]", location=str(path))
    return table


def _has_tool_table(path: Path) -> bool:
    raw = _read_bytes(path)
    if TABLE.encode() not in raw:  # the file of another project need not be parsed
        return False
    tool = _parse(path, raw).get("tool")
    return isinstance(tool, dict) and TABLE in tool


def _read_bytes(path: Path) -> bytes:
    try:
        return read_regular_file(path, MAX_CONFIGURATION_BYTES)
    except FileNotFoundError:
        from antlm_bench.declarations import missing_file_error

        raise missing_file_error(path) from None
    except OSError as error:
        raise DeclarationError(
            f"cannot be read: {error.strerror or error}",
            location=str(path),
            hint="--no-config reads no configuration file",
        ) from None


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    from antlm_bench.declarations import parse_toml_bytes  # imports pydantic, which is slow

    return parse_toml_bytes(raw, path)
