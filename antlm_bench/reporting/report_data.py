"""Define the data of an HTML report and of its figures, before rendering."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """The score of one finetuning seed."""

    suite: str
    task: str
    """Full name: "glue-2025.rte"."""
    series: str
    """Name of the series, see `series_names`."""
    seed: int
    metric: str
    estimate: Estimate
    collapsed: tuple[str, ...]
    """Symptoms of a collapsed run; empty if it did not collapse."""


@dataclass(frozen=True, slots=True)
class SeriesPair:
    """The comparison of two series."""

    reference: str
    other: str
    comparisons: tuple[Comparison, ...]
    """One per suite: `other` minus `reference`."""
    refusal: str = ""
    """Why the two cannot be compared; "" if they can."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """The data of a page."""

    title: str
    runs: tuple[Run, ...]
    """All runs, with separate seeds and all checkpoints."""
    display_names: tuple[str, ...]
    """A name per run of `runs`."""
    columns: tuple[results_table.ResultsColumn, ...]
    """The compared models and methods, averaged over seeds."""
    seeds: tuple[SeedResult, ...] = ()
    pairs: tuple[SeriesPair, ...] = ()
    """Comparisons of the first run with each other one."""
    curves: tuple[LearningCurve, ...] = ()
    names_in_columns: Mapping[str, str] = field(default_factory=dict)
    """Name of a series of checkpoints -> model of the column of its last checkpoint."""
    trainings: tuple[TrainingLog, ...] = ()
    remarks: tuple[str, ...] = ()
    """Sentences about runs that are not shown or not compared."""
    report: Report | None = None
    """The report of a collection, if the page shows one."""
    chance_levels: Mapping[str, float] = field(default_factory=dict)
    """Suite -> accuracy at chance: 1 / number of options, if all of its items have as many."""


@dataclass(frozen=True, slots=True)
class HeatmapCell:
    """A cell of a figure's table."""

    text: str
    strength: float | None = None
    """Distance from chance that sets the colour: 1 = all right, 0 = chance, -1 = all wrong. None =
    no colour."""
    is_group: bool = False
    """Whether the cell belongs to the row of a group."""
    tooltip: str = ""
    """Text shown when the pointer is on the cell."""


@dataclass(frozen=True, slots=True)
class FigureTable:
    """The values of a figure, for readers who cannot see the drawing."""

    headers: tuple[str, ...]
    rows: tuple[tuple[HeatmapCell, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a report, for the page and for files."""

    section: str
    """Key of its section of the page, see `html.SECTIONS`."""
    name: str
    """Name of the figure's file without suffix, unique in the report."""
    title: str
    caption: str
    series: tuple[str, ...]
    """All series of the page, so that a series has the same colour and shape in every figure."""
    present_series: frozenset[str]
    """The series that appear in this figure."""
    draw: Callable[[ChartStyle], Any]
    """Function that returns the Altair chart in a style."""
    table: FigureTable
    small: bool = False
    """Whether the page shows several of these figures side by side."""
    is_heatmap: bool = False
    """Whether the page shows the coloured table instead of a drawing."""


def series_names(columns: Sequence[results_table.ResultsColumn]) -> list[str]:
    """Name the columns by model, and also by method if the model has several columns."""
    num_columns = Counter(column.model for column in columns)
    return [
        f"{column.model} · {column.method}" if num_columns[column.model] > 1 else column.model
        for column in columns
    ]
