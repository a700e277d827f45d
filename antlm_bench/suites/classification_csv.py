"""Files of texts and labels (CSV, TSV, JSONL) as classification tasks, without a TOML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from antlm_bench.errors import DataError
from antlm_bench.suites import files, pair_files, records
from antlm_bench.suites.classification import ClassificationSpec, Split, TaskSpec
from antlm_bench.suites.declaration_types import DataSpec, FileSpec
from antlm_bench.suites.names import to_valid_unicode
from antlm_bench.suites.task_types import read_declaration_of_type
from antlm_bench.suites.templates import describe_value

COLUMNS = ("text", "text2", "label", "id", "group", "cluster")
MAX_NUMERIC_CLASSES = 20  # more distinct numbers are ratings or measurements
DEFAULT_TRAINING_SUITE = "glue-2025"  # its table [training] is the default for users' files
RecordList = list[tuple[int, records.Record]]


def task_name_from_path(ref: str) -> str:
    """Return the name of the task of a train file: the file's name without its extension."""
    file = re.sub(r"\.gz$", "", Path(ref).name, flags=re.IGNORECASE)
    return pair_files.suite_name_from_file(file) or "texts"


def read_splits(
    train: Path, valid: Path, columns: Mapping[str, str] | None = None
) -> tuple[ClassificationSpec, dict[Split, RecordList]]:
    """Return the declaration of a train and a scored file, and the rows of both.

    columns: one of COLUMNS -> its name in both files. Raises UsageError for another key.
    Classes are the labels of the train file, sorted (as numbers if all are integers). A label is
    the name of a class, never its index. Raises DataError (a file is missing or unreadable, 0 rows,
    a missing column, an invalid label, a scored label that is not in the train file, one class
    only, ratings instead of classes).
    """
    column_names = columns or {}
    records.check_column_names(column_names, COLUMNS)
    rows: dict[Split, RecordList] = {
        "train": list(_read_rows(train, column_names)),
        "valid": list(_read_rows(valid, column_names)),
    }
    for path, split_rows in ((train, rows["train"]), (valid, rows["valid"])):
        if not split_rows:
            hint = "the file needs the columns text (or text, text2) and label"
            raise DataError("0 rows", location=str(path), hint=hint)
    labels = [record["label"] for _, record in rows["train"] if record["label"]]
    if not labels:
        hint = "a published test split hides its labels"
        raise DataError("no row has a label", location=str(train), hint=hint)
    classes = _infer_classes(labels, train)
    for line, record in rows["valid"]:
        # "" and "-1" mean "no label": see classification_loader.build_examples.
        if record["label"] not in (*classes, "", "-1"):
            message = f"unknown label {record['label']!r:.40}"
            hint = f"labels of {train.name} are {', '.join(classes[:12])}"
            raise DataError(message, location=f"{valid}:{line}", hint=hint)
    present = rows["train"][0][1].keys()
    task = TaskSpec(
        metric="accuracy",
        classes=classes,
        first="{text}",
        second="{text2}" if "text2" in present else "",
        id="{id}" if "id" in present else "",
        group="{group}" if "group" in present else "",
        cluster=("{cluster}",) if "cluster" in present else (),
        train="train",
        valid="valid",
        notes=("the label -1 is read as a class; GLUE's files write it where there is no label",)
        if "-1" in classes and len(classes) > 2
        else (),
    )
    settings, _ = read_declaration_of_type(DEFAULT_TRAINING_SUITE, ClassificationSpec)
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


def _read_rows(path: Path, column_names: Mapping[str, str]) -> Iterator[tuple[int, records.Record]]:
    """Yield (line, record) of a file, with the names in COLUMNS and labels as texts, "" for none.

    Raises DataError for a row that lacks a column of the first row, or has an invalid label.
    """
    required: tuple[str, ...] = ()
    for line, row in records.read_records(files.read_bytes(path), path.name.lower(), str(path)):
        location = f"{path}:{line}"
        for column in required or ("text", "label", *column_names):
            name = column_names.get(column, column)
            if name not in row:
                advice = f"; name it with --columns {column}=..."
                raise records.missing_column_error(name, row, location, advice)
        present = [name for name in COLUMNS if column_names.get(name, name) in row]
        record = {name: row[column_names.get(name, name)] for name in present}
        required = required or tuple(present)
        value = record["label"]
        is_nan = value != value
        is_empty = value is None or (isinstance(value, str) and not value.strip())
        yield line, {**record, "label": "" if is_empty or is_nan else _parse_label(value, location)}


def _parse_label(value: Any, location: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    message = f"the label must be a word or a whole number, not {describe_value(value)}"
    raise DataError(message, location=location)


def _infer_classes(labels: list[str], path: Path) -> tuple[str, ...]:
    names = set(labels)
    if len(names) < 2:
        raise DataError(f"one class only: every label is {labels[0]!r}", location=str(path))
    if len(names) > MAX_NUMERIC_CLASSES and all(map(is_number, names)):
        message = f"{len(names)} distinct numbers as labels, more than {MAX_NUMERIC_CLASSES}"
        hint = (
            "numbers on a scale are not classes; if these are names of classes, "
            f"write them as words (class_{labels[0]})"
        )
        raise DataError(message, location=str(path), hint=hint)
    if len(names) > max(2, len(labels) // 2):
        message = f"{len(names)} classes in {len(labels)} rows"
        hint = "is `label` the right column? Ratings are not classes"
        raise DataError(message, location=str(path), hint=hint)
    all_integers = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
    return tuple(sorted(names, key=int) if all_integers else sorted(names))


def is_number(name: str) -> bool:
    """Return whether the name of a class is a number: 3, -1, 2.5."""
    return re.fullmatch(r"[-+]?\d+(?:[.,]\d+)?", name) is not None
