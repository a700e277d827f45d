"""A gate's margins as data: how much worse is tolerated where, in points, written down before the
result is known.

Whoever says it first is believed: the command line, the policy file, the suite's own TOML.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from antlm_bench.compare.verdict import Margins
from antlm_bench.declarations import Declaration, catalog, parse_toml, read_toml, validate_tables
from antlm_bench.errors import UsageError
from antlm_bench.suites.declaration_types import CheckSpec, Points

POINT = 0.01


class MarginPolicy(CheckSpec):
    """A policy's TOML: what it says of every suite, and in `suites` a margin per suite that has one
    of its own.
    """

    suites: dict[str, Points] = Field(default_factory=dict)


class SuiteCheckSpec(Declaration):
    """As much of a suite's TOML as a gate reads."""

    check: CheckSpec


def load_margins(
    policy_path: str | Path = "", margin: float | None = None, every_group: float | None = None
) -> tuple[Margins, ...]:
    """The margins of the command line (`margin`, `every_group`: in points), then those of a policy
    file, if any.

    Raises DeclarationError, naming the file and the key, and UsageError for a margin that is not
    above 0.
    """
    for option, value in (("--margin", margin), ("--group-margin", every_group)):
        if value is not None and not 0 < value <= 100:
            raise UsageError(
                f"a margin is above 0 and at most 100 points, not {value:g}", location=option
            )
    typed = _build_margins(CheckSpec(margin=margin, every_group=every_group), "--margin")
    if not policy_path:
        return (typed,)
    policy = read_toml(Path(policy_path), MarginPolicy)
    return typed, _build_margins(policy, str(policy_path), policy.suites)


def load_suite_margins(suite: str) -> Margins:
    """The margins of the [check] table in the TOML of a suite; nothing of a suite that the catalog
    does not know.

    Only that table is read and checked: a verdict has no time for the rest. Raises
    DeclarationError.
    """
    path = catalog("tasks").get(suite)
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
