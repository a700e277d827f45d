"""Checks of parts of a leaderboard's file that were made elsewhere (`submit --part KEY=FILE`).

Counts and names of keys are the schema's business (leaderboard.check). Here stands what a schema cannot see: holes,
numbers that are none, ids out of order, labels of no class, texts that are no option, words that were not asked.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from antlm_bench.errors import BenchError, DataError
from antlm_bench.exports.leaderboard import PartSpec
from antlm_bench.exports.leaderboard_answers import written
from antlm_bench.suites import loader
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.loader import Suite

MAY_BE_NAN = ("surprisal", "prev_pred")  # a text that does not fit; the first word of a sentence
Texts = Callable[[str], Suite]


def check_given(
    key: str, value: Any, part: PartSpec, milestones: Sequence[int], texts: Texts, *, fast: bool
) -> list[str]:
    """Check a part made elsewhere; return notes for the file's reader.

    key: of the part, dotted in a milestone's. milestones: of the track, in millions of words. texts: name -> suite.
    fast: whether it holds numbers of milestones. Raises DataError, naming the first place that is wrong.
    """
    place = f"--part {key}"
    _no_holes(value, place)
    _milestones_are_those_of_the_track(value, milestones, place)
    if fast:
        return []
    if part.shapes:
        _shapes(value, part.shapes, place)
    elif part.writes == "class":
        _labels(value, part.suite, place)
    elif not part.suite:
        _ids(value, place)
    elif part.writes != "headline":
        try:
            suite = texts(part.suite)
        except BenchError as error:
            return [f"{key}: made elsewhere, and its texts were not checked: {error.message}"]
        check = {"surprisal": _words_read, "curves": _words_in_contexts}.get(part.writes)
        if check is None:
            _answers(value, part, suite, place)
        else:
            check(value, suite, place)
    return []


def _no_holes(value: Any, place: str) -> None:
    """DataError for a null, which years that allow holes would take in silence, and for NaN and infinity."""
    try:
        found = next(_holes(value), None)
    except RecursionError:
        raise DataError("nested too deeply", place=place) from None
    if found is None:
        return
    at, what = found
    hint = "make it whole, or leave the option out: --allow-partial then says what stays empty"
    raise DataError(f"{what}{f' at {at}' if at else ''}, where an answer belongs", place=place, hint=hint)


def _holes(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """(where, what) of each value that is no answer."""
    name = at.rpartition(".")[2]
    if value is None and name != "surprisal":
        yield at, "null"
    elif isinstance(value, float) and not math.isfinite(value):
        if not (math.isnan(value) and name in MAY_BE_NAN):
            yield at, "NaN" if math.isnan(value) else "an infinite number"
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if not isinstance(inner, str | int):
                yield from _holes(inner, f"{at}.{key}" if at else str(key))


def _milestones_are_those_of_the_track(value: Any, milestones: Sequence[int], place: str) -> None:
    rows = value.get("results") if isinstance(value, dict) else None
    if isinstance(rows, list):
        found = Counter(str(row.get("step")) for row in rows if isinstance(row, dict))
        wanted = dict.fromkeys([f"chck_{number}M" for number in milestones], len(rows) // max(len(milestones), 1))
        if milestones and found != wanted:
            odd = ", ".join(sorted(map(str, found.keys() ^ wanted.keys()))[:3]) or "some have more words than others"
            raise DataError(f"not the {len(milestones)} milestones of the track: {odd}", place=place)
    if isinstance(value, list) and len(value) != len(milestones):
        raise DataError(f"{len(value)} entries, the track has {len(milestones)} milestones", place=place)


def _rows(value: Any) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """(key, index, row) of every answer; what has another form is left to the schema."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        rows = inner.get("predictions") if isinstance(inner, dict) else None
        for index, row in enumerate(rows if isinstance(rows, list) else ()):
            if isinstance(row, dict):
                yield key, index, row


def _wrong(place: str, key: str, index: int, name: str, value: Any, wanted: str) -> DataError:
    return DataError(f"{key}, answer {index + 1}: {name} is {value!r:.60}, not {wanted}", place=place)


def _ids(value: Any, place: str) -> None:
    """Ids are running numbers, and no answer is empty."""
    for key, index, row in _rows(value):
        if row.get("id") != f"{key}_{index}":
            raise _wrong(place, key, index, "id", row.get("id"), f"'{key}_{index}'")
        if isinstance(row.get("pred"), str) and not row["pred"].strip():
            raise _wrong(place, key, index, "pred", row["pred"], "a text")


def _labels(value: Any, suite: str, place: str) -> None:
    """Ids are running numbers, and labels are classes of the task."""
    spec, _ = loader.declared(suite)
    assert isinstance(spec, ClassificationSpec)
    for task, index, row in _rows(value):
        if task not in spec.task:
            continue
        if row.get("id") != f"{task}_{index}":
            raise _wrong(place, task, index, "id", row.get("id"), f"'{task}_{index}'")
        label, classes = row.get("pred"), len(spec.task[task].classes)
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
            raise _wrong(place, task, index, "pred", label, f"a class, 0..{classes - 1}")


def _answers(value: Any, part: PartSpec, suite: Suite, place: str) -> None:
    """Ids are those of the suite's items in its order, and every answer is the text of an option."""
    level = part.by or suite.groups[-1]
    groups = defaultdict(list)
    for item in suite.items:
        groups[item.labels[level]].append(item)
    for key, index, row in _rows(value):
        if index >= len(groups.get(key, ())):
            continue  # counts are the schema's
        item = groups[key][index]
        if row.get("id") != item.id:
            raise _wrong(place, key, index, "id", row.get("id"), repr(item.id))
        options = {written(part.writes, item, number).strip() for number in range(len(item.options))}
        if isinstance(row.get("pred"), str) and row["pred"].strip() not in options:
            raise _wrong(place, key, index, "pred", row["pred"], f"an option of {item.id}")


def _words_read(value: Any, suite: Suite, place: str) -> None:
    """Ids are running numbers, and only a word without a word before it lacks that surprisal."""
    for key, index, row in _rows(value):
        if row.get("id") != index:
            raise _wrong(place, key, index, "id", row.get("id"), str(index))
        before = row.get("prev_pred")
        has_previous = index < len(suite.items) and len(suite.items[index].options) > 1
        if has_previous and isinstance(before, float) and math.isnan(before):
            raise _wrong(place, key, index, "prev_pred", before, "a surprisal: a word stands before this one")


def _words_in_contexts(value: Any, suite: Suite, place: str) -> None:
    """Every milestone has each word in each of its contexts, once."""
    contexts: dict[tuple[str, str], str] = {}
    for item in suite.items:
        word, _, number = item.id.rpartition("_")
        option = item.options[0]
        contexts[word, number] = option.text[: option.span[0] if option.span else 0].strip()
    rows = value.get("results") if isinstance(value, dict) else None
    seen: Counter[tuple[str, str, str]] = Counter()
    for index, row in enumerate(rows if isinstance(rows, list) else ()):
        if not isinstance(row, dict):
            continue  # the schema's business
        step, asked = str(row.get("step")), (str(row.get("target_word")), str(row.get("context_id")))
        if contexts.get(asked) != str(row.get("context", "")).strip():
            raise _wrong(place, "results", index, "the word in context", asked, f"one of {suite.name}")
        words_seen = re.sub(r"^chck_(\d+)M$", r"\g<1>000000", step)
        if str(row.get("word_count")) != words_seen:
            raise _wrong(place, "results", index, "word_count", row.get("word_count"), words_seen)
        seen[(step, *asked)] += 1
    steps = {step for step, _, _ in seen}
    if set(seen.values()) - {1} or len(seen) != len(steps) * len(contexts):
        raise DataError(f"not each of {len(contexts)} words in contexts once at every milestone", place=place)


def _shapes(value: Any, shapes: Mapping[str, Sequence[int]], place: str) -> None:
    """Each key holds nested lists of numbers of the official lengths."""
    if not isinstance(value, dict) or value.keys() != shapes.keys():
        raise DataError(f"its keys are not {', '.join(shapes)}", place=place)
    for key, lengths in shapes.items():
        inner = value[key].get("predictions") if isinstance(value[key], dict) else None
        if not _has_shape(inner, lengths):
            raise DataError(f"{key}: predictions are not {' x '.join(map(str, lengths))} numbers", place=place)


def _has_shape(value: Any, lengths: Sequence[int]) -> bool:
    if not lengths:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, list) and len(value) == lengths[0] and all(_has_shape(v, lengths[1:]) for v in value)
