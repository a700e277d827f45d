"""The report of several runs: one column per checkpoint and method, one member per row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from antlm_bench.notebook import to_html_table
from antlm_bench.printable import make_printable
from antlm_bench.results.collections import Caveats, MemberResult, ReportedScore
from antlm_bench.suites.collection import CollectionSpec, MemberSpec
from antlm_bench.types import Cell, shorten_list


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
