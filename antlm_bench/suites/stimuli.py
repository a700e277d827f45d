"""Read stimuli: texts with words and regions whose surprisal is computed.

Files have one text per line, one row per text, one row per region, or are SyntaxGym's JSON. Words
follow a rule of `antlm_bench.words`; regions are named in the file. Both include the white space
before them, so that the words, or the segments, of a text add up to the text. Other columns of a
file, and the column `prefix`, are copied to the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from antlm_bench.declarations import decode_utf8
from antlm_bench.errors import DataError, UsageError
from antlm_bench.suites import files, records, syntaxgym
from antlm_bench.suites.templates import check_text
from antlm_bench.types import Option
from antlm_bench.words import (
    DEFAULT_WORD_RULE,
    check_splittable,
    check_word_rule,
    joins_without_space,
    split_words,
    strip_space,
)

COLUMNS = ("item", "condition", "region", "sentence", "text", "prefix")
"""Columns of a file that have a meaning. The others are copied."""
UNITS = ("token", "word", "region", "sentence")
# Columns of the result, which a file must not have.
RESULT_COLUMNS = ("word_index", "word", "region_text", "n_tokens", "surprisal_bits")
ExtraColumns = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class StimulusSegment:
    """A segment of a text: text[start:end]."""

    region: str
    """Name of the region; "" = none."""
    start: int
    end: int
    extra_columns: ExtraColumns
    """Columns of the file that are copied to the result."""


@dataclass(frozen=True, slots=True)
class Stimulus:
    """A text and its segments, which add up to the text."""

    item: str
    condition: str | None
    text: str
    segments: tuple[StimulusSegment, ...]
    prefix: str = ""
    """Text before it, which the model reads and which is not scored."""


@dataclass(frozen=True, slots=True)
class ScoringUnit:
    """A word, region or sentence to be scored."""

    option: Option
    """The text with its prefix, and the span of the unit in it."""
    text_index: int
    """Index of its stimulus."""
    start: int
    """Where the scored part of the text starts: after the prefix; 0 without one."""
    row: dict[str, str | int | None]
    """Its row in the result, without surprisals."""

    @property
    def is_word(self) -> bool:
        return "word" in self.row


def read_stimuli(path: Path, columns: Mapping[str, str] | None = None) -> list[Stimulus]:
    """Read a .txt (a sentence per line), .csv, .tsv, .jsonl (parse_table) or .json (SyntaxGym).

    columns: one of COLUMNS -> its name in the file. Raises UsageError for an unknown key of
    `columns`, and DataError, which names file and line.
    """
    records.check_column_names(columns or {}, COLUMNS)
    location, name = str(path), path.name.lower().removesuffix(".gz")
    if syntaxgym.is_syntaxgym_file(name):
        stimuli = _read_syntaxgym(path)
    elif name.endswith(".txt"):
        stimuli = _parse_lines(decode_utf8(files.read_bytes(path), location, DataError), location)
    else:
        rows = records.read_records(files.read_bytes(path), path.name.lower(), location)
        stimuli = parse_table(rows, dict(columns or {}), location)
    if not stimuli:
        raise DataError("0 texts", location=location)
    return stimuli


def split_into_units(
    stimuli: Iterable[Stimulus], unit: str, join: str = " ", words: str | None = None
) -> list[ScoringUnit]:
    """Split stimuli into words, regions or sentences (UNITS); for "token", into words.

    join: see join_prefix. words: a key of WORD_RULES; None = text between white space. Raises
    UsageError for an unknown unit or rule, for regions if the stimuli have none, and for a text
    that the rule does not split into words.
    """
    if unit not in UNITS:
        hint = f"one of {', '.join(UNITS)}"
        raise UsageError(f"unknown unit {unit!r}", location="--by", hint=hint)
    stimuli = list(stimuli)
    _check_words(stimuli, unit, words)
    segments = [segment for stimulus in stimuli for segment in stimulus.segments]
    has_regions = any(segment.region for segment in segments)
    if unit == "region" and not has_regions:
        hint = "a column `region`, or --by word"
        raise UsageError("the stimuli have no regions", location="--by", hint=hint)
    has_conditions = any(stimulus.condition is not None for stimulus in stimuli)
    names = list(dict.fromkeys(name for segment in segments for name in segment.extra_columns))
    unit = "word" if unit == "token" else unit
    units = []
    for index, stimulus in enumerate(stimuli):
        spans = _iter_unit_spans(stimulus, unit, words or DEFAULT_WORD_RULE)
        before = join_prefix(stimulus.prefix, join)
        # White space after the prefix belongs to the first unit, like that before other units.
        scored_start = len(before.rstrip())
        for number, (start, end, segment, values) in enumerate(spans, start=1):
            row: dict[str, str | int | None] = {"item": stimulus.item}
            if has_conditions:
                row["condition"] = stimulus.condition
            if has_regions and unit != "sentence":
                row["region"] = segment.region
            if unit == "word":
                row["word_index"] = number
            row["region_text" if unit == "region" else unit] = strip_space(stimulus.text[start:end])
            row |= {name: values.get(name) for name in names}
            span = (len(before) + start if start else scored_start, len(before) + end)
            option = Option(before + stimulus.text, span)
            units.append(ScoringUnit(option, index, scored_start, row))
    return units


def join_prefix(prefix: str, join: str) -> str:
    """Return a prefix followed by `join`, or unchanged if it is empty or ends in white space."""
    return prefix + (join if prefix and not prefix[-1].isspace() else "")


def _check_words(stimuli: Sequence[Stimulus], unit: str, words: str | None) -> None:
    """Raise UsageError if the word rule is unknown, cannot be used, or does not split a text."""
    if unit not in ("word", "token"):
        if words is not None:
            hint = f"leave it out, or use --by word; it is --by {unit}"
            raise UsageError("the rows are not words", location="--words", hint=hint)
        return
    if words is not None:
        check_word_rule(words)
    if unit == "token":
        return
    for stimulus in stimuli:
        check_splittable(stimulus.text, words, f"item {stimulus.item}")


def _iter_unit_spans(
    stimulus: Stimulus, unit: str, words: str
) -> Iterator[tuple[int, int, StimulusSegment, ExtraColumns]]:
    """Yield (start, end, segment, copied columns) of each unit.

    A word belongs to the segment in which its first character is. A sentence copies a column only
    if all its segments have the same value.
    """
    segments = stimulus.segments
    if unit == "sentence":
        common_values: dict[str, str | None] = {}
        for name, value in segments[0].extra_columns.items():
            is_common = all(s.extra_columns.get(name) == value for s in segments)
            common_values[name] = value if is_common else None
        yield 0, len(stimulus.text), segments[0], common_values
    elif unit == "region":
        yield from ((s.start, s.end, s, s.extra_columns) for s in segments if s.region)
    else:
        for start, end in split_words(stimulus.text, words):
            word_start = stimulus.text.index(strip_space(stimulus.text[start:end]), start)
            segment = next(s for s in segments if s.start <= word_start < s.end)
            yield start, end, segment, segment.extra_columns


def stimuli_from_texts(texts: Sequence[str]) -> list[Stimulus]:
    """Return one stimulus per text, with items numbered from 1. Raises DataError if there is no
    text, or one is empty or has characters that no tokenizer accepts."""
    if not texts:
        raise DataError("0 texts", location="stimuli")
    for index, text in enumerate(texts):
        if not text.strip():
            raise DataError("the text is empty", location=f"stimuli[{index}]", hint="leave it out")
    return [_whole_text(str(n), text, f"stimuli[{n - 1}]") for n, text in enumerate(texts, start=1)]


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
    whole_text = StimulusSegment(region="", start=0, end=len(checked), extra_columns={})
    return Stimulus(item, condition=None, text=checked, segments=(whole_text,))


def _read_syntaxgym(path: Path) -> list[Stimulus]:
    gym = syntaxgym.read_suite(path)
    stimuli = []
    for sentence in chain.from_iterable(gym.sentences):
        segments = tuple(
            StimulusSegment(gym.region_names.get(number, number), start, end, extra_columns={})
            for number, (start, end) in sentence.regions.items()
            if start < end
        )
        stimuli.append(Stimulus(sentence.item, sentence.condition, sentence.text, segments))
    return stimuli


def parse_table(rows: records.Records, columns: dict[str, str], location: str) -> list[Stimulus]:
    """Parse a table with a row per region or a row per text.

    A row per region has the columns `text` and `region`; the rows of an item and condition follow
    each other. A row per text has the column `sentence`, or `text` without `region`; the column
    `region` of a sentence is a substring of it.
    """
    stimuli: list[Stimulus] = []
    text_rows: list[tuple[str, dict[str, str]]] = []  # (location, row) of the current text
    first_locations: dict[tuple[str, str | None], str] = {}  # text -> location of its first row

    def finish_text() -> None:
        if text_rows:
            stimuli.append(_stimulus_from_regions(text_rows))
            location, row = text_rows[0]
            first_locations[_text_key(row)] = location
            text_rows.clear()

    for number, (line, record) in enumerate(rows, start=1):
        row_location = f"{location}:{line}"
        row = _rename_columns(record, columns, row_location)
        row.setdefault("item", str(number))
        if "sentence" in row or "region" not in row:
            stimuli.append(_stimulus_from_sentence(row, row_location))
            continue
        key = _text_key(row)
        if text_rows and _text_key(text_rows[0][1]) != key:
            finish_text()
        if key in first_locations:
            message = (
                f"item {row['item']!r} has other rows at {first_locations[key]}, "
                "with rows of another item or condition in between"
            )
            hint = (
                "the rows of an item and condition must follow each other: sort the file, or give "
                "different texts different items"
            )
            raise DataError(message, location=row_location, hint=hint)
        text_rows.append((row_location, row))
    finish_text()
    return stimuli


def _text_key(row: Mapping[str, str]) -> tuple[str, str | None]:
    return row["item"], row.get("condition")


def _rename_columns(
    raw: records.Record, columns: Mapping[str, str], location: str
) -> dict[str, str]:
    """Return a row with the names in COLUMNS and texts as values.

    columns: one of COLUMNS -> its name in the file. Raises DataError if one of these columns, or
    the column with the text, is missing, or if a column has a name of the result's columns.
    """
    for file_column in columns.values():
        if file_column not in raw:
            raise records.missing_column_error(file_column, raw, location)
    new_names = {file_column: column for column, file_column in columns.items()}
    row = {
        new_names.get(name, name): value if isinstance(value, str) else str(value)
        for name, value in raw.items()
    }
    for name in row:
        if name in RESULT_COLUMNS:
            message = f"the result has a column {name!r}, too"
            hint = f"rename it in the file, or give its meaning: --columns text={name}"
            raise DataError(message, location=location, hint=hint)
    if "sentence" not in row and "text" not in row:
        advice = "; name it with --columns sentence=..., or --columns text=...,region=...; columns "
        advice += "that hold a text per condition with --conditions A,B"
        raise records.missing_column_error("sentence", raw, location, advice)
    return row


def _stimulus_from_sentence(row: dict[str, str], location: str) -> Stimulus:
    column = "sentence" if "sentence" in row else "text"
    text = check_text(row[column].strip(), column, location)
    if not text:
        raise DataError(f"{column!r} is empty", location=location)
    extra_columns = _get_extra_columns(row, column)
    prefix = check_text(row.get("prefix", ""), "prefix", location)
    region = row.get("region", "").strip()
    if not region:
        whole_text = StimulusSegment("", 0, len(text), extra_columns)
        return Stimulus(row["item"], row.get("condition"), text, (whole_text,), prefix)
    count = text.count(region)
    if count != 1:
        message = f"the sentence contains the region {region!r} {count} times, not once"
        raise DataError(message, location=location)
    start = text.index(region)
    bounds = (0, len(text[:start].rstrip()), start + len(region), len(text))
    segments = tuple(
        StimulusSegment(name, first, last, extra_columns)
        for name, first, last in zip(("", region, ""), bounds[:-1], bounds[1:], strict=True)
        if first < last
    )
    return Stimulus(row["item"], row.get("condition"), text, segments, prefix)


def _get_extra_columns(row: dict[str, str], text_column: str) -> dict[str, str | None]:
    own_columns = ("item", "condition", "region", text_column)
    return {name: value for name, value in row.items() if name not in own_columns}


def _stimulus_from_regions(rows: list[tuple[str, dict[str, str]]]) -> Stimulus:
    """Join the regions of a text by spaces, without empty ones. rows: (location, row) of each.

    There is no space between two letters of a script that is written without spaces.
    """
    text = ""
    segments: list[StimulusSegment] = []
    for location, row in rows:
        region, content = row["region"], check_text(row["text"].strip(), "text", location)
        is_new_region = not segments or region != segments[-1].region
        if is_new_region and region in {segment.region for segment in segments}:
            message = f"item {row['item']!r} has the region {region!r} again after other regions"
            hint = "two texts must differ in `item` or `condition`"
            raise DataError(message, location=location, hint=hint)
        if content:
            start = len(text)
            separator = " " if text and not joins_without_space(text, content) else ""
            text += separator + content
            extra_columns = _get_extra_columns(row, "text")
            segments.append(StimulusSegment(region, start, len(text), extra_columns))
    first_location, first_row = rows[0]
    if not text:
        raise DataError("'text' is empty in all rows of this item", location=first_location)
    prefix = check_text(first_row.get("prefix", ""), "prefix", first_location)
    for location, row in rows:
        if row.get("prefix", "") != prefix:
            message = f"item {row['item']!r} has two prefixes: {prefix!r}, {row['prefix']!r}"
            hint = "a text has one prefix: repeat it in each of its rows"
            raise DataError(message, location=location, hint=hint)
    condition = first_row.get("condition")
    return Stimulus(first_row["item"], condition, text, tuple(segments), prefix)
