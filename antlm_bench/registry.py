"""Registries of named records: metrics, kinds of task, architectures, scoring methods, formats.

A record holds every fact and function of one metric (method, ...). Other modules look the record up
by name and use its fields; they never compare names.

A registry holds the records that we ship and those of installed packages. Each is registered as
"module:attribute" and imported when it is first used. Packages declare theirs as entry points
(docs/how-to/extending.md):

    [project.entry-points."antlm_bench.metrics"]
    brier = "my_package.metrics:BRIER"

Functions of such records are guarded: an exception in them, or a result of a wrong type, becomes a
PluginError that names the record and its package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import update_wrapper
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar

from antlm_bench.errors import BenchError, PluginError, UsageError

OUR_PACKAGE = __name__.partition(".")[0]
RESERVED_NAMES = frozenset({"all", "auto", "none", "default"})
"""Words that options accept beside names of records, or may accept later."""


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


@dataclass(frozen=True, slots=True)
class RecordType:
    """The class of a registry's records, and what their functions must return."""

    record_class: type | None = None
    """Class of the records; None = any object with a name."""
    result_checks: Mapping[str, Callable[..., str]] = field(default_factory=dict)
    """Field of a record -> (result, *arguments) -> what is wrong with the result of its function,
    "" = nothing."""


class Registry(Generic[Record]):
    """Records of one kind, by name. Shipped records come first; other packages' follow by name."""

    def __init__(
        self,
        noun: str,
        group: str,
        shipped: Mapping[str, str],
        list_command: str = "",
        record_type: RecordType = RecordType(),
    ) -> None:
        """Create a registry.

        noun: the kind of record, for error messages ("metric"). group: the group of entry points in
        which packages declare records. shipped: name -> "module:attribute" of our records.
        list_command: the command that lists all names, for hints; "" = the hint lists them.
        record_type: what other packages' records must be.
        """
        self._type = record_type
        self.noun, self.group, self.list_command = noun, group, list_command
        self._a_noun = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
        self._targets = dict(shipped)
        """Name -> "module:attribute"."""
        self._packages: dict[str, str] = {}
        """Name of a record from another package -> that package."""
        self._records: dict[str, Record] = {}
        """The records imported so far."""
        self._scanned = False

    def __getitem__(self, name: str) -> Record:
        """Return the record of a name.

        Raises UsageError for an unknown name, for a package that cannot be imported, and for one
        that adds a name which is invalid or exists already.
        """
        self._scan_installed_packages()  # a clash of names is an error for every record
        if name not in self._records:
            if name not in self._targets:
                raise UsageError(f"unknown {self.noun} {name!r}", hint=self._hint(name))
            self._records[name] = self._load(name)
        return self._records[name]

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[Record]:
        return (self[name] for name in self.names())

    def names(self) -> tuple[str, ...]:
        """Return all names without importing a record."""
        self._scan_installed_packages()
        return tuple(self._targets)

    def add(self, record: Record) -> None:
        """Add a record to this process, for use in a notebook. Raises UsageError for a record of
        another type, and for a name that is invalid or taken.
        """
        if problem := self._find_wrong_type(record) or find_wrong_name(record.name):
            raise UsageError(f"{self._a_noun} cannot be added: {problem}")
        if record.name in self.names() and self._records.get(record.name) is not record:
            raise UsageError(
                f"{self._a_noun} named {record.name!r} exists already", hint="choose another name"
            )
        self._targets[record.name], self._records[record.name] = "", record

    def _scan_installed_packages(self) -> None:
        if self._scanned:
            return
        from importlib import metadata  # slow: a third of the time of `import antlm_bench`

        targets: dict[str, str] = {}
        for entry in sorted(metadata.entry_points(group=self.group), key=lambda entry: entry.name):
            package = entry.dist.name if entry.dist else entry.value
            if problem := find_wrong_name(entry.name):
                raise UsageError(
                    f"the package {package} adds {self._a_noun} with an invalid name: {problem}",
                    hint=f"rename its entry point in {self.group}, or uninstall it",
                )
            if entry.name in self._targets or targets.get(entry.name, entry.value) != entry.value:
                raise UsageError(
                    f"the package {package} adds {self._a_noun} named {entry.name!r}, which exists "
                    "already",
                    hint=f"rename its entry point in {self.group}, or uninstall it",
                )
            targets[entry.name], self._packages[entry.name] = entry.value, package
        self._targets |= targets
        self._scanned = True

    def _load(self, name: str) -> Record:
        target = self._targets[name]
        if name not in self._packages:
            shipped_record: Record = load_target(target)
            return shipped_record
        package = self._packages[name]
        try:
            record: Record = load_target(target)
        except (Exception, SystemExit) as error:  # a module may call sys.exit
            is_missing = isinstance(error, ImportError | AttributeError)
            reason = error if is_missing else _describe_exception(error)
            raise UsageError(
                f"the {self.noun} {name!r} of the package {package} cannot be imported: {reason}",
                location=target,
                hint="reinstall or repair that package",
            ) from error
        problem = self._find_wrong_type(record)
        if not problem and record.name != name:
            problem = f"a record named {record.name!r}"
        if problem:
            raise UsageError(
                f"the entry point {name!r} of {package} points to {problem}",
                location=target,
                hint=f"an entry point of {self.group} must point to a record of its name",
            )
        guarded: Record = guard_record(record, self.describe(name), self._type.result_checks)
        return guarded

    def _find_wrong_type(self, record: Any) -> str:
        """Return what a record is, if it is not of the registry's type; "" = it is."""
        wanted = self._type.record_class
        if wanted is not None and not isinstance(record, wanted):
            return f"a {type(record).__name__}, not a {wanted.__name__}"
        if not isinstance(getattr(record, "name", None), str):
            return f"a {type(record).__name__} without a name"
        return ""

    def package_of(self, name: str) -> str:
        """Return the package that declares a record, "" for one of this process."""
        return "" if self._targets[name] == "" else self._packages.get(name, "antlm-bench")

    def describe(self, name: str) -> str:
        """Return what a message calls a record of another package; "" for one of ours."""
        package = self._packages.get(name)
        return f"the {self.noun} {name!r} of the package {package}" if package else ""

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


# ---- records of other packages


def find_wrong_name(name: str) -> str:
    """Return why a record cannot have this name, "" if it can."""
    if name in RESERVED_NAMES:
        return f"{name!r} has a meaning of its own in options"
    if not re.fullmatch(r"\w[\w.+-]*", name):
        return f"{name!r} should consist of letters, digits, '-', '_', '.' and '+'"
    return ""


@contextmanager
def naming_plugin(plugin: str) -> Iterator[None]:
    """Turn exceptions into a PluginError that names a record of another package.

    plugin: "the metric 'brier' of the package mine", or "" for a record of ours, whose exceptions
    stay what they are. A BenchError is not changed: it says already what is wrong.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if not plugin or isinstance(error, BenchError):
            raise
        raise PluginError(
            f"{plugin} failed: {_describe_exception(error)}", hint="repair or update that package"
        ) from error


def _describe_exception(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    if frames is None:
        return text
    return f"{text} ({frames.tb_frame.f_code.co_filename}:{frames.tb_lineno})"


def guard_record(record: Any, plugin: str, checks: Mapping[str, Callable[..., str]]) -> Any:
    """Return a record of another package whose functions raise PluginError where they fail.

    plugin: what a message calls the record. checks: see RecordType. Functions of ours in the record
    and classes (such as a declaration) stay as they are.
    """
    if not is_dataclass(record) or isinstance(record, type):
        return record
    guarded = {}
    for each in fields(record):
        value = getattr(record, each.name)
        is_target = "Target" in str(each.type)
        replaced = _guard_value(value, f"{plugin}: {each.name}", checks.get(each.name), is_target)
        if each.init and replaced is not value:
            guarded[each.name] = replaced
    return replace(record, **guarded) if guarded else record


def _guard_value(value: Any, plugin: str, check: Callable[..., str] | None, is_target: bool) -> Any:
    """Return a field's value with its functions guarded.

    plugin: name of the plugin in error messages. is_target: whether the value may be a class that
    is called, or the "module:attribute" of a function.
    """
    if isinstance(value, tuple) and type(value) is tuple:
        items = tuple(_guard_value(item, plugin, check, is_target) for item in value)
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    module = value if isinstance(value, str) else str(getattr(value, "__module__", ""))
    is_ours = module.partition(":")[0].partition(".")[0] == OUR_PACKAGE
    if is_ours or (isinstance(value, str) and not (is_target and value)):
        return value
    if isinstance(value, type) and not is_target:
        return value
    if isinstance(value, str) or callable(value):
        return _guard_function(value, plugin, check)
    return guard_record(value, plugin, {})


def _guard_function(
    target: str | Callable[..., Any], plugin: str, check: Callable[..., str] | None
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with naming_plugin(plugin):
            function = load_target(target)
            result = function(*args, **kwargs)
            problem = check(result, *args) if check else ""
        if problem:
            raise PluginError(f"{plugin} returned {problem}", hint="repair or update that package")
        if isinstance(function, type):
            _guard_methods(result, plugin)
        return result

    return call if isinstance(target, str) else update_wrapper(call, target)


def _guard_methods(instance: Any, plugin: str) -> None:
    """Guard the methods of an object whose class is another package's."""
    for name in dir(type(instance)):
        method = getattr(instance, name)
        if callable(method) and not name.startswith("_") and hasattr(instance, "__dict__"):
            setattr(instance, name, _guard_function(method, f"{plugin}.{name}", None))
