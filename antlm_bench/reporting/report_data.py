"""What a report holds, gathered and not yet drawn: the values that a page and its figures are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from antlm_bench.reporting import results_table
from antlm_bench.types import Estimate, Run

if TYPE_CHECKING:
    from antlm_bench.commands.curve import Curve
    from antlm_bench.commands.report import Report
    from antlm_bench.compare.comparison import Comparison
    from antlm_bench.reporting.charts import Look
    from antlm_bench.results.training_log import Training


@dataclass(frozen=True, slots=True)
class Seed:
    """One finetuning: suite, task (its full name), series, score, and what went wrong with it."""

    suite: str
    task: str
    series: str
    seed: int
    metric: str
    estimate: Estimate
    collapsed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two series compared: what each suite says of `other` minus `reference`; `refused` why some could not be."""

    reference: str
    other: str
    comparisons: tuple[Comparison, ...]
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a page shows. beside: the columns side by side, seeds averaged; runs: as read; called: their names.
    report: of a collection, if one was asked for."""

    title: str
    runs: tuple[Run, ...]
    called: tuple[str, ...]
    beside: tuple[results_table.Column, ...]
    seeds: tuple[Seed, ...] = ()
    pairs: tuple[Pair, ...] = ()
    curves: tuple[Curve, ...] = ()
    trainings: tuple[Training, ...] = ()
    remarks: tuple[str, ...] = ()
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Tile:
    """A cell of a table; share (0..1) gives it a colour, head marks the line of a group, says is told on hovering."""

    text: str
    share: float | None = None
    head: bool = False
    says: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers of a figure: what a reader without the drawing has."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Tile, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """name: of its file. series: who has a colour; present: who is in it. tiled: its table is its best drawing."""

    section: str
    name: str
    title: str
    caption: str
    series: tuple[str, ...]
    present: frozenset[str]
    draw: Callable[[Look], Any]
    grid: Grid
    small: bool = False
    tiled: bool = False


def series(found: Sequence[results_table.Column]) -> list[str]:
    """What each column is called: its model, and its method where one model has several columns."""
    models = [column.model for column in found]
    return [c.model if models.count(c.model) == 1 else f"{c.model} · {c.method}" for c in found]
