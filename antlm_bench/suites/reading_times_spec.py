"""What people did with the words of a suite: how long they read them, and when they learned them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, Strict, model_validator

from antlm_bench.declarations import Declaration, TomlTuple
from antlm_bench.errors import DataError
from antlm_bench.suites.records import Record, RecordFiles
from antlm_bench.suites.templates import get_field

if TYPE_CHECKING:
    from antlm_bench.metrics.reading_times import ReadingTimes
    from antlm_bench.types import Item

Text = Annotated[str, Field(min_length=1)]
MODEL_COLUMNS = (
    "surprisal",
    "previous_surprisal",
)  # the columns that are the model's: of an item's first and second option


class ReadingMeasureSpec(Declaration):
    """Times of one kind. outcomes: their columns. predictors: columns that surprisal must go
    beyond, each alone and in products of two; "previous_surprisal" is the model's of the word
    before.
    """

    name: Text
    outcomes: Annotated[TomlTuple[Text], Field(min_length=1)]
    predictors: Annotated[TomlTuple[Text], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_columns(self) -> ReadingMeasureSpec:
        if MODEL_COLUMNS[0] in self.predictors or set(MODEL_COLUMNS) & set(self.outcomes):
            raise ValueError(f"{MODEL_COLUMNS[0]} is what is added, and no time is the model's")
        return self


class ReadingTimesSpec(Declaration):
    """words: how a word joins its context. "whole": one text, tokenised as one, the word with the
    space before it. "glued": tokenised apart and put together without a space, as the official
    pipelines of 2025 and 2026 do.
    """

    words: Literal["whole", "glued"]
    measure: Annotated[TomlTuple[ReadingMeasureSpec], Field(min_length=1)]

    @property
    def columns(self) -> list[str]:
        """The columns of the data, each once."""
        named = [
            name
            for m in self.measure
            for name in (*m.outcomes, *m.predictors)
            if name not in MODEL_COLUMNS
        ]
        return list(dict.fromkeys(named))


class ChildVocabularySpec(Declaration):
    """When children know words. human: a file of the suite with a row per word (column `word`) and
    a column per age in months, from ages[0] to ages[1]: the share of children who know it.
    """

    human: Text
    ages: Annotated[tuple[int, int], Strict(False)]


def build_reading_times(
    spec: ReadingTimesSpec, items: Iterable[Item], files: RecordFiles
) -> ReadingTimes:
    """The numbers beside the items, row by row; an empty field is missing (NaN). DataError names
    the line.
    """
    import numpy as np

    from antlm_bench.metrics.reading_times import ReadingMeasure, ReadingTimes

    rows = [
        [_parse_number(record, name, f"{place}:{line}") for name in spec.columns]
        for _, place, records in files
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
