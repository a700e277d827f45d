"""Workers: order, failures, retries, losses, and what depends on other units."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps.fake_units import FAKE_KINDS, make_store, make_sweep, make_unit

from antlm_bench.sweeps.journal import Event
from antlm_bench.sweeps.status import SweepState
from antlm_bench.sweeps.store import FolderStore
from antlm_bench.sweeps.worker import Worker, WorkerOptions, WorkerSummary, choose_first_group


def run(folder: Path, name: str = "w-0", retries: int = 1) -> WorkerSummary:
    return Worker(FolderStore(folder, 0.1), name, FAKE_KINDS, WorkerOptions(retries)).run()


def read_state(folder: Path) -> SweepState:
    store = FolderStore(folder)
    state = SweepState(store.read_sweep())
    state.apply(store.read_new_events())
    return state


def test_a_worker_carries_out_all_units(tmp_path: Path) -> None:
    units = [make_unit("sleep", number, model=f"m{number % 3}") for number in range(6)]
    make_store(tmp_path, *units)
    assert run(tmp_path) == WorkerSummary(6, 0)
    state = read_state(tmp_path)
    assert state.counts["done"] == 6
    for unit in units:
        part = state.units[unit.id].done_event.part
        assert (tmp_path / part / "number").read_text() == str(unit.arguments["number"])


def test_finished_units_are_not_carried_out_again(tmp_path: Path) -> None:
    make_store(tmp_path, *(make_unit("sleep", number) for number in range(3)))
    run(tmp_path)
    assert run(tmp_path) == WorkerSummary(0, 0)


def test_a_failed_unit_does_not_stop_the_others(tmp_path: Path) -> None:
    bad, good = make_unit("fail", 1), make_unit("sleep", 2)
    make_store(tmp_path, bad, good)
    assert run(tmp_path, retries=2) == WorkerSummary(1, 1)
    entry = read_state(tmp_path).units[bad.id]
    assert entry.state == "failed"
    assert [event.error for event in entry.counted_attempts] == ["item 1: the data is bad"] * 3
    assert entry.counted_attempts[-1].log == "logs/w-0.log"


def test_a_retry_continues_the_earlier_attempt(tmp_path: Path) -> None:
    unit = make_unit("fail_once", 1)
    make_store(tmp_path, unit)
    assert run(tmp_path) == WorkerSummary(1, 0)
    entry = read_state(tmp_path).units[unit.id]
    assert [event.event for event in entry.counted_attempts] == ["failed", "done"]
    assert entry.attempts[1].error == "ZeroDivisionError: division by zero"


def test_an_unknown_kind_is_a_failed_unit(tmp_path: Path) -> None:
    unit = make_unit("dance", 1)
    make_store(tmp_path, unit)
    assert run(tmp_path, retries=0) == WorkerSummary(0, 1)
    assert (
        "unknown unit kind 'dance'"
        in read_state(tmp_path).units[unit.id].counted_attempts[-1].error
    )


def test_units_run_after_those_that_they_need(tmp_path: Path) -> None:
    first = make_unit("sleep", 1, model="a")
    second = make_unit("sleep", 2, model="b", needs=[first.id])
    last = make_unit("collect", 0, parts=[first.id, second.id], waits_for=[first.id, second.id])
    make_store(tmp_path, last, second, first)
    assert run(tmp_path) == WorkerSummary(3, 0)
    assert (tmp_path / "runs" / "all").read_text() == "1 2"


def test_a_failed_need_blocks_and_a_failed_wait_does_not(tmp_path: Path) -> None:
    bad = make_unit("fail", 1, model="a")
    good = make_unit("sleep", 2, model="b")
    blocked = make_unit("sleep", 3, model="c", needs=[bad.id])
    also_blocked = make_unit("sleep", 4, model="d", needs=[blocked.id])
    ids = [unit.id for unit in (bad, good, blocked, also_blocked)]
    last = make_unit("collect", 0, parts=ids, waits_for=ids)
    make_store(tmp_path, bad, good, blocked, also_blocked, last)
    assert run(tmp_path) == WorkerSummary(2, 1)
    state = read_state(tmp_path)
    assert state.is_settled
    assert state.units[blocked.id].state == state.units[also_blocked.id].state == "blocked"
    assert (tmp_path / "runs" / "all").read_text() == "2"


def test_a_unit_whose_worker_died_three_times_is_failed(tmp_path: Path) -> None:
    unit = make_unit("sleep", 1)
    store = make_store(tmp_path, unit)
    for attempt in (1, 2, 3):
        store.join("dead")
        store.append_event(Event("started", unit.id, attempt, worker="dead", node="n1"))
    assert run(tmp_path) == WorkerSummary(0, 1)
    last = read_state(tmp_path).units[unit.id].counted_attempts[-1]
    assert (last.error, last.node) == ("its worker died 3 times", "n1")


def test_workers_start_at_different_groups() -> None:
    starts = [choose_first_group(f"r1-{number}", 1000) for number in range(10)]
    assert starts[0] == 0
    gaps = [b - a for a, b in zip(sorted(starts), [*sorted(starts)[1:], 1000], strict=True)]
    assert 50 <= min(gaps) <= max(gaps) <= 200
    assert 0 <= choose_first_group("node7", 10) < 10


def test_the_state_does_not_depend_on_the_order_of_journals() -> None:
    unit = make_unit("sleep", 1)
    user = make_unit("sleep", 2, needs=[unit.id])
    events = [
        Event("started", unit.id, 1),
        Event("started", unit.id, 2),
        Event("failed", unit.id, 2, final=True),
        Event("done", unit.id, 1, part="a"),
    ]
    for order in (events, events[::-1], events[2:] + events[:2], events[1::2] + events[::2]):
        state = SweepState(make_sweep(unit, user))
        state.apply(order)
        assert (state.units[unit.id].state, state.units[user.id].state) == ("done", "ready")
        assert state.units[unit.id].done_event.part == "a"


def test_the_lowest_finished_attempt_is_the_result() -> None:
    unit = make_unit("sleep", 1)
    state = SweepState(make_sweep(unit))
    state.apply([Event("done", unit.id, 2, part="b"), Event("done", unit.id, 1, part="a")])
    assert state.units[unit.id].done_event.part == "a"


def test_failed_units_and_what_took_them_are_repeated() -> None:
    bad, good = make_unit("fail", 1), make_unit("sleep", 2)
    last = make_unit("collect", 3, waits_for=[bad.id, good.id])
    page = make_unit("collect", 4, needs=[last.id])
    state = SweepState(make_sweep(bad, good, last, page))
    state.apply([Event("failed", bad.id, 2, final=True)])
    state.apply([Event("done", unit.id, 1) for unit in (good, last, page)])
    repeated = state.list_units_to_repeat()
    assert {entry.unit.id for entry in repeated} == {bad.id, last.id, page.id}
    state.apply([Event("repeat", entry.unit.id, 2) for entry in repeated])
    assert [state.units[unit.id].state for unit in (bad, good, last, page)] == [
        "ready",
        "done",
        "waiting",
        "waiting",
    ]


def test_a_result_is_taken_again_when_the_sweep_grows() -> None:
    old, new = make_unit("sleep", 1), make_unit("sleep", 2)
    last = make_unit("collect", 3, waits_for=[old.id, new.id])
    state = SweepState(make_sweep(old, new, last))
    state.apply([Event("done", unit.id, 1) for unit in (old, last)])
    assert [entry.unit for entry in state.list_units_to_repeat()] == [last]


def test_the_time_left_follows_the_kind_of_unit() -> None:
    units = [make_unit("sleep", number) for number in range(4)]
    state = SweepState(make_sweep(*units, make_unit("fail", 0)))
    assert state.estimate_time_left(2).seconds is None
    state.apply(
        [Event("done", units[0].id, 1, seconds=10), Event("done", units[1].id, 1, seconds=20)]
    )
    assert state.estimate_time_left(2).seconds == 15.0  # two units of 15 seconds, two workers
    assert state.estimate_time_left(2).unknown_kinds == ("fail",)


@pytest.mark.parametrize("released_first", [False, True])
def test_an_attempt_whose_claim_is_released_does_not_run(released_first: bool) -> None:
    [unit, other] = units = [make_unit("sleep", n) for n in range(2)]
    state = SweepState(make_sweep(*units))
    started = Event("started", unit.id, 1, worker="w-0", claim="g.1")
    released = Event("released", claim="g.1")
    running = Event("started", other.id, 1, worker="w-1", claim="h.1")
    state.apply([released, started, running] if released_first else [started, running, released])
    assert [state.units[each.id].state for each in units] == ["ready", "running"]
    assert state.units[unit.id].num_unfinished == 0

    state.apply([started])  # read again
    assert state.units[unit.id].state == "ready"
    state.apply([Event("done", unit.id, 1, part="a")])
    assert state.units[unit.id].state == "done"


def test_an_attempt_that_ended_before_its_claim_was_released_keeps_its_end() -> None:
    unit = make_unit("sleep", 0)
    state = SweepState(make_sweep(unit))
    started = Event("started", unit.id, 1, worker="w-0", claim="g.1")
    done = Event("done", unit.id, 1, part="a")
    state.apply([started, done, Event("released", claim="g.1")])
    assert state.units[unit.id].state == "done"
