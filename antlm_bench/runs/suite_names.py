"""One name per suite: the user's own files of one name are told apart by the shortest path that
does so.

A suite of the catalog or of lm-eval is known by its name. A user's own file (pairs, SyntaxGym, a
TOML, texts and labels) is what it holds: equal names and digests are one suite, wherever the file
lies. A file whose content changed is the same suite with other items. No file of the user's is
shown under a name of the catalog.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from antlm_bench.declarations import catalog
from antlm_bench.types import Cell, Run

# the version of a suite that is a bare file; older runs say nothing else of a user's own suite
USER_VERSION = "user"


def is_user_suite(cell: Cell) -> bool:
    """Was the suite read from a file of the user's?"""
    return bool(cell.origin) or cell.settings.get("suite_version") == USER_VERSION


def base_suite_name(cell: Cell) -> str:
    """Return the name under which the suite was scored: that of its file or declaration, without
    folders.
    """
    return str(cell.settings.get("suite") or cell.suite)


def is_same_suite(a: Cell, b: Cell) -> bool:
    """Are the suites of two cells of one run the same: by name, and for files of the user's by
    content or path?
    """
    if base_suite_name(a) != base_suite_name(b) or is_user_suite(a) != is_user_suite(b):
        return False
    return (
        not is_user_suite(a) or _suite_digest(a) == _suite_digest(b) or a.origin == b.origin != ()
    )


def cell_has_suite(cell: Cell, name: str, origin: tuple[str, ...] = ()) -> bool:
    """Is the cell's suite the one of this name that was declared there (see Cell.origin)?"""
    return base_suite_name(cell) == name and (
        cell.origin == origin if origin else not is_user_suite(cell)
    )


def distinguish_suites(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with names of suites that are unique in them, and equal for equal suites of
    several runs.
    """
    groups: list[_SuiteGroup] = []
    for at, run in enumerate(runs):
        for cell in filter(is_user_suite, run):
            _add_to_group(groups, at, cell)
    if not groups:
        return list(runs)
    groups = _merge_partial_paths(_merge_same_files(groups))
    taken = {
        *catalog("tasks"),
        *(cell.suite for run in runs for cell in run if not is_user_suite(cell)),
    }
    names = _unique_names(groups, taken)
    renamed = {
        (at, id(cell)): name
        for group, name in zip(groups, names, strict=True)
        for at, cell in group.cells
    }
    return [
        replace(
            run,
            cells=tuple(
                _rename_cell(cell, renamed[at, id(cell)]) if is_user_suite(cell) else cell
                for cell in run
            ),
        )
        for at, run in enumerate(runs)
    ]


def portable_cells(run: Run) -> list[Cell]:
    """Return the cells of a run as a folder keeps them, with no more of the paths than tells the
    suites apart.
    """
    return [
        _make_portable(cell) if is_user_suite(cell) else cell
        for cell in distinguish_suites([run])[0]
    ]


@dataclass(slots=True)
class _SuiteGroup:
    """Cells of one suite. cells: (index of the run, cell). head: the suite's name without its task."""

    collection_name: str
    cells: list[tuple[int, Cell]]

    @property
    def origins(self) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(cell.origin for _, cell in self.cells))

    @property
    def result_keys(self) -> set[tuple[object, ...]]:
        """What the group answers: no run may hold two answers of one suite to the same question."""
        return {(at, base_suite_name(cell), cell.method, cell.seed) for at, cell in self.cells}

    def can_merge(self, other: _SuiteGroup) -> bool:
        return (
            self.collection_name == other.collection_name
            and not self.result_keys & other.result_keys
        )


def _add_to_group(groups: list[_SuiteGroup], run_index: int, cell: Cell) -> None:
    """Add a cell to the group of its suite: of its content; of a TOML with several tasks, of its
    file.
    """
    head = _collection_name(cell)
    for group in groups:
        first = group.cells[0][1]
        alike = (
            first.origin == cell.origin
            if head != base_suite_name(cell)
            else _suite_digest(first) == _suite_digest(cell)
        )
        if group.collection_name == head and alike:
            group.cells.append((run_index, cell))
            return
    groups.append(_SuiteGroup(head, [(run_index, cell)]))


def _merge_same_files(groups: Sequence[_SuiteGroup]) -> list[_SuiteGroup]:
    """Join groups of one file, whose content changed between the runs."""
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
    """Join a group that knows no path, or only its end (a baseline's), with the one that it can
    only be.
    """
    for group in [
        group for group in groups if not any(_has_absolute_path(origin) for origin in group.origins)
    ]:
        fitting = [
            other
            for other in groups
            if other is not group
            and other.can_merge(group)
            and any(_ends_with(theirs, ours) for theirs in other.origins for ours in group.origins)
        ]
        if len(fitting) == 1:
            fitting[0].cells += group.cells
            groups = [other for other in groups if other is not group]
    return groups


def _has_absolute_path(origin: tuple[str, ...]) -> bool:
    return any(PurePath(path).is_absolute() for path in origin)


def _ends_with(origin: tuple[str, ...], suffix: tuple[str, ...]) -> bool:
    """Could both be the same files, as far as their paths are known?"""
    pairs = zip(origin, suffix, strict=False)
    return all(PurePath(a).parts[-len(PurePath(b).parts) :] == PurePath(b).parts for a, b in pairs)


def _unique_names(groups: Sequence[_SuiteGroup], reserved: Collection[str]) -> list[str]:
    """Return a name per group: the first of its labels that is no other's, and no name of the
    catalog.
    """
    labels = [
        list(
            dict.fromkeys(
                label
                for origin in g.origins
                for label in _candidate_names(g.collection_name, origin)
            )
        )
        for g in groups
    ]
    labels = [sorted(some, key=lambda label: label.count("/")) for some in labels]
    counts = Counter(label for some in labels for label in some)
    names = []
    for group, some in zip(groups, labels, strict=True):
        free = (label for label in some if counts[label] == 1 and not _is_reserved(label, reserved))
        names.append(next(free, f"{some[-1]} ({_suite_digest(group.cells[0][1])[:8]})"))
    return names


def _candidate_names(collection_name: str, origin: tuple[str, ...]) -> Iterator[str]:
    """What a suite may be called: `pairs`, `pairs.csv`, `de/pairs`, `de/pairs.csv`,
    `data/de/pairs`, ...
    """
    path = PurePath(origin[0]) if origin else PurePath()
    folders = [part for part in path.parts[:-1] if part != path.anchor]
    scored_on = [f"{collection_name} ({PurePath(other).name})" for other in origin[1:]]
    names = [name for name in (collection_name, path.name, *scored_on) if name]
    for depth in range(len(folders) + 1):
        yield from ("/".join((*folders[len(folders) - depth :], name)) for name in names)
    if not folders:
        yield f"./{collection_name}"


def _is_reserved(label: str, reserved: Collection[str]) -> bool:
    """Is it a name of the catalog, or could it be read as a task of one (`glue-2025.rte`)?"""
    return any(label == name or label.startswith(f"{name}.") for name in reserved)


def _collection_name(cell: Cell) -> str:
    """Return the name of the suite without its task: `mine` of `mine.rte`; a file of texts is its
    own task.
    """
    base, task = base_suite_name(cell), str(cell.settings.get("task", ""))
    return base.removesuffix(f".{task}") if cell.seed is not None and task != base else base


def _suite_digest(cell: Cell) -> str:
    return str(cell.settings.get("suite_digest") or cell.key)


def _rename_cell(cell: Cell, name: str) -> Cell:
    """Return the cell of a suite whose head is shown as `name`."""
    base = base_suite_name(cell)
    shown = name + base.removeprefix(_collection_name(cell))
    settings = {**cell.settings, "suite": base}
    settings |= {"collection": name} if "collection" in settings else {}
    return replace(cell, suite=shown, settings=settings, summary=replace(cell.summary, suite=shown))


def _make_portable(cell: Cell) -> Cell:
    """Return a cell that was renamed under its own name again, its paths as short as the name that
    tells it apart.
    """
    folders = cell.suite.removeprefix("./").count("/")
    origin = tuple("/".join(Path(path).parts[-folders - 1 :]) for path in cell.origin)
    return replace(_rename_cell(cell, _collection_name(cell)), origin=origin)
