"""What a report holds: columns of members, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from antlm_bench.results.collections import Caveats, MemberResult, ReportedScore
from antlm_bench.suites.collection import CollectionSpec, MemberSpec


@dataclass(frozen=True, slots=True)
class ReportColumn:
    """One checkpoint as one method reads it, or a published row.

    reading: the scoring method ("" of a published row). entries: one per member. lacks: what is
    missing, by name; commands: the lines that make it. source: of a published row. marks: what
    holds for all of its numbers.
    """

    model: str
    method: str
    results: tuple[MemberResult, ...]
    macro: ReportedScore | None = None
    run: str = ""
    missing_members: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    source: str = ""
    caveats: Caveats = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Columns side by side. collection: None where the suites of the runs stand side by side
    without an average.

    members: the collection's, stand-ins in their place, each under the name that `names` shows.
    """

    collection: CollectionSpec | None
    members: tuple[MemberSpec, ...]
    columns: tuple[ReportColumn, ...]
