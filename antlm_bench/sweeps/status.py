"""The state of every unit of a sweep, derived from its journals; a summary for people."""

from __future__ import annotations

import gc
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from antlm_bench.sweeps.journal import Event
from antlm_bench.sweeps.store import FolderStore, SweepStore
from antlm_bench.sweeps.units import Sweep, Unit, UnitGroup

UnitStateName = Literal["waiting", "ready", "running", "done", "failed", "blocked"]
"""waiting: other units must finish first. ready: a worker can carry it out. running: an attempt has
started and has not ended, though its worker may be dead. blocked: a unit that it needs has failed,
or is blocked."""
SETTLED = frozenset({"done", "failed", "blocked"})
OPEN = frozenset({"ready", "running"})
SHOWN_STATES = ("done", "running", "lost", "waiting", "failed", "blocked")
"""States in tables, in this order. lost: an attempt has started, and its worker is dead."""
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
    """The result of its attempts, whatever the state of other units; "" = no attempt counts."""
    attempts: dict[int, Event] = field(default_factory=dict)
    """Attempt -> its last event."""
    num_forgotten: int = 0
    """Attempts up to this number do not count, because the unit is carried out again."""
    num_unmet_needs: int = 0
    """Needed units that are not done."""
    num_broken_needs: int = 0
    """Needed units that are failed or blocked."""
    num_unsettled: int = 0
    """Units it waits for that are not settled."""
    seconds: float = 0.0
    """How long it took, if it is done."""

    @property
    def must_keep_waiting(self) -> bool:
        """Whether it is waiting, and other units still keep it waiting."""
        waits = self.num_unmet_needs or self.num_unsettled
        return bool(self.state == "waiting" and waits and not self.num_broken_needs)

    @property
    def counted_attempts(self) -> list[Event]:
        """Events of the attempts that count, in order."""
        if len(self.attempts) == 1 and not self.num_forgotten:  # most units
            return list(self.attempts.values())
        numbers = sorted(number for number in self.attempts if number > self.num_forgotten)
        return [self.attempts[number] for number in numbers]

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
        self._loads: dict[str, _KindLoad] = defaultdict(_KindLoad)
        self._open_attempts: dict[str, Event] = {}
        """Claim -> the last attempt that was started under it, if it has not ended."""
        self._released_claims: set[str] = set()
        self._needed_by: dict[str, list[UnitState]] = defaultdict(list)
        self._awaited_by: dict[str, list[UnitState]] = defaultdict(list)
        for entry in self.units.values():
            self._open_by_group[entry.group] += 1
            self._loads[entry.unit.kind].num_unsettled += 1
            unit = entry.unit
            if unit.needs or unit.waits_for:
                for other in {each for each in unit.needs if each in self.units}:
                    self._needed_by[other].append(entry)
                    entry.num_unmet_needs += 1
                for other in {each for each in unit.waits_for if each in self.units}:
                    self._awaited_by[other].append(entry)
                    entry.num_unsettled += 1
        for entry in self.units.values():
            if entry.num_unmet_needs or entry.num_unsettled:
                self._update([entry])

    # ---- events

    def apply(self, events: Iterable[Event]) -> None:
        """Update the states. An event that is applied twice has no further effect."""
        changed: dict[str, UnitState] = {}
        for event in map(self._end_released_attempt, events):
            entry = self.units.get(event.unit)
            if entry is None:  # of a unit that the sweep no longer has, or of a worker
                continue
            changed[event.unit] = entry
            known = entry.attempts.get(event.attempt)
            if event.event == "repeat":
                entry.num_forgotten = max(entry.num_forgotten, event.attempt)
            elif known is None or (event.event != "started" and known.event != "done"):
                entry.attempts[event.attempt] = event
                if known is not None:
                    self._open_attempts.pop(known.claim, None)
                elif event.event == "started" and event.claim:
                    self._open_attempts[event.claim] = event
        self._update(list(changed.values()))

    def _end_released_attempt(self, event: Event) -> Event:
        """Return an event, or that an attempt has stopped, if the event releases the claim of a
        running attempt or starts an attempt under a released claim.

        A signal can reach a worker after an attempt was recorded and before the worker knows its
        number. Then it releases its claim, but cannot record that the attempt has stopped.
        """
        if event.event == "released":
            self._released_claims.add(event.claim)
            started = self._open_attempts.get(event.claim)
            return event if started is None else replace(started, event="stopped")
        if event.event == "started" and event.claim in self._released_claims:
            return replace(event, event="stopped")
        return event

    def _update(self, entries: list[UnitState]) -> None:
        """Derive the state of units anew, and of those that depend on them."""
        while entries:
            entry = entries.pop()
            entry.outcome = outcome = _derive_outcome(entry)
            new, old = outcome or _derive_state(entry), entry.state
            if new == old:
                continue
            entry.state = new
            self.counts[old] -= 1
            self.counts[new] += 1
            self._open_by_group[entry.group] += (new in OPEN) - (old in OPEN)
            self._update_load(entry, old)
            unmet = (old == "done") - (new == "done")
            broken = (new in ("failed", "blocked")) - (old in ("failed", "blocked"))
            unsettled = (old in SETTLED) - (new in SETTLED)
            for other in self._needed_by.get(entry.unit.id, ()):
                other.num_unmet_needs += unmet
                other.num_broken_needs += broken
                if not other.must_keep_waiting:
                    entries.append(other)
            for other in self._awaited_by.get(entry.unit.id, ()):
                other.num_unsettled += unsettled
                if not other.must_keep_waiting:
                    entries.append(other)

    def _update_load(self, entry: UnitState, old: UnitStateName) -> None:
        load = self._loads[entry.unit.kind]
        load.num_unsettled += (entry.state not in SETTLED) - (old not in SETTLED)
        if old == "done":
            load.num_done -= 1
            load.done_seconds -= entry.seconds
        if entry.state == "done" and (done := entry.done_event):
            entry.seconds = done.seconds
            load.num_done += 1
            load.done_seconds += entry.seconds

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
            or (entry.outcome == "done" and self._depends_on_unfinished(entry))
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

    def iter_awaited_parts(self) -> Iterator[tuple[str, UnitState]]:
        """Yield (part, unit) of the units that are done and whose part another unit still needs."""
        for unit_id, dependents in self._awaited_by.items():
            done = self.units[unit_id].done_event
            if done and done.part and any(other.outcome != "done" for other in dependents):
                yield done.part, self.units[unit_id]

    def _depends_on_unfinished(self, entry: UnitState) -> bool:
        """Return whether a unit needs or waits for a unit that is not done."""
        others = (self.units.get(each) for each in entry.unit.waits_for)
        return bool(entry.num_unmet_needs) or any(each and each.state != "done" for each in others)

    def estimate_time_left(self, num_workers: int) -> TimeLeft:
        """Estimate the time left from the mean duration of finished units of the same kind."""
        seconds, unknown_kinds = 0.0, []
        for kind, load in sorted(self._loads.items()):
            if load.num_unsettled and load.num_done:
                seconds += load.num_unsettled * load.done_seconds / load.num_done
            elif load.num_unsettled:
                unknown_kinds.append(kind)
        is_known = num_workers > 0 and any(load.num_done for load in self._loads.values())
        return TimeLeft(seconds / num_workers if is_known else None, tuple(unknown_kinds))


@dataclass(slots=True)
class _KindLoad:
    """Work of one kind of unit."""

    num_unsettled: int = 0
    num_done: int = 0
    done_seconds: float = 0.0
    """Of all units that are done."""


def load_state(
    store: SweepStore, sweep: Sweep | None = None, earlier_events: Sequence[Event] = ()
) -> SweepState:
    """Return the state of a sweep by all events so far.

    sweep: None = that of the store. earlier_events: those that were read from the store before.
    Raises RunError.
    """
    with _pause_garbage_collection():
        state = SweepState(sweep or store.read_sweep())
        state.apply([*earlier_events, *store.read_new_events()])
    return state


@contextmanager
def _pause_garbage_collection() -> Iterator[None]:
    """Turn garbage collection off while many lasting objects are created.

    The collector would scan them again and again, which takes as long as creating them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class TimeLeft:
    """An estimate of the time until a sweep is done."""

    seconds: float | None
    """Estimate for units of kinds that have finished units; None = unknown."""
    unknown_kinds: tuple[str, ...]
    """Kinds without a finished unit: `seconds` does not count their units."""


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
    """Return the state of a unit without an outcome."""
    if entry.num_broken_needs:
        return "blocked"
    return "waiting" if entry.num_unmet_needs or entry.num_unsettled else "ready"


# ---- how far a sweep is, for people


@dataclass(frozen=True)
class UnitRow:
    """A unit that is not simply done or waiting, for tables."""

    unit: Unit
    state: str
    """One of SHOWN_STATES."""
    attempts: int
    """Attempts since the last start of the sweep."""
    node: str
    """Where its last attempt ran."""
    log: str
    """File with the output of its last attempt."""
    seconds: float | None = None
    """Since its last attempt began; None = it has ended."""
    error: str = ""


@dataclass(frozen=True)
class SweepStatus:
    """How far a sweep is."""

    name: str
    folder: str
    counts: Mapping[str, Mapping[str, int]]
    """Stage -> state (SHOWN_STATES) -> units."""
    failed: tuple[UnitRow, ...]
    running: tuple[UnitRow, ...]
    """Units that run, and those that are lost: their worker has died."""
    time_left: TimeLeft

    def count(self, *states: str) -> int:
        """Return the number of units in these states, over all stages; () = all units."""
        return sum(
            number
            for counts in self.counts.values()
            for state, number in counts.items()
            if state in (states or SHOWN_STATES)
        )

    @property
    def is_complete(self) -> bool:
        return self.count() == self.count("done")


def build_status(store: FolderStore, state: SweepState) -> SweepStatus:
    """Summarize a state. The claims of running units tell which of them are lost."""
    running = [entry for entry in state.units.values() if entry.state == "running"]
    claims = {entry.unit.id: _find_claim_of_attempt(entry) for entry in running}
    dead_claims = store.list_dead_claims(set(claims.values()))
    lost = {unit for unit, claim in claims.items() if claim in dead_claims}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in state.units.values():
        counts[entry.unit.stage][_name_state(entry, lost)] += 1
    return SweepStatus(
        name=state.sweep.name,
        folder=str(store.folder),
        counts=counts,
        failed=tuple(
            _build_row(entry, lost) for entry in state.units.values() if entry.state == "failed"
        ),
        running=tuple(_build_row(entry, lost) for entry in running),
        time_left=state.estimate_time_left(len(running) - len(lost)),
    )


def _find_claim_of_attempt(entry: UnitState) -> str:
    """Return the claim under which a running unit was started."""
    started = [event for event in entry.counted_attempts if event.event == "started"]
    return started[-1].claim


def _name_state(entry: UnitState, lost: Collection[str]) -> str:
    if entry.state == "running" and entry.unit.id in lost:
        return "lost"
    return "waiting" if entry.state == "ready" else entry.state


def _build_row(entry: UnitState, lost: Collection[str]) -> UnitRow:
    attempts = entry.counted_attempts
    last = attempts[-1]
    errors = [event.error for event in attempts if event.error]
    return UnitRow(
        unit=entry.unit,
        state=_name_state(entry, lost),
        attempts=len(attempts),
        node=last.node,
        log=last.log or f"logs/{last.worker}.log",
        seconds=max(time.time() - last.time, 0) if last.event == "started" else None,
        error=errors[-1] if errors else "",
    )
