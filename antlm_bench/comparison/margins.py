"""Load the margins of `check`: by how many points a run may be worse than the baseline.

A margin is declared by the command line, a policy file or the suite's TOML. The first of these that
declares one for a suite or group wins.
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
"""In the unit of the metric: 1% of accuracy, 0.01 of a correlation, 0.01 nats."""


class MarginPolicy(CheckSpec):
    """A policy's TOML: the margins of all suites, and in `suites` those of single suites."""

    suites: dict[str, Points] = Field(default_factory=dict)


class SuiteCheckSpec(Declaration):
    """The part of a suite's TOML that `check` reads."""

    check: CheckSpec


def load_margins(
    policy_path: str | Path = "", margin: float | None = None, every_group: float | None = None
) -> tuple[Margins, ...]:
    """Return the margins of the command line and, if there is a policy file, its margins.

    margin, every_group: in points. Raises DeclarationError that names the file and the key,
    UsageError for a margin that is not above 0 and at most 100.
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
    """Return the margins of the [check] table in a suite's TOML, empty ones if there is none.

    A suite that is not in the catalog has none. Only this table is validated, to keep `check` fast.
    Raises DeclarationError.
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
