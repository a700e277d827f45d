"""The data of an HTML report and its figures, before rendering."""

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
    """The score of one finetuning seed."""

    suite: str
    task: str
    """Full name: "glue-2025.rte"."""
    series: str
    """Name of the column, see `series_names`."""
    seed: int
    metric: str
    estimate: Estimate
    collapsed: tuple[str, ...]
    """Why the run counts as collapsed. Empty if it did not collapse."""


@dataclass(frozen=True, slots=True)
class SeriesPair:
    """The comparison of two series."""

    reference: str
    other: str
    comparisons: tuple[Comparison, ...]
    """One per suite: `other` minus `reference`."""
    refusal: str = ""
    """Why the two could not be compared, or ""."""


@dataclass(frozen=True, slots=True)
class ReportData:
    """The data of a page."""

    title: str
    runs: tuple[Run, ...]
    """The runs as read."""
    display_names: tuple[str, ...]
    """Names of `runs`."""
    columns: tuple[results_table.ResultsColumn, ...]
    """The columns that are shown side by side, seeds averaged."""
    seeds: tuple[SeedResult, ...] = ()
    pairs: tuple[SeriesPair, ...] = ()
    """Comparisons of the first run with each other one."""
    curves: tuple[LearningCurve, ...] = ()
    trainings: tuple[TrainingLog, ...] = ()
    remarks: tuple[str, ...] = ()
    """Sentences about runs that are not shown or not compared."""
    report: Report | None = None
    """The report of a collection, if one was given."""


@dataclass(frozen=True, slots=True)
class HeatmapCell:
    """A cell of a figure's table."""

    text: str
    share: float | None = None
    """Value in 0..1 that sets the colour. None = no colour."""
    is_group: bool = False
    """Whether the cell belongs to the row of a group."""
    tooltip: str = ""
    """Text shown on hovering."""


@dataclass(frozen=True, slots=True)
class FigureTable:
    """The numbers of a figure, for readers who cannot see the drawing."""

    heads: tuple[str, ...]
    """Headers of the columns."""
    rows: tuple[tuple[HeatmapCell, ...], ...]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a report, for the page and for files."""

    section: str
    """Key of its section of the page, see `html.SECTIONS`."""
    name: str
    """Name of its file without suffix, unique in the report."""
    title: str
    caption: str
    series: tuple[str, ...]
    """All series of the page: each has its colour and shape in every figure."""
    present_series: frozenset[str]
    """The series that appear in this figure."""
    draw: Callable[[ChartStyle], Any]
    """Return the Altair chart."""
    table: FigureTable
    small: bool = False
    """Whether several such figures fit side by side."""
    is_heatmap: bool = False
    """Whether the page shows the coloured table instead of a drawing."""


def series_names(columns: Sequence[results_table.ResultsColumn]) -> list[str]:
    """Name the columns: by model, and by method where one model has several columns."""
    models = [column.model for column in columns]
    return [c.model if models.count(c.model) == 1 else f"{c.model} · {c.method}" for c in columns]
