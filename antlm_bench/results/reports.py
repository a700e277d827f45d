"""The report of several runs: one column per checkpoint and method, one member per row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from antlm_bench.notebook import to_html_table
from antlm_bench.results.collections import Caveats, MemberResult, ReportedScore
from antlm_bench.suites.collection import CollectionSpec, MemberSpec


@dataclass(frozen=True, slots=True)
class ReportColumn:
    """One checkpoint under one method, or a published row."""

    model: str
    """Name of the checkpoint, or of the published row."""
    method: str
    """Scoring method, or the finetuning method where nothing was scored; "" of a published row."""
    results: tuple[MemberResult, ...]
    """One per member of the report."""
    macro: ReportedScore | None = None
    """Macro-average over the members. None without a collection, and where a member is missing."""
    run: str = ""
    """Run folder; "" of a published row."""
    missing_members: tuple[str, ...] = ()
    """Members without a complete result, by name."""
    commands: tuple[str, ...] = ()
    """Command lines that compute what is missing."""
    source: str = ""
    """Source of a published row; "" of a run."""
    caveats: Caveats = ()
    """Sentences that all numbers of the column must be read with."""


@dataclass(frozen=True, slots=True)
class Report:
    """Columns side by side."""

    collection: CollectionSpec | None
    """None: the suites of the runs stand side by side, without a macro-average."""
    members: tuple[MemberSpec, ...]
    """The collection's members, each under the name that is shown; stand-ins in their place."""
    columns: tuple[ReportColumn, ...]

    def _repr_html_(self) -> str:
        names = [f"{column.model} {column.method}".strip() for column in self.columns]
        scores = [[result.score for result in column.results] for column in self.columns]
        rows: list[tuple[object, ...]] = [
            (member.name, *(_score_value(column[index]) for column in scores))
            for index, member in enumerate(self.members)
        ]
        if self.collection:
            averages = (_score_value(column.macro) for column in self.columns)
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
    """Yield the sentences that the column, its scores and its macro-average must be read with."""
    yield from column.caveats
    for score in (*(result.score for result in column.results), column.macro):
        if score:
            yield from score.caveats
