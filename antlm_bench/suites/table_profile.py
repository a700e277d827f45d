"""Properties of the columns and texts of a file that nobody has described: which columns are
sentences, which texts differ little, which labels call a sentence right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from statistics import fmean, median

from antlm_bench.suites.pair_layouts import BAD_LABELS, GOOD_LABELS, format_label
from antlm_bench.suites.records import Record

MIN_SENTENCE = 8
"""Characters of a typical sentence: shorter texts are words, labels or ids."""
MIN_SIMILARITY = 0.6
"""Mean similarity (0 to 1) from which texts count as the two sentences of minimal pairs."""
MIN_DIFFERENT = 0.9
"""Share of rows whose two texts must differ."""
MAX_COMPARED, MAX_TEXT = 40, 400
"""Number of pairs of texts that are compared, and characters of each."""
MAX_TEXT_COLUMNS = 12
MAX_LABELS, MAX_GROUP = 4, 12
"""Number of distinct labels, and of sentences with the same key."""
GOOD_NAMES = GOOD_LABELS | {"right", "gram"}
BAD_NAMES = BAD_LABELS | {"ungram"}
LABEL_NAMES = {"label", "judgement", "judgment", "acceptability", "grammaticality", "condition"}
KEY_NAMES = {"pair", "item", "key", "id"}


def split_name(name: str) -> set[str]:
    """Return the words of a column's name in lower case: goodSentence -> {good, sentence}."""
    return {word.lower() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+|\*", name)}


def mean_similarity(pairs: Iterable[tuple[str, str]]) -> float:
    """Return the mean share of equal characters of pairs of texts, 0 to 1; 0 without pairs.

    Evenly spaced pairs are compared, MAX_COMPARED of them.
    """
    all_pairs = list(pairs)
    step = max(1, len(all_pairs) // MAX_COMPARED)
    ratios = [
        SequenceMatcher(None, first[:MAX_TEXT], second[:MAX_TEXT], autojunk=False).ratio()
        for first, second in all_pairs[::step]
    ]
    return fmean(ratios) if ratios else 0.0


def list_text_columns(rows: Sequence[Record]) -> list[str]:
    """Return the columns that hold sentences, those with the longest texts first."""
    lengths = {}
    for name in rows[0]:
        texts = [row.get(name) for row in rows]
        if not all(isinstance(text, str) for text in texts):
            continue
        sentences = [str(text) for text in texts if str(text).strip()]
        is_filled = len(sentences) > len(rows) / 2
        has_words = any(" " in text or not text.isascii() for text in sentences)
        if is_filled and has_words and median(map(len, sentences)) >= MIN_SENTENCE:
            lengths[name] = fmean(map(len, sentences))
    return sorted(lengths, key=lambda name: -lengths[name])[:MAX_TEXT_COLUMNS]


@dataclass(frozen=True, slots=True)
class TextPairColumns:
    """Two columns with the sentences of minimal pairs."""

    first: str
    second: str
    similarity: float
    """Mean share of equal characters."""
    different: float
    """Share of rows whose texts differ."""


def find_pair_columns(rows: Sequence[Record]) -> TextPairColumns | None:
    """Return the two columns of longest texts that differ in nearly every row, but little."""
    columns = list_text_columns(rows)
    order = list(rows[0])
    for names in combinations(columns, 2):
        first, second = sorted(names, key=order.index)
        texts = [(str(row.get(first, "")), str(row.get(second, ""))) for row in rows]
        different = sum(a != b for a, b in texts) / len(texts)
        similarity = mean_similarity(texts) if different >= MIN_DIFFERENT else 0.0
        if similarity >= MIN_SIMILARITY:
            return TextPairColumns(first, second, similarity, different)
    return None


def choose_good_name(names: Sequence[str]) -> str:
    """Return which of two names, of columns or labels, calls its sentence right; "" if neither is
    clear.
    """
    words = [split_name(name) | {name.strip().lower()} for name in names]
    good = [bool(each & GOOD_NAMES) and not each & BAD_NAMES for each in words]
    bad = [bool(each & BAD_NAMES) for each in words]
    for index in (0, 1):
        if (good[index] or bad[1 - index]) and not (good[1 - index] or bad[index]):
            return names[index]
    return ""


def list_label_columns(rows: Sequence[Record], at_most: int = MAX_LABELS) -> dict[str, list[str]]:
    """Return column -> its distinct labels, for the columns with few of them. Those with a name in
    LABEL_NAMES come first.
    """
    columns = {}
    for name in rows[0]:
        labels = list(dict.fromkeys(format_label(row.get(name)) for row in rows))
        if 1 < len(labels) <= at_most:
            columns[name] = labels
    is_named = {name: bool(split_name(name) & LABEL_NAMES) for name in columns}
    return {name: columns[name] for name in sorted(columns, key=lambda name: not is_named[name])}


def says_which_is_right(labels: Iterable[str]) -> bool:
    """Return whether all labels are known, some as right and some as wrong."""
    lowered = {label.lower() for label in labels}
    is_known = lowered <= GOOD_LABELS | BAD_LABELS
    return is_known and bool(lowered & GOOD_LABELS) and bool(lowered & BAD_LABELS)


@dataclass(frozen=True, slots=True)
class LongColumns:
    """The columns of a long table: one sentence a row."""

    key: str
    label: str
    sentence: str
    good_labels: tuple[str, ...]
    """Labels that exactly one sentence of each key has: candidates for the right one."""
    similarity: float
    """Mean share of equal characters of two sentences with the same key."""


def find_long_columns(rows: Sequence[Record]) -> LongColumns | None:
    """Return the columns of a long table; None if no column is a key of pairs."""
    texts = list_text_columns(rows)
    if not texts:
        return None
    candidates = (
        columns
        for key, groups in _iter_keys(rows)
        for label in list_label_columns(rows)
        if label != key and (columns := _describe_long_table(groups, key, label, texts[0]))
    )
    return next(candidates, None)


def _iter_keys(rows: Sequence[Record]) -> Iterator[tuple[str, list[list[Record]]]]:
    """Yield (column, its rows by value) of each column whose values stand in 2 to MAX_GROUP rows,
    those that are named like a key first.
    """
    names = sorted(rows[0], key=lambda name: not split_name(name) & KEY_NAMES)
    for name in names:
        groups: dict[str, list[Record]] = {}
        for row in rows:
            groups.setdefault(format_label(row.get(name)), []).append(row)
        if "" not in groups and all(2 <= len(group) <= MAX_GROUP for group in groups.values()):
            yield name, list(groups.values())


def _describe_long_table(
    groups: Sequence[Sequence[Record]], key: str, label: str, sentence: str
) -> LongColumns | None:
    labels = [[format_label(row.get(label)) for row in group] for group in groups]
    single = [
        name for name in dict.fromkeys(labels[0]) if all(group.count(name) == 1 for group in labels)
    ]
    texts = [(str(group[0].get(sentence)), str(group[1].get(sentence))) for group in groups]
    similarity = mean_similarity(texts)
    if not single or similarity < MIN_SIMILARITY:
        return None
    return LongColumns(key, label, sentence, tuple(single), similarity)
