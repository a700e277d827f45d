"""Checks of parts of a leaderboard's file that were made elsewhere (`submit --part KEY=FILE`).

The schema checks counts and names of keys (leaderboard.validate_document). This module checks what
a schema cannot: missing values, numbers that are not finite, ids out of order, labels that are not
a class, texts that are not an option, words that are not in the suite.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from antlm_bench.errors import BenchError, DataError
from antlm_bench.exports.leaderboard import PartSpec
from antlm_bench.exports.leaderboard_answers import option_text
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.task_types import Suite, read_declaration_as

NAN_ALLOWED_KEYS = ("surprisal", "prev_pred")
"""Of a text that does not fit the model; of the word before a sentence's first."""
SuiteLoader = Callable[[str], Suite]


def check_external_part(
    key: str,
    value: Any,
    part: PartSpec,
    milestones: Sequence[int],
    load_suite: SuiteLoader,
    *,
    is_milestone_part: bool,
) -> list[str]:
    """Check a part made elsewhere; return notes for the file's reader.

    key: of the part, dotted for one of milestones. milestones: of the track, in millions of words.
    is_milestone_part: it holds a number per milestone. Raises DataError, naming the first wrong
    value.
    """
    location = f"--part {key}"
    _check_missing_values(value, location)
    _check_milestones(value, milestones, location)
    if is_milestone_part:
        return []
    if part.shapes:
        _check_shapes(value, part.shapes, location)
    elif part.writes == "class":
        _check_labels(value, part.suite, location)
    elif not part.suite:
        _check_ids(value, location)
    elif part.writes != "headline":
        try:
            suite = load_suite(part.suite)
        except BenchError as error:
            return [f"{key}: made elsewhere, and its texts were not checked: {error.message}"]
        check = {"surprisal": _check_surprisals, "curves": _check_curve_words}.get(part.writes)
        if check is None:
            _check_option_texts(value, part, suite, location)
        else:
            check(value, suite, location)
    return []


def _check_missing_values(value: Any, location: str) -> None:
    """Raise DataError for a null, which the schema of years with optional parts accepts, and for
    nan and infinity."""
    try:
        path, what = next(_find_missing_values(value), ("", ""))
    except RecursionError:
        raise DataError("nested too deeply", location=location) from None
    if what:
        raise DataError(
            f"{what}{f' at {path}' if path else ''}, where an answer belongs",
            location=location,
            hint="make it whole, or leave the option out: --allow-partial then says what stays "
            "empty",
        )


def _find_missing_values(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, what it is) of each value that is not an answer."""
    name = path.rpartition(".")[2]
    if value is None and name != "surprisal":
        yield path, "null"
    elif isinstance(value, float) and not math.isfinite(value):
        if not (math.isnan(value) and name in NAN_ALLOWED_KEYS):
            yield path, "NaN" if math.isnan(value) else "an infinite number"
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if not isinstance(inner, str | int):
                yield from _find_missing_values(inner, f"{path}.{key}" if path else str(key))


def _check_milestones(value: Any, milestones: Sequence[int], location: str) -> None:
    """Raise DataError unless the part holds the milestones of the track."""
    rows = value.get("results") if isinstance(value, dict) else None
    if isinstance(rows, list):
        counts = Counter(str(row.get("step")) for row in rows if isinstance(row, dict))
        words = len(rows) // max(len(milestones), 1)
        expected = {f"chck_{number}M": words for number in milestones}
        if milestones and counts != expected:
            odd = ", ".join(sorted(counts.keys() ^ expected.keys())[:3])
            raise DataError(
                f"not the {len(milestones)} milestones of the track: "
                f"{odd or 'some have more words than others'}",
                location=location,
            )
    if isinstance(value, list) and len(value) != len(milestones):
        raise DataError(
            f"{len(value)} entries, the track has {len(milestones)} milestones", location=location
        )


def _iter_answers(value: Any) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Yield (key, index, row) of every answer; other forms are left to the schema."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        rows = inner.get("predictions") if isinstance(inner, dict) else None
        for index, row in enumerate(rows if isinstance(rows, list) else ()):
            if isinstance(row, dict):
                yield key, index, row


def _answer_error(
    location: str, key: str, index: int, name: str, value: Any, expected: str
) -> DataError:
    return DataError(
        f"{key}, answer {index + 1}: {name} is {value!r:.60}, not {expected}", location=location
    )


def _check_ids(value: Any, location: str) -> None:
    """Raise DataError unless ids are running numbers and no answer is empty."""
    for key, index, row in _iter_answers(value):
        if row.get("id") != f"{key}_{index}":
            raise _answer_error(location, key, index, "id", row.get("id"), f"'{key}_{index}'")
        if isinstance(row.get("pred"), str) and not row["pred"].strip():
            raise _answer_error(location, key, index, "pred", row["pred"], "a text")


def _check_labels(value: Any, suite: str, location: str) -> None:
    """Raise DataError unless ids are running numbers and labels are classes of the task."""
    spec, _ = read_declaration_as(suite, ClassificationSpec)
    for task, index, row in _iter_answers(value):
        if task not in spec.task:
            continue
        if row.get("id") != f"{task}_{index}":
            raise _answer_error(location, task, index, "id", row.get("id"), f"'{task}_{index}'")
        label, classes = row.get("pred"), len(spec.task[task].classes)
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
            raise _answer_error(location, task, index, "pred", label, f"a class, 0..{classes - 1}")


def _check_option_texts(value: Any, part: PartSpec, suite: Suite, location: str) -> None:
    """Raise DataError unless ids are those of the suite's items in its order and every answer is
    the text of an option."""
    level = part.by or suite.groups[-1]
    groups = defaultdict(list)
    for item in suite.items:
        groups[item.labels[level]].append(item)
    for key, index, row in _iter_answers(value):
        if index >= len(groups.get(key, ())):
            continue  # the schema checks counts
        item = groups[key][index]
        if row.get("id") != item.id:
            raise _answer_error(location, key, index, "id", row.get("id"), repr(item.id))
        texts = {option_text(part.writes, item, i).strip() for i in range(len(item.options))}
        if isinstance(row.get("pred"), str) and row["pred"].strip() not in texts:
            expected = f"an option of {item.id}"
            raise _answer_error(location, key, index, "pred", row["pred"], expected)


def _check_surprisals(value: Any, suite: Suite, location: str) -> None:
    """Raise DataError unless ids are running numbers and only a word without a word before it lacks
    that surprisal."""
    for key, index, row in _iter_answers(value):
        if row.get("id") != index:
            raise _answer_error(location, key, index, "id", row.get("id"), str(index))
        previous = row.get("prev_pred")
        has_previous = index < len(suite.items) and len(suite.items[index].options) > 1
        if has_previous and isinstance(previous, float) and math.isnan(previous):
            expected = "a surprisal: a word stands before this one"
            raise _answer_error(location, key, index, "prev_pred", previous, expected)


def _check_curve_words(value: Any, suite: Suite, location: str) -> None:
    """Raise DataError unless every milestone has each word in each of its contexts, once."""
    contexts: dict[tuple[str, str], str] = {}
    for item in suite.items:
        word, _, number = item.id.rpartition("_")
        option = item.options[0]
        contexts[word, number] = option.text[: option.span[0] if option.span else 0].strip()
    rows = value.get("results") if isinstance(value, dict) else None
    seen: Counter[tuple[str, str, str]] = Counter()
    for index, row in enumerate(rows if isinstance(rows, list) else ()):
        if not isinstance(row, dict):
            continue  # the schema checks rows
        step = str(row.get("step"))
        word_id = (str(row.get("target_word")), str(row.get("context_id")))
        if contexts.get(word_id) != str(row.get("context", "")).strip():
            raise _answer_error(
                location, "results", index, "the word in context", word_id, f"one of {suite.name}"
            )
        words_seen = re.sub(r"^chck_(\d+)M$", r"\g<1>000000", step)
        if str(row.get("word_count")) != words_seen:
            raise _answer_error(
                location, "results", index, "word_count", row.get("word_count"), words_seen
            )
        seen[(step, *word_id)] += 1
    steps = {step for step, _, _ in seen}
    if set(seen.values()) - {1} or len(seen) != len(steps) * len(contexts):
        raise DataError(
            f"not each of {len(contexts)} words in contexts once at every milestone",
            location=location,
        )


def _check_shapes(value: Any, shapes: Mapping[str, Sequence[int]], location: str) -> None:
    """Raise DataError unless each key holds nested lists of numbers of the official lengths."""
    if not isinstance(value, dict) or value.keys() != shapes.keys():
        raise DataError(f"its keys are not {', '.join(shapes)}", location=location)
    for key, lengths in shapes.items():
        inner = value[key].get("predictions") if isinstance(value[key], dict) else None
        if not _has_shape(inner, lengths):
            raise DataError(
                f"{key}: predictions are not {' x '.join(map(str, lengths))} numbers",
                location=location,
            )


def _has_shape(value: Any, lengths: Sequence[int]) -> bool:
    if not lengths:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return (
        isinstance(value, list)
        and len(value) == lengths[0]
        and all(_has_shape(v, lengths[1:]) for v in value)
    )
