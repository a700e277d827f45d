"""Names of suites in runs: the user's own files of one name are told apart by the shortest path.

A suite of the catalog or of lm-eval is identified by its name, and a user's own file (pairs,
SyntaxGym, a TOML, texts and labels) by its content: equal names and digests are one suite, wherever
the file lies. A file whose content changed is the same suite with other items. A user's file is
never shown under a name of the catalog.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Protocol

from antlm_bench.declarations import list_declarations
from antlm_bench.printable import format_count
from antlm_bench.types import Cell, Run

OTHER_LIMITS_PREFIX = "also in this run, and not shown: "
"""Start of the note on the results of a suite under other limits."""
USER_VERSION = "user"
"""Version of a suite that is a bare file. Older runs record nothing else of a user's suite."""


class SuiteResult(Protocol):
    """A cell, or a cell of which only some chunks are computed."""

    @property
    def suite(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def origin(self) -> tuple[str, ...]: ...


def is_user_suite(cell: SuiteResult) -> bool:
    """Whether the suite was read from a file of the user's."""
    return bool(cell.origin) or cell.settings.get("suite_version") == USER_VERSION


def base_suite_name(cell: SuiteResult) -> str:
    """Return the name under which the suite was scored: of its file or declaration, no folders."""
    return str(cell.settings.get("suite") or cell.suite)


def is_same_suite(a: SuiteResult, b: SuiteResult) -> bool:
    """Whether two cells of one run have the same suite: by name, a file by content or path."""
    if base_suite_name(a) != base_suite_name(b) or is_user_suite(a) != is_user_suite(b):
        return False
    return (
        not is_user_suite(a) or _suite_digest(a) == _suite_digest(b) or a.origin == b.origin != ()
    )


def is_same_result(a: SuiteResult, b: SuiteResult) -> bool:
    """Whether two cells of one run have the same suite, method and seed.

    They may have other items, because a run holds a cell per limit.
    """
    return (a.method, a.seed) == (b.method, b.seed) and is_same_suite(a, b)


def select_fullest_cells(run: Run, keys: Collection[str] = ()) -> Run:
    """Return the run with the cells of one limit per suite and method, although it may hold more.

    That is the limit of the most items, or that of a cell with one of these content keys. The notes
    of its cells name the others.
    """
    groups: list[list[Cell]] = []
    for cell in run:
        for group in groups:
            if group[0].method == cell.method and is_same_suite(group[0], cell):
                group.append(cell)
                break
        else:
            groups.append([cell])
    note_of_cell = {
        id(cell): note for group in groups for cell, note in _select_fullest(group, keys)
    }
    if len(note_of_cell) == len(run.cells):
        return run
    selected = [cell for cell in run if id(cell) in note_of_cell]
    return replace(run, cells=tuple(_add_note(cell, note_of_cell[id(cell)]) for cell in selected))


def _select_fullest(cells: Sequence[Cell], keys: Collection[str]) -> list[tuple[Cell, str]]:
    """Return the cells of one limit, each with a note on those of other limits."""
    limit = max([cell for cell in cells if cell.key in keys] or cells, key=_fullness).limit
    others = dict.fromkeys(_describe_limit(cell) for cell in cells if cell.limit != limit)
    note = f"{OTHER_LIMITS_PREFIX}{', '.join(others)}" if others else ""
    return [(cell, note) for cell in cells if cell.limit == limit]


def _add_note(cell: Cell, note: str) -> Cell:
    if not note:
        return cell
    return replace(cell, summary=replace(cell.summary, notes=(*cell.summary.notes, note)))


def _fullness(cell: Cell) -> tuple[bool, int, float]:
    """Return a key that is larger for a cell with more items, then for more rows to train on."""
    train_rows = cell.limit[0] if isinstance(cell.limit, tuple) else None
    num_train = float(train_rows) if isinstance(train_rows, int | float) else math.inf
    return cell.limit is None, cell.estimate.n, num_train


def _describe_limit(cell: Cell) -> str:
    """Return `all 800 items`, `limit 2 (32 items)` or `limits 10 / 5 (5 items)`."""
    items = format_count(cell.estimate.n, "item")
    if cell.limit is None:
        return f"all {items}"
    if isinstance(cell.limit, tuple):
        rows = " / ".join("none" if rows is None else str(rows) for rows in cell.limit)
        return f"limits {rows} ({items})"
    return f"limit {cell.limit} ({items})"


def cell_has_suite(cell: Cell, name: str, origin: tuple[str, ...] = ()) -> bool:
    """Whether the cell's suite has this name and origin (see Cell.origin)."""
    return base_suite_name(cell) == name and (
        cell.origin == origin if origin else not is_user_suite(cell)
    )


def distinguish_suites(runs: Sequence[Run]) -> list[Run]:
    """Return runs whose suite names are unique, and the same for one suite of several runs."""
    groups: list[_SuiteGroup] = []
    for index, run in enumerate(runs):
        for cell in filter(is_user_suite, run):
            _add_to_group(groups, index, cell)
    if not groups:
        return list(runs)
    groups = _merge_partial_paths(_merge_same_files(groups))
    reserved = {
        *list_declarations("tasks"),
        *(cell.suite for run in runs for cell in run if not is_user_suite(cell)),
    }
    names = _unique_names(groups, reserved)
    name_of_cell = {
        (index, id(cell)): name
        for group, name in zip(groups, names, strict=True)
        for index, cell in group.cells
    }

    def rename(index: int, cell: Cell) -> Cell:
        return _rename_cell(cell, name_of_cell[index, id(cell)]) if is_user_suite(cell) else cell

    return [
        replace(run, cells=tuple(rename(index, cell) for cell in run))
        for index, run in enumerate(runs)
    ]


def shorten_cell_paths(run: Run) -> list[Cell]:
    """Return the cells of a run as they are stored, with paths no longer than suites need.

    Files whose names begin alike keep the same number of folders. If one path were shorter, its
    file would get a shorter name when the cells are read again.
    """
    cells = distinguish_suites([run])[0].cells
    num_folders: dict[str, int] = {}
    for cell in filter(is_user_suite, cells):
        stem = _collection_name(cell).partition(".")[0]
        num_folders[stem] = max(num_folders.get(stem, 0), cell.suite.removeprefix("./").count("/"))
    return [
        _shorten_paths(cell, num_folders[_collection_name(cell).partition(".")[0]])
        if is_user_suite(cell)
        else cell
        for cell in cells
    ]


@dataclass(slots=True)
class _SuiteGroup:
    """Cells of one suite."""

    collection_name: str
    """The suite's name without its task."""
    cells: list[tuple[int, Cell]]
    """(index of the run, cell)"""

    @property
    def origins(self) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(cell.origin for _, cell in self.cells))

    @property
    def result_keys(self) -> set[tuple[object, ...]]:
        """(index of the run, suite, method, seed, limit) of each cell, which is unique."""
        return {
            (index, base_suite_name(cell), cell.method, cell.seed, str(cell.limit))
            for index, cell in self.cells
        }

    def can_merge(self, other: _SuiteGroup) -> bool:
        return (
            self.collection_name == other.collection_name
            and not self.result_keys & other.result_keys
        )


def _add_to_group(groups: list[_SuiteGroup], run_index: int, cell: Cell) -> None:
    """Add a cell to the group of its suite: the same content, or for a task the same file."""
    name = _collection_name(cell)
    is_task = name != base_suite_name(cell)
    for group in groups:
        first = group.cells[0][1]
        same_suite = (
            first.origin == cell.origin if is_task else _suite_digest(first) == _suite_digest(cell)
        )
        if group.collection_name == name and same_suite:
            group.cells.append((run_index, cell))
            return
    groups.append(_SuiteGroup(name, [(run_index, cell)]))


def _merge_same_files(groups: Sequence[_SuiteGroup]) -> list[_SuiteGroup]:
    """Merge groups of one file whose content changed between the runs."""
    joined: list[_SuiteGroup] = []
    for group in groups:
        for other in joined:
            if other.can_merge(group) and any(
                origin and origin in other.origins for origin in group.origins
            ):
                other.cells += group.cells
                break
        else:
            joined.append(group)
    return joined


def _merge_partial_paths(groups: list[_SuiteGroup]) -> list[_SuiteGroup]:
    """Merge a group without a full path (a baseline's) into the only one that it can belong to."""
    partial = [
        group
        for group in groups
        if not any(PurePath(path).is_absolute() for origin in group.origins for path in origin)
    ]
    for group in partial:
        fitting = [
            other
            for other in groups
            if other is not group
            and other.can_merge(group)
            and any(_ends_with(full, end) for full in other.origins for end in group.origins)
        ]
        if len(fitting) == 1:
            fitting[0].cells += group.cells
            groups = [other for other in groups if other is not group]
    return groups


def _ends_with(origin: tuple[str, ...], suffix: tuple[str, ...]) -> bool:
    """Whether both origins can be the same files, as far as their paths are stored."""
    pairs = zip(origin, suffix, strict=False)
    return all(PurePath(a).parts[-len(PurePath(b).parts) :] == PurePath(b).parts for a, b in pairs)


def _unique_names(groups: Sequence[_SuiteGroup], reserved: Collection[str]) -> list[str]:
    """Return a name per group: its shortest candidate that is unique and not reserved."""
    candidates_by_group = []
    for group in groups:
        names = dict.fromkeys(
            name
            for origin in group.origins
            for name in _candidate_names(group.collection_name, origin)
        )
        candidates_by_group.append(sorted(names, key=lambda name: name.count("/")))
    counts = Counter(name for candidates in candidates_by_group for name in candidates)
    chosen = []
    for group, candidates in zip(groups, candidates_by_group, strict=True):
        free = (
            name for name in candidates if counts[name] == 1 and not _is_reserved(name, reserved)
        )
        digest = _suite_digest(group.cells[0][1])
        chosen.append(next(free, f"{candidates[-1]} ({digest[:8]})"))
    return chosen


def _candidate_names(collection_name: str, origin: tuple[str, ...]) -> Iterator[str]:
    """Yield `pairs`, `pairs.csv`, `de/pairs`, `de/pairs.csv`, `data/de/pairs`, ..."""
    path = PurePath(origin[0]) if origin else PurePath()
    folders = [part for part in path.parts[:-1] if part != path.anchor]
    scored_on = [f"{collection_name} ({PurePath(other).name})" for other in origin[1:]]
    names = [name for name in (collection_name, path.name, *scored_on) if name]
    for depth in range(len(folders) + 1):
        yield from ("/".join((*folders[len(folders) - depth :], name)) for name in names)
    if not folders:
        yield f"./{collection_name}"


def _is_reserved(label: str, reserved: Collection[str]) -> bool:
    """Whether a label is a reserved name, or reads like a task of one (`glue-2025.rte`)."""
    return any(label == name or label.startswith(f"{name}.") for name in reserved)


def _collection_name(cell: Cell) -> str:
    """Return the suite's name without its task: `mine` of `mine.rte`.

    The name of a user's file of texts is also the name of its task, and stays whole.
    """
    base, task = base_suite_name(cell), str(cell.settings.get("task", ""))
    return base.removesuffix(f".{task}") if cell.seed is not None and task != base else base


def _suite_digest(cell: SuiteResult) -> str:
    return str(cell.settings.get("suite_digest") or cell.key)


def _rename_cell(cell: Cell, name: str) -> Cell:
    """Return the cell with `name` in place of its suite's name, its task kept."""
    base = base_suite_name(cell)
    shown = name + base.removeprefix(_collection_name(cell))
    settings = {**cell.settings, "suite": base}
    settings |= {"collection": name} if "collection" in settings else {}
    return replace(cell, suite=shown, settings=settings, summary=replace(cell.summary, suite=shown))


def _shorten_paths(cell: Cell, num_folders: int) -> Cell:
    """Return a renamed cell under its own name, with this number of folders in its paths."""
    origin = tuple("/".join(Path(path).parts[-num_folders - 1 :]) for path in cell.origin)
    return replace(_rename_cell(cell, _collection_name(cell)), origin=origin)
