"""Checks of parts of a leaderboard's file that were made elsewhere (`submit --part KEY=FILE`).

Counts and names of keys are the schema's business (leaderboard.check). Here stands what a schema
cannot see: holes, numbers that are none, ids out of order, labels of no class, texts that are no
option, words that were not asked.
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

NAN_ALLOWED_KEYS = (
    "surprisal",
    "prev_pred",
)  # a text that does not fit; the first word of a sentence
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

    key: of the part, dotted in a milestone's. milestones: of the track, in millions of words.
    texts: name -> suite. fast: whether it holds numbers of milestones. Raises DataError, naming the
    first place that is wrong.
    """
    place = f"--part {key}"
    _check_missing_values(value, place)
    _check_milestones(value, milestones, place)
    if is_milestone_part:
        return []
    if part.shapes:
        _check_shapes(value, part.shapes, place)
    elif part.writes == "class":
        _check_labels(value, part.suite, place)
    elif not part.suite:
        _check_ids(value, place)
    elif part.writes != "headline":
        try:
            suite = load_suite(part.suite)
        except BenchError as error:
            return [f"{key}: made elsewhere, and its texts were not checked: {error.message}"]
        check = {"surprisal": _check_surprisals, "curves": _check_curve_words}.get(part.writes)
        if check is None:
            _check_option_texts(value, part, suite, place)
        else:
            check(value, suite, place)
    return []


def _check_missing_values(value: Any, location: str) -> None:
    """DataError for a null, which years that allow holes would take in silence, and for NaN and
    infinity.
    """
    try:
        found = next(_find_missing_values(value), None)
    except RecursionError:
        raise DataError("nested too deeply", location=location) from None
    if found is None:
        return
    at, what = found
    hint = "make it whole, or leave the option out: --allow-partial then says what stays empty"
    raise DataError(
        f"{what}{f' at {at}' if at else ''}, where an answer belongs", location=location, hint=hint
    )


def _find_missing_values(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(where, what) of each value that is no answer."""
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
    rows = value.get("results") if isinstance(value, dict) else None
    if isinstance(rows, list):
        found = Counter(str(row.get("step")) for row in rows if isinstance(row, dict))
        wanted = dict.fromkeys(
            [f"chck_{number}M" for number in milestones], len(rows) // max(len(milestones), 1)
        )
        if milestones and found != wanted:
            odd = (
                ", ".join(sorted(map(str, found.keys() ^ wanted.keys()))[:3])
                or "some have more words than others"
            )
            raise DataError(
                f"not the {len(milestones)} milestones of the track: {odd}", location=location
            )
    if isinstance(value, list) and len(value) != len(milestones):
        raise DataError(
            f"{len(value)} entries, the track has {len(milestones)} milestones", location=location
        )


def _iter_answers(value: Any) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """(key, index, row) of every answer; what has another form is left to the schema."""
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
    """Ids are running numbers, and no answer is empty."""
    for key, index, row in _iter_answers(value):
        if row.get("id") != f"{key}_{index}":
            raise _answer_error(location, key, index, "id", row.get("id"), f"'{key}_{index}'")
        if isinstance(row.get("pred"), str) and not row["pred"].strip():
            raise _answer_error(location, key, index, "pred", row["pred"], "a text")


def _check_labels(value: Any, suite: str, location: str) -> None:
    """Ids are running numbers, and labels are classes of the task."""
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
    """Ids are those of the suite's items in its order, and every answer is the text of an option."""
    level = part.by or suite.groups[-1]
    groups = defaultdict(list)
    for item in suite.items:
        groups[item.labels[level]].append(item)
    for key, index, row in _iter_answers(value):
        if index >= len(groups.get(key, ())):
            continue  # counts are the schema's
        item = groups[key][index]
        if row.get("id") != item.id:
            raise _answer_error(location, key, index, "id", row.get("id"), repr(item.id))
        options = {
            option_text(part.writes, item, number).strip() for number in range(len(item.options))
        }
        if isinstance(row.get("pred"), str) and row["pred"].strip() not in options:
            raise _answer_error(
                location, key, index, "pred", row["pred"], f"an option of {item.id}"
            )


def _check_surprisals(value: Any, suite: Suite, location: str) -> None:
    """Ids are running numbers, and only a word without a word before it lacks that surprisal."""
    for key, index, row in _iter_answers(value):
        if row.get("id") != index:
            raise _answer_error(location, key, index, "id", row.get("id"), str(index))
        before = row.get("prev_pred")
        has_previous = index < len(suite.items) and len(suite.items[index].options) > 1
        if has_previous and isinstance(before, float) and math.isnan(before):
            raise _answer_error(
                location,
                key,
                index,
                "prev_pred",
                before,
                "a surprisal: a word stands before this one",
            )


def _check_curve_words(value: Any, suite: Suite, location: str) -> None:
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
        step, asked = (
            str(row.get("step")),
            (str(row.get("target_word")), str(row.get("context_id"))),
        )
        if contexts.get(asked) != str(row.get("context", "")).strip():
            raise _answer_error(
                location, "results", index, "the word in context", asked, f"one of {suite.name}"
            )
        words_seen = re.sub(r"^chck_(\d+)M$", r"\g<1>000000", step)
        if str(row.get("word_count")) != words_seen:
            raise _answer_error(
                location, "results", index, "word_count", row.get("word_count"), words_seen
            )
        seen[(step, *asked)] += 1
    steps = {step for step, _, _ in seen}
    if set(seen.values()) - {1} or len(seen) != len(steps) * len(contexts):
        raise DataError(
            f"not each of {len(contexts)} words in contexts once at every milestone",
            location=location,
        )


def _check_shapes(value: Any, shapes: Mapping[str, Sequence[int]], location: str) -> None:
    """Each key holds nested lists of numbers of the official lengths."""
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
