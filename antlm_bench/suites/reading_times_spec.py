"""Declarations of human reading times, and their values, one row per item of a suite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from antlm_bench.declarations import Declaration, TomlTuple
from antlm_bench.errors import DataError
from antlm_bench.printable import format_count
from antlm_bench.suites.declaration_types import Text
from antlm_bench.suites.records import Record, RecordFiles
from antlm_bench.suites.templates import get_field

if TYPE_CHECKING:
    from antlm_bench.metrics.reading_times import ReadingTimes
    from antlm_bench.types import Item

# Columns that the model adds: the surprisal of an item's word, and of the word before it.
MODEL_COLUMNS = ("surprisal", "previous_surprisal")


class ReadingMeasureSpec(Declaration):
    """One measure of reading (eye tracking), and the regressions that predict it."""

    name: Text
    outcomes: Annotated[TomlTuple[Text], Field(min_length=1)]
    """Columns of reading times. Each has its regression."""
    predictors: Annotated[TomlTuple[Text], Field(min_length=1)]
    """Columns of the baseline predictors, which also enter in products of two.
    "previous_surprisal" is the model's surprisal of the word before.
    """

    @model_validator(mode="after")
    def _check_columns(self) -> ReadingMeasureSpec:
        surprisal, _ = MODEL_COLUMNS
        if surprisal in self.predictors:
            raise ValueError(f"`predictors` must not contain {surprisal!r}: it is always added")
        for name in MODEL_COLUMNS:
            if name in self.outcomes:
                raise ValueError(f"`outcomes` must not contain {name!r}: the model computes it")
        return self


class ReadingTimesSpec(Declaration):
    """The table [times]: human reading times of a suite of words."""

    words: Literal["whole", "glued"]
    """How words are tokenized. "whole": context, space and word as one text. "glued": context and
    word separately, their tokens joined without a space, as in the official pipelines of 2025 and
    2026.
    """
    measure: Annotated[TomlTuple[ReadingMeasureSpec], Field(min_length=1)]

    @property
    def columns(self) -> list[str]:
        """The columns of the suite's files that are used, without repetitions."""
        names = (name for m in self.measure for name in (*m.outcomes, *m.predictors))
        return list(dict.fromkeys(name for name in names if name not in MODEL_COLUMNS))


def build_reading_times(
    spec: ReadingTimesSpec, items: Iterable[Item], files: RecordFiles
) -> ReadingTimes:
    """Return the columns of the files, one row per item; nan where a field is empty.

    Raises DataError, which names the line.
    """
    import numpy as np

    from antlm_bench.metrics.reading_times import ReadingMeasure, ReadingTimes

    rows = [
        [_parse_number(record, name, f"{location}:{line}") for name in spec.columns]
        for _, location, records in files
        for line, record in records
    ]
    ids = tuple(item.id for item in items)
    if len(ids) != len(rows):
        raise DataError(
            f"{format_count(len(rows), 'row')}, but {format_count(len(ids), 'item')}",
            hint="a suite with a [times] table must not have an [item.skip] table",
        )
    columns = dict(zip(spec.columns, np.array(rows, float).T, strict=True))
    return ReadingTimes(
        ids, columns, tuple(ReadingMeasure(m.name, m.outcomes, m.predictors) for m in spec.measure)
    )


def _parse_number(record: Record, name: str, location: str) -> float:
    value = get_field(record, name, location)
    if value in ("", None):
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"{name!r} must be a number or empty, not {value!r:.40}", location=location)
    return number
