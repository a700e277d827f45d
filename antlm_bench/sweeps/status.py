"""The state of every unit of a sweep, derived from its journals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from antlm_bench.sweeps.journal import Event
from antlm_bench.sweeps.units import Sweep, Unit, UnitGroup

UnitStateName = Literal["waiting", "ready", "running", "done", "failed", "blocked"]
"""waiting: for other units. ready: for a worker. running: an attempt has started and has not ended
(`status` tells those that are lost, whose worker is dead). blocked: a unit that it needs failed."""
SETTLED = frozenset({"done", "failed", "blocked"})
OPEN = frozenset({"ready", "running"})
MAX_LOSSES = 3
"""A unit whose workers died this often is failed: it may be what kills them."""


@dataclass(slots=True)
class UnitState:
    """A unit and what is known about it."""

    unit: Unit
    group: int
    """Index of its group in the sweep."""
    state: UnitStateName = "ready"
    outcome: Literal["", "running", "done", "failed"] = ""
    """What its attempts come to, whatever other units do; "" = none counts."""
    attempts: dict[int, Event] = field(default_factory=dict)
    """Attempt -> its last event."""
    num_forgotten: int = 0
    """Attempts up to this number do not count: they are to be repeated."""
    unmet_needs: int = 0
    """Needed units that are not done."""
    broken_needs: int = 0
    """Needed units that are failed or blocked."""
    unsettled: int = 0
    """Units it waits for that are not settled."""

    @property
    def counted_attempts(self) -> list[Event]:
        """Events of the attempts that count, in order."""
        numbers = sorted(number for number in self.attempts if number > self.num_forgotten)
        return [self.attempts[number] for number in numbers]

    @property
    def last_attempt(self) -> Event | None:
        return self.attempts[max(self.attempts)] if self.attempts else None

    @property
    def done_event(self) -> Event | None:
        """The event of the lowest attempt that is done: its part is the result."""
        return next((each for each in self.counted_attempts if each.event == "done"), None)

    @property
    def num_failures(self) -> int:
        return sum(event.event == "failed" for event in self.counted_attempts)

    @property
    def num_unfinished(self) -> int:
        """Attempts that started and did not end. All but one running attempt are lost."""
        return sum(event.event == "started" for event in self.counted_attempts)


class SweepState:
    """The states of all units, updated with events in any order across journals."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.units: dict[str, UnitState] = {}
        for index, group in enumerate(sweep.groups):
            for unit in group.units:
                self.units.setdefault(unit.id, UnitState(unit, index))
        self.counts: Counter[UnitStateName] = Counter({"ready": len(self.units)})
        self._open_by_group = [0] * len(sweep.groups)
        """Units of each group that a worker can carry out now."""
        self._needed_by: dict[str, list[UnitState]] = defaultdict(list)
        self._awaited_by: dict[str, list[UnitState]] = defaultdict(list)
        for entry in self.units.values():
            self._open_by_group[entry.group] += 1
            for other in {each for each in entry.unit.needs if each in self.units}:
                self._needed_by[other].append(entry)
                entry.unmet_needs += 1
            for other in {each for each in entry.unit.waits_for if each in self.units}:
                self._awaited_by[other].append(entry)
                entry.unsettled += 1
        for entry in self.units.values():
            if entry.unmet_needs or entry.unsettled:
                self._update([entry])

    # ---- events

    def apply(self, events: Iterable[Event]) -> None:
        """Update the states. An event that is applied twice has no further effect."""
        for event in events:
            entry = self.units.get(event.unit)
            if entry is None:  # of a unit that the sweep no longer has, or of a worker
                continue
            known = entry.attempts.get(event.attempt)
            if event.event == "repeat":
                entry.num_forgotten = max(entry.num_forgotten, event.attempt)
            elif known is None or (event.event != "started" and known.event != "done"):
                entry.attempts[event.attempt] = event
            self._update([entry])

    def _update(self, entries: list[UnitState]) -> None:
        """Derive the state of units anew, and of those that depend on them."""
        while entries:
            entry = entries.pop()
            entry.outcome = _derive_outcome(entry)
            new, old = _derive_state(entry), entry.state
            if new == old:
                continue
            entry.state = new
            self.counts[old] -= 1
            self.counts[new] += 1
            self._open_by_group[entry.group] += (new in OPEN) - (old in OPEN)
            unmet = (old == "done") - (new == "done")
            broken = (new in ("failed", "blocked")) - (old in ("failed", "blocked"))
            unsettled = (old in SETTLED) - (new in SETTLED)
            for other in self._needed_by.get(entry.unit.id, ()):
                other.unmet_needs += unmet
                other.broken_needs += broken
                entries.append(other)
            for other in self._awaited_by.get(entry.unit.id, ()):
                other.unsettled += unsettled
                entries.append(other)

    # ---- questions

    @property
    def num_settled(self) -> int:
        return self.counts["done"] + self.counts["failed"] + self.counts["blocked"]

    @property
    def is_settled(self) -> bool:
        return self.num_settled == len(self.units)

    def iter_open_groups(self, start: int) -> Iterator[tuple[int, UnitGroup]]:
        """Yield (index, group) of the groups with units to carry out, from index `start` on, and
        then those before it.
        """
        groups, num_open = self.sweep.groups, self._open_by_group
        for index in (*range(start, len(groups)), *range(start)):
            if num_open[index]:
                yield index, groups[index]

    def list_open_units(self, group: UnitGroup) -> list[UnitState]:
        """Return the units of a group that a worker can carry out now."""
        entries = (self.units[unit.id] for unit in group.units)
        return [entry for entry in entries if entry.state in OPEN]

    def list_units_to_repeat(self) -> list[UnitState]:
        """Return what a new start of the sweep carries out again: failed units, and units that are
        done although one that they depend on is not.
        """
        repeated: dict[str, UnitState] = {}
        entries = [
            entry
            for entry in self.units.values()
            if entry.outcome == "failed"
            or (entry.outcome == "done" and (entry.unmet_needs or self._waits(entry)))
        ]
        while entries:
            entry = entries.pop()
            if entry.unit.id in repeated:
                continue
            repeated[entry.unit.id] = entry
            dependents = (
                *self._needed_by.get(entry.unit.id, ()),
                *self._awaited_by.get(entry.unit.id, ()),
            )
            entries += [other for other in dependents if other.outcome == "done"]
        return list(repeated.values())

    def _waits(self, entry: UnitState) -> bool:
        """Return whether a unit that this one waits for is not done."""
        others = (self.units.get(each) for each in entry.unit.waits_for)
        return any(other is not None and other.state != "done" for other in others)

    def estimate_time_left(self, num_workers: int) -> TimeLeft:
        """Estimate the time left from the mean duration of finished units of the same kind."""
        durations: dict[str, list[float]] = defaultdict(list)
        num_unsettled: Counter[str] = Counter()
        for entry in self.units.values():
            if (done := entry.done_event if entry.outcome == "done" else None) is not None:
                durations[entry.unit.kind].append(done.seconds)
            elif entry.state not in SETTLED:
                num_unsettled[entry.unit.kind] += 1
        seconds = sum(
            count * sum(durations[kind]) / len(durations[kind])
            for kind, count in num_unsettled.items()
            if kind in durations
        )
        unknown_kinds = tuple(sorted(kind for kind in num_unsettled if kind not in durations))
        is_known = len(unknown_kinds) < len(num_unsettled) and num_workers > 0
        return TimeLeft(seconds / num_workers if is_known else None, unknown_kinds)


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """An estimate of the time until a sweep is done."""

    seconds: float | None
    """Of the units whose kind has finished units; None = not known."""
    unknown_kinds: tuple[str, ...]
    """Kinds of which no unit has finished yet: their units are not in `seconds`."""


def _derive_outcome(entry: UnitState) -> Literal["", "running", "done", "failed"]:
    outcome: Literal["", "running", "done", "failed"] = ""
    latest = 0
    for attempt, event in entry.attempts.items():
        if attempt <= entry.num_forgotten:
            continue
        if event.event == "done":
            return "done"
        if event.final:
            outcome = "failed"
        elif outcome != "failed" and attempt > latest:
            latest = attempt
            outcome = "running" if event.event == "started" else ""
    return outcome


def _derive_state(entry: UnitState) -> UnitStateName:
    if entry.outcome:
        return entry.outcome
    if entry.broken_needs:
        return "blocked"
    return "waiting" if entry.unmet_needs or entry.unsettled else "ready"


def count_by_stage(state: SweepState) -> Mapping[str, Counter[UnitStateName]]:
    """Return the number of units per stage and state."""
    counts: dict[str, Counter[UnitStateName]] = defaultdict(Counter)
    for entry in state.units.values():
        counts[entry.unit.stage][entry.state] += 1
    return counts
