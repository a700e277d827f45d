"""Registries of named records: metrics, kinds of task, architectures, scoring methods, formats.

A record holds every fact and function of one metric (method, ...). Other modules look the record up
by name and use its fields; they never compare names.

A registry holds the records that we ship and those of installed packages. Each is registered as
"module:attribute" and imported when it is first used. Packages declare theirs as entry points
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
    """An object with the name under which it is registered."""

    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=NamedRecord)


def load_target(target: str | Callable[..., Any]) -> Any:
    """Import the object that "module:attribute" names. Any other object is returned as it is."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


class Registry(Generic[Record]):
    """Records of one kind, by name. Shipped records come first; other packages' follow by name."""

    def __init__(
        self, noun: str, group: str, shipped: Mapping[str, str], list_command: str = ""
    ) -> None:
        """Create a registry.

        noun: the kind of record, for error messages ("metric"). group: the group of entry points in
        which packages declare records. shipped: name -> "module:attribute" of our records.
        list_command: the command that lists all names, for hints; "" = the hint lists them.
        """
        self.noun, self.group, self.list_command = noun, group, list_command
        self._targets = dict(shipped)
        """Name -> "module:attribute"."""
        self._packages: dict[str, str] = {}
        """Name of a record from another package -> that package."""
        self._records: dict[str, Record] = {}
        """The records imported so far."""
        self._scanned = False

    def __getitem__(self, name: str) -> Record:
        """Return the record of a name.

        Raises UsageError for an unknown name, or for a package that cannot be imported.
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
        """Add a record to this process, for use in a notebook. Raises UsageError for a name that is
        taken.
        """
        if record.name in self.names() and self._records.get(record.name) is not record:
            raise UsageError(
                f"a {self.noun} named {record.name!r} exists already", hint="choose another name"
            )
        self._targets[record.name], self._records[record.name] = "", record

    def _scan_installed_packages(self) -> None:
        if self._scanned:
            return
        from importlib import metadata  # slow: a third of the time of `import antlm_bench`

        targets: dict[str, str] = {}
        for entry in sorted(metadata.entry_points(group=self.group), key=lambda entry: entry.name):
            package = entry.dist.name if entry.dist else entry.value
            if entry.name in self._targets or targets.get(entry.name, entry.value) != entry.value:
                raise UsageError(
                    f"the package {package} adds a {self.noun} named {entry.name!r}, which exists "
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
                f"the entry point {name!r} of {self._packages.get(name, 'antlm-bench')} points to "
                f"a record named {getattr(record, 'name', record)!r}",
                location=target,
                hint=f"an entry point of {self.group} must have the name of its record",
            )
        return record

    def _hint(self, name: str) -> str:
        close = get_close_matches(name, self._targets, 1)
        suggestion = f"Did you mean {close[0]!r}? " if close else ""
        if self.list_command:
            return f"{suggestion}List all: {self.list_command}"
        return f"{suggestion}One of {', '.join(self._targets)}"


def deferred(target: str) -> Callable[..., Any]:
    """Return a function that imports "module:attribute" and calls it.

    Records use this for functions whose modules are slow to import, so that listing the records
    imports none of them.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return load_target(target)(*args, **kwargs)

    return call
