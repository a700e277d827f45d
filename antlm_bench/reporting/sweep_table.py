"""Build the table of `status` and of the end of `run`: how far a sweep is, and what failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from antlm_bench.progress import format_duration
from antlm_bench.reporting.table import Table, TableCell, TableColumn, build_row
from antlm_bench.sweeps.status import SHOWN_STATES, SweepStatus, TimeLeft, UnitRow
from antlm_bench.sweeps.units import Unit

MAX_ROWS = 50
"""Units of one table. JSON has all."""
MAX_ARGUMENTS_LENGTH = 60


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
                ("failed", status.failed, ("error", "attempts", "node", "log")),
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
        TableColumn("unit"),
        TableColumn("stage"),
        TableColumn("model"),
        TableColumn("what"),
        *(TableColumn(name) for name in names),
    )
    rows = [
        build_row(
            row.unit.id,
            row.unit.stage,
            row.unit.model,
            describe_arguments(row.unit),
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


def describe_arguments(unit: Unit) -> str:
    """Return the arguments of a unit in a few words: `suite blimp, methods mlm`."""
    texts = []
    for name, value in unit.arguments.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if value not in ("", None) and not isinstance(value, Mapping):
            texts.append(f"{name} {value}")
    text = ", ".join(texts)
    is_short = len(text) <= MAX_ARGUMENTS_LENGTH
    return text if is_short else text[: MAX_ARGUMENTS_LENGTH - 3] + "..."


def describe_time_left(time_left: TimeLeft) -> str:
    """Return a sentence on the time left; "" if nothing is known."""
    if time_left.seconds is None:
        return ""
    unknown = ", ".join(time_left.unknown_kinds)
    without = f", without units of the kinds {unknown}, of which none is done" if unknown else ""
    return f"about {format_duration(time_left.seconds)} left{without}"


def _to_document(row: UnitRow) -> dict[str, Any]:
    unit = row.unit
    record = asdict(row) | {"unit": unit.id, "kind": unit.kind, "stage": unit.stage}
    return record | {"model": unit.model, "arguments": dict(unit.arguments)}
