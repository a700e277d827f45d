"""Build the table of `status` and of the end of `run`: how far a sweep is, and what failed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from antlm_bench.progress import format_duration
from antlm_bench.reporting.table import Table, TableCell, TableColumn, build_row
from antlm_bench.sweeps.status import SHOWN_STATES, SweepStatus, TimeLeft, UnitRow
from antlm_bench.sweeps.unit_kinds import describe_unit

MAX_ROWS = 50
"""Units of one table. JSON has all."""


def build_sweep_table(status: SweepStatus) -> Table:
    """Build a table with a row per stage, and tables of failed and running units."""
    counts = {stage: dict(values) for stage, values in status.counts.items()}
    total = {state: status.count(state) for state in SHOWN_STATES}
    shown = [state for state in SHOWN_STATES if total[state]] or ["done"]
    columns = [TableColumn("stage"), TableColumn("units", align="right")]
    columns += [TableColumn(state, align="right") for state in shown]
    rows = [
        build_row(stage, sum(values.values()), *(values.get(state, 0) for state in shown))
        for stage, values in counts.items()
    ]
    total_row = build_row(
        "total", status.count(), *(total[state] for state in shown), emphasis="strong"
    )
    legend = describe_time_left(status.time_left)
    return Table(
        tuple(columns),
        (*rows, total_row) if len(rows) != 1 else tuple(rows),
        title=f"{status.name} ({status.folder})",
        legend=(legend,) if legend and total["waiting"] + total["running"] else (),
        parts=tuple(
            _build_units_table(title, units, names)
            for title, units, names in (
                ("failed", status.failed, ("attempts", "node", "log", "error")),
                ("running", status.running, ("state", "elapsed", "attempts", "node", "log")),
            )
            if units
        ),
        document={
            "name": status.name,
            "folder": status.folder,
            "counts": {"total": total, "stages": counts},
            "failed": [_to_document(row) for row in status.failed],
            "running": [_to_document(row) for row in status.running],
            "seconds_left": status.time_left.seconds,
        },
    )


def _build_units_table(title: str, units: tuple[UnitRow, ...], names: tuple[str, ...]) -> Table:
    columns = (
        TableColumn("stage"),
        TableColumn("model"),
        TableColumn("what"),
        *(TableColumn(name) for name in names),
    )
    rows = [
        build_row(
            row.unit.stage,
            row.unit.model,
            describe_unit(row.unit),
            *(_build_cell(row, name) for name in names),
        )
        for row in units[:MAX_ROWS]
    ]
    num_more = len(units) - len(rows)
    legend = (f"{num_more:,} more: antlm-bench status --json",) if num_more else ()
    return Table(columns, tuple(rows), title=title, legend=legend)


def _build_cell(row: UnitRow, name: str) -> TableCell:
    if name == "elapsed":
        text = "" if row.seconds is None else format_duration(row.seconds)
        return TableCell(row.seconds, text, unit="seconds")
    value = getattr(row, name)
    is_bad = name == "error" or (name == "state" and value == "lost")
    return TableCell(value, tone="bad" if is_bad else "")


def describe_time_left(time_left: TimeLeft) -> str:
    """Return a sentence on the time left; "" if nothing is known."""
    if time_left.seconds is None:
        return ""
    unknown = ", ".join(time_left.unknown_kinds)
    without = f", not counting {unknown}: no such unit is done yet" if unknown else ""
    return f"about {format_duration(time_left.seconds)} left{without}"


def _to_document(row: UnitRow) -> dict[str, Any]:
    unit = row.unit
    record = asdict(row) | {"unit": unit.id, "kind": unit.kind, "stage": unit.stage}
    return record | {"model": unit.model, "arguments": dict(unit.arguments)}
