"""Declarations of what people did with the words of a suite: reading times, and when they learned
the words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, Strict, model_validator

from antlm_bench.declarations import Declaration, TomlTuple
from antlm_bench.errors import DataError
from antlm_bench.suites.declaration_types import Text
from antlm_bench.suites.records import Record, RecordFiles
from antlm_bench.suites.templates import get_field

if TYPE_CHECKING:
    from antlm_bench.metrics.reading_times import ReadingTimes
    from antlm_bench.types import Item

# Columns that the model fills: the surprisal of an item's first and second option.
MODEL_COLUMNS = ("surprisal", "previous_surprisal")


class ReadingMeasureSpec(Declaration):
    """Reading times of one kind, and the regressions that predict them."""

    name: Text
    outcomes: Annotated[TomlTuple[Text], Field(min_length=1)]
    """Columns of times; each has a regression of its own."""
    predictors: Annotated[TomlTuple[Text], Field(min_length=1)]
    """Columns of the baseline, each alone and in products of two. "previous_surprisal" is the
    model's surprisal of the word before.
    """

    @model_validator(mode="after")
    def _check_columns(self) -> ReadingMeasureSpec:
        if MODEL_COLUMNS[0] in self.predictors or set(MODEL_COLUMNS) & set(self.outcomes):
            raise ValueError(f"{MODEL_COLUMNS[0]} is what is added, and no time is the model's")
        return self


class ReadingTimesSpec(Declaration):
    """The table [times]."""

    words: Literal["whole", "glued"]
    """How a word joins its context. "whole": context and word are tokenized as one text, the word
    with the space before it. "glued": they are tokenized apart and joined without a space, as the
    official pipelines of 2025 and 2026 do.
    """
    measure: Annotated[TomlTuple[ReadingMeasureSpec], Field(min_length=1)]

    @property
    def columns(self) -> list[str]:
        """The columns of the data, each once."""
        names = (name for m in self.measure for name in (*m.outcomes, *m.predictors))
        return list(dict.fromkeys(name for name in names if name not in MODEL_COLUMNS))


class ChildVocabularySpec(Declaration):
    """The table [children]: when children know words."""

    human: Text
    """A file of the suite with a row per word (column `word`) and a column per age in months: the
    share of children who know the word.
    """
    ages: Annotated[tuple[int, int], Strict(False)]
    """The first and the last age."""


def build_reading_times(
    spec: ReadingTimesSpec, items: Iterable[Item], files: RecordFiles
) -> ReadingTimes:
    """Return the columns of numbers beside the items, row by row; NaN where a field is empty.

    Raises DataError, naming the line.
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
            f"{len(rows)} rows, but {len(ids)} words", hint="a suite of reading times skips no row"
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
