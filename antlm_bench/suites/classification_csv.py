"""A bare CSV, TSV or JSONL of texts and labels as a task: the declaration that its owner did not
have to write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antlm_bench.declarations import suggest_name
from antlm_bench.errors import DataError
from antlm_bench.suites import files, pairs_csv, records
from antlm_bench.suites.classification import ClassificationSpec, Split, TaskSpec
from antlm_bench.suites.declaration_types import DataSpec, FileSpec
from antlm_bench.suites.names import to_valid_unicode
from antlm_bench.suites.task_types import read_declaration_as
from antlm_bench.suites.templates import describe_value, get_field

COLUMNS = ("text", "text2", "label", "id", "group")
MAX_NUMERIC_CLASSES = (
    20  # so many different numbers may be classes; more are ratings or measurements
)
DEFAULT_TRAINING_SUITE = "glue-2025"  # the suite whose [training] a set of one's own starts from
RecordList = list[tuple[int, records.Record]]


def task_name_from_path(ref: str) -> str:
    """What the task of a train file is called: the file's name without its ending."""
    return (
        pairs_csv.suite_name_from_file(re.sub(r"\.gz$", "", Path(ref).name, flags=re.IGNORECASE))
        or "texts"
    )


def read_splits(train: Path, valid: Path) -> tuple[ClassificationSpec, dict[Split, RecordList]]:
    """The declaration of a train and a scored file, and their rows, labels as names of classes.

    Classes are the labels of the train file, sorted (by number where all are whole numbers). A
    label is a name, never the number of a class. Raises DataError: absent, unreadable, 0 rows, a
    column missing, a label that is none or that train does not have, one class only, ratings.
    """
    rows: dict[Split, RecordList] = {
        "train": list(_read_rows(train)),
        "valid": list(_read_rows(valid)),
    }
    for path, found in ((train, rows["train"]), (valid, rows["valid"])):
        if not found:
            raise DataError(
                "0 rows",
                location=str(path),
                hint="it needs the columns text (or text, text2) and label",
            )
    labels = [record["label"] for _, record in rows["train"] if record["label"]]
    if not labels:
        raise DataError(
            "no row has a label",
            location=str(train),
            hint="a published test split hides its labels",
        )
    classes = _infer_classes(labels, train)
    for line, record in rows["valid"]:
        if record["label"] not in (
            *classes,
            "",
            "-1",
        ):  # the last two are no label: see examples.build
            known = ", ".join(classes[:12])
            hint = f"labels of {train.name} are {known}"
            raise DataError(
                f"unknown label {record['label']!r:.40}", location=f"{valid}:{line}", hint=hint
            )
    columns = rows["train"][0][1].keys()
    task = TaskSpec(
        metric="accuracy",
        classes=classes,
        first="{text}",
        second="{text2}" if "text2" in columns else "",
        id="{id}" if "id" in columns else "",
        group="{group}" if "group" in columns else "",
        train="train",
        valid="valid",
        notes=("the label -1 is read as a class; GLUE's files write it where there is no label",)
        if "-1" in classes and len(classes) > 2
        else (),
    )
    settings, _ = read_declaration_as(DEFAULT_TRAINING_SUITE, ClassificationSpec)
    spec = ClassificationSpec(
        kind="classification",
        name=task_name_from_path(str(train)),
        version="user",
        title=f"texts of {to_valid_unicode(train.name)} and {to_valid_unicode(valid.name)}",
        licence="not stated",
        citation="not stated",
        held_out=settings.held_out,
        training=settings.training,
        task={task_name_from_path(str(train)): task},
        data=DataSpec(where=("{file}",), files={"train": FileSpec(), "valid": FileSpec()}),
    )
    return spec, rows


def _read_rows(path: Path) -> Iterator[tuple[int, records.Record]]:
    """A file's rows with their labels as names; a column of the first row stands in all of them."""
    first: tuple[str, ...] = ()
    for line, record in records.read_records(files.read_bytes(path), path.name.lower(), str(path)):
        place = f"{path}:{line}"
        for column in first or ("text", "label"):
            if column not in record:
                hint = (
                    suggest_name(column, record)
                    or f"there are {', '.join(map(repr, list(record)[:20]))}"
                )
                raise DataError(f"the column {column!r} is missing", location=place, hint=hint)
        first = first or tuple(column for column in COLUMNS if column in record)
        value = get_field(record, "label", place)
        unlabelled = (
            value is None or (isinstance(value, str) and not value.strip()) or value != value
        )  # NaN
        yield line, {**record, "label": "" if unlabelled else _parse_label(value, place)}


def _parse_label(value: Any, location: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise DataError(
        f"the label must be a word or a whole number, not {describe_value(value)}",
        location=location,
    )


def _infer_classes(labels: list[str], path: Path) -> tuple[str, ...]:
    names = set(labels)
    if len(names) < 2:
        raise DataError(f"one class only: every label is {labels[0]!r}", location=str(path))
    if len(names) > MAX_NUMERIC_CLASSES and all(map(is_number, names)):
        hint = f"numbers on a scale are no classes; if these are names of classes, spell them as words (class_{labels[0]})"
        raise DataError(
            f"{len(names)} different numbers as labels, more than {MAX_NUMERIC_CLASSES}",
            location=str(path),
            hint=hint,
        )
    if len(names) > max(2, len(labels) // 2):
        hint = "is `label` the right column? Ratings are no classes"
        raise DataError(
            f"{len(names)} classes in {len(labels)} rows", location=str(path), hint=hint
        )
    numbers = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
    return tuple(sorted(names, key=int) if numbers else sorted(names))


def is_number(name: str) -> bool:
    """Return whether the name of a class is written as a number: 3, -1, 2.5."""
    return re.fullmatch(r"[-+]?\d+(?:[.,]\d+)?", name) is not None
