"""Read stimuli: texts with regions and words, from lines, a row per text, a row per region, or
SyntaxGym's JSON.

Words are separated by white space, regions are declared in the file. Both include the white space
before them, so that the segments of a text add up to it. Columns that are not ours are copied to
the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench.declarations import decode_utf8
from antlm_bench.errors import DataError, UsageError
from antlm_bench.suites import files, records, syntaxgym
from antlm_bench.suites.templates import check_text
from antlm_bench.types import Option

COLUMNS = ("item", "condition", "region", "sentence", "text")
UNITS = ("word", "region", "sentence")
# Columns of the result, which no input may have.
RESULT_COLUMNS = ("word_index", "word", "region_text", "n_tokens", "surprisal_bits")
WORD_PATTERN = re.compile(r"\S+")
ExtraColumns = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class StimulusSegment:
    """A part of a text."""

    region: str
    """Name of the region; "" = none."""
    start: int
    end: int
    extra_columns: ExtraColumns
    """Columns of the input to copy."""


@dataclass(frozen=True, slots=True)
class Stimulus:
    """A text that consists of its segments, one after the other."""

    item: str
    condition: str | None
    text: str
    segments: tuple[StimulusSegment, ...]

    @property
    def word_spans(self) -> Iterator[tuple[int, int]]:
        """(start, end) of each word, with the white space before it, and after the last one."""
        bounds = [match.end() for match in WORD_PATTERN.finditer(self.text)][:-1]
        return zip([0, *bounds], [*bounds, len(self.text)], strict=True)


@dataclass(frozen=True, slots=True)
class ScoringUnit:
    """A word, region or sentence to be scored."""

    option: Option
    row: dict[str, str | int | None]
    """Its row of the result, without the numbers."""


def read_stimuli(path: Path, columns: Mapping[str, str] | None = None) -> list[Stimulus]:
    """Read a .txt (a sentence per line), .csv, .tsv, .jsonl (_parse_table) or .json (SyntaxGym).

    columns: our column -> the file's. Raises UsageError (an unknown column of ours), DataError,
    naming file and line.
    """
    records.check_column_names(columns or {}, COLUMNS)
    location, name = str(path), path.name.lower().removesuffix(".gz")
    if syntaxgym.is_syntaxgym_file(name):
        stimuli = _read_syntaxgym(path)
    elif name.endswith(".txt"):
        stimuli = _parse_lines(decode_utf8(files.read_bytes(path), location, DataError), location)
    else:
        rows = records.read_records(files.read_bytes(path), path.name.lower(), location)
        stimuli = _parse_table(rows, dict(columns or {}), location)
    if not stimuli:
        raise DataError("0 texts", location=location)
    return stimuli


def split_into_units(stimuli: Iterable[Stimulus], unit: str) -> list[ScoringUnit]:
    """Split stimuli into words, regions or sentences (UNITS).

    Raises UsageError for another unit, and where regions are wanted and there are none.
    """
    if unit not in UNITS:
        hint = f"one of {', '.join(UNITS)}"
        raise UsageError(f"unknown unit {unit!r}", location="--by", hint=hint)
    stimuli = list(stimuli)
    segments = [segment for stimulus in stimuli for segment in stimulus.segments]
    has_regions = any(segment.region for segment in segments)
    if unit == "region" and not has_regions:
        hint = "a column `region`, or --by word"
        raise UsageError("the stimuli have no regions", location="--by", hint=hint)
    has_conditions = any(stimulus.condition is not None for stimulus in stimuli)
    names = list(dict.fromkeys(name for segment in segments for name in segment.extra_columns))
    units = []
    for stimulus in stimuli:
        spans = _iter_unit_spans(stimulus, unit)
        for number, (start, end, segment, values) in enumerate(spans, start=1):
            row: dict[str, str | int | None] = {"item": stimulus.item}
            if has_conditions:
                row["condition"] = stimulus.condition
            if has_regions and unit != "sentence":
                row["region"] = segment.region
            if unit == "word":
                row["word_index"] = number
            row["region_text" if unit == "region" else unit] = stimulus.text[start:end].strip()
            row |= {name: values.get(name) for name in names}
            units.append(ScoringUnit(Option(stimulus.text, (start, end)), row))
    return units


def _iter_unit_spans(
    stimulus: Stimulus, unit: str
) -> Iterator[tuple[int, int, StimulusSegment, ExtraColumns]]:
    """Yield (start, end, segment, columns to copy) of each unit.

    A sentence copies the columns that all of its segments agree on; a word belongs to the segment
    in which it begins.
    """
    segments = stimulus.segments
    if unit == "sentence":
        shared = {
            name: value if all(s.extra_columns.get(name) == value for s in segments) else None
            for name, value in segments[0].extra_columns.items()
        }
        yield 0, len(stimulus.text), segments[0], shared
    elif unit == "region":
        yield from ((s.start, s.end, s, s.extra_columns) for s in segments if s.region)
    else:
        for start, end in stimulus.word_spans:
            word = end - len(stimulus.text[start:end].lstrip())
            segment = next(s for s in reversed(segments) if s.start <= word and s.start < s.end)
            yield start, end, segment, segment.extra_columns


def stimuli_from_texts(texts: Sequence[str]) -> list[Stimulus]:
    """Return a stimulus per text, numbered from 1. Raises DataError for none, or for no text."""
    if not texts:
        raise DataError("0 texts", location="texts")
    return [_whole_text(str(n), text, f"texts[{n - 1}]") for n, text in enumerate(texts, start=1)]


def _parse_lines(text: str, location: str) -> list[Stimulus]:
    lines = text.removeprefix("\ufeff").split("\n")
    return [
        _whole_text(str(number), line.strip(), f"{location}:{number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _whole_text(item: str, text: str, location: str) -> Stimulus:
    """Return a text without regions as a stimulus."""
    checked = check_text(text, "the line", location)
    return Stimulus(item, None, checked, (StimulusSegment("", 0, len(checked), {}),))


def _read_syntaxgym(path: Path) -> list[Stimulus]:
    gym = syntaxgym.read_suite(path)
    stimuli = []
    for sentence in (sentence for sentences in gym.sentences for sentence in sentences):
        segments = tuple(
            StimulusSegment(gym.region_names.get(number, number), start, end, {})
            for number, (start, end) in sentence.regions.items()
            if start < end
        )
        stimuli.append(Stimulus(sentence.item, sentence.condition, sentence.text, segments))
    return stimuli


def _parse_table(rows: records.Records, columns: dict[str, str], location: str) -> list[Stimulus]:
    """Parse a table with a row per region or a row per text.

    A row per region has the columns `text` and `region`; the rows of an item and condition follow
    each other. A row per text has the column `sentence`, or `text` without `region`; a `region`
    beside a sentence is a part of it.
    """
    stimuli: list[Stimulus] = []
    open_rows: list[tuple[str, dict[str, str]]] = []  # of one text: (location, row)
    finished: dict[tuple[str, str | None], str] = {}  # text -> location of its first row

    def close_text() -> None:
        if open_rows:
            stimuli.append(_stimulus_from_regions(open_rows))
            finished[_text_key(open_rows[0][1])] = open_rows[0][0]
            open_rows.clear()

    for number, (line, record) in enumerate(rows, start=1):
        row_location = f"{location}:{line}"
        row = _rename_columns(record, columns, row_location)
        row.setdefault("item", str(number))
        if "sentence" in row or "region" not in row:
            stimuli.append(_stimulus_from_sentence(row, row_location))
            continue
        if open_rows and _text_key(open_rows[0][1]) != _text_key(row):
            close_text()
        if _text_key(row) in finished:
            message = f"item {row['item']!r} goes on, which began at {finished[_text_key(row)]}"
            hint = "the rows of a text stand one after the other; sort the file"
            raise DataError(message, location=row_location, hint=hint)
        open_rows.append((row_location, row))
    close_text()
    return stimuli


def _text_key(row: Mapping[str, str]) -> tuple[str, str | None]:
    return row["item"], row.get("condition")


def _rename_columns(
    raw: records.Record, columns: Mapping[str, str], location: str
) -> dict[str, str]:
    """Return a row under our names. Raises DataError where a column of --columns, or any text
    column, is missing.
    """
    for theirs in columns.values():
        if theirs not in raw:
            raise records.missing_column_error(theirs, raw, location)
    ours = {theirs: name for name, theirs in columns.items()}
    row = {
        ours.get(name, name): value if isinstance(value, str) else str(value)
        for name, value in raw.items()
    }
    if taken := [name for name in row if name in RESULT_COLUMNS]:
        hint = f"rename it, or say what it is: --columns text={taken[0]}"
        message = f"the column {taken[0]!r} is one of the result's"
        raise DataError(message, location=location, hint=hint)
    if "sentence" not in row and "text" not in row:
        names = ", ".join(map(repr, list(raw)[: records.MAX_NAMES_SHOWN]))
        hint = "say which with --columns sentence=..., or --columns text=...,region=..."
        hint = f"there are {names}; {hint}"
        raise DataError("the column 'sentence' is missing", location=location, hint=hint)
    return row


def _stimulus_from_sentence(row: dict[str, str], location: str) -> Stimulus:
    column = "sentence" if "sentence" in row else "text"
    text = check_text(row[column].strip(), column, location)
    if not text:
        raise DataError(f"{column!r} is empty", location=location)
    copied = _columns_to_copy(row, column)
    region = row.get("region", "").strip()
    if text.count(region) != 1 and region:
        times = "not" if region not in text else "more than once"
        raise DataError(f"the region {region!r} is {times} in the sentence", location=location)
    segments: tuple[StimulusSegment, ...] = (StimulusSegment("", 0, len(text), copied),)
    if region:
        start = text.index(region)
        bounds = (0, len(text[:start].rstrip()), start + len(region), len(text))
        segments = tuple(
            StimulusSegment(name, first, last, copied)
            for name, first, last in zip(("", region, ""), bounds[:-1], bounds[1:], strict=True)
            if first < last
        )
    return Stimulus(row["item"], row.get("condition"), text, segments)


def _columns_to_copy(row: dict[str, str], text_column: str) -> dict[str, str | None]:
    own = ("item", "condition", "region", text_column)
    return {name: value for name, value in row.items() if name not in own}


def _stimulus_from_regions(rows: list[tuple[str, dict[str, str]]]) -> Stimulus:
    """Join (location, row) of regions by spaces; empty regions are left out."""
    text = ""
    segments: list[StimulusSegment] = []
    for location, row in rows:
        region, content = row["region"], check_text(row["text"].strip(), "text", location)
        if region in {s.region for s in segments[:-1]} and region != segments[-1].region:
            message = f"the region {region!r} stands twice in item {row['item']!r}"
            hint = "two texts under one item and condition? tell them apart in `item`"
            raise DataError(message, location=location, hint=hint)
        if content:
            start = len(text)
            text += f" {content}" if text else content
            copied = _columns_to_copy(row, "text")
            segments.append(StimulusSegment(region, start, len(text), copied))
    first_location, first_row = rows[0]
    if not text:
        raise DataError("'text' is empty in all rows of this item", location=first_location)
    return Stimulus(first_row["item"], first_row.get("condition"), text, tuple(segments))
