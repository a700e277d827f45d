"""The tables of `effects`: contrasts with intervals and tests, and means of conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from antlm_bench.metrics import get_metric_spec
from antlm_bench.printable import format_decimals
from antlm_bench.reporting.comparison_table import format_p_value
from antlm_bench.reporting.table import (
    MISSING,
    Table,
    TableCell,
    TableColumn,
    TableRow,
    build_row,
)
from antlm_bench.results.effects import DesignResult
from antlm_bench.statistics import MeanOverItems

LONG_KEYS = ("kind", "region", "name", "value", "low", "high", "n", "t", "df", "p", "p_adjusted")


def build_effects_table(result: DesignResult, title: str = "") -> Table:
    """Build the table of effects, followed by that of means."""
    group_columns = tuple(result.groups[0]) if result.groups else ()
    has_regions = result.regions != ("",)
    names = (*group_columns, *(("region",) if has_regions else ()))
    columns = [TableColumn(name) for name in names]
    unit = result.unit
    columns += [
        TableColumn("effect"),
        TableColumn("difference", unit=unit, align="right"),
        TableColumn("interval", "95% interval", align="right"),
        TableColumn("t", align="right"),
        TableColumn("df", align="right"),
        TableColumn("p", align="right"),
        TableColumn("p_adjusted", "p adj.", align="right"),
        TableColumn("items", align="right"),
    ]
    rows = []
    last_group: tuple[str, ...] | None = None
    for effect in result.effects:
        group = tuple(effect.group.values())
        mean = effect.mean
        rows.append(
            build_row(
                *group,
                *((effect.region,) if has_regions else ()),
                effect.name,
                _number_cell(mean.value, "+.2f", mean.low, mean.high),
                TableCell(text=format_mean_interval(mean, is_difference=True) or MISSING),
                _number_cell(mean.t, ".2f"),
                TableCell(mean.df or None),
                TableCell(mean.p, format_p_value(mean.p)),
                TableCell(effect.adjusted, format_p_value(effect.adjusted)),
                TableCell(mean.n),
                space_above=last_group not in (None, group),
            )
        )
        last_group = group
    table = Table(
        tuple(columns),
        tuple(rows),
        title=title,
        legend=(*result.notes, _describe_tests(result)),
        build_long=lambda: build_long_table(result),
        parts=(_build_means_table(result, names, has_regions),),
    )
    return replace(table, narrow=_group_rows(table, len(group_columns), len(names)))


def _group_rows(table: Table, num_group_columns: int, name_column: int) -> Table:
    """Return a table with a heading per group and one column of names, for narrow terminals.

    Columns before `num_group_columns` name the group, the others up to `name_column` the row.
    Degrees of freedom are left out, because the legend gives them. The number of items moves into
    the heading if all rows of each group have the same.
    """
    keys = [column.key for column in table.columns]
    items_by_group: dict[str, set[str]] = {}
    for row in table.rows:
        items = items_by_group.setdefault(_group_name(row, num_group_columns), set())
        items.add(row.cells[keys.index("items")].shown)
    has_one_count = all(len(items) == 1 for items in items_by_group.values())
    omitted_keys = {"df"} | ({"items"} if has_one_count and num_group_columns else set())
    kept_columns = [i for i in range(name_column + 1, len(keys)) if keys[i] not in omitted_keys]
    rows: list[TableRow] = []
    last_group = None
    for row in table.rows:
        group = _group_name(row, num_group_columns)
        if num_group_columns and group != last_group:
            counts = ", ".join(items_by_group[group])
            heading = f"{group} ({counts} items)" if has_one_count else group
            blanks = [TableCell(text="")] * len(kept_columns)
            rows.append(build_row(heading, *blanks, emphasis="strong", space_above=bool(rows)))
        last_group = group
        cells = row.cells[num_group_columns : name_column + 1]
        name = " · ".join(cell.shown for cell in cells)
        depth = int(num_group_columns > 0)
        rows.append(build_row(name, *(row.cells[i] for i in kept_columns), depth=depth))
    columns = tuple(table.columns[i] for i in (name_column, *kept_columns))
    return replace(table, columns=columns, rows=tuple(rows))


def _group_name(row: TableRow, num_group_columns: int) -> str:
    return " · ".join(cell.shown for cell in row.cells[:num_group_columns])


def _build_means_table(result: DesignResult, names: Sequence[str], has_regions: bool) -> Table:
    columns = [TableColumn(name) for name in names]
    columns += [
        TableColumn("condition"),
        TableColumn("mean", unit=result.unit, align="right"),
        TableColumn("interval", "95% interval", align="right"),
        TableColumn("items", align="right"),
    ]
    rows = [
        build_row(
            *cell.group.values(),
            *((cell.region,) if has_regions else ()),
            cell.condition,
            _number_cell(cell.mean.value, ".2f", cell.mean.low, cell.mean.high),
            TableCell(text=format_mean_interval(cell.mean) or MISSING),
            TableCell(cell.mean.n),
        )
        for cell in result.means
    ]
    table = Table(
        tuple(columns),
        tuple(rows),
        title=f"means{f', {result.unit}' if result.unit else ''}",
        legend=(
            "Intervals of means are over items. Two of them can overlap although the paired "
            "difference is clear: compare conditions by the effects.",
        ),
    )
    return replace(table, narrow=_group_rows(table, len(names) - has_regions, len(names)))


def build_long_table(result: DesignResult) -> Table:
    """Build the table with one row per effect and per mean, for CSV and JSON."""
    group_columns = tuple(result.groups[0]) if result.groups else ()
    keys = (*group_columns, *LONG_KEYS, "correction")
    units = {"value": result.unit}
    columns = tuple(TableColumn(key, unit=units.get(key, "")) for key in keys)
    rows = []
    for effect in result.effects:
        extra = (effect.adjusted, effect.family or None)
        rows.append(
            _long_row("effect", effect.group, effect.region, effect.name, effect.mean, extra)
        )
    for cell in result.means:
        untested = cell.mean._replace(t=None, p=None)  # whether a mean is 0 is not of interest
        no_test = (None, None)
        rows.append(_long_row("mean", cell.group, cell.region, cell.condition, untested, no_test))
    return Table(columns, tuple(rows), legend=(*result.notes, _describe_tests(result)))


def _long_row(
    kind: str,
    group: Mapping[str, str],
    region: str,
    name: str,
    mean: MeanOverItems,
    test: tuple[float | None, str | None],
) -> TableRow:
    df = mean.df if mean.p is not None else None
    return build_row(
        *group.values(),
        *(kind, region, name, mean.value, mean.low, mean.high, mean.n, mean.t, df, mean.p),
        *test,
    )


def _number_cell(
    value: float | None, spec: str, low: float | None = None, high: float | None = None
) -> TableCell:
    if value is None:
        return TableCell(None)
    return TableCell(value, format_decimals(value, spec), low, high)


def format_mean_interval(mean: MeanOverItems, is_difference: bool = False) -> str:
    """Return `[-1.20, +0.35]`, "" without an interval.

    An end of a difference is written like 0 only if the interval holds 0.
    """
    if mean.low is None or mean.high is None:
        return ""
    sign, tested = ("+", (0.0,)) if is_difference else ("", ())
    return get_metric_spec("surprisal").format_interval(mean.low, mean.high, sign, tested)


def _describe_tests(result: DesignResult) -> str:
    unit = f" in {result.unit}" if result.unit else ""
    families = dict.fromkeys(effect.family for effect in result.effects if effect.family)
    corrections = " or ".join(families)
    adjusted = f", p adj. by {corrections}" + (" of a model" * (len(result.groups) > 1))
    return (
        f"Values{unit} are sums over the words of a region. Effects are paired by items: a t test "
        f"of the items' scores, df = items - 1{adjusted * bool(corrections)}."
    )
