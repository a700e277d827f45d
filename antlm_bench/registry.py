"""Registries: named records of one kind, those we ship and those that installed packages add.

A record is an object that says all there is to say about a metric, a kind of task, an architecture,
a scoring method or an output format. Whoever needs one asks its registry by name and then asks the
record; no module compares names.

Shipped records and those of other packages are entries alike: a name and "module:attribute",
imported when the record is first needed. Other packages declare theirs as entry points
(docs/extending.md):

    [project.entry-points."antlm_bench.metrics"]
    brier = "my_package.metrics:BRIER"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar

from antlm_bench.errors import UsageError


class NamedRecord(Protocol):
    """What every record has: the name under which it is registered."""

    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=NamedRecord)


def load_target(target: str | Callable[..., Any]) -> Any:
    """Return what a record names: an object itself, or the one behind "module:attribute"."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


class Registry(Generic[Record]):
    """Records of one kind by name, in the order in which we ship them, then those of other packages
    by name.
    """

    def __init__(
        self, noun: str, group: str, shipped: Mapping[str, str], listing: str = ""
    ) -> None:
        """Create a registry.

        noun: what a record is, for messages ("metric"). group: the entry-point group of other
        packages. shipped: name -> "module:attribute" of our own records. listing: the command that
        lists the names, for hints; "" = list them all.
        """
        self.noun, self.group, self.listing = noun, group, listing
        self._targets = dict(shipped)
        self._packages: dict[str, str] = {}
        self._records: dict[str, Record] = {}
        self._scanned = False

    def __getitem__(self, name: str) -> Record:
        """Return the record of a name. Raises UsageError for an unknown name or a package that
        cannot be imported.
        """
        if name not in self._records:
            if name not in self._targets:
                self._scan_installed_packages()
            if name not in self._targets:
                raise UsageError(f"unknown {self.noun} {name!r}", hint=self._hint(name))
            self._records[name] = self._load(name)
        return self._records[name]

    def __contains__(self, name: object) -> bool:
        return name in self._targets or name in self.names()

    def __iter__(self) -> Iterator[Record]:
        return (self[name] for name in self.names())

    def names(self) -> tuple[str, ...]:
        """Return all names without importing a record."""
        self._scan_installed_packages()
        return tuple(self._targets)

    def add(self, record: Record) -> None:
        """Add a record of this process, as a notebook does. Raises UsageError where the name is
        taken.
        """
        if record.name in self.names() and self._records.get(record.name) is not record:
            raise UsageError(
                f"there is a {self.noun} {record.name!r} already", hint="choose another name"
            )
        self._targets[record.name], self._records[record.name] = "", record

    def _scan_installed_packages(self) -> None:
        if self._scanned:
            return
        from importlib import metadata  # a third of what `import antlm_bench` would cost

        targets: dict[str, str] = {}
        for entry in sorted(metadata.entry_points(group=self.group), key=lambda entry: entry.name):
            package = entry.dist.name if entry.dist else entry.value
            if entry.name in self._targets or targets.get(entry.name, entry.value) != entry.value:
                raise UsageError(
                    f"the package {package} adds a {self.noun} {entry.name!r}, and there is one "
                    "already",
                    hint=f"rename its entry point in {self.group}, or uninstall it",
                )
            targets[entry.name], self._packages[entry.name] = entry.value, package
        self._targets |= targets
        self._scanned = True

    def _load(self, name: str) -> Record:
        target = self._targets[name]
        try:
            record: Record = load_target(target)
        except (ImportError, AttributeError) as error:
            if name not in self._packages:
                raise  # a bug of ours
            raise UsageError(
                f"the {self.noun} {name!r} of the package {self._packages[name]} cannot be "
                f"imported: {error}",
                location=target,
                hint="reinstall or repair that package",
            ) from error
        if getattr(record, "name", None) != name:
            raise UsageError(
                f"the entry point {name!r} of {self._packages.get(name, 'antlm-bench')} holds "
                f"{getattr(record, 'name', record)!r}",
                location=target,
                hint=f"an entry point of {self.group} has the name of its record",
            )
        return record

    def _hint(self, name: str) -> str:
        close = get_close_matches(name, self._targets, 1)
        suggestion = f"Did you mean {close[0]!r}? " if close else ""
        return suggestion + (
            f"List all: {self.listing}" if self.listing else f"One of {', '.join(self._targets)}"
        )


def deferred(target: str) -> Callable[..., Any]:
    """Return a function that imports "module:attribute" and calls it.

    Records name their slow functions so: listing the records then imports none of them.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return load_target(target)(*args, **kwargs)

    return call
