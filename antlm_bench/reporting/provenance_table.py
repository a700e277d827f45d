"""Build the table of `report --provenance`: a row per cell, with the machine that computed it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from antlm_bench.progress import format_duration
from antlm_bench.reporting.table import (
    MISSING,
    Table,
    TableCell,
    build_facts_table,
    build_records_table,
    to_json_value,
)
from antlm_bench.results.reports import CellProvenance
from antlm_bench.types import describe_cells

UNRECORDED_NOTE = "not recorded: by an older version, imported, or provenance.json was removed"
SHARED_WORK_NOTE = "methods of one suite are computed together: the seconds are those of all"
COMMON_FACTS = {
    "os": "operating system",
    "cpu": "CPU",
    "cores": "cores",
    "gpus": "GPUs",
    "driver": "NVIDIA driver",
    "python": "Python",
    "commit": "commit of antlm-bench",
    "packages": "packages",
}
"""Field of a record -> its name. These are the same for all cells that one machine computed."""


def build_provenance_table(cells: Sequence[CellProvenance]) -> Table:
    """Build the table, with the facts about each machine as parts."""
    records = [dict(each.record) for each in cells]
    parts = [
        build_facts_table(str(facts.pop("node") or "unknown node"), facts)
        for facts in _distinct_machines(records)
    ]
    table = build_records_table(
        [_build_record(each) for each in cells],
        empty="no results",
        units={"wall": "seconds", "CPU": "seconds", "memory": "bytes"},
    )
    document = {"provenance": [_build_document(each) for each in cells]}
    return Table(table.columns, table.rows, parts=tuple(parts), document=document)


def _build_record(provenance: CellProvenance) -> dict[str, object]:
    record = provenance.record
    notes = () if record else (UNRECORDED_NOTE,)
    is_shared = (_read_number(record, "computed_together") or 1) > 1
    shared = (SHARED_WORK_NOTE,) if is_shared else ()
    wall, cpu = _read_number(record, "wall_seconds"), _read_number(record, "cpu_seconds")
    memory = _read_number(record, "peak_memory_bytes")
    executor = str(record.get("executor") or "")
    attempt = _read_number(record, "attempt")
    return {
        "model": provenance.model,
        "result": describe_cells([provenance.cell]),
        "started": _format_start(record, notes),
        "wall": TableCell(wall, MISSING if wall is None else format_duration(wall), notes=shared),
        "CPU": TableCell(cpu, MISSING if cpu is None else format_duration(cpu)),
        "memory": TableCell(memory, MISSING if not memory else f"{memory / 2**20:,.0f} MiB"),
        "device": record.get("device") and str(record["device"]),
        "node": record.get("node") and str(record["node"]),
        "worker": f"{executor}, attempt {attempt:.0f}" if executor and attempt else executor,
        "command": record.get("command") and str(record["command"]),
    }


def _format_start(record: Mapping[str, Any], notes: tuple[str, ...]) -> TableCell:
    """Return a cell with the time as "2026-11-30 04:43" (UTC), with the seconds in its value."""
    started = str(record.get("started") or "")
    return TableCell(started or None, started[:16].replace("T", " ") or MISSING, notes=notes)


def _build_document(provenance: CellProvenance) -> dict[str, object]:
    cell = provenance.cell
    names = {"model": provenance.model, "suite": cell.suite, "method": cell.method}
    return {**names, "seed": cell.seed, "record": to_json_value(provenance.record)}


def _read_number(record: Mapping[str, Any], key: str) -> float | None:
    """Return a number of a record; None for anything else, which an edited file may hold."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None


def _distinct_machines(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the facts about each machine once, in the order of the records."""
    machines: list[dict[str, Any]] = []
    for record in records:
        facts = {name: record.get(key) for key, name in COMMON_FACTS.items() if record.get(key)}
        facts = {"node": record.get("node"), **facts}
        if record and facts not in machines:
            machines.append(facts)
    return machines
