"""Declarations of kind "stimuli": how rows of data files become texts with conditions and regions.

A row holds a text per condition (SAP's garden paths), or one text whose condition is in a column,
or one word of a long text (Natural Stories). A critical word is given by its number in the text; it
and the words after it (spillover) are regions. For a user's file, `StimuliLayout` says the same by
names of columns, without a TOML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from antlm_bench.declarations import Declaration, TomlTuple, list_declarations
from antlm_bench.errors import DataError, UsageError
from antlm_bench.printable import format_count
from antlm_bench.suites import files, records, sources
from antlm_bench.suites.declaration_types import DataSpec, SuiteDeclaration, Text
from antlm_bench.suites.records import Record
from antlm_bench.suites.stimuli import (
    COLUMNS,
    RESULT_COLUMNS,
    Stimulus,
    StimulusSegment,
    parse_table,
    read_stimuli,
)
from antlm_bench.suites.templates import check_text, get_field

CRITICAL = "critical"
"""Region of the critical word. The n-th word after it is the region `critical+n`."""
DEFAULT_SPILLOVER = 2
MAX_POSITION_DIGITS = 9
"""Digits of the number of a word; Python reads no number of more than 4,300 digits."""
LAYOUT_COLUMNS = ("item", "condition", "sentence")
"""Columns with a meaning that --columns renames in a file with a critical word."""


class TextSpec(Declaration):
    """A table [[text]]: one of the texts in a row."""

    column: Text
    """Column of the text."""
    condition: Text | None = None
    """Name of the text's condition; None = the value of the column `StimuliSpec.condition`."""
    position: Text | None = None
    """Column with the number of the critical word, counted from 1."""


class WordSpec(Declaration):
    """The table [word]: a row is a word of a text. The rows of a text follow each other."""

    column: Text
    """Column of the word."""
    region: Text
    """Column with the name of the word's region."""


class DesignSpec(Declaration):
    """The table [design]: defaults of the command `effects`."""

    factors: TomlTuple[Text] = ()
    """Factors of the design; () = `condition`."""
    baseline: TomlTuple[Text] = ()
    """Levels that are subtracted from the others."""
    per: TomlTuple[Text] = ()
    """Columns of the result; effects are computed separately for each of their values."""


class ExpectedTextsSpec(Declaration):
    """The table [expect]."""

    texts: Annotated[int, Field(gt=0)]
    """Number of texts of the complete files."""


class StimulusExampleSpec(Declaration):
    """A table [[example]]: a row, and the texts and regions that it gives."""

    record: dict[str, str]
    texts: TomlTuple[Text]
    """Expected texts."""
    conditions: TomlTuple[Text] = ()
    """Expected condition of each text."""
    regions: TomlTuple[TomlTuple[str]] = ()
    """Expected words of the regions of each text, in order."""


class StimuliSpec(SuiteDeclaration):
    """Stimuli whose surprisal is computed by `surprisal` and `effects`."""

    kind: Literal["stimuli"]
    licence: str = ""
    citation: str = ""
    format: Literal["csv", "tsv", "jsonl"]
    """Format of the data files, whatever their names."""
    item: Text
    """Column of the item."""
    condition: Text | None = None
    """Column of the condition, for texts without a condition of their own."""
    text: TomlTuple[TextSpec] = ()
    word: WordSpec | None = None
    spillover: Annotated[int, Field(ge=0)] = DEFAULT_SPILLOVER
    """Number of words after the critical one that are regions."""
    copy_columns: dict[Text, Text] = Field(default={}, alias="copy")
    """Column of the result -> column of the file."""
    rename: dict[Text, dict[str, str]] = Field(default={})
    """Column of the result -> {value in the file: value in the result}."""
    replace: dict[Text, str] = Field(default={})
    """Characters in the texts -> the characters that replace them."""
    design: DesignSpec = DesignSpec()
    data: DataSpec
    expect: ExpectedTextsSpec | None = None
    example: TomlTuple[StimulusExampleSpec] = ()

    @model_validator(mode="after")
    def _check_consistency(self) -> StimuliSpec:
        if bool(self.text) == (self.word is not None):
            raise ValueError("stimuli need either [[text]] tables or a [word] table")
        if len({text.condition is None for text in self.text}) > 1:
            raise ValueError("either all [[text]] tables have a `condition`, or none has")
        if self.word and self.condition:
            raise ValueError("`condition` has no meaning for stimuli with a [word] table")
        conditions = [text.condition for text in self.text]
        for condition in conditions:
            if conditions.count(condition) > 1:
                name = "the row's condition" if condition is None else repr(condition)
                raise ValueError(f"two [[text]] tables have the condition {name}")
        for name in self.copy_columns:
            if name in (*RESULT_COLUMNS, "item", "condition", "region"):
                raise ValueError(f"`copy` must not contain {name!r}: the result has that column")
        for name in self.rename:
            if name not in (*self.copy_columns, "condition"):
                raise ValueError(f"`rename` names {name!r}, which is not in `copy`")
        return self


@dataclass(frozen=True, slots=True)
class StimuliLayout:
    """Where the rows of a user's file have texts, conditions and critical words."""

    conditions: tuple[str, ...] = ()
    """Columns with a text each, whose condition is the name of the column. () = one text, in the
    column `sentence`."""
    positions: tuple[str, ...] = ()
    """Column with the number of the critical word, counted from 1: one for all texts, or one per
    condition. () = no critical word."""
    spillover: int | None = None
    """Number of words after the critical one that are regions; None = DEFAULT_SPILLOVER."""

    def __bool__(self) -> bool:
        """Return whether any setting was given."""
        return bool(self.conditions or self.positions or self.spillover is not None)


def load_stimuli(
    ref: str | Path,
    columns: Mapping[str, str] | None = None,
    layout: StimuliLayout | None = None,
) -> list[Stimulus]:
    """Load stimuli: a name of the catalog, a TOML of kind "stimuli", or a user's file.

    columns: for a user's file, our column -> its column. layout: for a user's file with a critical
    word or a text per condition. Raises DataError, DeclarationError, UsageError.
    """
    if is_declared(ref):
        if columns or layout:
            raise UsageError(
                f"the columns of {str(ref)!r} are declared",
                location="--columns" if columns else "--conditions, --position, --spillover",
                hint="leave it out, or give a file of yours",
            )
        return _load_declared(*read_stimuli_spec(str(ref)))
    if not layout:
        return read_stimuli(Path(ref), columns)
    location = str(ref)
    raw = files.read_bytes(Path(ref))
    rows = records.read_records(raw, Path(ref).name.lower(), location)
    return _parse_with_layout(rows, location, dict(columns or {}), layout)


def read_stimuli_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str] | None = None,
    layout: StimuliLayout | None = None,
) -> list[Stimulus]:
    """Return the texts of a data frame's rows, as those of a file with these columns.

    Raises DataError, UsageError, which name the row.
    """
    numbered = (
        (number, {name: "" if value is None else value for name, value in row.items()})
        for number, row in enumerate(rows, start=1)
    )
    columns = dict(columns or {})
    if layout:
        return _parse_with_layout(numbered, "the table, row", columns, layout)
    records.check_column_names(columns, COLUMNS)
    stimuli = parse_table(numbered, columns, "the table, row")
    if not stimuli:
        raise DataError("0 texts", location="the table")
    return stimuli


def is_declared(ref: str | Path) -> bool:
    """Return whether a reference is a declaration: a name of the catalog, or a TOML."""
    return str(ref).endswith(".toml") or (
        str(ref) in list_declarations("tasks") and not Path(ref).exists()
    )


def read_stimuli_spec(ref: str) -> tuple[StimuliSpec, Path]:
    """Return the declaration of stimuli, and the folder of its file.

    Raises UsageError for a declaration of another kind, e.g. of a suite that is scored.
    """
    from antlm_bench.suites.task_types import read_declaration_of_type  # it imports this module

    return read_declaration_of_type(ref, StimuliSpec, location="--in")


def build_stimuli(spec: StimuliSpec, rows: records.Records, location: str) -> list[Stimulus]:
    """Build the texts of one data file, in its order."""
    if spec.word:
        return list(_join_words(spec, spec.word, rows, location))
    stimuli = []
    for line, record in rows:
        row_location = f"{location}:{line}"
        values = _copy_values(spec, record, row_location)
        item = _get_string(record, spec.item, row_location)
        for text in spec.text:
            condition = text.condition
            if condition is None and spec.condition:
                condition = _get_renamed(spec, "condition", record, spec.condition, row_location)
            sentence = _clean(_get_string(record, text.column, row_location), spec.replace)
            segments = _critical_segments(
                check_text(sentence, text.column, row_location),
                _get_position(record, text.position, row_location),
                spec.spillover,
                values,
                row_location,
            )
            stimuli.append(Stimulus(item, condition, sentence, segments))
    return stimuli


def _load_declared(spec: StimuliSpec, folder: Path) -> list[Stimulus]:
    stimuli: list[Stimulus] = []
    for file in spec.data.files:
        data_file = sources.get_file(spec, file, folder)
        rows = records.read_records(data_file.raw, f"file.{spec.format}", data_file.location)
        stimuli += build_stimuli(spec, rows, data_file.location)
    if spec.expect and len(stimuli) != spec.expect.texts:
        raise DataError(
            f"{format_count(len(stimuli), 'text')}, but {spec.name} has {spec.expect.texts:,}",
            location=spec.name,
            hint=f"fetch its files again: antlm-bench data fetch {spec.name}",
        )
    return stimuli


def _parse_with_layout(
    rows: records.Records, location: str, columns: dict[str, str], layout: StimuliLayout
) -> list[Stimulus]:
    """Parse a table with a critical word, or with a text per condition in each row."""
    records.check_column_names(columns, LAYOUT_COLUMNS)
    texts = _layout_texts(columns, layout)
    spillover = DEFAULT_SPILLOVER if layout.spillover is None else layout.spillover
    if spillover < 0:
        raise UsageError(f"{spillover} is below 0", location="--spillover", hint="0 or more")
    item_column = columns.get("item", "item")
    condition_column = columns.get("condition", "condition")
    used = {item_column, *(text.column for text in texts), *layout.positions}
    used |= set() if layout.conditions else {condition_column}
    stimuli = []
    for number, (line, record) in enumerate(rows, start=1):
        row_location = f"{location}:{line}"
        if "item" in columns or item_column in record:
            item = _get_string(record, item_column, row_location)
        else:
            item = str(number)
        condition = None
        if not layout.conditions and ("condition" in columns or condition_column in record):
            condition = _get_string(record, condition_column, row_location)
        values = {
            f"row_{name}" if name in ("condition", "region", *RESULT_COLUMNS) else name: str(value)
            for name, value in record.items()
            if name not in used
        }
        for text in texts:
            sentence = check_text(
                _get_string(record, text.column, row_location), text.column, row_location
            )
            position = _get_position(record, text.position, row_location)
            segments = _critical_segments(sentence, position, spillover, values, row_location)
            stimuli.append(Stimulus(item, text.condition or condition, sentence, segments))
    if not stimuli:
        raise DataError("0 texts", location=location)
    return stimuli


def _layout_texts(columns: Mapping[str, str], layout: StimuliLayout) -> list[TextSpec]:
    """Return the texts of each row. Raises UsageError where the settings do not fit together."""
    conditions, positions = layout.conditions, layout.positions
    if conditions and ("sentence" in columns or "condition" in columns):
        name = "sentence" if "sentence" in columns else "condition"
        raise UsageError(
            f"`{name}` is named, too",
            location="--columns",
            hint=f"--conditions names the columns of the texts; leave out {name}=...",
        )
    for name in conditions:
        if conditions.count(name) > 1:
            raise UsageError(
                f"the column {name!r} is named twice",
                location="--conditions",
                hint="name a column per condition",
            )
    num_texts = max(len(conditions), 1)
    if len(positions) not in (0, 1, num_texts):
        raise UsageError(
            f"{format_count(len(positions), 'column')} of positions for "
            f"{format_count(num_texts, 'text')} per row",
            location="--position",
            hint="name one column for all texts, or one per column of --conditions",
        )
    if layout.spillover is not None and not positions:
        raise UsageError(
            "there is no critical word",
            location="--spillover",
            hint="name the column with its number: --position COLUMN",
        )
    if not conditions:
        names: Sequence[tuple[str, str | None]] = [(columns.get("sentence", "sentence"), None)]
    else:
        names = [(name, name) for name in conditions]
    each_position: Sequence[str | None] = positions or (None,)
    if len(each_position) == 1:
        each_position = [each_position[0]] * len(names)
    return [
        TextSpec(column=column, condition=condition, position=position)
        for (column, condition), position in zip(names, each_position, strict=True)
    ]


def _clean(text: str, replacements: Mapping[str, str]) -> str:
    for characters, replacement in replacements.items():
        text = text.replace(characters, replacement)
    return text.strip()


def _get_string(record: Record, column: str, location: str) -> str:
    """Return a column of a row as text. Raises DataError if it is missing or empty."""
    value = str(get_field(record, column, location)).strip()
    if not value:
        raise DataError(f"{column!r} is empty", location=location)
    return value


def _get_renamed(spec: StimuliSpec, name: str, record: Record, column: str, location: str) -> str:
    """Return a column of a row with the name that the result's column `name` has for its value."""
    value = _get_string(record, column, location)
    return spec.rename.get(name, {}).get(value, value)


def _copy_values(spec: StimuliSpec, record: Record, location: str) -> dict[str, str]:
    """Return the columns of a row that `copy` names, with the values of `rename`."""
    return {
        name: _get_renamed(spec, name, record, column, location)
        for name, column in spec.copy_columns.items()
    }


def _get_position(record: Record, column: str | None, location: str) -> int | None:
    """Return the number of the critical word. Raises DataError if it is not a whole number."""
    if column is None:
        return None
    value = _get_string(record, column, location).removesuffix(".0")  # pandas writes 7.0
    if not value.isdecimal() or len(value) > MAX_POSITION_DIGITS:
        raise DataError(
            f"{column!r} is {value!r:.40}, not the number of a word",
            location=location,
            hint="words are counted from 1",
        )
    return int(value)


def _critical_segments(
    text: str,
    position: int | None,
    spillover: int,
    values: Mapping[str, str],
    location: str,
) -> tuple[StimulusSegment, ...]:
    """Split a text into the critical word, each word of the spillover, and the parts around them.

    position: number of the critical word, from 1, in the text split at white space; None = the text
    has no regions.
    """
    if position is None:
        return (StimulusSegment("", 0, len(text), values),)
    word_ends = _word_ends(text)
    if not 1 <= position <= len(word_ends):
        raise DataError(
            f"the critical word is number {position} of {format_count(len(word_ends), 'word')}",
            location=location,
            hint="words are counted from 1",
        )
    regions = {0: ""} if position > 1 else {}
    for offset in range(spillover + 1):
        index = position - 1 + offset
        if index < len(word_ends):
            start = word_ends[index - 1] if index else 0
            regions[start] = f"{CRITICAL}+{offset}" if offset else CRITICAL
    index = position + spillover
    if index < len(word_ends):
        regions[word_ends[index - 1]] = ""
    starts = [*regions, len(text)]
    return tuple(
        StimulusSegment(name, start, end, values)
        for name, (start, end) in zip(regions.values(), pairwise(starts), strict=True)
    )


def _word_ends(text: str) -> list[int]:
    """Return where each word ends; the last one includes the white space after it."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return [*ends[:-1], len(text)]


def _join_words(
    spec: StimuliSpec, word: WordSpec, rows: records.Records, location: str
) -> Iterator[Stimulus]:
    """Yield a text per item: its words, joined by spaces. Each word keeps the values of its row."""
    items: set[str] = set()
    for item, item_rows in groupby(rows, lambda row: _get_string(row[1], spec.item, location)):
        text = ""
        segments: list[StimulusSegment] = []
        for line, record in item_rows:
            row_location = f"{location}:{line}"
            if not segments and item in items:
                raise DataError(
                    f"item {item!r} has other rows above, with another item in between",
                    location=row_location,
                    hint="the rows of a text must follow each other; sort the file",
                )
            start = len(text)
            content = _clean(_get_string(record, word.column, row_location), spec.replace)
            text += f" {content}" if text else content
            values = _copy_values(spec, record, row_location)
            region = _get_string(record, word.region, row_location)
            segments.append(StimulusSegment(region, start, len(text), values))
        items.add(item)
        yield Stimulus(item, None, check_text(text, word.column, location), tuple(segments))
