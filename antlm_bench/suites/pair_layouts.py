"""Layouts of files of minimal pairs and of judgements: how lines or rows become records.

`LAYOUTS` holds one record per layout. Users' files (suites/pair_files.py) and the key `layout` of a
TOML's table [data] name them. A file of lines (.txt) is read line by line, any other file row by
row (suites/records.py). Each pair is a record with the texts `good` and `bad`, and the fields of
the row with the good sentence.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError, UsageError
from antlm_bench.printable import format_count
from antlm_bench.suites import records

DEFAULT_LAYOUT = "columns"
GROUP_LEVELS = ("field", "phenomenon", "paradigm")
OPTIONAL_COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id",),
    "field": ("field",),
    "phenomenon": ("phenomenon", "linguistics_term"),
    "paradigm": ("paradigm", "UID"),
    "cluster": ("cluster",),
}
"""Column that a file of pairs may have -> its recognised names, among them BLiMP's."""
ORDERS = ("first", "second")
"""Which of two lines is right, in the layout `alternating`."""
GOOD_LABELS = frozenset({"true", "1", "", "good", "grammatical", "acceptable", "correct"})
"""Labels of right sentences, in lower case. "" is among them: linguists leave such sentences
unmarked."""
BAD_LABELS = frozenset(
    {"false", "0", "*", "bad", "ungrammatical", "unacceptable", "incorrect", "wrong"}
)
"""Labels of wrong sentences, in lower case."""

OTHER_MARKS = ("?", "#")
"""Marks of sentences that are neither right nor wrong, at the beginning of a line."""


@dataclass(frozen=True, slots=True)
class PairFormat:
    """How a file of pairs is read."""

    layout: str
    """Name in LAYOUTS."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our column -> its name in the file. Columns with a recognised name may be left out."""
    good: str = ""
    """Which sentence is right: one of ORDERS, or the label of right sentences. "" = the layout or
    the known labels decide."""

    def __str__(self) -> str:
        """Return one line for the notes of a run, such as `alternating; second is right`."""
        columns = ", ".join(f"{ours} = {theirs}" for ours, theirs in self.columns.items())
        right = f"{self.good!r} is right" if self.good else ""
        return "; ".join(filter(None, (self.layout, right, columns)))


@dataclass(frozen=True, slots=True)
class PairLayout:
    """One layout of files of pairs."""

    name: str
    description: str
    """What a line or row of such a file holds."""
    columns: Mapping[str, tuple[str, ...]]
    """Column that a row must have -> its recognised names."""
    pair_rows: Callable[[records.Records, PairFormat, str], records.Records]
    """(rows with these columns, format, location of the file) -> pairs with their line. Raises
    DataError, which names the file and the line."""
    parse_line: Callable[[str, str], records.Record] | None = None
    """(line of a .txt, its location) -> its columns; None = a .txt does not have this layout."""
    find_good_problem: Callable[[str], str] | None = None
    """Function of a value of PairFormat.good: returns what is wrong with it, "" if nothing is.
    None = every value is right."""
    is_paired: bool = True
    """Whether records are pairs; else they are single sentences with a label of 1 or 0."""
    has_keys: bool = False
    """Whether several pairs may share a good sentence. Such pairs have the same field `key`."""


def read_pairs(raw: bytes, name: str, location: str, pair_format: PairFormat) -> records.Records:
    """Return (line, record) of each pair of a file.

    raw: the decompressed bytes. name: the file's name, whose extension decides the format.
    location: the file, for error messages.

    A record has `good`, `bad`, the columns of OPTIONAL_COLUMNS that the file has, and all fields of
    the file. Raises DataError for a missing column or sentences that do not form pairs, UsageError
    for settings that do not fit the layout.
    """
    check_format(pair_format)
    layout = LAYOUTS[pair_format.layout]
    rows = _rename_columns(_read_rows(raw, name, location, layout), pair_format, location)
    if "label" in layout.columns:
        rows = _refuse_missing_labels(rows, pair_format, location)
    return layout.pair_rows(rows, pair_format, location)


def check_format(pair_format: PairFormat) -> None:
    """Raise UsageError for an unknown layout or column, or a `good` that does not fit the layout.

    The locations are flags of `score`; the keys of [data] in a TOML have the same names.
    """
    if pair_format.layout not in LAYOUTS:
        hint = suggest_name(pair_format.layout, LAYOUTS) or f"one of {', '.join(LAYOUTS)}"
        message = f"unknown layout {pair_format.layout!r}"
        raise UsageError(message, location="--layout", hint=hint)
    layout = LAYOUTS[pair_format.layout]
    records.check_column_names(pair_format.columns, [*layout.columns, *OPTIONAL_COLUMNS])
    columns = [pair_format.columns[name] for name in layout.columns if name in pair_format.columns]
    for column in columns:
        if columns.count(column) > 1:
            raise UsageError(
                f"the column {column!r} has two meanings",
                location="--columns",
                hint=f"name a column each for {', '.join(layout.columns)}",
            )
    if layout.find_good_problem and (problem := layout.find_good_problem(pair_format.good)):
        raise UsageError(
            problem,
            location="--good",
            hint="--good-first or --bad-first for lines in twos, --good LABEL for labels",
        )


def is_lines_file(name: str) -> bool:
    """Return whether a file is read line by line, by its extension."""
    return name.lower().removesuffix(".gz").endswith(".txt")


def _read_rows(raw: bytes, name: str, location: str, layout: PairLayout) -> records.Records:
    if not is_lines_file(name):
        return records.read_records(raw, name, location)
    if layout.parse_line is None:
        with_lines = [each.name for each in LAYOUTS.values() if each.parse_line]
        raise DataError(
            f"a .txt has no columns for the layout {layout.name!r}",
            location=location,
            hint=f"name a table .csv, .tsv or .jsonl; a .txt is {' or '.join(with_lines)}",
        )
    parse_line = layout.parse_line
    rows = ((n, parse_line(line, f"{location}:{n}")) for n, line in read_lines(raw, location))
    return records.limit_records(rows, location)


def read_lines(raw: bytes, location: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of the lines that are not blank. Raises DataError as decode_text."""
    lines = re.split("\r\n|\r|\n", records.decode_text(raw, location))
    return ((number, line) for number, line in enumerate(lines, start=1) if line.strip())


def _rename_columns(
    rows: records.Records, pair_format: PairFormat, location: str
) -> records.Records:
    """Yield the rows with our names of columns, besides those of the file. The columns of the first
    row decide which names are added.
    """
    layout = LAYOUTS[pair_format.layout]
    names: dict[str, str] = {}
    for line, record in rows:
        row_location = f"{location}:{line}"
        names = names or _match_columns(record, layout, pair_format.columns, row_location)
        for name in names.values():
            if name not in record:
                raise records.missing_column_error(name, record, row_location)
        yield line, {**record, **{column: record[name] for column, name in names.items()}}


def _match_columns(
    record: records.Record, layout: PairLayout, columns: Mapping[str, str], location: str
) -> dict[str, str]:
    """Return our column -> its name in the file, for the columns that the file has."""
    names = {}
    for column, recognised_names in {**layout.columns, **OPTIONAL_COLUMNS}.items():
        candidates = (columns[column],) if column in columns else recognised_names
        matches = [name for name in candidates if name in record]
        if matches:
            names[column] = matches[0]
        elif column in columns or column in layout.columns:
            advice = f"; name it with --columns {column}=..."
            raise records.missing_column_error(candidates[0], record, location, advice)
    return names


def _refuse_missing_labels(
    rows: records.Records, pair_format: PairFormat, location: str
) -> records.Records:
    """Yield the rows. Raises DataError for an empty label in a file with other labels than *.

    Linguists mark wrong sentences by a star and leave right ones unmarked. In a file with other
    labels (1 and 0, or `good` and others), an empty label is a missing one.
    """
    empty_line, line_by_label = 0, dict[str, int]()
    max_other_labels = 1 if pair_format.good else 0
    for line, row in rows:
        label = format_label(row["label"])
        if label and (pair_format.good or label != "*"):
            line_by_label.setdefault(label, line)
        elif not label:
            empty_line = empty_line or line
        if empty_line and len(line_by_label) > max_other_labels:
            other, other_line = next(iter(line_by_label.items()))
            raise DataError(
                f"the label is empty, but line {other_line} has the label {other!r:.40}",
                location=f"{location}:{empty_line}",
                hint="label each sentence; without a label it is right only beside labels *",
            )
        yield line, row


# ---- the layouts


def _pair_columns(rows: records.Records, _: PairFormat, __: str) -> records.Records:
    """Return the rows unchanged: each has both sentences."""
    return rows


def _pair_in_twos(rows: records.Records, pair_format: PairFormat, location: str) -> records.Records:
    """Yield a pair per two rows. `good` says which of them is right."""
    pending: tuple[int, records.Record] | None = None
    count = 0
    for line, row in rows:
        count += 1
        if pending is None:
            pending = line, row
            continue
        first_line, first = pending
        good, bad = (first, row) if pair_format.good == "first" else (row, first)
        yield first_line, _build_pair(good, bad)
        pending = None
    if pending is not None:
        raise DataError(
            f"the last sentence has no partner: {format_count(count, 'sentence')}, an odd number",
            location=f"{location}:{pending[0]}",
            hint="is a line missing, or a title among them? Blank lines are skipped",
        )


def _pair_labelled(
    rows: records.Records, pair_format: PairFormat, location: str
) -> records.Records:
    """Yield a pair per wrong sentence, with the last right sentence before it."""
    good: records.Record | None = None
    good_line, has_pair = 0, True
    for line, row in rows:
        if _is_good(row, pair_format, f"{location}:{line}"):
            if not has_pair:
                raise _partner_error(f"{location}:{good_line}", "right", "wrong", pair_format)
            good, good_line, has_pair = row, line, False
        elif good is None:
            raise _partner_error(f"{location}:{line}", "wrong", "right", pair_format)
        else:
            has_pair = True
            yield line, {**_build_pair(good, row), "key": str(good_line)}
    if not has_pair:
        raise _partner_error(f"{location}:{good_line}", "right", "wrong", pair_format)


def _partner_error(
    location: str, sentence: str, partner: str, pair_format: PairFormat
) -> DataError:
    where = "after" if partner == "wrong" else "before"
    hint = "a right sentence is followed by one or more wrong ones"
    if pair_format.good:
        hint += f"; the label of the right ones is {pair_format.good!r}"
    else:
        hint += "; --good-first or --bad-first reads lines in twos; "
        hint += f"see antlm-bench suggest {shlex.quote(location.rpartition(':')[0])}"
    message = f"a {sentence} sentence without a {partner} one {where} it"
    return DataError(message, location=location, hint=hint)


@dataclass(slots=True)
class _KeyedSentences:
    """The sentences of a long table with the same key."""

    first_line: int
    good: tuple[int, records.Record] | None = None
    bad: list[tuple[int, records.Record]] = field(default_factory=list)


def _pair_by_key(rows: records.Records, pair_format: PairFormat, location: str) -> records.Records:
    """Yield a pair per wrong sentence, with the right sentence of the same key, wherever it is."""
    groups: dict[str, _KeyedSentences] = {}
    for line, row in rows:
        row_location = f"{location}:{line}"
        key = str(row["key"])
        if not key.strip() or row["key"] is None:
            raise DataError("the key of the pair is empty", location=row_location)
        group = groups.setdefault(key, _KeyedSentences(line))
        if not _is_good(row, pair_format, row_location):
            group.bad.append((line, row))
        elif group.good is None:
            group.good = line, row
        else:
            raise DataError(
                f"the key {key!r} has two right sentences: line {group.good[0]} has the other",
                location=row_location,
                hint="a key has one right sentence, and one or more wrong ones",
            )
    for key, group in groups.items():
        if group.good is None or not group.bad:
            missing = "right" if group.good is None else "wrong"
            raise DataError(
                f"the key {key!r} has no {missing} sentence",
                location=f"{location}:{group.first_line}",
                hint="a key has one right sentence, and one or more wrong ones",
            )
        for line, row in group.bad:
            yield line, {**_build_pair(group.good[1], row), "key": key}


def _judge_rows(rows: records.Records, pair_format: PairFormat, location: str) -> records.Records:
    """Yield the rows with the label 1 for a right sentence and 0 for another."""
    for line, row in rows:
        yield line, {**row, "label": int(_is_good(row, pair_format, f"{location}:{line}"))}


def _build_pair(good: records.Record, bad: records.Record) -> records.Record:
    """Return the record of a pair: the fields of the good row, and both sentences."""
    return {**good, "good": good["sentence"], "bad": bad["sentence"]}


def format_label(value: object) -> str:
    """Return a label as the layouts compare it."""
    return "" if value is None else str(value).strip()


def _is_good(row: records.Record, pair_format: PairFormat, location: str) -> bool:
    """Return whether a row's label calls its sentence right. Raises DataError for an unknown label,
    unless `good` names the label of right sentences.
    """
    text = format_label(row["label"])
    if pair_format.good:
        return text == pair_format.good
    if text.lower() in GOOD_LABELS:
        return True
    if text.lower() in BAD_LABELS:
        return False
    raise DataError(
        f"the label {text!r:.40} does not say whether the sentence is right",
        location=location,
        hint="name the label of right sentences with --good LABEL; known are True, 1, no mark, "
        "and False, 0, *",
    )


def _parse_line(line: str, _: str) -> records.Record:
    return {"sentence": line}


def _parse_labelled_line(line: str, location: str) -> records.Record:
    """Return label and sentence of `True<TAB>sentence`; without a tab, the label is a leading *."""
    label, tab, sentence = line.partition("\t")
    if "\t" in sentence:
        hint = "a line is LABEL<TAB>SENTENCE; name a table with more columns .tsv"
        raise DataError("more than one tab in a line", location=location, hint=hint)
    if tab:
        return {"label": label, "sentence": sentence}
    stripped = line.lstrip()
    if stripped.startswith("*"):
        return {"label": "*", "sentence": stripped[1:].lstrip()}
    if stripped.startswith(OTHER_MARKS):
        raise DataError(
            f"the mark of {stripped!r:.40} does not say whether the sentence is right",
            location=location,
            hint="mark wrong sentences by *, or write LABEL<TAB>SENTENCE and name --good LABEL",
        )
    return {"label": "", "sentence": line}


def _find_order_problem(good: str) -> str:
    if good in ORDERS:
        return ""
    return f"{good!r} is neither first nor second" if good else "which of two lines is right?"


def _find_unused_good_problem(good: str) -> str:
    return "the columns good and bad say which sentence is right" if good else ""


_SENTENCE = {"sentence": ("sentence", "text")}
_LABEL = {"label": ("label", "judgement", "judgment")}
LAYOUTS: dict[str, PairLayout] = {
    layout.name: layout
    for layout in (
        PairLayout(
            name=DEFAULT_LAYOUT,
            description="a row has both sentences, in the columns good and bad",
            columns={"good": ("good", "sentence_good"), "bad": ("bad", "sentence_bad")},
            pair_rows=_pair_columns,
            find_good_problem=_find_unused_good_problem,
        ),
        PairLayout(
            name="alternating",
            description="sentences in twos; --good-first or --bad-first says which is right",
            columns=_SENTENCE,
            pair_rows=_pair_in_twos,
            parse_line=_parse_line,
            find_good_problem=_find_order_problem,
        ),
        PairLayout(
            name="labelled",
            description="a label and a sentence; a right one is followed by its wrong ones",
            columns={**_LABEL, **_SENTENCE},
            pair_rows=_pair_labelled,
            parse_line=_parse_labelled_line,
            has_keys=True,
        ),
        PairLayout(
            name="judgements",
            description="a label and a sentence, not in pairs",
            columns={**_LABEL, **_SENTENCE},
            pair_rows=_judge_rows,
            parse_line=_parse_labelled_line,
            is_paired=False,
        ),
        PairLayout(
            name="long",
            description="a row has one sentence, the key of its pair and a label",
            columns={"key": ("key", "pair", "pair_id", "pairID", "item"), **_LABEL, **_SENTENCE},
            pair_rows=_pair_by_key,
            has_keys=True,
        ),
    )
}
"""Name of a layout -> its record."""
COLUMNS = tuple(
    dict.fromkeys(
        column for layout in LAYOUTS.values() for column in (*layout.columns, *OPTIONAL_COLUMNS)
    )
)
"""All keys of --columns for a file of pairs."""
