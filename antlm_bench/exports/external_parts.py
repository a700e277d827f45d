"""Check parts of a submission file that another tool computed (`submit --part KEY=FILE`).

leaderboard.validate_document checks names of keys and counts against the JSON Schema. This module
checks what a schema cannot express: missing and non-finite values, the order of ids, labels that
are not classes, texts that are not options, words that are not in the suite.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from antlm_bench.errors import BenchError, DataError
from antlm_bench.exports.leaderboard import PartSpec
from antlm_bench.exports.leaderboard_answers import get_option_text
from antlm_bench.suites.classification import ClassificationSpec
from antlm_bench.suites.task_types import Suite, read_declaration_of_type

SuiteLoader = Callable[[str], Suite]
NAN_ALLOWED_KEYS = ("surprisal", "prev_pred")
"""Keys whose value may be NaN: the text is too long for the model, or no word precedes it."""


def check_external_part(
    key: str,
    value: Any,
    part: PartSpec,
    milestones: Sequence[int],
    load_suite: SuiteLoader,
    is_milestone_part: bool,
) -> list[str]:
    """Check a part that another tool computed; return notes for the user.

    key: the part's (dotted) key. milestones: millions of words, of the track. is_milestone_part:
    whether the part holds one score per milestone. Raises DataError for the first wrong value.
    """
    location = f"--part {key}"
    _check_missing_values(value, location)
    _check_milestones(value, milestones, location)
    if is_milestone_part:
        return []
    if part.shapes:
        _check_shapes(value, part.shapes, location)
    elif part.answer_format == "class":
        _check_labels(value, part.suite, location)
    elif not part.suite:
        _check_ids(value, location)
    elif part.answer_format != "headline":
        try:
            suite = load_suite(part.suite)
        except BenchError as error:
            return [f"{key}: computed elsewhere; its texts were not checked: {error.message}"]
        if part.answer_format == "surprisal":
            _check_surprisals(value, suite, location)
        elif part.answer_format == "curves":
            _check_curve_words(value, suite, location)
        else:
            _check_option_texts(value, part, suite, location)
    return []


def _check_missing_values(value: Any, location: str) -> None:
    """Raise DataError for null, NaN and infinity.

    A schema that allows missing parts accepts null anywhere.
    """
    try:
        path, description = next(_find_missing_values(value), ("", ""))
    except RecursionError:
        raise DataError("nested too deeply", location=location) from None
    if description:
        raise DataError(
            f"{description}{f' at {path}' if path else ''}, where an answer belongs",
            location=location,
            hint="complete the part, or omit this --part and use --allow-partial",
        )


def _find_missing_values(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield (path, description) of each value that is not an answer."""
    key = path.rpartition(".")[2]
    if value is None and key != "surprisal":
        yield path, "null"
    elif isinstance(value, float) and not math.isfinite(value):
        if not (math.isnan(value) and key in NAN_ALLOWED_KEYS):
            yield path, "NaN" if math.isnan(value) else "an infinite number"
    elif isinstance(value, dict | list):
        children = value.items() if isinstance(value, dict) else enumerate(value)
        for name, child in children:
            if not isinstance(child, str | int):
                yield from _find_missing_values(child, f"{path}.{name}" if path else str(name))


def _check_milestones(value: Any, milestones: Sequence[int], location: str) -> None:
    """Raise DataError unless rows or entries stand for exactly the milestones of the track."""
    rows = value.get("results") if isinstance(value, dict) else None
    if isinstance(rows, list):
        counts = Counter(str(row.get("step")) for row in rows if isinstance(row, dict))
        num_words = len(rows) // max(len(milestones), 1)
        expected = {f"chck_{number}M": num_words for number in milestones}
        if milestones and counts != expected:
            differing = ", ".join(sorted(counts.keys() ^ expected.keys())[:3])
            raise DataError(
                f"not the {len(milestones)} milestones of the track: "
                f"{differing or 'some have more words than others'}",
                location=location,
            )
    if isinstance(value, list) and len(value) != len(milestones):
        raise DataError(
            f"{len(value)} entries, the track has {len(milestones)} milestones",
            location=location,
        )


def _iter_answers(value: Any) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Yield (key, index, row) of every answer. The schema rejects values of other shapes."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        rows = inner.get("predictions") if isinstance(inner, dict) else None
        if isinstance(rows, list):
            for index, row in enumerate(rows):
                if isinstance(row, dict):
                    yield key, index, row


def _answer_error(
    location: str, key: str, index: int, name: str, value: Any, expected: str
) -> DataError:
    return DataError(
        f"{key}, answer {index + 1}: {name} is {value!r:.60}, not {expected}", location=location
    )


def _check_ids(value: Any, location: str) -> None:
    """Raise DataError unless ids are `key_index` and no answer is empty."""
    for key, index, row in _iter_answers(value):
        if row.get("id") != f"{key}_{index}":
            raise _answer_error(location, key, index, "id", row.get("id"), f"'{key}_{index}'")
        if isinstance(row.get("pred"), str) and not row["pred"].strip():
            raise _answer_error(location, key, index, "pred", row["pred"], "a text")


def _check_labels(value: Any, suite: str, location: str) -> None:
    """Raise DataError unless ids are `task_index` and labels are classes of the task."""
    spec, _ = read_declaration_of_type(suite, ClassificationSpec)
    for task, index, row in _iter_answers(value):
        if task not in spec.task:
            continue
        if row.get("id") != f"{task}_{index}":
            raise _answer_error(location, task, index, "id", row.get("id"), f"'{task}_{index}'")
        label, classes = row.get("pred"), len(spec.task[task].classes)
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
            raise _answer_error(location, task, index, "pred", label, f"a class, 0..{classes - 1}")


def _check_option_texts(value: Any, part: PartSpec, suite: Suite, location: str) -> None:
    """Raise DataError unless ids follow the suite's items and each answer is an option's text."""
    level = part.group_level or suite.groups[-1]
    items_by_group = defaultdict(list)
    for item in suite.items:
        items_by_group[item.labels[level]].append(item)
    for key, index, row in _iter_answers(value):
        if index >= len(items_by_group.get(key, ())):
            continue  # the schema checks counts
        item = items_by_group[key][index]
        if row.get("id") != item.id:
            raise _answer_error(location, key, index, "id", row.get("id"), repr(item.id))
        texts = {
            get_option_text(part.answer_format, item, i).strip() for i in range(len(item.options))
        }
        if isinstance(row.get("pred"), str) and row["pred"].strip() not in texts:
            expected = f"an option of {item.id}"
            raise _answer_error(location, key, index, "pred", row["pred"], expected)


def _check_surprisals(value: Any, suite: Suite, location: str) -> None:
    """Raise DataError unless ids are indices and each word's predecessor has a surprisal."""
    for key, index, row in _iter_answers(value):
        if row.get("id") != index:
            raise _answer_error(location, key, index, "id", row.get("id"), str(index))
        previous = row.get("prev_pred")
        has_previous = index < len(suite.items) and len(suite.items[index].options) > 1
        if has_previous and isinstance(previous, float) and math.isnan(previous):
            expected = "the surprisal of the preceding word"
            raise _answer_error(location, key, index, "prev_pred", previous, expected)


def _check_curve_words(value: Any, suite: Suite, location: str) -> None:
    """Raise DataError unless every milestone has each word once in each of its contexts."""
    contexts: dict[tuple[str, str], str] = {}
    for item in suite.items:
        word, _, context_id = item.id.rpartition("_")
        option = item.options[0]
        contexts[word, context_id] = option.text[: option.span[0] if option.span else 0].strip()
    rows = value.get("results") if isinstance(value, dict) else None
    counts: Counter[tuple[str, str, str]] = Counter()  # (step, word, context id)
    for index, row in enumerate(rows if isinstance(rows, list) else ()):
        if not isinstance(row, dict):
            continue  # the schema checks rows
        step = str(row.get("step"))
        word_id = (str(row.get("target_word")), str(row.get("context_id")))
        if contexts.get(word_id) != str(row.get("context", "")).strip():
            raise _answer_error(
                location, "results", index, "the word in context", word_id, f"one of {suite.name}"
            )
        num_words_seen = re.sub(r"^chck_(\d+)M$", r"\g<1>000000", step)
        if str(row.get("word_count")) != num_words_seen:
            raise _answer_error(
                location, "results", index, "word_count", row.get("word_count"), num_words_seen
            )
        counts[(step, *word_id)] += 1
    steps = {step for step, _, _ in counts}
    has_repetitions = any(count > 1 for count in counts.values())
    if has_repetitions or len(counts) != len(steps) * len(contexts):
        raise DataError(
            f"not each of the {len(contexts)} words in context once at every milestone",
            location=location,
        )


def _check_shapes(value: Any, shapes: Mapping[str, Sequence[int]], location: str) -> None:
    """Raise DataError unless each key holds nested lists of numbers of the official shape."""
    if not isinstance(value, dict) or value.keys() != shapes.keys():
        raise DataError(f"its keys are not {', '.join(shapes)}", location=location)
    for key, shape in shapes.items():
        array = value[key].get("predictions") if isinstance(value[key], dict) else None
        if not _has_shape(array, shape):
            raise DataError(
                f"{key}: predictions are not {' x '.join(map(str, shape))} numbers",
                location=location,
            )


def _has_shape(value: Any, shape: Sequence[int]) -> bool:
    if not shape:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return (
        isinstance(value, list)
        and len(value) == shape[0]
        and all(_has_shape(entry, shape[1:]) for entry in value)
    )
