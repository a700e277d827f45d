"""A classification suite by name or file -> its tasks: the one way from data to what a model is
finetuned on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from antlm_bench.declarations import expand_user_path, parse_toml_value, suggest_name
from antlm_bench.errors import DataError, UsageError
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
from antlm_bench.suites.pairs_csv import is_pairs_file as is_own_file
from antlm_bench.suites.task_types import read_declaration_as
from antlm_bench.suites.templates import fill_template, get_field, template_fields
from antlm_bench.types import Example, task_full_name

SEEN_IN_TRAINING = (
    "also stand in the train set"  # how a note ends that says how many scored texts were trained on
)
NumberedRecords = Iterable[tuple[int, records.Record]]


@dataclass(frozen=True, slots=True)
class ClassificationTask:
    """A loaded task: what finetuning needs of the declaration (see TaskSpec), and its examples in
    file order.

    classes: names; Example.gold is an index into them. training: resolved, nothing left to decide.
    select: which examples choose the epoch: "held-out" (a share `held_out` of train) or "valid"
    (the scored ones, as BabyLM's recipes do; optimistic). digest: sha256 over the metric, the
    classes and every example's id, texts, gold and group, of both splits. trains_with: the task
    whose train set this is, "" = its own. notes: what a reader of the number must know.
    """

    suite: str
    name: str
    version: str
    title: str
    licence: str
    metric: str
    classes: tuple[str, ...]
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    training: TrainingSpec
    select: str
    held_out: float
    digest: str
    notes: tuple[str, ...] = ()
    trains_with: str = ""
    origin: tuple[str, ...] = ()
    """Absolute paths of the user's own files: of texts to train on and to score, or a TOML; () = of
    the catalog.
    """

    @property
    def full_name(self) -> str:
        """The name of the task as a suite of its own: glue-2025.rte; a set of one's own has one
        task, and one name.
        """
        return task_full_name(self.suite, self.name)


def list_tasks(ref: str) -> list[str]:
    """The names of the tasks of a classification suite, in its order; of a train file, its one.
    Opens no data.

    Raises DeclarationError (no such suite), UsageError (it is none of classification).
    """
    return (
        [classification_csv.task_name_from_path(ref)]
        if is_own_file(ref)
        else list(read_declaration_as(ref, ClassificationSpec)[0].task)
    )


def list_presets(ref: str) -> dict[str, str]:
    """The published settings of a suite: name -> whose they are, where they stand, how sure. Raises
    as `tasks`.
    """
    return (
        {}
        if is_own_file(ref)
        else {
            name: preset.source
            for name, preset in read_declaration_as(ref, ClassificationSpec)[0].preset.items()
        }
    )


def load_task(
    ref: str,
    name: str,
    *,
    preset: str = "",
    valid: str | None = None,
    limit_train: int | None = None,
    limit_valid: int | None = None,
    overrides: Sequence[str] = (),
) -> ClassificationTask:
    """A task of a suite of the catalog or of a TOML, or that of a train file (CSV, TSV, JSONL) and
    its `valid`.

    limit_train, limit_valid: so many rows, evenly spaced. changes: of TrainingSpec, "lr=3e-5".
    Raises DataError (absent, damaged, incomplete, an unknown label, an empty text, one class only,
    0 rows; file and line), DeclarationError, UsageError (a task, a preset, a change, a limit that
    cannot be).
    """
    for option, limit in (("--limit-train", limit_train), ("--limit-valid", limit_valid)):
        if limit is not None and limit < 1:
            raise UsageError(f"limit is {limit}; it must be 1 or more", location=option)
    origin: tuple[str, ...]
    if is_own_file(ref):
        spec, found = _read_user_files(ref, valid)
        task = _get_task_spec(spec, name, preset)
        origin = (
            absolute_path(expand_user_path(ref)),
            absolute_path(expand_user_path(valid or "")),
        )
    elif valid is not None:
        raise UsageError(
            f"{ref!r} has a scored split of its own",
            location="--valid",
            hint="it goes with a train.csv",
        )
    else:
        spec, folder = read_declaration_as(ref, ClassificationSpec)
        task = _get_task_spec(spec, name, preset)
        found, origin = _read_official_files(spec, name, folder), loader.find_origin(ref, spec)
    training = _resolve_training(spec, name, preset, overrides)
    source = task.trains_with or name
    unlabelled: dict[Split, int] = {}
    makers: dict[Split, str] = {"train": source, "valid": name}
    make = partial(build_examples, strip=training.strip, unlabelled=unlabelled)
    built = {
        split: make(spec.task[maker], maker, split, found[split].records, found[split].location)
        for split, maker in makers.items()
    }
    every, scored = built["train"], built["valid"]
    train, chosen = _subsample_evenly(every, limit_train), _subsample_evenly(scored, limit_valid)
    _require_multiple_classes(task, every, train, found["train"].location)
    return ClassificationTask(
        suite=spec.name,
        name=name,
        version=spec.version,
        title=spec.title,
        licence=spec.licence,
        metric=task.metric,
        classes=task.classes,
        train=train,
        valid=chosen,
        training=training,
        select=spec.preset[preset].select if preset else "held-out",
        held_out=spec.held_out,
        digest=_digest(task, train, chosen),
        notes=(
            *task.notes,
            *_unlabelled_notes(unlabelled, built),
            *_data_notes(found["train"].note, ("train", every, train), ("scored", scored, chosen)),
        ),
        trains_with=task.trains_with or "",
        origin=origin,
    )


def build_examples(
    task: TaskSpec,
    name: str,
    split: Split,
    rows: NumberedRecords,
    location: str,
    *,
    strip: bool = True,
    unlabelled: dict[Split, int] | None = None,
) -> list[Example]:
    """The examples of these rows, in order. DataError names the first line that is wrong.

    An id is a text's number in its file: "rte_0" where it is scored (BabyLM's prediction id),
    "rte.train_0" in train. strip: texts lose the white space at their ends. SST-2's official files
    end every sentence in a space and copies of its train file do not, so that a model that reads
    the last token would be scored on one that it never trained on. unlabelled: split -> how many
    rows without a label were left out, added here. A split without any label is refused.
    """
    fields = {
        template: template_fields(template)
        for template in (task.first, task.second, task.group, task.id)
    }
    labels = {"task": name}
    prefix = name if split == "valid" else f"{name}.{split}"
    same: dict[str, str] = {}  # a paragraph with thirty questions is kept once
    examples: dict[str, Example] = {}
    left_out = 0
    for number, (line, record) in enumerate(rows):
        where = f"{location}:{line}"
        if _is_unlabelled(task, get_field(record, task.label, where)):
            left_out += 1
            continue
        raw = {
            template: fill_template(template, names, record, where)
            for template, names in fields.items()
        }
        filled = {template: text.strip() for template, text in raw.items()}
        for template in (task.first, task.second, task.id):
            if template and not filled[template]:
                raise DataError(f"the text of {template!r} is empty", location=where)
        texts = filled if strip else raw
        first, second = (
            same.setdefault(text, text) for text in (texts[task.first], texts[task.second])
        )
        own = filled[task.id] or f"{prefix}_{number}"
        if own in examples:
            raise DataError(f"the id {own!r} is there already", location=where)
        group = filled[task.group] and hashlib.sha256(filled[task.group].encode()).hexdigest()[:16]
        examples[own] = Example(own, first, second, _parse_gold(task, record, where), labels, group)
    if left_out and not examples:
        hint = "a published test split hides its labels: use one whose labels are known, e.g. validation"
        raise DataError(f"none of {left_out:,} rows has a label", location=location, hint=hint)
    if not examples:
        raise DataError("0 rows", location=location)
    if left_out and unlabelled is not None:
        unlabelled[split] = left_out
    return list(examples.values())


def _is_unlabelled(task: TaskSpec, value: Any) -> bool:
    """Return whether a label means "none": null, nothing, NaN, or -1 where no class has that name."""
    if isinstance(value, str):
        value = value.strip()
    missing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return missing or (str(value) == "-1" and "-1" not in task.classes)


def _parse_gold(task: TaskSpec, record: records.Record, location: str) -> int:
    """Return the class of a row: that whose name the label is, else the class at that number.

    Where the names of classes are themselves numbers (ratings 1 to 5), a label is always a name and
    never a position.
    """
    value = get_field(record, task.label, location)
    name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if name in task.classes:
        return task.classes.index(name)
    named_by_numbers = any(classification_csv.is_number(one) for one in task.classes)
    if (
        not named_by_numbers and isinstance(name, str) and name.isascii() and name.isdigit()
    ):  # cells are all texts
        number = int(name)
        if number < len(task.classes):
            return number
    pairs = enumerate(task.classes[:12])
    known = ", ".join(one if named_by_numbers else f"{number} ({one})" for number, one in pairs)
    raise DataError(f"unknown label {value!r:.40}", location=location, hint=f"labels are {known}")


# ---- where the rows come from
# ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _SplitRecords:
    """The rows of a split, where they are from, and what a reader must know of that."""

    records: NumberedRecords
    location: str
    note: str = ""


def _get_task_spec(spec: ClassificationSpec, name: str, preset: str) -> TaskSpec:
    if name not in spec.task:
        hint = suggest_name(name, spec.task) or f"one of {', '.join(spec.task)}"
        raise UsageError(f"{spec.name} has no task {name!r}", location="--task", hint=hint)
    if preset and preset not in spec.preset:
        hint = suggest_name(preset, spec.preset) or f"it has {', '.join(spec.preset) or 'none'}"
        raise UsageError(f"{spec.name} has no preset {preset!r}", location="--preset", hint=hint)
    return spec.task[name]


def _read_user_files(
    ref: str, valid: str | None
) -> tuple[ClassificationSpec, dict[Split, _SplitRecords]]:
    if valid is None:
        hint = (
            f"antlm-bench finetune --suite {ref} --valid FILE: what is scored, and never trained on"
        )
        raise UsageError(f"{ref!r} needs a file to be scored on", location="--valid", hint=hint)
    if not is_own_file(valid):
        raise UsageError(f"{valid!r} is no .csv, .tsv or .jsonl", location="--valid")
    spec, rows = classification_csv.read_splits(expand_user_path(ref), expand_user_path(valid))
    return spec, {
        "train": _SplitRecords(rows["train"], ref),
        "valid": _SplitRecords(rows["valid"], valid),
    }


def _read_official_files(
    spec: ClassificationSpec, name: str, folder: Path
) -> dict[Split, _SplitRecords]:
    task = spec.task[name]
    origin = spec.task[task.trains_with or name]
    train = _read_split_file(spec, str(origin.train), folder, origin.substitutes)
    return {"train": train, "valid": _read_split_file(spec, task.valid, folder, ())}


def _read_split_file(
    spec: ClassificationSpec, file: str, folder: Path, substitutes: Sequence[SubstituteSpec]
) -> _SplitRecords:
    """The rows of a file; where it is absent, those of a substitute that lies there, which is then
    noted.
    """
    try:
        found = sources.get_file(spec, file, folder)
    except DataError:
        if any(row.file == file and row.path for row in sources.list_files(spec, folder)):
            raise  # it is there, and bad: a substitute would hide that
        for one in substitutes:
            known = FileSpec(sha256=one.sha256)
            if one.file != file and (
                stand_in := sources.find_local_file(spec, one.file, known, folder)
            ):
                return _SplitRecords(
                    records.read_records(stand_in.raw, one.file, stand_in.location),
                    stand_in.location,
                    one.says,
                )
        raise
    rows = records.read_records(found.raw, file, found.location)
    digest = hashlib.sha256(found.raw).hexdigest() if substitutes else ""
    if says := [one.says for one in substitutes if one.sha256 == digest]:
        return _SplitRecords(rows, found.location, says[0])
    have, want = files.count_rows(found.raw), spec.data.files[file].rows
    if want and have != want:
        hint = f"remove it and fetch it again: antlm-bench data fetch {spec.name}"
        raise DataError(f"{have:,} rows, officially {want:,}", location=found.location, hint=hint)
    return _SplitRecords(rows, found.location)


# ---- what is made of them
# ----------------------------------------------------------------------------------------


def _resolve_training(
    spec: ClassificationSpec, name: str, preset: str, overrides: Sequence[str]
) -> TrainingSpec:
    settled = spec.resolve_training(name, preset)
    for change in overrides:
        key, equals, value = (part.strip() for part in change.partition("="))
        if not equals or not key:
            raise UsageError(
                f"{change!r} is not key=value", location="--set", hint="e.g. --set lr=3e-5"
            )
        try:
            settled = override_settings(
                settled, {key: parse_toml_value(value, location=f"--set {key}")}
            )
        except ValueError as error:
            raise UsageError(str(error), location="--set") from None
    return settled


def _subsample_evenly(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """So many of them, evenly spaced: a file may be sorted by source or by label."""
    if limit is None or limit >= len(examples):
        return tuple(examples)
    return tuple(examples[index * len(examples) // limit] for index in range(limit))


def _require_multiple_classes(
    task: TaskSpec, all_rows: Sequence[Example], train: Sequence[Example], location: str
) -> None:
    """DataError or UsageError where the train set holds one class only: nothing can be learnt of
    it.
    """
    if len({example.gold for example in train}) > 1:
        return
    only = f"one class only: every label is {task.classes[train[0].gold]!r}"
    if len({example.gold for example in all_rows}) > 1:
        raise UsageError(
            f"{only} in {len(train)} of {len(all_rows):,} rows",
            location="--limit-train",
            hint="take more",
        )
    raise DataError(only, location=location)


def _data_notes(note: str, *splits: tuple[str, Sequence[Example], Sequence[Example]]) -> list[str]:
    """What a reader must know of the data: a substitute, a limit, texts seen in training, a split
    of one class.
    """
    notes = [note] if note else []
    for split, there, taken in splits:
        if len(taken) < len(there):
            notes.append(f"limit: {len(taken):,} of {len(there):,} {split} rows, evenly spaced")
    train, scored = (taken for _, _, taken in splits)
    known = {(one.first, one.second) for one in train}
    if seen := sum((one.first, one.second) in known for one in scored):
        notes.append(f"{seen:,} of {len(scored):,} scored texts {SEEN_IN_TRAINING}")
    if len({one.gold for one in scored}) == 1:
        notes.append("all scored rows are of one class")
    return notes


def _unlabelled_notes(
    unlabelled: Mapping[Split, int], examples_by_split: Mapping[Split, Sequence[Example]]
) -> list[str]:
    called: dict[Split, str] = {"train": "train", "valid": "scored"}
    return [
        f"incomplete: {count:,} of {count + len(examples_by_split[split]):,} {called[split]} rows have no label and are left out"
        for split, count in unlabelled.items()
    ]


def _digest(task: TaskSpec, *splits: Sequence[Example]) -> str:
    """Return the sha256 of the data. Texts enter stripped: whether they are is a law of training."""
    sha = hashlib.sha256(json.dumps([task.metric, task.classes]).encode())
    encode = json.JSONEncoder(ensure_ascii=True).encode
    for number, examples in enumerate(splits):
        for one in examples:
            sha.update(
                encode(
                    [number, one.id, one.first.strip(), one.second.strip(), one.gold, one.group]
                ).encode()
            )
    return sha.hexdigest()
