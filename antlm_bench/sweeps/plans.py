"""The plan of a sweep: what each stage and checkpoint costs, and what is done already."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from antlm_bench.sweeps.calibration import DeviceSpeed
from antlm_bench.sweeps.estimates import Estimator, UnitCost, unit_dtype
from antlm_bench.sweeps.expansion import ExpandedSweep
from antlm_bench.sweeps.units import Sweep, Unit

NO_COST = UnitCost()


@dataclass(frozen=True, slots=True)
class PlanRow:
    """The units of one stage, or those of one checkpoint or recipe in it."""

    stage: str
    """"" = all stages."""
    model: str
    """Name of the checkpoint's run, or of the recipe; "" = all of the stage."""
    num_units: int = 0
    num_done: int = 0
    cost: UnitCost = NO_COST
    """Of all units. The time includes opening the checkpoint once per group."""
    left: UnitCost = NO_COST
    """Of the units that are not done."""

    def __add__(self, other: PlanRow) -> PlanRow:
        return replace(
            self,
            num_units=self.num_units + other.num_units,
            num_done=self.num_done + other.num_done,
            cost=self.cost + other.cost,
            left=self.left + other.left,
        )


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep will do, and what it costs."""

    folder: str
    """Folder of the sweep, or the run folders that a command would write; "" = in reports/."""
    sweep: Sweep
    costs: Mapping[str, UnitCost]
    """Id of a unit -> its cost, without opening its checkpoint."""
    openings: Mapping[str, float | None]
    """Id of a group -> seconds to open its checkpoint; None = unknown."""
    labels: Mapping[str, str]
    """Model of a unit -> its short name."""
    device_kind: str
    """cpu, cuda or mps."""
    speeds: Mapping[str, DeviceSpeed | None]
    """dtype of units -> the measured speed from which their time is estimated."""
    done: Collection[str] = ()
    """Ids of the units that are done."""
    missing_data: Mapping[str, str] = field(default_factory=dict)
    """Suite or task that is left out -> why its data cannot be read."""

    def list_rows(self) -> list[PlanRow]:
        """Return a row per checkpoint or recipe of each stage, in the order of the units."""
        rows: dict[tuple[str, str], _Units] = {}
        for group in self.sweep.groups:
            first = group.units[0]
            label = self.labels.get(first.model, first.model)
            for unit in group.units:
                rows.setdefault((unit.stage, label), _Units()).units.append(unit)
            is_done = all(unit.id in self.done for unit in group.units)
            rows[first.stage, label].openings.append((self.openings[group.id], is_done))
        return [self._build_row(*key, units) for key, units in rows.items()]

    def _build_row(self, stage: str, model: str, entry: _Units) -> PlanRow:
        done = [unit for unit in entry.units if unit.id in self.done]
        openings = sum((UnitCost(seconds=seconds) for seconds, _ in entry.openings), NO_COST)
        openings_left = sum(
            (UnitCost(seconds=seconds) for seconds, is_done in entry.openings if not is_done),
            UnitCost(),
        )
        cost = sum((self.costs[unit.id] for unit in entry.units), openings)
        left = sum(
            (self.costs[unit.id] for unit in entry.units if unit.id not in self.done),
            openings_left,
        )
        return PlanRow(stage, model, len(entry.units), len(done), cost, left)


@dataclass(slots=True)
class _Units:
    """The units of a row, and what their groups open."""

    units: list[Unit] = field(default_factory=list)
    openings: list[tuple[float | None, bool]] = field(default_factory=list)
    """(Seconds to open the checkpoint, whether all units of the group are done)."""


def sum_rows(stage: str, rows: Sequence[PlanRow]) -> PlanRow:
    """Return one row for several of a stage; stage "": for several stages."""
    return sum(rows, PlanRow(stage, ""))


def build_plan(
    expanded: ExpandedSweep,
    folder: str,
    estimator: Estimator,
    done: Collection[str] = (),
) -> SweepPlan:
    """Estimate all units of a sweep. Starts and writes nothing but the cache of counts.

    done: ids of units that are done.
    """
    sweep = expanded.sweep
    openings = {group.id: estimator.opening_seconds(group.units[0]) for group in sweep.groups}
    return SweepPlan(
        folder=folder,
        sweep=sweep,
        costs=estimator.estimate_all(),
        openings=openings,
        labels=expanded.labels,
        device_kind=estimator.device_kind,
        speeds={dtype: estimator.find_speed(dtype) for dtype in list_dtypes(sweep)},
        done=done,
        missing_data=expanded.missing_data,
    )


def list_dtypes(sweep: Sweep) -> list[str]:
    """Return the dtypes in which the units of a sweep run models."""
    return sorted({dtype for unit in sweep.units if (dtype := unit_dtype(unit))})
