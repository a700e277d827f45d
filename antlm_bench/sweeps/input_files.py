"""The files that a unit reads, listed at the driver for a machine with other file systems.

That machine keeps them below one folder per worker:

    files/<absolute path>   files that the user named, and what lies beside them
    data/<path>             data of suites, which become its ANTLM_BENCH_DATA
    sweep/<path>            files of the sweep's folder
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from antlm_bench.declarations import (
    expand_user_path,
    is_file,
    is_folder,
    list_user_folders,
    parse_toml,
)
from antlm_bench.suites import sources
from antlm_bench.suites.task_types import read_suite_with_files
from antlm_bench.sweeps.units import Unit, UnitFiles

FILES_DIR, DATA_DIR, SWEEP_DIR = "files", "data", "sweep"
OUTPUT_ARGUMENTS = frozenset({"out", "html"})
"""Arguments of units that name files below the sweep's folder."""


@dataclass(frozen=True)
class InputRequest:
    """Names of files that a unit may read. Some of them may not exist."""

    paths: tuple[str, ...]
    """Texts in its arguments. Those that are not the path of a file are ignored."""
    suites: tuple[str, ...]
    sweep_paths: tuple[str, ...] = ()
    """Paths and globs below the sweep's folder."""


class InputFile(NamedTuple):
    """A file at the driver."""

    source: str
    """Its absolute path there."""
    target: str
    """Where it lies on the other machine, below the folder of a worker."""
    size: int
    """Bytes."""
    version: str
    """Changes whenever the file is replaced or written to."""


@dataclass
class InputListing:
    """Answer to an InputRequest."""

    files: list[InputFile] = field(default_factory=list)
    targets: dict[str, str] = field(default_factory=dict)
    """Path of the request, and its absolute form -> target. Only absolute paths need it: relative
    ones lead to the same file from the mirror of the driver's working directory."""


def build_request(unit: Unit, files: UnitFiles, waited_for: Iterable[Unit]) -> InputRequest:
    """Return what a unit may read. waited_for: units whose parts it reads; of a suite that was
    computed in shards it needs the data.
    """
    suites, paths = [], [unit.model, *iter_texts(unit.arguments)]
    for each in (unit, *waited_for):
        suite = each.arguments.get("suite")
        if isinstance(suite, str):
            suites.append(suite)
    return InputRequest(
        tuple(dict.fromkeys([*paths, *suites])), tuple(dict.fromkeys(suites)), files.reads
    )


def iter_texts(value: Any, key: str = "") -> Iterator[str]:
    """Yield the texts in the arguments of a unit, without those of OUTPUT_ARGUMENTS."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from iter_texts(each, name)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from iter_texts(each, key)
    elif isinstance(value, str) and value and key not in OUTPUT_ARGUMENTS:
        yield value


def replace_texts(value: Any, texts: Mapping[str, str]) -> Any:
    """Return the arguments of a unit with other texts."""
    if isinstance(value, Mapping):
        return {name: replace_texts(each, texts) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replace_texts(each, texts) for each in value)
    return texts.get(value, value) if isinstance(value, str) else value


def list_input_files(request: InputRequest, sweep_dir: Path) -> InputListing:
    """Return the files of a request that exist. Raises the errors of suites that cannot be read."""
    listing = InputListing()
    paths: dict[str, Path] = {}
    for text in request.paths:
        path = Path(os.path.abspath(expand_user_path(text)))  # noqa: PTH100  (links stay)
        if not (is_file(path) or is_folder(path)) or _holds_work(path, sweep_dir):
            continue
        listing.targets[str(path)] = f"{FILES_DIR}{path}"
        if text.startswith(("/", "~")):
            listing.targets[text] = f"{FILES_DIR}{path}"
        for each in (path, *_list_named_files(path)):
            paths |= {f"{FILES_DIR}{file}": file for file in iter_files(each)}
    for folder in list_user_folders():
        for path in folder.absolute().glob("*/*.toml"):
            paths[f"{FILES_DIR}{path}"] = path
    for suite in request.suites:
        paths |= _list_suite_files(suite)
    for pattern in request.sweep_paths:
        for path in sweep_dir.glob(pattern):
            files = iter_files(path)
            paths |= {f"{SWEEP_DIR}/{file.relative_to(sweep_dir)}": file for file in files}
    listing.files = [describe_file(path, target) for target, path in paths.items()]
    return listing


def describe_file(path: Path, target: str) -> InputFile:
    """Return the record of a file. Raises OSError."""
    state = path.stat()
    version = f"{state.st_mtime_ns}-{state.st_ino}"
    return InputFile(str(path), target, state.st_size, version)


def iter_files(path: Path) -> Iterator[Path]:
    """Yield a file itself, or all files in a folder, without hidden ones and without links to a
    folder that holds the link.
    """
    if path.is_file():
        yield path
        return
    for root, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and not _leads_upwards(Path(root, name))
        )
        for name in sorted(names):
            file = Path(root, name)
            if not name.startswith(".") and file.is_file():
                yield file


def _leads_upwards(path: Path) -> bool:
    """Return whether a path is a link to one of the folders above it, which has no end."""
    return path.is_symlink() and path.resolve() in (each.resolve() for each in path.parents)


def _holds_work(path: Path, sweep_dir: Path) -> bool:
    """Return whether a folder holds the sweep's folder or the working directory. An argument such
    as "." only looks like the path of an input.
    """
    return sweep_dir.is_relative_to(path) or Path.cwd().is_relative_to(path)


def _list_named_files(path: Path) -> Iterator[Path]:
    """Yield the files that a TOML names by paths relative to it."""
    if path.suffix != ".toml" or not path.is_file():
        return
    for text in iter_texts(parse_toml(path)):
        named = path.parent / text
        if not Path(text).is_absolute() and is_file(named):
            yield named


def _list_suite_files(suite: str) -> dict[str, Path]:
    """Return target -> data file of a suite; {} for one that consists of a single file."""
    declared = read_suite_with_files(suite)
    if declared is None:
        return {}
    spec, folder = declared
    files: dict[str, Path] = {}
    tasks = getattr(spec, "task", {}).values()
    substitutes = [each.file for task in tasks for each in getattr(task, "substitutes", ())]
    for name in (*spec.data.files, *substitutes):
        path = sources.locate_file(spec, name, folder)
        if path is not None:
            target = _choose_data_target(path, folder)
            files[target] = path
            digest = path.with_name(f"{path.name}.sha256")
            if digest.is_file():
                files[f"{target}.sha256"] = digest
    return files


def _choose_data_target(path: Path, folder: Path) -> str:
    """Return where a data file of a suite is found again. folder: that of the suite's TOML."""
    for root in sources.data_roots(folder):
        if root != folder and path.is_relative_to(root):
            return f"{DATA_DIR}/{path.relative_to(root)}"
    return f"{FILES_DIR}{path.absolute()}"
