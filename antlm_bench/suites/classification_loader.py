"""Load classification tasks: the examples and settings for finetuning, from a name or a file."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from antlm_bench.declarations import (
    expand_user_path,
    list_declarations,
    parse_toml_value,
    suggest_name,
)
from antlm_bench.errors import DataError, UsageError
from antlm_bench.printable import format_count
from antlm_bench.suites import classification_csv, files, loader, records, sources
from antlm_bench.suites.classification import (
    ClassificationSpec,
    Split,
    SubstituteSpec,
    TaskSpec,
    TrainingSpec,
    override_settings,
)
from antlm_bench.suites.declaration_types import FileSpec
from antlm_bench.suites.names import absolute_path
from antlm_bench.suites.pair_files import is_table_file
from antlm_bench.suites.task_types import read_declaration, read_declaration_of_type
from antlm_bench.suites.templates import fill_template, get_field, hash_cluster, template_fields
from antlm_bench.types import Example, task_full_name

SEEN_IN_TRAINING = "also stand in the train set"
"""The end of the note on scored texts that are in the train set. Reports look for it."""
LabelForm = Literal["name", "index"]
NumberedRecords = Iterable[tuple[int, records.Record]]


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """A loaded task: its examples in file order, and the settings for finetuning."""

    suite: str
    name: str
    version: str
    title: str
    licence: str
    metric: str
    classes: tuple[str, ...]
    """Names of the classes; `Example.gold` is an index into them."""
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    """The examples that are scored."""
    training: TrainingSpec
    """Settings, with preset and overrides applied."""
    select: str
    """Examples on which the best epoch is selected: "held-out" (the share `held_out` of train) or
    "valid" (the scored examples, as in BabyLM's recipes; this is optimistic).
    """
    held_out: float
    digest: str
    """sha256 of the metric, the classes, and every example's id, texts, gold and group."""
    notes: tuple[str, ...] = ()
    """Sentences that qualify the score."""
    trains_with: str = ""
    """Name of the task that the train set belongs to; "" = this task."""
    origin: tuple[str, ...] = ()
    """Absolute paths of the user's train and scored files, or TOML; () = a suite of the catalog."""
    limits: tuple[int | None, int | None] = (None, None)
    """Number of rows to train on and to score that limits left; None = all, even under a limit."""

    @property
    def full_name(self) -> str:
        """Name of the task in run folders: glue-2025.rte, or the name of a user's file."""
        return task_full_name(self.suite, self.name)


def list_tasks(ref: str) -> list[str]:
    """Return the names of a suite's tasks; a train file has one. Does not read data.

    Raises DeclarationError (no such suite), UsageError (not a classification suite).
    """
    if is_table_file(ref):
        return [classification_csv.task_name_from_path(ref)]
    return list(read_declaration_of_type(ref, ClassificationSpec)[0].task)


def read_trainings(suite: str) -> dict[str, str]:
    """Return task -> the task whose training it uses, often its own, for a suite of the catalog.

    The result is empty for another suite.
    """
    if suite not in list_declarations("tasks"):
        return {}
    tasks: Mapping[str, TaskSpec] = getattr(read_declaration(suite)[0], "task", {})
    return {name: task.trains_with or name for name, task in tasks.items()}


def list_presets(ref: str) -> dict[str, str]:
    """Return the presets of a suite, as name -> source. Raises as list_tasks."""
    if is_table_file(ref):
        return {}
    spec, _ = read_declaration_of_type(ref, ClassificationSpec)
    return {name: preset.source for name, preset in spec.preset.items()}


def load_task(
    ref: str,
    name: str,
    *,
    preset: str = "",
    valid: str | None = None,
    limit_train: int | None = None,
    limit_valid: int | None = None,
    overrides: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> ClassificationTask:
    """Load a classification task.

    ref: name of a suite of the catalog, a TOML, or a CSV, TSV or JSONL to train on; the latter
    needs `valid`, the file that is scored. limit_train, limit_valid: number of rows, evenly spaced.
    overrides: values of TrainingSpec's fields, like "lr=3e-5". columns: of a user's files, one of
    classification_csv.COLUMNS -> its name in the files.

    Raises DataError, which names file and line (missing, damaged, incomplete, an unknown label, an
    empty text, one class only, 0 rows), DeclarationError, UsageError (an invalid task, preset,
    override or limit).
    """
    _check_limits(limit_train, limit_valid)
    spec, task, splits, origin = _read_task(ref, name, preset, valid, columns or {})
    training = apply_changes(spec.resolve_training(name, preset), overrides)
    examples, labels = _build_splits(spec, name, splits, strip=training.strip)
    all_train, all_valid = examples["train"], examples["valid"]
    train = _subsample_evenly(all_train, limit_train)
    scored = _subsample_evenly(all_valid, limit_valid)
    _require_multiple_classes(task, all_train, train, splits["train"].location)
    return ClassificationTask(
        suite=spec.name,
        name=name,
        version=spec.version,
        title=spec.title,
        licence=spec.licence,
        metric=task.metric,
        classes=task.classes,
        train=train,
        valid=scored,
        training=training,
        select=spec.preset[preset].select if preset else "held-out",
        held_out=spec.held_out,
        digest=_digest(task, train, scored),
        notes=(
            *task.notes,
            *_unlabelled_notes(labels, examples),
            *([splits["train"].note] if splits["train"].note else []),
            *_data_notes(("train", all_train, train), ("scored", all_valid, scored)),
        ),
        trains_with=task.trains_with or "",
        origin=origin,
        limits=(
            limit_train if len(train) < len(all_train) else None,
            limit_valid if len(scored) < len(all_valid) else None,
        ),
    )


def _build_splits(
    spec: ClassificationSpec, name: str, splits: Mapping[Split, _SplitRecords], *, strip: bool
) -> tuple[dict[Split, list[Example]], dict[Split, SplitLabels]]:
    """Return the examples of both splits of a task, and their labels. Raises DataError."""
    labels: dict[Split, SplitLabels] = {"train": SplitLabels(), "valid": SplitLabels()}
    task_names: dict[Split, str] = {"train": spec.task[name].trains_with or name, "valid": name}
    examples = {
        split: build_examples(
            spec.task[task_name],
            task_name,
            split,
            splits[split].records,
            splits[split].location,
            strip=strip,
            labels=labels[split],
        )
        for split, task_name in task_names.items()
    }
    _check_label_forms(labels)
    return examples, labels


def _check_limits(limit_train: int | None, limit_valid: int | None) -> None:
    for option, limit in (("--limit-train", limit_train), ("--limit-valid", limit_valid)):
        if limit is not None and limit < 1:
            raise UsageError(f"limit is {limit}; it must be 1 or more", location=option)


def _read_task(
    ref: str, name: str, preset: str, valid: str | None, columns: Mapping[str, str]
) -> tuple[ClassificationSpec, TaskSpec, dict[Split, _SplitRecords], tuple[str, ...]]:
    """Return the declarations of a suite and its task, the rows of its splits, and its origin."""
    if is_table_file(ref):
        spec, splits = _read_user_files(ref, valid, columns)
        task = _get_task_spec(spec, name, preset)
        paths = map(expand_user_path, (ref, valid or ""))
        return spec, task, splits, tuple(map(absolute_path, paths))
    if columns:
        raise UsageError(
            f"{ref!r} declares its columns",
            location="--columns",
            hint="--columns is for a train file (--suite train.csv); leave it out",
        )
    if valid is not None:
        raise UsageError(
            f"{ref!r} declares the file that is scored",
            location="--valid",
            hint="--valid is for a train file (--suite train.csv); leave it out",
        )
    spec, folder = read_declaration_of_type(ref, ClassificationSpec)
    task = _get_task_spec(spec, name, preset)
    train_task = spec.task[task.trains_with or name]
    splits = {
        "train": _read_split_file(spec, str(train_task.train), folder, train_task.substitutes),
        "valid": _read_split_file(spec, task.valid, folder, ()),
    }
    return spec, task, splits, loader.find_origin(ref, spec)


def build_examples(
    task: TaskSpec,
    name: str,
    split: Split,
    rows: NumberedRecords,
    location: str,
    *,
    strip: bool = True,
    labels: SplitLabels | None = None,
) -> list[Example]:
    """Build the examples of these rows, in order.

    The default id has the number of the row: "rte_0" (BabyLM's prediction id) in the scored file,
    "rte.train_0" in the train file. strip: remove white space at the ends of texts. (The sentences
    of SST-2's official files end in a space, and the sentences of a substitute for the train file
    do not. Without `strip`, a head on the last token would not be trained on the space.) Rows
    without a label are left out. labels: receives their number, and the form of the labels.

    Raises DataError, which names the first invalid line; also if no row has a label.
    """
    templates = (task.first, task.second, task.group, task.id)
    fields = {template: template_fields(template) for template in templates}
    cluster_fields = {text: template_fields(text) for text in task.cluster}
    labels = SplitLabels() if labels is None else labels
    item_labels = {"task": name}
    prefix = name if split == "valid" else f"{name}.{split}"
    interned: dict[str, str] = {}  # saves memory: a paragraph can have thirty questions
    examples: dict[str, Example] = {}
    for index, (line, record) in enumerate(rows):
        row_location = f"{location}:{line}"
        if _is_unlabelled(task, get_field(record, task.label, row_location)):
            labels.num_unlabelled += 1
            continue
        raw = {
            template: fill_template(template, names, record, row_location)
            for template, names in fields.items()
        }
        stripped = {template: text.strip() for template, text in raw.items()}
        for template in (task.first, task.second, task.id):
            if template and not stripped[template]:
                raise DataError(f"the text of {template!r} is empty", location=row_location)
        texts = stripped if strip else raw
        first = interned.setdefault(texts[task.first], texts[task.first])
        second = interned.setdefault(texts[task.second], texts[task.second])
        example_id = stripped[task.id] or f"{prefix}_{index}"
        if example_id in examples:
            raise DataError(f"an earlier row has the id {example_id!r}", location=row_location)
        gold, form = _parse_gold(task, record, row_location)
        labels.first_rows.setdefault(form, row_location)
        group = stripped[task.group]
        group_id = hashlib.sha256(group.encode()).hexdigest()[:16] if group else ""
        cluster = hash_cluster(cluster_fields, record, row_location) or group_id
        examples[example_id] = Example(
            example_id, first, second, gold, item_labels, group_id, cluster
        )
    if labels.num_unlabelled and not examples:
        message = f"none of {format_count(labels.num_unlabelled, 'row')} has a label"
        hint = "a published test split hides its labels: use one with labels, e.g. validation"
        raise DataError(message, location=location, hint=hint)
    if not examples:
        raise DataError("0 rows", location=location)
    return list(examples.values())


@dataclass(slots=True)
class SplitLabels:
    """How the rows of a split are labelled."""

    num_unlabelled: int = 0
    first_rows: dict[LabelForm, str] = field(default_factory=dict)
    """Form of a label -> location of the first row with such a label."""


def _check_label_forms(labels: Mapping[Split, SplitLabels]) -> None:
    """Raise DataError if scored rows have indices of classes, and all train rows have names.

    Files of two sources may number the classes differently.
    """
    train, scored = labels["train"].first_rows, labels["valid"].first_rows
    if "index" in scored and "index" not in train:
        raise DataError(
            f"the label is a number, but the labels of the train set are names ({train['name']})",
            location=scored["index"],
            hint="label the scored rows with the names of the classes",
        )


def _is_unlabelled(task: TaskSpec, value: Any) -> bool:
    """Return whether a label is missing: null, empty, nan, or -1 if no class is called -1."""
    if isinstance(value, str):
        value = value.strip()
    is_empty = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return is_empty or (str(value) == "-1" and "-1" not in task.classes)


def _parse_gold(task: TaskSpec, record: records.Record, location: str) -> tuple[int, LabelForm]:
    """Return the class of a row, and whether its label is the name or the index of the class.

    If a class is called by a number (1 to 5), all labels are names.
    """
    value = get_field(record, task.label, location)
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if name in task.classes:
        return task.classes.index(name), "name"
    has_numbers_as_names = any(map(classification_csv.is_number, task.classes))
    # In a CSV, the index is a text, too.
    is_index = isinstance(name, str) and name.isascii() and name.isdigit()
    if is_index and not has_numbers_as_names and int(name) < len(task.classes):
        return int(name), "index"
    labels = ", ".join(
        label if has_numbers_as_names else f"{index} ({label})"
        for index, label in enumerate(task.classes[:12])
    )
    raise DataError(f"unknown label {value!r:.40}", location=location, hint=f"labels are {labels}")


# ---- reading rows


@dataclass(frozen=True, slots=True)
class _SplitRecords:
    """The rows of a split."""

    records: NumberedRecords
    location: str
    note: str = ""
    """A note on the score if this is a substitute; "" otherwise."""


def _get_task_spec(spec: ClassificationSpec, name: str, preset: str) -> TaskSpec:
    if name not in spec.task:
        hint = suggest_name(name, spec.task) or f"one of {', '.join(spec.task)}"
        raise UsageError(f"{spec.name} has no task {name!r}", location="--task", hint=hint)
    if preset and preset not in spec.preset:
        hint = suggest_name(preset, spec.preset) or f"it has {', '.join(spec.preset) or 'none'}"
        raise UsageError(f"{spec.name} has no preset {preset!r}", location="--preset", hint=hint)
    return spec.task[name]


def _read_user_files(
    ref: str, valid: str | None, columns: Mapping[str, str]
) -> tuple[ClassificationSpec, dict[Split, _SplitRecords]]:
    if valid is None:
        hint = f"antlm-bench finetune --model CKPT --suite {shlex.quote(ref)} --valid FILE"
        message = f"{ref!r} is a train file; the file that is scored is missing"
        raise UsageError(message, location="--valid", hint=hint)
    if not is_table_file(valid):
        message = f"{valid!r} has an unknown extension"
        raise UsageError(message, location="--valid", hint="use a .csv, .tsv or .jsonl file")
    spec, rows = classification_csv.read_splits(
        expand_user_path(ref), expand_user_path(valid), columns
    )
    return spec, {
        "train": _SplitRecords(rows["train"], ref),
        "valid": _SplitRecords(rows["valid"], valid),
    }


def _read_split_file(
    spec: ClassificationSpec, file: str, folder: Path, substitutes: Sequence[SubstituteSpec]
) -> _SplitRecords:
    """Read the rows of a file, or of a substitute if it is missing."""
    try:
        data_file = sources.get_file(spec, file, folder)
    except DataError:
        if any(row.file == file and row.path for row in sources.list_files(spec, folder)):
            raise  # the file is present but damaged: do not replace it silently
        for substitute in substitutes:
            if substitute.file == file:
                continue
            expected = FileSpec(sha256=substitute.sha256)
            local_file = sources.find_local_file(spec, substitute.file, expected, folder)
            if local_file:
                rows = records.read_records(local_file.raw, substitute.file, local_file.location)
                return _SplitRecords(rows, local_file.location, substitute.says)
        raise
    location = data_file.location
    rows = records.read_records(data_file.raw, file, location)
    digest = hashlib.sha256(data_file.raw).hexdigest() if substitutes else ""
    for substitute in substitutes:
        if substitute.sha256 == digest:
            return _SplitRecords(rows, location, substitute.says)
    num_rows, expected_rows = files.count_rows(data_file.raw), spec.data.files[file].rows
    if expected_rows and num_rows != expected_rows:
        message = f"{format_count(num_rows, 'row')}, officially {expected_rows:,}"
        hint = f"remove it and fetch it again: antlm-bench data fetch {shlex.quote(spec.name)}"
        raise DataError(message, location=location, hint=hint)
    return _SplitRecords(rows, location)


# ---- building a task


def apply_changes(
    settings: TrainingSpec, changes: Sequence[str], location: str = "--set"
) -> TrainingSpec:
    """Return settings with some values changed. changes: "key=value" each.

    location: for errors, the option or the TOML key that has the changes. Raises UsageError or
    DeclarationError.
    """
    is_option = location.startswith("--")
    for change in changes:
        key, equals, text = (part.strip() for part in change.partition("="))
        if not equals or not key:
            hint = f"e.g. {location} lr=3e-5" if is_option else "e.g. lr=3e-5"
            raise UsageError(f"{change!r} is not key=value", location=location, hint=hint)
        value = parse_toml_value(text, f"{location} {key}" if is_option else f"{location}: {key}")
        try:
            settings = override_settings(settings, {key: value})
        except ValueError as error:
            raise UsageError(str(error), location=location) from None
    return settings


def _subsample_evenly(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """Return `limit` examples, evenly spaced, because files may be sorted by source or label."""
    if limit is None or limit >= len(examples):
        return tuple(examples)
    return tuple(examples[index * len(examples) // limit] for index in range(limit))


def _require_multiple_classes(
    task: TaskSpec, all_rows: Sequence[Example], train: Sequence[Example], location: str
) -> None:
    """Raise DataError if the train set has one class; UsageError if this is due to the limit."""
    if len({example.gold for example in train}) > 1:
        return
    message = f"one class only: every label is {task.classes[train[0].gold]!r}"
    if len({example.gold for example in all_rows}) > 1:
        message += f" in {len(train)} of {len(all_rows):,} rows"
        raise UsageError(message, location="--limit-train", hint="raise the limit")
    raise DataError(message, location=location)


def _data_notes(*splits: tuple[str, Sequence[Example], Sequence[Example]]) -> list[str]:
    """Return notes on limits, scored texts that are in the train set, and a single scored class.

    splits: (name, all examples, examples that are used) of train and scored.
    """
    notes = [
        f"limit: {len(used):,} of {len(examples):,} {split} rows, evenly spaced"
        for split, examples, used in splits
        if len(used) < len(examples)
    ]
    train, scored = (used for _, _, used in splits)
    train_texts = {(example.first, example.second) for example in train}
    num_seen = sum((example.first, example.second) in train_texts for example in scored)
    if num_seen:
        notes.append(f"{num_seen:,} of {len(scored):,} scored texts {SEEN_IN_TRAINING}")
    if len({example.gold for example in scored}) == 1:
        notes.append("all scored rows are of one class")
    return notes


def _unlabelled_notes(
    labels: Mapping[Split, SplitLabels], examples_by_split: Mapping[Split, Sequence[Example]]
) -> list[str]:
    names: dict[Split, str] = {"train": "train", "valid": "scored"}
    counts = {split: each.num_unlabelled for split, each in labels.items() if each.num_unlabelled}
    return [
        f"incomplete: {count:,} of {count + len(examples_by_split[split]):,} {names[split]} rows "
        "have no label and are left out"
        for split, count in counts.items()
    ]


def _digest(task: TaskSpec, *splits: Sequence[Example]) -> str:
    """Return the sha256 of the data.

    Texts are stripped first, so that TrainingSpec.strip, a setting, does not change it.
    """
    sha = hashlib.sha256(json.dumps([task.metric, task.classes]).encode())
    encode = json.JSONEncoder(ensure_ascii=True).encode
    for split_index, examples in enumerate(splits):
        for e in examples:
            fields = [split_index, e.id, e.first.strip(), e.second.strip(), e.gold, e.group]
            sha.update(encode(fields).encode())
    return sha.hexdigest()
