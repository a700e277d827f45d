"""Margins of a gate as data: how much worse a run may be, in points, declared beforehand.

Three sources, the first one that names a margin wins: the command line, a policy file, the suite's
own TOML.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from antlm_bench.comparison.verdict import Margins
from antlm_bench.declarations import (
    Declaration,
    list_declarations,
    parse_toml,
    read_toml,
    validate_tables,
)
from antlm_bench.errors import UsageError
from antlm_bench.suites.declaration_types import CheckSpec, Points

POINT = 0.01


class MarginPolicy(CheckSpec):
    """A policy's TOML: margins of every suite, and in `suites` those of single suites."""

    suites: dict[str, Points] = Field(default_factory=dict)


class SuiteCheckSpec(Declaration):
    """The part of a suite's TOML that a gate reads."""

    check: CheckSpec


def load_margins(
    policy_path: str | Path = "", margin: float | None = None, every_group: float | None = None
) -> tuple[Margins, ...]:
    """Return the margins of the command line, then those of a policy file, if any.

    margin, every_group: in points. Raises DeclarationError, naming the file and the key, and
    UsageError for a margin that is not above 0.
    """
    for option, value in (("--margin", margin), ("--group-margin", every_group)):
        if value is not None and not 0 < value <= 100:
            raise UsageError(
                f"a margin is above 0 and at most 100 points, not {value:g}", location=option
            )
    command_line = _build_margins(CheckSpec(margin=margin, every_group=every_group), "--margin")
    if not policy_path:
        return (command_line,)
    policy = read_toml(Path(policy_path), MarginPolicy)
    return command_line, _build_margins(policy, str(policy_path), policy.suites)


def load_suite_margins(suite: str) -> Margins:
    """Return the margins of the [check] table in a suite's TOML; none for a suite that is not in
    the catalog.

    Only that table is read and checked, to keep verdicts fast. Raises DeclarationError.
    """
    path = list_declarations("tasks").get(suite)
    table = parse_toml(path).get("check") if path else None
    if path is None or table is None:
        return Margins()
    return _build_margins(validate_tables({"check": table}, SuiteCheckSpec, path).check, path.name)


def _build_margins(
    table: CheckSpec, source: str, suites: Mapping[str, float] | None = None
) -> Margins:
    return Margins(
        default=None if table.margin is None else POINT * table.margin,
        suites={suite: POINT * points for suite, points in (suites or {}).items()},
        groups={group: POINT * points for group, points in table.groups.items()},
        every_group=None if table.every_group is None else POINT * table.every_group,
        source=source,
    )
