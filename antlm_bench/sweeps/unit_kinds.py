"""The kinds of units: how each is checked, estimated and carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from antlm_bench.sweeps.units import Unit


class UnitContext(Protocol):
    """What a worker gives to a unit that it carries out."""

    @property
    def sweep_dir(self) -> Path:
        """The sweep's folder, with models/ and runs/."""
        ...

    @property
    def part_dir(self) -> Path:
        """The folder to write the unit's run folder to. It may hold chunks of an earlier attempt.

        Units of the kinds train, collect and report write below `sweep_dir` instead.
        """
        ...

    def log(self, message: str) -> None:
        """Write a line to the worker's log."""

    def find_parts(self, unit_ids: Iterable[str]) -> list[Path]:
        """Return the published part folders of those units that are done, in the given order."""
        ...


@dataclass(frozen=True)
class UnitKind:
    """A kind of unit."""

    name: str
    carry_out: Callable[[Unit, UnitContext], None]
    """Carry out a unit. Raises BenchError if it fails."""


UNIT_KINDS: Mapping[str, UnitKind] = {}
"""Name -> record of every kind: train, score, finetune, collect, report."""
