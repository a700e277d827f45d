"""Load the margins of `check`: by how many points a run may be worse than the baseline.

A margin is declared by the command line, a policy file (or the table [check] of the configuration
file) or the suite's TOML. The first of these that declares one for a suite or group wins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from pydantic import Field

from antlm_bench.comparison.verdict import Margins
from antlm_bench.configuration import (
    CHECK_TABLE,
    CONFIGURATION_FILE,
    PYPROJECT_FILE,
    select_configuration,
)
from antlm_bench.declarations import (
    Declaration,
    list_declarations,
    parse_toml,
    suggest_name,
    validate_tables,
)
from antlm_bench.errors import DeclarationError, UsageError
from antlm_bench.printable import make_printable
from antlm_bench.suites.declaration_types import CheckSpec, Points
from antlm_bench.suites.task_types import TASK_TYPES, read_declaration
from antlm_bench.types import Cell

POINT = 0.01
"""In the unit of the metric: 1% of accuracy, 0.01 of a correlation, 0.01 nats."""


class MarginPolicy(CheckSpec):
    """A policy's TOML: the margins of all suites, and in `suites` those of single suites."""

    suites: dict[str, Points] = Field(default_factory=dict)


class ConfigurationMargins(Declaration):
    """The part of a configuration file that `check` reads."""

    check: MarginPolicy


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
    policy, source = _read_policy(Path(policy_path))
    return command_line, _build_margins(policy, source, policy.suites)


def _read_policy(path: Path) -> tuple[MarginPolicy, str]:
    """Return the margins of a policy file and the name of their source.

    In a configuration file, the policy is the table [check]. Raises DeclarationError.
    """
    tables = parse_toml(path)
    if path.name == PYPROJECT_FILE:
        tables = select_configuration(tables, path)
    if path.name in (CONFIGURATION_FILE, PYPROJECT_FILE) or CHECK_TABLE in tables:
        table = {CHECK_TABLE: tables.get(CHECK_TABLE, {})}
        policy = validate_tables(table, ConfigurationMargins, path).check
        return policy, f"{path}: {CHECK_TABLE}"
    return validate_tables(tables, MarginPolicy, path), str(path)


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


def check_margin_names(margins: Margins, cells: Iterable[Cell], location: str) -> None:
    """Raise DeclarationError for a suite or group with a margin that nothing can be checked by.

    cells: of both runs. location: the file that declares the margins. A suite of the catalog may be
    absent from the runs, so that several checks can share a policy.
    """
    all_cells = list(cells)
    suites = {compared_suite(cell) for cell in all_cells}
    groups = {group.name for cell in all_cells for group in cell.summary.groups}
    tasks = {cell.finetuned_task[1] for cell in all_cells if cell.seed is not None}
    for suite in margins.suites:
        if suite not in suites and not _is_catalog_suite(suite):
            _raise_unknown_name("suite", suite, suites, f"{location}: suites")
    for group in margins.groups:
        if group not in groups | tasks:
            _raise_unknown_name("group", group, groups | tasks, f"{location}: groups")


def compared_suite(cell: Cell) -> str:
    """Return the name under which `check` judges a cell: of a finetuned task, its collection."""
    return cell.suite if cell.seed is None else cell.finetuned_task[0]


def _is_catalog_suite(name: str) -> bool:
    """Return whether a name of the catalog is a suite, and not a collection of suites."""
    if name not in list_declarations("tasks"):
        return False
    spec, _ = read_declaration(name)
    return not TASK_TYPES[spec.task_type].members(spec, "")


def _raise_unknown_name(kind: str, name: str, known_names: Collection[str], location: str) -> None:
    names = make_printable(", ".join(sorted(known_names))) or "none"
    hint = f"{suggest_name(name, known_names)} the {kind}s are {names}".lstrip()
    raise DeclarationError(f"neither run has a {kind} {name!r}", location=location, hint=hint)


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
