"""Build the table of `plan` and of --dry-run: units of each stage, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import PurePath
from typing import Any

from antlm_bench.progress import format_duration
from antlm_bench.reporting.table import (
    MISSING,
    Emphasis,
    Table,
    TableCell,
    TableColumn,
    TableRow,
    build_row,
)
from antlm_bench.sweeps.calibration import DeviceSpeed
from antlm_bench.sweeps.estimates import UnitCost
from antlm_bench.sweeps.plans import PlanRow, SweepPlan, sum_rows
from antlm_bench.sweeps.units import Unit

MAX_ROWS = 40
"""Rows of checkpoints up to which the table has them; else it has a row per stage."""
INEXACT_NOTE = "estimated from words: a tokenizer that is trained first does not exist yet"
MEMORY_NOTE = "largest peak of a unit: weights and one batch, without Python and its libraries"
COST_COLUMNS = (
    TableColumn("rows", align="right"),
    TableColumn("tokens", align="right"),
    TableColumn("flops", "FLOPs", align="right"),
    TableColumn("seconds", "time", unit="seconds", align="right"),
    TableColumn("memory", unit="bytes", align="right", notes=(MEMORY_NOTE,)),
)


def build_plan_table(plan: SweepPlan, *, units: bool = False) -> Table:
    """Build the table with a row per stage and checkpoint, or with a row per unit."""
    rows = plan.list_rows()
    stages = {row.stage: [each for each in rows if each.stage == row.stage] for row in rows}
    total = sum_rows("", rows)
    table = _build_units_table(plan) if units else _build_stages_table(stages, total)
    title = plan.sweep.name + (f" ({plan.folder})" if plan.folder else "")
    legend = tuple(_build_legend(plan, total))
    document = {
        "name": plan.sweep.name,
        "folder": plan.folder,
        "device": plan.device_kind,
        "speeds": {
            dtype: f"{speed.device} of {speed.machine}" if speed else None
            for dtype, speed in plan.speeds.items()
        },
        "total": _to_document(total),
        "missing_data": dict(plan.missing_data),
    }
    return Table(
        table.columns,
        table.rows,
        title=title,
        legend=legend,
        empty="no units",
        build_long=None if units else partial(_build_long_table, rows),
        document=document,
    )


def _build_stages_table(stages: dict[str, list[PlanRow]], total: PlanRow) -> Table:
    shows_models = sum(map(len, stages.values())) <= MAX_ROWS
    columns = [TableColumn("stage"), TableColumn("units", align="right")]
    columns += [TableColumn("done", align="right")] * bool(total.num_done)
    rows = []
    for stage, members in stages.items():
        row = sum_rows(stage, members)
        is_list = shows_models and len(members) > 1 and row.cost.rows != 0
        name = TableCell(stage, detail="" if is_list else _name_models(members))
        rows.append(_build_row(name, row, total, "strong" if is_list else ""))
        if is_list:
            rows += [
                _build_row(TableCell(member.model), member, total, depth=1) for member in members
            ]
    if len(stages) > 1:
        rows.append(_build_row(TableCell("total"), total, total, "strong", space_above=True))
    if total.num_done:
        cells = [TableCell("left"), TableCell(total.num_units - total.num_done), TableCell(text="")]
        rows.append(TableRow((*cells, *_build_cost_cells(total.left)), emphasis="strong"))
    return Table((*columns, *COST_COLUMNS), tuple(rows))


def _name_models(rows: Sequence[PlanRow]) -> str:
    """Return the checkpoint or recipe of a stage's rows, or how many there are."""
    return rows[0].model if len(rows) == 1 else f"{len(rows):,} models"


def _build_row(
    name: TableCell,
    row: PlanRow,
    total: PlanRow,
    emphasis: Emphasis = "",
    *,
    depth: int = 0,
    space_above: bool = False,
) -> TableRow:
    cells: list[TableCell] = [name, TableCell(row.num_units)]
    cells += [TableCell(row.num_done)] * bool(total.num_done)
    cells += _build_cost_cells(row.cost)
    return TableRow(tuple(cells), depth, emphasis, space_above)


def _build_units_table(plan: SweepPlan) -> Table:
    columns = (
        TableColumn("unit"),
        TableColumn("stage"),
        TableColumn("model"),
        TableColumn("what"),
        TableColumn("done"),
        *COST_COLUMNS,
    )
    rows = [
        build_row(
            unit.id,
            unit.stage,
            plan.labels.get(unit.model, unit.model),
            _describe_unit(unit),
            unit.id in plan.done,
            *_build_cost_cells(plan.costs[unit.id]),
        )
        for unit in plan.sweep.units
    ]
    return Table(columns, tuple(rows))


def _describe_unit(unit: Unit) -> str:
    """Return what a unit computes: `blimp, mlm, 2/4`, or `rte, full, seed 3`."""
    arguments = unit.arguments
    if unit.kind == "train":
        return ", ".join(arguments["changes"])
    if unit.kind not in ("score", "finetune"):
        return ""
    names = arguments["methods"] if unit.kind == "score" else arguments["attentions"]
    suite = arguments.get("task") or PurePath(arguments["suite"]).name
    seed = f"seed {arguments['seed']}" if "seed" in arguments else ""
    return ", ".join(filter(None, [suite, "+".join(names), arguments.get("shard", ""), seed]))


def _build_long_table(rows: Sequence[PlanRow]) -> Table:
    columns = [TableColumn(name) for name in ("stage", "model", "units", "done")]
    left = TableColumn("seconds_left", unit="seconds")
    return Table(
        (*columns, *COST_COLUMNS, left),
        tuple(
            build_row(
                row.stage,
                row.model,
                row.num_units,
                row.num_done,
                *_build_cost_cells(row.cost),
                row.left.seconds,
            )
            for row in rows
        ),
    )


def _build_cost_cells(cost: UnitCost) -> list[TableCell]:
    """Return the cells of COST_COLUMNS; without text for units that run no model."""
    if cost == UnitCost():
        return [TableCell(text="") for _ in COST_COLUMNS]
    inexact = () if cost.is_exact else (INEXACT_NOTE,)
    return [
        TableCell(cost.rows, abbreviate_count(cost.rows), notes=inexact),
        TableCell(cost.tokens, abbreviate_count(cost.tokens), notes=inexact),
        TableCell(cost.flops, MISSING if cost.flops is None else f"{cost.flops:.1e}"),
        TableCell(cost.seconds, _format_seconds(cost.seconds), notes=cost.notes),
        TableCell(cost.memory, MISSING if cost.memory is None else _format_bytes(cost.memory)),
    ]


def abbreviate_count(count: int | None) -> str:
    """Return a count of at most three digits: 999, 12k, 1.2M, 3.4B."""
    if count is None:
        return MISSING
    value, units = float(count), ["", "k", "M", "B", "T"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.1f}{units[0]}" if units[0] and value < 9.95 else f"{value:.0f}{units[0]}"


def _format_seconds(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    return "< 1 s" if 0 < seconds < 1 else format_duration(seconds)


def _format_bytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def _build_legend(plan: SweepPlan, total: PlanRow) -> Iterator[str]:
    """Yield the lines below the table."""
    speeds = [speed for speed in plan.speeds.values() if speed]
    unmeasured = [dtype for dtype, speed in plan.speeds.items() if speed is None]
    if speeds:
        measured = "; ".join(f"{each.device} of {each.machine}, {each.dtype}" for each in speeds)
        yield f"time: of one worker, as measured on {measured}"
    if unmeasured:
        names = " and ".join(unmeasured)
        yield (
            f"no time: the {plan.device_kind} of this machine was not measured in {names}: "
            "antlm-bench plan --calibrate measures it, in seconds"
        )
    for name, reason in plan.missing_data.items():
        yield f"left out: {name} ({reason})"
    if total.num_done:
        yield "done: not computed again"


def _to_document(row: PlanRow) -> dict[str, Any]:
    cost = row.cost
    return {
        "units": row.num_units,
        "done": row.num_done,
        "rows": cost.rows,
        "tokens": cost.tokens,
        "flops": cost.flops,
        "seconds": cost.seconds,
        "seconds_left": row.left.seconds,
        "memory": cost.memory,
    }


def build_speeds_table(speeds: Sequence[DeviceSpeed]) -> Table:
    """Build the table of measured speeds: a row per dtype and size of model."""
    columns = (
        TableColumn("device"),
        TableColumn("dtype"),
        TableColumn("hidden", "hidden size", align="right"),
        TableColumn("scoring", "scoring\nGFLOP/s", unit="FLOP/s", align="right"),
        TableColumn("training", "training\nGFLOP/s", unit="FLOP/s", align="right"),
        TableColumn("opening", "opening", unit="seconds", align="right"),
    )
    rows = [
        build_row(
            f"{speed.device} of {speed.machine}",
            speed.dtype,
            hidden,
            TableCell(forward, f"{forward / 1e9:,.1f}"),
            TableCell(training, f"{training / 1e9:,.1f}"),
            TableCell(opening, f"{opening:.1f} s"),
        )
        for speed in speeds
        for hidden, forward, training, opening in zip(
            speed.hidden, speed.forward, speed.training, speed.opening, strict=True
        )
    ]
    return Table(columns, tuple(rows), legend=("kept for the times of later plans",))
