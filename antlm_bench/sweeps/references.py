"""References in a sweep: checkpoints that a train stage writes, and files of the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from antlm_bench.declarations import (
    DeclarationKind,
    expand_user_path,
    is_file,
    is_folder,
    list_declarations,
)
from antlm_bench.errors import BenchError
from antlm_bench.runs.folder_io import reject_links

STAGE_PREFIX = "stage:"
MODELS_DIR, RUNS_DIR = "models", "runs"
"""Subfolders of a sweep's folder, for trained models and for run folders."""


PATH_OPTIONS = ("tokenizer", "peft", "valid", "teachers", "unigrams")
"""Options of a stage whose values may be paths."""


def make_absolute(ref: str, kind: DeclarationKind | None = None) -> str:
    """Return the absolute path of an existing file or folder, and any other name as it is.

    kind: of a suite or recipe, a name of the catalog is not a path.

    Relative paths are those of the working directory, as for every command. Workers may be started
    in another one. Links are kept, because the name of a folder names its run.
    """
    if kind is not None and ref in list_declarations(kind):
        return ref
    path = expand_user_path(ref)
    return str(path.absolute()) if is_file(path) or is_folder(path) else ref


def make_options_absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a stage with absolute paths."""
    absolute = dict(options)
    for name in PATH_OPTIONS:
        value = absolute.get(name)
        if isinstance(value, str):
            absolute[name] = make_absolute(value)
        elif isinstance(value, list | tuple):
            absolute[name] = [make_absolute(ref) for ref in value]
    return absolute


def check_relative_path(text: str) -> None:
    """Raise BenchError for a path that could lead out of its folder."""
    parts = text.split("/")
    if "\\" in text or "\0" in text or any(part in ("", ".", "..") for part in parts):
        raise BenchError(f"{text!r} is not a path below a folder")


def locate_output(sweep_dir: Path, path: str) -> Path:
    """Return where a unit writes, given a path below the sweep's folder.

    sweep.json may be a stranger's. Raises BenchError for a path that leads elsewhere, and RunError
    if a part of it is a link.
    """
    check_relative_path(path)
    reject_links(sweep_dir, sweep_dir / path)
    return sweep_dir / path


def resolve_model(model: str, sweep_dir: Path) -> str:
    """Return a checkpoint as commands take it: one of a train stage lies in the sweep's folder."""
    if not model.startswith(STAGE_PREFIX):
        return model
    return str(sweep_dir / MODELS_DIR / model.removeprefix(STAGE_PREFIX))
