"""Means and contrasts of surprisal over the conditions of an experiment, paired by items.

The input is the table that `surprisal` writes. The value of an item in a condition and region is
the sum of the surprisals of its words there. Differences and interactions are tested over items
(statistics.factorial_design), and the p-values of one model are corrected together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from antlm_bench import statistics
from antlm_bench.comparison.multiple_testing import adjust_family
from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.notebook import ArrowTable
from antlm_bench.printable import format_count, make_printable
from antlm_bench.results.experiment_table import (
    DesignOptions,
    ExperimentTable,
    GroupValues,
)
from antlm_bench.runs.table_files import TableValue, rows_to_table
from antlm_bench.statistics import Contrast, DesignCell, MeanOverItems
from antlm_bench.statistics.known_coverage import few_values_notes

MAX_NAMES_SHOWN = 5
RESULT_TABLES = ("effects", "means", "items")


@dataclass(frozen=True, slots=True)
class CellMean:
    """The mean of one condition in one region."""

    group: GroupValues
    """Column -> value, of `model` and the columns of DesignOptions.per."""
    region: str
    condition: str
    mean: MeanOverItems


@dataclass(frozen=True, slots=True)
class Effect:
    """A contrast of conditions in one region."""

    group: GroupValues
    region: str
    name: str
    """The contrast, e.g. "ambiguous - unambiguous"."""
    mean: MeanOverItems
    num_left_out: int
    """Number of items that are left out, because they lack a condition of the contrast here."""
    adjusted: float | None = None
    """p-value, adjusted for all tests of the model; None = no test."""
    family: str = ""
    """The correction and its number of tests, e.g. "Holm over 9 tests"."""


@dataclass(frozen=True, slots=True)
class WordMean:
    """The mean surprisal of the words at one position, for a plot along the sentence."""

    group: GroupValues
    condition: str
    position: int
    """Number of the word; with an alignment, 0 is the first word of that region."""
    words: tuple[str, ...]
    """The different words at this position."""
    mean: MeanOverItems


@dataclass(frozen=True, slots=True, repr=False)
class DesignResult:
    """Means and effects of an experiment on one or several models."""

    value_column: str
    """Column of the values, e.g. surprisal_bits."""
    factors: tuple[str, ...]
    conditions: tuple[str, ...]
    """Names of the conditions, in order."""
    regions: tuple[str, ...]
    means: tuple[CellMean, ...]
    effects: tuple[Effect, ...]
    experiment: ExperimentTable
    """The values of words and of items."""
    notes: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """Unit of the values: bits, nats, ...; "" if the name of the column has none."""
        return self.value_column.partition("_")[2]

    @property
    def groups(self) -> tuple[GroupValues, ...]:
        """The different groups of the means, in order."""
        return tuple({tuple(mean.group.items()): mean.group for mean in self.means}.values())

    def table(self, name: str = "effects") -> ArrowTable:
        """Return a table: "effects", "means" (of conditions), or "items" (a row per item, condition
        and region, for a mixed model). Raises UsageError for another name."""
        if name not in RESULT_TABLES:
            hint = f"one of {', '.join(RESULT_TABLES)}"
            raise UsageError(f"there is no table {name!r}", location="table", hint=hint)
        if name == "items":
            return ArrowTable(rows_to_table(self.experiment.long_rows()))
        rows: list[dict[str, TableValue]] = []
        for each in self.effects if name == "effects" else self.means:
            mean, label = each.mean, each.name if isinstance(each, Effect) else each.condition
            row: dict[str, TableValue] = {**each.group, "region": each.region}
            row["effect" if isinstance(each, Effect) else "condition"] = label
            row |= {"value": mean.value, "low": mean.low, "high": mean.high, "n": mean.n}
            if isinstance(each, Effect):
                row |= {"t": mean.t, "df": mean.df, "p": mean.p, "p_adjusted": each.adjusted}
                row["correction"] = each.family
            rows.append(row)
        return ArrowTable(rows_to_table(rows))

    def to_pandas(self) -> Any:
        """Return the effects as a `pandas.DataFrame`. Raises UsageError without pandas."""
        return self.table().to_pandas()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export the effects as an Arrow C stream: `polars.DataFrame(result)`."""
        return self.table().__arrow_c_stream__(requested_schema)

    def __repr__(self) -> str:
        names = "; ".join(self.conditions)
        return make_printable(
            f"<DesignResult: {format_count(len(self.effects), 'effect')} of {names}, {self.unit}>"
        )

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def word_means(self, align: str | None = None, item: str | None = None) -> list[WordMean]:
        """Return the mean surprisal at each position, per group and condition.

        align: region whose first word is position 0; None = the first word of a text is 1. item:
        use only this item. Raises UsageError for an unknown region or item, and if the table does
        not number the words.
        """
        words = self.experiment.align_words(align, item)
        means = []
        for (group, cell, position), observed in words.items():
            values = np.array([word.value for word in observed], float)
            means.append(
                WordMean(
                    group=self.experiment.describe_group(group),
                    condition=self.experiment.name_cell(cell),
                    position=position,
                    words=tuple(dict.fromkeys(word.word for word in observed)),
                    mean=statistics.mean_over_items(values),
                )
            )
        return sorted(means, key=lambda mean: mean.position)


@dataclass(slots=True)
class _Design:
    """Levels and contrasts of one table."""

    levels_by_factor: dict[str, list[str]]
    contrasts: list[Contrast]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Panel:
    """The values of one region of a group."""

    group: GroupValues
    region: str
    num_items: int
    """Number of items of the group, with or without values in the region."""
    values_by_item: Mapping[str, Mapping[DesignCell, float]]


def analyse_design(table: ExperimentTable, options: DesignOptions) -> DesignResult:
    """Compute means, contrasts and interactions in each region.

    Raises DataError if no item has all conditions of any contrast or the design lacks a cell, and
    UsageError for unknown regions, levels and conditions.
    """
    regions = _choose_regions(table, options.regions)
    design = _build_design(table, options)
    means: list[CellMean] = []
    effects: list[Effect] = []
    values, names = table.values_by_item(), {cell: table.name_cell(cell) for cell in table.cells}
    for group, items in table.items_by_group().items():
        for region in regions:
            panel = _Panel(
                group=table.describe_group(group),
                region=region,
                num_items=len(items),
                values_by_item=values.get((group, region), {}),
            )
            means += _cell_means(panel, names)
            effects += _test_contrasts(panel, design)
    if not effects and all(each.value is None for each in table.observations):
        raise DataError(
            f"all values of the column {table.value_column!r} are missing",
            location=table.location,
            hint="compute them with `surprisal`, or name another column: --value COLUMN",
        )
    if not effects:
        raise DataError(
            _describe_no_effect(table, design), location=table.location, hint=PAIRS_HINT
        )
    return DesignResult(
        value_column=table.value_column,
        factors=table.factors,
        conditions=tuple(map(table.name_cell, table.sort_cells(design.levels_by_factor))),
        regions=tuple(regions),
        means=tuple(means),
        effects=tuple(_adjust_p_values(effects)),
        experiment=table,
        notes=tuple(_collect_notes(table, effects, design)),
    )


PAIRS_HINT = (
    "items are paired: an item has the same value in the column `item` in all its conditions "
    "(--columns item=YOUR_COLUMN)"
)


def _choose_regions(table: ExperimentTable, requested: Sequence[str]) -> list[str]:
    """Return the requested regions, or all with a name. Raises UsageError for an unknown one."""
    regions = [region for region in table.regions if region]
    for region in requested:
        if region not in regions:
            names = ", ".join(map(repr, regions)) or "none"
            raise UsageError(
                f"unknown region {region!r}",
                location="--region",
                hint=suggest_name(region, regions) or f"the table has {names}",
            )
    return list(requested) or regions or [""]


def _build_design(table: ExperimentTable, options: DesignOptions) -> _Design:
    levels = _order_levels(table, options.baseline)
    if options.contrasts:
        cells = {table.name_cell(cell): cell for cell in table.sort_cells(levels)}
        return _Design(levels, [parse_contrast(text, cells) for text in options.contrasts])
    for factor, names in levels.items():
        if len(names) < 2:
            raise DataError(
                f"{factor!r} has one level, {names[0]!r}: there is nothing to compare",
                location=table.location,
                hint="name the column of the conditions: --columns condition=YOUR_COLUMN",
            )
    missing = [cell for cell in product(*levels.values()) if cell not in table.cells]
    if missing:
        missing_names = "; ".join(
            ", ".join(f"{factor} {level}" for factor, level in zip(levels, cell, strict=True))
            for cell in missing[:MAX_NAMES_SHOWN]
        )
        raise DataError(
            f"the design lacks {format_count(len(missing), 'cell')}: {missing_names}",
            location=table.location,
            hint="is a level misspelt? Otherwise give contrasts: --contrast 'A - B'",
        )
    return _Design(levels, statistics.factorial_contrasts(levels))


def _order_levels(table: ExperimentTable, baseline: Sequence[str]) -> dict[str, list[str]]:
    """Return factor -> levels in the order of the table, with its baseline last."""
    levels = {
        factor: list(dict.fromkeys(cell[index] for cell in table.cells))
        for index, factor in enumerate(table.factors)
    }
    all_levels = [level for names in levels.values() for level in names]
    for name in baseline:
        if name not in all_levels:
            raise UsageError(
                f"unknown level {name!r}",
                location="--baseline",
                hint=suggest_name(name, all_levels) or f"one of {', '.join(all_levels)}",
            )
        for names in levels.values():
            if name in names:
                names.append(names.pop(names.index(name)))
    return levels


def parse_contrast(text: str, cells: Mapping[str, DesignCell]) -> Contrast:
    """Parse a contrast of conditions: terms with spaces around + and -, as "a - 0.5*b - 0.5*c".

    cells: name of a condition -> its cell. Raises UsageError for an unknown condition, and for
    weights that do not sum to 0.
    """
    weights: dict[DesignCell, float] = {}
    sign = 1.0
    words = f" {text.strip()} ".replace(" + ", "\0+\0").replace(" - ", "\0-\0").split("\0")
    for word in map(str.strip, words):
        if word in ("+", "-"):
            sign = 1.0 if word == "+" else -1.0
            continue
        number, star, name = word.rpartition("*")
        try:
            factor = float(number) if star else 1.0
        except ValueError:
            factor, name = 1.0, word
        if not math.isfinite(factor):
            raise UsageError(
                f"the weight {number.strip()!r} in {text!r} is not a finite number",
                location="--contrast",
                hint="weights are numbers such as 0.5, e.g. 'a - 0.5*b - 0.5*c'",
            )
        name = name.strip()
        if name not in cells:
            raise UsageError(
                f"unknown condition {name!r} in {text!r}",
                location="--contrast",
                hint=suggest_name(name, cells) or f"one of {', '.join(cells)}",
            )
        cell = cells[name]
        weights[cell] = weights.get(cell, 0.0) + sign * factor
    weights = {cell: weight for cell, weight in weights.items() if weight}
    total = sum(weights.values())
    if not weights:
        raise UsageError(
            f"all weights of {text!r} cancel out",
            location="--contrast",
            hint="a contrast is a difference of conditions, e.g. 'a - b'",
        )
    if abs(total) > 1e-9:
        raise UsageError(
            f"the weights of {text!r} sum to {total:g}, not to 0",
            location="--contrast",
            hint="a contrast is a difference, e.g. 'a - b' or 'a - 0.5*b - 0.5*c'",
        )
    return Contrast(text.strip(), weights)


def _cell_means(panel: _Panel, names: Mapping[DesignCell, str]) -> list[CellMean]:
    """Return the mean of each condition. names: condition -> its name."""
    means = []
    for cell, name in names.items():
        values = [values[cell] for values in panel.values_by_item.values() if cell in values]
        if values:
            mean = statistics.mean_over_items(np.array(values, float))
            means.append(CellMean(panel.group, panel.region, name, mean))
    return means


def _test_contrasts(panel: _Panel, design: _Design) -> list[Effect]:
    effects = []
    for contrast in design.contrasts:
        scores = statistics.score_items(list(panel.values_by_item.values()), contrast)
        if len(scores):
            effects.append(
                Effect(
                    group=panel.group,
                    region=panel.region,
                    name=contrast.name,
                    mean=statistics.mean_over_items(scores),
                    num_left_out=panel.num_items - len(scores),
                )
            )
        else:
            design.notes.append(
                f"no item has all conditions of {contrast.name}{_locate(panel.group, panel.region)}"
            )
    return effects


def _adjust_p_values(effects: Sequence[Effect]) -> list[Effect]:
    """Return the effects with p-values adjusted over all tests of the same model."""
    adjusted_by_id: dict[int, Effect] = {}
    for model in dict.fromkeys(effect.group.get("model") for effect in effects):
        tested = [
            effect
            for effect in effects
            if effect.group.get("model") == model and effect.mean.p is not None
        ]
        name, p_values = adjust_family([effect.mean.p or 0.0 for effect in tested])
        family = f"{name} over {format_count(len(tested), 'test')}"
        for effect, p in zip(tested, p_values, strict=True):
            adjusted_by_id[id(effect)] = replace(effect, adjusted=p, family=family)
    return [adjusted_by_id.get(id(effect), effect) for effect in effects]


def _locate(group: GroupValues, region: str) -> str:
    """Return ` in the region 'critical' of model A, MV/RR`."""
    region_text = f" in the region {region!r}" if region else ""
    names = ", ".join(group.values())
    return region_text + (f" of {names}" if names else "")


def _describe_no_effect(table: ExperimentTable, design: _Design) -> str:
    num_items = format_count(len({word.item for word in table.words}), "item")
    names = ", ".join(contrast.name for contrast in design.contrasts[:MAX_NAMES_SHOWN])
    return f"none of {num_items} has all conditions of {names} in the same region"


def _collect_notes(table: ExperimentTable, effects: Sequence[Effect], design: _Design) -> list[str]:
    has_regions = any(each.region for each in table.observations)
    notes = []
    missing = sum(
        each.value is None for each in table.observations if each.region or not has_regions
    )
    if missing:
        notes.append(f"{format_count(missing, 'value')} missing: a word there has no surprisal")
    left_out = [effect for effect in effects if effect.num_left_out]
    if left_out:
        most = max(left_out, key=lambda effect: effect.num_left_out)
        total = most.num_left_out + most.mean.n
        others = len(left_out) - 1
        notes.append(
            f"{most.num_left_out} of {format_count(total, 'item')} lack a value of {most.name}"
            f"{_locate(most.group, most.region)} and are left out there"
            + (
                f"; {format_count(others, 'other effect')} leave out as many or fewer"
                * bool(others)
            )
        )
    notes += design.notes[:MAX_NAMES_SHOWN]
    hidden = len(design.notes) - MAX_NAMES_SHOWN
    if hidden > 0:
        notes.append(f"{hidden} more contrasts have no item with all their conditions")
    notes += _find_rare_levels(table)
    smallest = min(effect.mean.n for effect in effects)
    if smallest == 1:
        notes.append("one item has no interval and no test")
    notes += few_values_notes(min((e.mean.n for e in effects if e.mean.n > 1), default=0))
    return notes


def _find_rare_levels(table: ExperimentTable) -> list[str]:
    """Return a note per condition that may be misspelt: few items have it, and they lack another
    condition with a similar name.
    """
    items_by_cell: dict[DesignCell, set[str]] = {cell: set() for cell in table.cells}
    for observation in table.observations:
        items_by_cell[observation.cell].add(observation.item)
    all_items = set().union(*items_by_cell.values())
    notes = []
    for cell, items in items_by_cell.items():
        if 4 * len(items) > len(all_items):
            continue
        for other, other_items in items_by_cell.items():
            name, other_name = table.name_cell(cell), table.name_cell(other)
            is_rarer = len(items) < len(other_items) and not items & other_items
            if is_rarer and suggest_name(name, [other_name]):
                notes.append(
                    f"the condition {name!r} is that of {len(items)} of {len(all_items)} "
                    f"items, which lack {other_name!r}: is it misspelt?"
                )
    return notes
