"""The table of an experiment: surprisals of words by item, condition and region.

Rows come from a file of `surprisal` or from a data frame. A condition is a cell of the design: its
levels are the values of the factors' columns, or the parts of the column `condition`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.printable import format_count
from antlm_bench.statistics import DesignCell

Group = tuple[str, ...]
"""The values of `ExperimentTable.group_columns`: a model, a construction."""
GroupValues = Mapping[str, str]
"""Column -> value of a group."""
LocatedRows = Iterable[tuple[str, Mapping[str, Any]]]
"""(location for errors, row) of each row."""
CONDITION = "condition"
MODEL = "model"
MISSING_VALUES = ("", "NA", "NaN", "nan", "None")
MAX_NAMES_SHOWN = 20
MAX_VALUE = 1e100
"""Largest size of a value. Sums of the squares of larger ones can exceed the largest float."""


@dataclass(frozen=True, slots=True)
class DesignOptions:
    """What `effects` computes. `()` = the default that each field states."""

    factors: tuple[str, ...] = ()
    """Factors: columns, or names for the parts of `condition`. () = `condition`."""
    separator: str = "_"
    """Characters at which `condition` is split into the levels of the factors."""
    per: tuple[str, ...] = ()
    """Columns; effects are computed separately for each of their values, as for each model."""
    regions: tuple[str, ...] = ()
    """Regions in the order of results; () = all that have a name."""
    baseline: tuple[str, ...] = ()
    """Levels that are subtracted from the others of their factor; () = of two levels, the one that
    comes later in the table."""
    contrasts: tuple[str, ...] = ()
    """Contrasts of conditions, as "a - b" or "a - 0.5*b - 0.5*c"; () = all main effects and
    interactions."""
    value: str = ""
    """Column of the values; "" = the first whose name begins with `surprisal`."""


class WordValue(NamedTuple):
    """A row of the table: usually a word."""

    group: Group
    item: str
    cell: DesignCell
    region: str
    number: int | None
    """Number of the word in its text, from 1; None if the table does not number words."""
    word: str
    value: float | None
    """None if the word has no surprisal."""


class Observation(NamedTuple):
    """The value of an item in a condition and region: the sum over its words."""

    group: Group
    item: str
    cell: DesignCell
    region: str
    value: float | None
    """None if one of the words has no surprisal."""
    num_words: int


@dataclass(frozen=True, slots=True)
class ExperimentTable:
    """The values of an experiment, by words and by regions."""

    location: str
    """The table, for error messages."""
    value_column: str
    group_columns: tuple[str, ...]
    """`model`, and the columns of DesignOptions.per: results are separate for each value."""
    factors: tuple[str, ...]
    words: tuple[WordValue, ...]
    observations: tuple[Observation, ...]
    """In the order of the table."""

    @property
    def groups(self) -> list[Group]:
        """The groups, in the order of the table."""
        return list(dict.fromkeys(word.group for word in self.words))

    @property
    def regions(self) -> list[str]:
        """The regions, in the order of the table. "" = words without a region."""
        return list(dict.fromkeys(word.region for word in self.words))

    @property
    def cells(self) -> list[DesignCell]:
        """The conditions that occur, in the order of the table."""
        return list(dict.fromkeys(word.cell for word in self.words))

    def items_by_group(self) -> dict[Group, list[str]]:
        """Return group -> its items, in the order of the table."""
        items: dict[Group, dict[str, None]] = {}
        for word in self.words:
            items.setdefault(word.group, {})[word.item] = None
        return {group: list(names) for group, names in items.items()}

    def values_by_item(self) -> dict[tuple[Group, str], dict[str, dict[DesignCell, float]]]:
        """Return (group, region) -> item -> condition -> value, without missing values."""
        values: dict[tuple[Group, str], dict[str, dict[DesignCell, float]]] = {}
        for observation in self.observations:
            if observation.value is not None:
                by_item = values.setdefault((observation.group, observation.region), {})
                by_item.setdefault(observation.item, {})[observation.cell] = observation.value
        return values

    def sort_cells(self, levels_by_factor: Mapping[str, Sequence[str]]) -> list[DesignCell]:
        """Return the conditions that occur, in the order of the levels."""
        present = set(self.cells)
        return [cell for cell in product(*levels_by_factor.values()) if cell in present]

    def describe_group(self, group: Group) -> GroupValues:
        """Return column -> value of a group."""
        return dict(zip(self.group_columns, group, strict=True))

    def name_cell(self, cell: DesignCell) -> str:
        """Return the name of a condition, e.g. `filled, island`."""
        return ", ".join(cell)

    def align_words(
        self, region: str | None = None, item: str | None = None
    ) -> dict[tuple[Group, DesignCell, int], list[WordValue]]:
        """Return the words that have a value at each position of each group and condition.

        region: the region whose first word is position 0; None = the first word of a text is 1.
        item: return only the words of this item. Raises UsageError for an unknown region or item,
        and for a table without numbers of words.
        """
        items = list(dict.fromkeys(word.item for word in self.words))
        if item is not None and item not in items:
            hint = suggest_name(item, items) or f"the first items are {', '.join(items[:5])}"
            raise UsageError(f"unknown item {item!r}", location="--item", hint=hint)
        if region is not None and region not in self.regions:
            raise UsageError(
                f"unknown region {region!r}",
                location="--region",
                hint=suggest_name(region, self.regions) or f"there are {', '.join(self.regions)}",
            )
        starts: dict[tuple[Group, str, DesignCell], int] = {}
        for word in self.words:
            if word.number is None:
                raise UsageError(
                    "the table has no column `word_index`, so that its words have no order",
                    location=self.location,
                    hint="compute it per word: antlm-bench surprisal --by word",
                )
            if word.region == region:
                starts.setdefault((word.group, word.item, word.cell), word.number)
        aligned: dict[tuple[Group, DesignCell, int], list[WordValue]] = {}
        for word in self.words:
            start = 0 if region is None else starts.get((word.group, word.item, word.cell))
            if start is not None and word.value is not None and item in (None, word.item):
                position = (word.number or 0) - start
                aligned.setdefault((word.group, word.cell, position), []).append(word)
        return aligned

    def long_rows(self) -> list[dict[str, str | int | float | None]]:
        """Return a row per item, condition and region, for a mixed model in R."""
        rows: list[dict[str, str | int | float | None]] = []
        for observation in self.observations:
            row: dict[str, str | int | float | None] = {**self.describe_group(observation.group)}
            row["item"] = observation.item
            row[CONDITION] = self.name_cell(observation.cell)
            row |= dict(zip(self.factors, observation.cell, strict=True))
            row |= {"region": observation.region, "num_words": observation.num_words}
            rows.append(row | {self.value_column: observation.value})
        return rows


def build_experiment_table(
    rows: LocatedRows, location: str, columns: Mapping[str, str], options: DesignOptions
) -> ExperimentTable:
    """Build the table from rows of a file or frame.

    location: the table, for error messages. columns: our column (item, condition, region, model) ->
    its column. Raises DataError (a missing column, a value that is not a number, an item with two
    values for one condition and word), UsageError (an unknown factor or column of --per).
    """
    words: list[WordValue] = []
    seen: dict[tuple[object, ...], str] = {}
    columns_of_table: _Columns | None = None
    for row_location, raw in rows:
        row = _rename(raw, columns, row_location)
        if columns_of_table is None:
            columns_of_table = _choose_columns(row, options, location)
        word = _read_word(row, columns_of_table, options.separator, row_location)
        key = (*word[:4], word.number)
        if key in seen:
            raise DataError(
                f"item {word.item!r} has two values for condition {', '.join(word.cell)!r}"
                + (f", region {word.region!r}" if word.region else "")
                + f": here and at {seen[key]}",
                location=row_location,
                hint="name the column that tells them apart (--per COLUMN), or the column of the "
                "items (--columns item=COLUMN)",
            )
        seen[key] = row_location
        words.append(word)
    if columns_of_table is None:
        raise DataError("0 rows", location=location)
    return ExperimentTable(
        location=location,
        value_column=columns_of_table.value,
        group_columns=columns_of_table.groups,
        factors=columns_of_table.factors,
        words=tuple(words),
        observations=tuple(_sum_words(words)),
    )


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of a table that are used."""

    value: str
    groups: tuple[str, ...]
    factors: tuple[str, ...]
    splits_condition: bool
    """Whether the factors are parts of `condition`, not columns."""


def _rename(raw: Mapping[str, Any], columns: Mapping[str, str], location: str) -> Mapping[str, Any]:
    if not columns:
        return raw
    for column in columns.values():
        if column not in raw:
            raise _missing_column(column, raw, location)
    new_names = {column: name for name, column in columns.items()}
    return {
        new_names.get(name, name): value
        for name, value in raw.items()
        if name in new_names or name not in columns
    }


def _missing_column(
    name: str, row: Mapping[str, Any], location: str, advice: str = ""
) -> DataError:
    names = ", ".join(map(repr, list(row)[:MAX_NAMES_SHOWN]))
    hint = suggest_name(name, row) or f"there are {names}{advice}"
    return DataError(f"the column {name!r} is missing", location=location, hint=hint)


def _choose_columns(row: Mapping[str, Any], options: DesignOptions, location: str) -> _Columns:
    """Choose the columns by the first row. Raises DataError and UsageError."""
    value = options.value or next((name for name in row if name.startswith("surprisal")), "")
    if value not in row:
        raise _missing_column(value or "surprisal_bits", row, location, "; --value COLUMN names it")
    if "item" not in row:
        raise _missing_column("item", row, location, "; name it with --columns item=COLUMN")
    factors = options.factors or (CONDITION,)
    present = [name for name in factors if name in row]
    splits_condition = not present
    if not present and CONDITION not in row:
        advice = "; name it with --columns condition=COLUMN, or the factors with --factors A,B"
        raise _missing_column(CONDITION, row, location, advice)
    if present and len(present) < len(factors):
        unknown = next(name for name in factors if name not in row)
        raise UsageError(
            f"{unknown!r} is not a column, but {present[0]!r} is",
            location="--factors",
            hint=suggest_name(unknown, row)
            or "name columns only, or only new names for the parts of `condition`",
        )
    for name in options.per:
        if name not in row:
            hint = suggest_name(name, row) or f"there are {', '.join(row)}"
            raise UsageError(f"{name!r} is not a column", location="--per", hint=hint)
        if name in factors:
            hint = "effects are either computed within its values, or compare them"
            raise UsageError(f"{name!r} is a factor, too", location="--per", hint=hint)
    groups = tuple(dict.fromkeys(options.per))
    if MODEL in row and MODEL not in (*factors, *groups):
        groups = (MODEL, *groups)
    return _Columns(value, groups, factors, splits_condition)


def _read_word(
    row: Mapping[str, Any], columns: _Columns, separator: str, location: str
) -> WordValue:
    def read(name: str) -> str:
        value = row.get(name)
        text = "" if value is None else str(value).strip()
        if not text:
            raise DataError(f"{name!r} is empty", location=location)
        return text

    if columns.splits_condition:
        cell = tuple(read(CONDITION).split(separator)) if len(columns.factors) > 1 else ()
        if cell and len(cell) != len(columns.factors):
            raise DataError(
                f"the condition {row[CONDITION]!r} has {format_count(len(cell), 'part')} between "
                f"{separator!r}, but there are {len(columns.factors)} factors: "
                f"{', '.join(columns.factors)}",
                location=location,
                hint="--separator names the characters between the parts",
            )
        cell = cell or (read(CONDITION),)
    else:
        cell = tuple(map(read, columns.factors))
    number = row.get("token_index", row.get("word_index"))
    return WordValue(
        group=tuple(map(read, columns.groups)),
        item=read("item"),
        cell=cell,
        region=str(row.get("region") or "").strip(),
        number=None if number in (None, "") else int(_parse_number(number, "word_index", location)),
        word=str(row.get("word") or row.get("region_text") or row.get("sentence") or ""),
        value=_parse_value(row[columns.value], columns.value, location),
    )


def _parse_value(value: Any, column: str, location: str) -> float | None:
    """Return a number, or None for an empty field or NaN."""
    if value is None or (isinstance(value, str) and value.strip() in MISSING_VALUES):
        return None
    number = _parse_number(value, column, location)
    return None if math.isnan(number) else number


def _parse_number(value: Any, column: str, location: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise DataError(f"{column!r} must be a number, not {value!r:.40}", location=location)
    if abs(number) > MAX_VALUE:
        raise DataError(
            f"{column!r} is {number:g}, beyond the {MAX_VALUE:g} up to which effects are computed",
            location=location,
            hint="is it the right column? --value COLUMN names another",
        )
    return number


def _sum_words(words: Sequence[WordValue]) -> list[Observation]:
    """Return the sum over the words of each group, item, condition and region."""
    values: dict[tuple[Group, str, DesignCell, str], list[float | None]] = {}
    for word in words:
        values.setdefault((word.group, word.item, word.cell, word.region), []).append(word.value)
    return [
        Observation(*key, None if None in parts else sum(part or 0.0 for part in parts), len(parts))
        for key, parts in values.items()
    ]
