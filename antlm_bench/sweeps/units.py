"""Units of work of a sweep, and the groups in which workers claim them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

_encode_content = json.JSONEncoder(sort_keys=True).encode
"""As json.dumps, which makes an encoder per call: too slow for 100,000 units."""
SWEEP_SCHEMA_VERSION = 1
"""Version of sweep.json. It is read in this version only."""


@dataclass(frozen=True)
class Unit:
    """One piece of work, which succeeds or fails by itself."""

    kind: str
    """Name of a record in UNIT_KINDS: train, score, finetune, collect or report."""
    stage: str
    """Name of the stage that it belongs to, for tables."""
    model: str
    """Checkpoint (folder, hub id or id@revision), or recipe of a train unit; "" = none."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What its kind needs to carry it out: JSON values, by the names of the command's options."""
    needs: tuple[str, ...] = ()
    """Ids of units that must be done before."""
    waits_for: tuple[str, ...] = ()
    """Ids of units that must be settled before: done, failed or blocked."""

    @cached_property
    def id(self) -> str:
        """16 hex digits that identify the work: equal work has equal ids in every sweep."""
        content = [self.kind, self.model, self.arguments]
        return hashlib.sha256(_encode_content(content).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class UnitFiles:
    """Files and folders of the sweep's folder that a unit uses besides its part, as paths or globs
    below that folder. Machines that share no file system exchange them.
    """

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    """Also read, if they exist."""


@dataclass(frozen=True)
class UnitGroup:
    """Units of one checkpoint and kind, which one worker carries out one after the other."""

    id: str
    """Name of its claims: that of its first unit, with their number."""
    units: tuple[Unit, ...]


@dataclass(frozen=True)
class Sweep:
    """All units of a sweep, in the order in which they are started."""

    name: str
    groups: tuple[UnitGroup, ...]
    executors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of an executor -> its settings, as [executor.NAME] of the TOML has them."""
    configuration: Mapping[str, Any] = field(default_factory=dict)
    """What the driver took from a configuration file (`configuration.use_configuration`), which
    its workers do not read. Paths are absolute."""

    @property
    def units(self) -> Iterator[Unit]:
        return (unit for group in self.groups for unit in group.units)


def check_dependencies(sweep: Sweep) -> None:
    """Raise ValueError for a unit that could never start: it depends on one that the sweep does not
    have, or, by way of others, on itself.
    """
    units = {unit.id: unit for unit in sweep.units}
    num_open: dict[str, int] = {}
    dependents: dict[str, list[str]] = {}
    for unit in units.values():
        dependencies = {*unit.needs, *unit.waits_for}
        for other in dependencies:
            if other not in units:
                raise ValueError(f"unit {unit.id} depends on {other!r}, which is not in the sweep")
            dependents.setdefault(other, []).append(unit.id)
        if dependencies:
            num_open[unit.id] = len(dependencies)
    free = [unit_id for unit_id in dependents if unit_id not in num_open]
    while free:
        for unit_id in dependents.get(free.pop(), ()):
            num_open[unit_id] -= 1
            if num_open[unit_id] == 0:
                del num_open[unit_id]
                free.append(unit_id)
    if num_open:
        unit_id = next(iter(num_open))
        raise ValueError(f"unit {unit_id} depends on itself, or on units that do")


def group_units(units: Iterator[Unit], max_size: int = 64) -> tuple[UnitGroup, ...]:
    """Group neighbouring units of the same kind and model, `max_size` at most to a group."""
    groups: list[list[Unit]] = []
    for unit in units:
        last = groups[-1] if groups else []
        fits = last and (last[0].kind, last[0].model) == (unit.kind, unit.model)
        if fits and len(last) < max_size:
            last.append(unit)
        else:
            groups.append([unit])
    return tuple(UnitGroup(f"{group[0].id}-{len(group)}", tuple(group)) for group in groups)


def encode_sweep(sweep: Sweep) -> bytes:
    """Return sweep.json."""
    # Not dataclasses.asdict, which copies all values: 100,000 units would take seconds.
    names = [each.name for each in fields(Unit)]
    groups = [
        [{name: getattr(unit, name) for name in names} for unit in group.units]
        for group in sweep.groups
    ]
    document = {
        "schema": SWEEP_SCHEMA_VERSION,
        "name": sweep.name,
        "executors": sweep.executors,
        **({"configuration": sweep.configuration} if sweep.configuration else {}),
        "groups": groups,
    }
    # A TOML may have a date or time, e.g. as the time limit of a job.
    text = json.dumps(document, separators=(",", ":"), default=lambda value: value.isoformat())
    return text.encode()
