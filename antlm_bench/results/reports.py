"""The report of several runs: one column per checkpoint and method, one member per row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from antlm_bench.errors import UsageError
from antlm_bench.exports.model_index import ModelIndexResult, build_model_index
from antlm_bench.metrics import get_metric_spec
from antlm_bench.notebook import to_html_table
from antlm_bench.printable import make_printable
from antlm_bench.results.collections import Caveats, MemberResult, ReportedScore, subtasks
from antlm_bench.suites.collection import CollectionSpec, MemberSpec
from antlm_bench.types import Cell, shorten_list, task_full_name


@dataclass(frozen=True, slots=True)
class CellProvenance:
    """How one cell of a run came about."""

    model: str
    """Name of the checkpoint in tables."""
    cell: Cell
    record: Mapping[str, Any]
    """Its record in provenance.json; {} = it was not recorded."""


@dataclass(frozen=True, slots=True)
class ReportColumn:
    """One checkpoint under one method, or a published row."""

    model: str
    """Name of the checkpoint, or of the published row."""
    method: str
    """Scoring method, or the finetuning method if nothing was scored; "" for a published row."""
    results: tuple[MemberResult, ...]
    """One per member of the report."""
    macro_average: ReportedScore | None = None
    """Weighted mean over the members. None without a collection, or if a member is missing."""
    run: str = ""
    """Run folder; "" for a published row."""
    missing_members: tuple[str, ...] = ()
    """Members without a complete result, by name."""
    commands: tuple[str, ...] = ()
    """Command lines that compute what is missing."""
    source: str = ""
    """Source of a published row; "" for a run."""
    caveats: Caveats = ()
    """Sentences that qualify all numbers of the column."""


@dataclass(frozen=True, slots=True)
class Report:
    """The table of a report, and the caveats of its columns."""

    collection: CollectionSpec | None
    """The collection, or None for all suites of the runs, without a macro-average."""
    members: tuple[MemberSpec, ...]
    """Rows of the table: the collection's members (or their replacements), or the runs' suites."""
    columns: tuple[ReportColumn, ...]

    def __repr__(self) -> str:
        """Return one line: the collection, the models with their methods, and the suites."""
        models = [f"{column.model} {column.method}".rstrip() for column in self.columns]
        collection = self.collection.name if self.collection else "of runs"
        suites = shorten_list([member.name for member in self.members])
        return f"<Report {make_printable(collection)}: {shorten_list(models)}; {suites}>"

    def _repr_html_(self) -> str:
        names = [f"{column.model} {column.method}".strip() for column in self.columns]
        scores = [[result.score for result in column.results] for column in self.columns]
        rows: list[tuple[object, ...]] = [
            (member.name, *(_score_value(column[index]) for column in scores))
            for index, member in enumerate(self.members)
        ]
        if self.collection:
            averages = (_score_value(column.macro_average) for column in self.columns)
            rows.append(("Macro-average", *averages))
        caveats = dict.fromkeys(
            f"{name}: {caveat}"
            for name, column in zip(names, self.columns, strict=True)
            for caveat in _all_caveats(column)
        )
        return to_html_table(("", *names), rows, notes=list(caveats))


def _score_value(score: ReportedScore | None) -> float | None:
    return None if score is None else float(score.value)


def _all_caveats(column: ReportColumn) -> Iterator[str]:
    """Yield sentences that qualify the column, its scores and its macro-average."""
    yield from column.caveats
    for score in (*(result.score for result in column.results), column.macro_average):
        if score:
            yield from score.caveats


def build_model_card(report: Report) -> str:
    """Return the front matter of one checkpoint's model card, with the results of all methods.

    Raises UsageError for runs of several checkpoints.
    """
    columns = [column for column in report.columns if not column.source]
    num_runs = len({column.run for column in columns})
    if num_runs > 1:
        raise UsageError(
            f"a model card is of one model, and there are {num_runs} runs",
            location="--model-index",
            hint="give one run",
        )
    results = [result for column in columns for result in _column_results(report, column)]
    missing = [
        f"missing ({column.method}): {', '.join(column.missing_members)}"
        for column in columns
        if column.missing_members
    ]
    return build_model_index(columns[0].model if columns else "", results, missing)


def _column_results(report: Report, column: ReportColumn) -> list[ModelIndexResult]:
    scores: list[tuple[str, str, ReportedScore | None]] = []
    for member, result in zip(report.members, column.results, strict=True):
        scores.append((member.suite, member.name, result.score))
        for task in subtasks(member):
            name = task_full_name(member.suite, task)
            scores.append((name, f"{member.name}: {task}", result.task_scores.get(task)))
    if column.macro_average and report.collection:
        # A mean over members is not a classification, even where some of them were finetuned.
        macro_average = replace(column.macro_average, seeds=0)
        scores.append((report.collection.name, report.collection.title, macro_average))
    return [
        ModelIndexResult(
            suite,
            title,
            column.method,
            score.metric,
            score.value,
            *get_metric_spec(score.metric).known_interval(score.low, score.high),
            score.n,
            score.seeds,
            score.caveats,
        )
        for suite, title, score in scores
        if score
    ]
