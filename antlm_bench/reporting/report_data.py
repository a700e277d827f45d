"""What a report holds, gathered and not yet drawn: the values that a page and its figures are made
of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from antlm_bench.reporting import results_table
from antlm_bench.types import Estimate, Run

if TYPE_CHECKING:
    from antlm_bench.comparison.results import Comparison
    from antlm_bench.reporting.charts import ChartStyle
    from antlm_bench.results.checkpoint_series import LearningCurve
    from antlm_bench.results.reports import Report
    from antlm_bench.results.training_log import TrainingLog


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One finetuning: suite, task (its full name), series, score, and what went wrong with it."""

    suite: str
    task: str
    series: str
    seed: int
    metric: str
    estimate: Estimate
    collapsed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SeriesPair:
    """Two series compared: what each suite says of `other` minus `reference`; `refused` why some
    could not be.
    """

    reference: str
    other: str
    comparisons: tuple[Comparison, ...]
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that a page shows. beside: the columns side by side, seeds averaged; runs: as read;
    called: their names. report: of a collection, if one was asked for.
    """

    title: str
    runs: tuple[Run, ...]
    display_names: tuple[str, ...]
    columns: tuple[results_table.ResultsColumn, ...]
    seeds: tuple[SeedResult, ...] = ()
    pairs: tuple[SeriesPair, ...] = ()
    curves: tuple[LearningCurve, ...] = ()
    trainings: tuple[TrainingLog, ...] = ()
    remarks: tuple[str, ...] = ()
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class HeatmapCell:
    """A cell of a table; share (0..1) gives it a colour, head marks the line of a group, says is
    told on hovering.
    """

    text: str
    share: float | None = None
    is_group: bool = False
    tooltip: str = ""


@dataclass(frozen=True, slots=True)
class FigureTable:
    """The numbers of a figure: what a reader without the drawing has."""

    heads: tuple[str, ...]
    rows: tuple[tuple[HeatmapCell, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """name: of its file. series: who has a colour; present: who is in it. tiled: its table is its
    best drawing.
    """

    section: str
    name: str
    title: str
    caption: str
    series: tuple[str, ...]
    present_series: frozenset[str]
    draw: Callable[[ChartStyle], Any]
    table: FigureTable
    small: bool = False
    is_heatmap: bool = False


def series_names(columns: Sequence[results_table.ResultsColumn]) -> list[str]:
    """What each column is called: its model, and its method where one model has several columns."""
    models = [column.model for column in columns]
    return [c.model if models.count(c.model) == 1 else f"{c.model} · {c.method}" for c in columns]
