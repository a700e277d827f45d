"""One name per suite: the user's own files of one name are told apart by the shortest path that does so.

A suite of the catalog or of lm-eval is known by its name. A user's own file (pairs, SyntaxGym, a TOML, texts and
labels) is what it holds: equal names and digests are one suite, wherever the file lies. A file whose content changed is
the same suite with other items. No file of the user's is shown under a name of the catalog.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from antlm_bench.declarations import catalog
from antlm_bench.types import Cell, Run

USER = "user"  # the version of a suite that is a bare file; older runs say nothing else of a user's own suite


def is_own(cell: Cell) -> bool:
    """Was the suite read from a file of the user's?"""
    return bool(cell.origin) or cell.settings.get("suite_version") == USER


def base_name(cell: Cell) -> str:
    """Return the name under which the suite was scored: that of its file or declaration, without folders."""
    return str(cell.settings.get("suite") or cell.suite)


def same_suite(a: Cell, b: Cell) -> bool:
    """Are the suites of two cells of one run the same: by name, and for files of the user's by content or path?"""
    if base_name(a) != base_name(b) or is_own(a) != is_own(b):
        return False
    return not is_own(a) or _digest(a) == _digest(b) or a.origin == b.origin != ()


def holds(cell: Cell, name: str, origin: tuple[str, ...] = ()) -> bool:
    """Is the cell's suite the one of this name that was declared there (see Cell.origin)?"""
    return base_name(cell) == name and (cell.origin == origin if origin else not is_own(cell))


def distinguish_suites(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with names of suites that are unique in them, and equal for equal suites of several runs."""
    groups: list[_Group] = []
    for at, run in enumerate(runs):
        for cell in filter(is_own, run):
            _enter(groups, at, cell)
    if not groups:
        return list(runs)
    groups = _join_short(_join_equal(groups))
    taken = {*catalog("tasks"), *(cell.suite for run in runs for cell in run if not is_own(cell))}
    names = _names(groups, taken)
    renamed = {(at, id(cell)): name for group, name in zip(groups, names, strict=True) for at, cell in group.cells}
    return [
        replace(run, cells=tuple(_renamed(cell, renamed[at, id(cell)]) if is_own(cell) else cell for cell in run))
        for at, run in enumerate(runs)
    ]


def portable(run: Run) -> list[Cell]:
    """Return the cells of a run as a folder keeps them, with no more of the paths than tells the suites apart."""
    return [_portable(cell) if is_own(cell) else cell for cell in distinguish_suites([run])[0]]


@dataclass(slots=True)
class _Group:
    """Cells of one suite. cells: (index of the run, cell). head: the suite's name without its task."""

    head: str
    cells: list[tuple[int, Cell]]

    @property
    def origins(self) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(cell.origin for _, cell in self.cells))

    @property
    def slots(self) -> set[tuple[object, ...]]:
        """What the group answers: no run may hold two answers of one suite to the same question."""
        return {(at, base_name(cell), cell.method, cell.seed) for at, cell in self.cells}

    def may_join(self, other: _Group) -> bool:
        return self.head == other.head and not self.slots & other.slots


def _enter(groups: list[_Group], at: int, cell: Cell) -> None:
    """Add a cell to the group of its suite: of its content; of a TOML with several tasks, of its file."""
    head = _head(cell)
    for group in groups:
        first = group.cells[0][1]
        alike = first.origin == cell.origin if head != base_name(cell) else _digest(first) == _digest(cell)
        if group.head == head and alike:
            group.cells.append((at, cell))
            return
    groups.append(_Group(head, [(at, cell)]))


def _join_equal(groups: Sequence[_Group]) -> list[_Group]:
    """Join groups of one file, whose content changed between the runs."""
    joined: list[_Group] = []
    for group in groups:
        for other in joined:
            if other.may_join(group) and any(origin and origin in other.origins for origin in group.origins):
                other.cells += group.cells
                break
        else:
            joined.append(group)
    return joined


def _join_short(groups: list[_Group]) -> list[_Group]:
    """Join a group that knows no path, or only its end (a baseline's), with the one that it can only be."""
    for group in [group for group in groups if not any(_is_whole(origin) for origin in group.origins)]:
        fitting = [
            other
            for other in groups
            if other is not group
            and other.may_join(group)
            and any(_ends_with(theirs, ours) for theirs in other.origins for ours in group.origins)
        ]
        if len(fitting) == 1:
            fitting[0].cells += group.cells
            groups = [other for other in groups if other is not group]
    return groups


def _is_whole(origin: tuple[str, ...]) -> bool:
    return any(PurePath(path).is_absolute() for path in origin)


def _ends_with(origin: tuple[str, ...], end: tuple[str, ...]) -> bool:
    """Could both be the same files, as far as their paths are known?"""
    pairs = zip(origin, end, strict=False)
    return all(PurePath(a).parts[-len(PurePath(b).parts) :] == PurePath(b).parts for a, b in pairs)


def _names(groups: Sequence[_Group], taken: Collection[str]) -> list[str]:
    """Return a name per group: the first of its labels that is no other's, and no name of the catalog."""
    labels = [list(dict.fromkeys(label for origin in g.origins for label in _labels(g.head, origin))) for g in groups]
    labels = [sorted(some, key=lambda label: label.count("/")) for some in labels]
    counts = Counter(label for some in labels for label in some)
    names = []
    for group, some in zip(groups, labels, strict=True):
        free = (label for label in some if counts[label] == 1 and not _is_taken(label, taken))
        names.append(next(free, f"{some[-1]} ({_digest(group.cells[0][1])[:8]})"))
    return names


def _labels(head: str, origin: tuple[str, ...]) -> Iterator[str]:
    """What a suite may be called: `pairs`, `pairs.csv`, `de/pairs`, `de/pairs.csv`, `data/de/pairs`, ..."""
    path = PurePath(origin[0]) if origin else PurePath()
    folders = [part for part in path.parts[:-1] if part != path.anchor]
    scored_on = [f"{head} ({PurePath(other).name})" for other in origin[1:]]
    names = [name for name in (head, path.name, *scored_on) if name]
    for depth in range(len(folders) + 1):
        yield from ("/".join((*folders[len(folders) - depth :], name)) for name in names)
    if not folders:
        yield f"./{head}"


def _is_taken(label: str, taken: Collection[str]) -> bool:
    """Is it a name of the catalog, or could it be read as a task of one (`glue-2025.rte`)?"""
    return any(label == name or label.startswith(f"{name}.") for name in taken)


def _head(cell: Cell) -> str:
    """Return the name of the suite without its task: `mine` of `mine.rte`; a file of texts is its own task."""
    base, task = base_name(cell), str(cell.settings.get("task", ""))
    return base.removesuffix(f".{task}") if cell.seed is not None and task != base else base


def _digest(cell: Cell) -> str:
    return str(cell.settings.get("suite_digest") or cell.key)


def _renamed(cell: Cell, name: str) -> Cell:
    """Return the cell of a suite whose head is shown as `name`."""
    base = base_name(cell)
    shown = name + base.removeprefix(_head(cell))
    settings = {**cell.settings, "suite": base}
    settings |= {"collection": name} if "collection" in settings else {}
    return replace(cell, suite=shown, settings=settings, summary=replace(cell.summary, suite=shown))


def _portable(cell: Cell) -> Cell:
    """Return a cell that was renamed under its own name again, its paths as short as the name that tells it apart."""
    folders = cell.suite.removeprefix("./").count("/")
    origin = tuple("/".join(Path(path).parts[-folders - 1 :]) for path in cell.origin)
    return replace(_renamed(cell, _head(cell)), origin=origin)
