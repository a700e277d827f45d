"""Stimuli as linguists keep them -> texts with their regions and words: a line each, a row each, a
row per region, or SyntaxGym's JSON.

A word is what stands between white space, a region what the file says; both own the white space
before them, so that the stretches of a text add up to it. Columns that are not ours are carried
over to the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from antlm_bench.declarations import decode_utf8, suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.suites import files, records, syntaxgym
from antlm_bench.suites.templates import check_text
from antlm_bench.types import Option

COLUMNS = ("item", "condition", "region", "sentence", "text")
UNITS = ("word", "region", "sentence")
RESULT_COLUMNS = (
    "word_index",
    "word",
    "region_text",
    "n_tokens",
    "surprisal_bits",
)  # columns of the result that no input may have
WORD_PATTERN = re.compile(r"\S+")
ExtraColumns = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class StimulusSegment:
    """A stretch of a text: what it is called ("" = no region), its characters, and the columns that
    come with it.
    """

    region: str
    start: int
    end: int
    extra_columns: ExtraColumns


@dataclass(frozen=True, slots=True)
class Stimulus:
    """A text whose pieces, one after the other, are all of it."""

    item: str
    condition: str | None
    text: str
    segments: tuple[StimulusSegment, ...]

    @property
    def word_spans(self) -> Iterator[tuple[int, int]]:
        """The words: (start, end), the white space before each included, that after the last one
        too.
        """
        ends = [found.end() for found in WORD_PATTERN.finditer(self.text)]
        starts = [0, *ends[:-1]]
        return iter(zip(starts, [*ends[:-1], len(self.text)], strict=True))


@dataclass(frozen=True, slots=True)
class ScoringUnit:
    """A stretch to be scored, and its row of the result without the numbers."""

    option: Option
    row: dict[str, str | int | None]


def read_stimuli(path: Path, columns: Mapping[str, str] | None = None) -> list[Stimulus]:
    """The stimuli of a .txt (a sentence per line), .csv, .tsv, .jsonl (see `_table`) or .json
    (SyntaxGym) file.

    columns: ours -> theirs. Raises UsageError (a column that is not ours), DataError naming file
    and line.
    """
    for ours in columns or {}:
        if ours not in COLUMNS:
            hint = suggest_name(ours, COLUMNS) or f"ours are {', '.join(COLUMNS)}"
            raise UsageError(f"unknown column {ours!r}", location="--columns", hint=hint)
    place, name = str(path), path.name.lower().removesuffix(".gz")
    if syntaxgym.is_syntaxgym_file(name):
        found = _read_syntaxgym(path)
    elif name.endswith(".txt"):
        found = _parse_lines(decode_utf8(files.read_bytes(path), place, DataError), place)
    else:
        found = _parse_table(
            records.read_records(files.read_bytes(path), path.name.lower(), place),
            dict(columns or {}),
            place,
        )
    if not found:
        raise DataError("0 texts", location=place)
    return found


def split_into_units(stimuli: Iterable[Stimulus], unit: str) -> list[ScoringUnit]:
    """The stretches of one of UNITS. UsageError where regions are wanted and there are none."""
    if unit not in UNITS:
        raise UsageError(
            f"unknown unit {unit!r}", location="--by", hint=f"one of {', '.join(UNITS)}"
        )
    kept = list(stimuli)
    regions = any(piece.region for stimulus in kept for piece in stimulus.segments)
    if unit == "region" and not regions:
        raise UsageError(
            "the stimuli have no regions", location="--by", hint="a column `region`, or --by word"
        )
    conditions = any(stimulus.condition is not None for stimulus in kept)
    names = list(
        dict.fromkeys(n for s in kept for piece in s.segments for n in piece.extra_columns)
    )
    made = []
    for stimulus in kept:
        about: dict[str, str | int | None] = {"item": stimulus.item}
        about |= {"condition": stimulus.condition} if conditions else {}
        for number, (start, end, piece, carried) in enumerate(
            _iter_unit_spans(stimulus, unit), start=1
        ):
            row = dict(about)
            if regions and unit != "sentence":
                row["region"] = piece.region
            row |= {"word_index": number} if unit == "word" else {}
            row["region_text" if unit == "region" else unit] = stimulus.text[start:end].strip()
            made.append(
                ScoringUnit(
                    Option(stimulus.text, (start, end)),
                    row | {name: carried.get(name) for name in names},
                )
            )
    return made


def _iter_unit_spans(
    stimulus: Stimulus, unit: str
) -> Iterator[tuple[int, int, StimulusSegment, ExtraColumns]]:
    pieces = stimulus.segments
    if unit == "sentence":
        shared = dict(pieces[0].extra_columns)
        for piece in pieces[1:]:
            shared = {
                name: value if piece.extra_columns.get(name) == value else None
                for name, value in shared.items()
            }
        yield 0, len(stimulus.text), pieces[0], shared
    elif unit == "region":
        yield from ((p.start, p.end, p, p.extra_columns) for p in pieces if p.region)
    else:
        for start, end in stimulus.word_spans:
            word = end - len(stimulus.text[start:end].lstrip())
            piece = next(p for p in reversed(pieces) if p.start <= word and p.start < p.end)
            yield start, end, piece, piece.extra_columns


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
    return [
        Stimulus(
            s.item,
            s.condition,
            s.text,
            tuple(
                StimulusSegment(gym.region_names.get(n, n), start, end, {})
                for n, (start, end) in s.regions.items()
                if start < end
            ),
        )
        for sentences in gym.sentences
        for s in sentences
    ]


def _parse_table(rows: records.Records, columns: dict[str, str], location: str) -> list[Stimulus]:
    """Columns: `text` and `region`, a row per region, rows of one item and condition one after the
    other; or `sentence` (`text` without `region` is the same), a row per text, in which `region`,
    if there, is a part of the sentence.
    """
    made: list[Stimulus] = []
    open_rows: list[tuple[str, dict[str, str]]] = []
    finished: dict[tuple[str, str | None], str] = {}

    def close() -> None:
        if open_rows:
            made.append(_stimulus_from_regions(open_rows))
            finished[made[-1].item, made[-1].condition] = open_rows[0][0]
            open_rows.clear()

    for number, (line, raw) in enumerate(rows, start=1):
        here = f"{location}:{line}"
        row = _rename_columns(raw, columns, here)
        row.setdefault("item", str(number))
        if "sentence" in row or "region" not in row:
            made.append(_stimulus_from_sentence(row, here))
            continue
        if open_rows and _text_key(open_rows[0][1]) != _text_key(row):
            close()
        if _text_key(row) in finished:
            message = f"item {row['item']!r} goes on, which began at {finished[_text_key(row)]}"
            raise DataError(
                message,
                location=here,
                hint="the rows of a text stand one after the other; sort the file",
            )
        open_rows.append((here, row))
    close()
    return made


def _text_key(row: Mapping[str, str]) -> tuple[str, str | None]:
    return row["item"], row.get("condition")


def _rename_columns(
    raw: records.Record, columns: Mapping[str, str], location: str
) -> dict[str, str]:
    """A row under our names. DataError where a column that was promised, or any with text, is
    missing.
    """
    for theirs in columns.values():
        if theirs not in raw:
            hint = suggest_name(theirs, raw) or f"there are {', '.join(map(repr, list(raw)[:20]))}"
            raise DataError(f"the column {theirs!r} is missing", location=location, hint=hint)
    ours = {theirs: name for name, theirs in columns.items()}
    row = {
        ours.get(name, name): value if isinstance(value, str) else str(value)
        for name, value in raw.items()
    }
    if taken := [name for name in row if name in RESULT_COLUMNS]:
        raise DataError(
            f"the column {taken[0]!r} is one of the result's",
            location=location,
            hint=f"rename it, or say what it is: --columns text={taken[0]}",
        )
    if "sentence" not in row and "text" not in row:
        named = f"there are {', '.join(map(repr, list(raw)[:20]))}"
        hint = f"{named}; say which with --columns sentence=..., or --columns text=...,region=..."
        raise DataError("the column 'sentence' is missing", location=location, hint=hint)
    return row


def _stimulus_from_sentence(row: dict[str, str], location: str) -> Stimulus:
    column = "sentence" if "sentence" in row else "text"
    text = check_text(row[column].strip(), column, location)
    if not text:
        raise DataError(f"{column!r} is empty", location=location)
    carried = {n: v for n, v in row.items() if n not in ("item", "condition", "region", column)}
    region = row.get("region", "").strip()
    if text.count(region) != 1 and region:
        times = "not" if region not in text else "more than once"
        raise DataError(f"the region {region!r} is {times} in the sentence", location=location)
    if not region:
        return Stimulus(
            row["item"], row.get("condition"), text, (StimulusSegment("", 0, len(text), carried),)
        )
    start = text.index(region)
    cuts = (0, len(text[:start].rstrip()), start + len(region), len(text))
    pieces = [
        StimulusSegment(n, a, b, carried)
        for n, a, b in zip(("", region, ""), cuts, cuts[1:], strict=False)
        if a < b
    ]
    return Stimulus(row["item"], row.get("condition"), text, tuple(pieces))


def _stimulus_from_regions(rows: list[tuple[str, dict[str, str]]]) -> Stimulus:
    """Rows of regions as one text, joined by a space; an empty region is no part of it."""
    text, pieces = "", list[StimulusSegment]()
    for place, row in rows:
        region, said = row["region"], check_text(row["text"].strip(), "text", place)
        if region in {piece.region for piece in pieces[:-1]} and region != pieces[-1].region:
            hint = "two texts under one item and condition? tell them apart in `item`"
            raise DataError(
                f"the region {region!r} stands twice in item {row['item']!r}",
                location=place,
                hint=hint,
            )
        start = len(text)
        text += (" " if text and said else "") + said
        carried = {n: v for n, v in row.items() if n not in ("item", "condition", "region", "text")}
        if said:
            pieces.append(StimulusSegment(region, start, len(text), carried))
    if not text:
        raise DataError("'text' is empty in all rows of this item", location=rows[0][0])
    return Stimulus(rows[0][1]["item"], rows[0][1].get("condition"), text, tuple(pieces))
