"""Declarations of classification suites: tasks, classes, metrics, files, and finetuning settings.

Texts are templates of a row's fields, hyper-parameters are tables. What a run trains with is four
tables on top of each other: [training], [task.X.training], [preset.P.training],
[preset.P.task.X]; the last one that names a number wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)

from antlm_bench.declarations import Declaration, TomlTuple, suggest_name
from antlm_bench.metrics import METRICS
from antlm_bench.metrics.records import validate_metric
from antlm_bench.suites.declaration_types import (
    CheckSpec,
    DataSpec,
    Sha256,
    SuiteDeclaration,
    Text,
)
from antlm_bench.suites.templates import validate_template

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Metric = Annotated[str, AfterValidator(partial(validate_metric, is_classified=True))]
Split = Literal["train", "valid"]
Tables = dict[str, Any]


class TrainingSpec(Declaration):
    """How a task is finetuned on.

    From `last_batch` on, the fields say which rule is followed where ours differs from an official
    pipeline's. The defaults are ours; every rule is tested in
    tests/finetuning/test_official_finetuning.py.
    """

    lr: Positive
    """The peak learning rate."""
    batch: Count
    """Examples per update."""
    epochs: Count
    """At most so many."""
    patience: Annotated[int, Field(ge=0)]
    """Epochs without a better selection score before training stops; 0 = never stop early."""
    warmup: Share
    """Share of the updates."""
    schedule: Literal["linear", "cosine", "constant"]
    """What the learning rate does after warm-up."""
    floor: Share = 0.0
    """Where a cosine ends, as a share of lr."""
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(ge=0)] | None
    """Maximal norm of the gradient; 0 = unclipped."""
    dropout: Share
    """Of the classification head."""
    max_length: Annotated[int, Field(ge=8)]
    """In tokens, special tokens included."""
    betas: Annotated[tuple[Share, Share], Strict(False)] = (0.9, 0.999)
    eps: Positive = 1e-8
    last_batch: Literal["keep", "drop"] = "keep"
    """What happens to the texts of an epoch that do not fill a batch."""
    order: Literal["by-length", "random"] = "by-length"
    """Whether an update holds texts of like length, or any."""
    warmup_start: Literal["first-step", "zero"] = "first-step"
    """Rate of update n (from 1) of w that warm up: lr * n / w; "zero": lr * (n - 1) / w, w rounded
    down.
    """
    decay: Literal["matrices", "all"] = "matrices"
    """Which tensors decay: those of two dimensions and more, or biases and norms, too."""
    equal_epochs: Literal["lowest-loss", "first"] = "lowest-loss"
    """Which of several epochs with the best selection score is kept."""
    token_types: bool = True
    """Whether a model that has token types (BERT) is given them."""
    pooling: Literal["auto", "first", "last", "mean"] = "auto"
    """What the head reads; "auto": by attention, see finetuning.heads. `--pooling` overrides it."""
    head_init: Literal["truncated-normal", "uniform"] = "truncated-normal"
    """How the head is initialised; "uniform": as torch initialises a linear layer."""
    rows: Literal["framed", "tokenizer"] = "framed"
    """Who adds specials and cuts long texts: finetuning.data, or the tokenizer's own call."""
    strip: bool = True
    """Whether texts lose the white space at their ends."""

    def settings_for_key(self) -> Tables:
        """Return the settings that enter a cell's content key.

        Rules with our default are left out, so that keys from before there was a choice stay valid.
        """
        defaults = {
            name for name, value in PIPELINE_DEFAULTS.items() if getattr(self, name) == value
        }
        return self.model_dump(mode="json", exclude=defaults)

    @field_validator("clip")
    @classmethod
    def _zero_clip_to_none(cls, clip: float | None) -> float | None:
        return clip or None  # TOML has no null

    @model_validator(mode="after")
    def _check_floor(self) -> TrainingSpec:
        if self.floor and self.schedule != "cosine":
            raise ValueError(f"floor is where a cosine ends; the schedule is {self.schedule!r}")
        return self


_FIRST_PIPELINE_OPTION = list(TrainingSpec.model_fields).index("last_batch")
PIPELINE_DEFAULTS = {
    name: field.default
    for name, field in list(TrainingSpec.model_fields.items())[_FIRST_PIPELINE_OPTION:]
}


class SubstituteSpec(Declaration):
    """A known file that stands in for an official train set where that is absent.

    It may have the official file's name; its sha256 tells them apart.
    """

    file: Text
    sha256: Sha256
    rows: Count
    says: Text
    """What the file is, for the reader of a number that was trained on it."""


class TaskSpec(Declaration):
    """The table [task.X]: how a row of a data file becomes an example."""

    metric: Metric
    classes: Annotated[TomlTuple[Text], Field(min_length=2)]
    """Names, in the order of the integers that the field `label` holds. Names are labels, too."""
    first: Text
    """Template of the text, or of the first text of a pair."""
    second: str = ""
    label: Text = "label"
    id: str = ""
    """Template; "" = the number of the row."""
    group: str = ""
    """Template of what rows share that must not be split (a paragraph)."""
    train: Text | None = None
    """A file of [data]."""
    valid: Text
    """A file of [data]: the rows that are scored."""
    trains_with: Text | None = None
    """A task with the same classes whose train set and training settings this one uses."""
    substitutes: TomlTuple[SubstituteSpec] = ()
    training: Tables = Field(default={})
    notes: TomlTuple[Text] = ()

    _validate_templates = field_validator("first", "second", "id", "group")(validate_template)

    @model_validator(mode="after")
    def _check_consistency(self) -> TaskSpec:
        if (self.train is None) == (self.trains_with is None):
            raise ValueError("a task has either a file `train` or a task that it `trains_with`")
        if self.trains_with and (self.training or self.substitutes):
            raise ValueError(
                "`trains_with` brings the train set and its settings; there is nothing to add"
            )
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have one name")
        if METRICS[self.metric].num_classes not in (None, len(self.classes)):
            raise ValueError(f"{self.metric} is of two classes, the second being the positive one")
        return self


class PresetSpec(Declaration):
    """The table [preset.P]: published settings."""

    source: Text
    """Whose settings, where they are published, and how sure we are."""
    select: Literal["held-out", "valid"] = "held-out"
    """Which examples choose the epoch."""
    training: Tables = Field(default={})
    task: dict[Text, Tables] = Field(default={})


class ClassificationExampleSpec(Declaration):
    """A self-test: this record of this task becomes this example."""

    task: Text
    record: Tables
    first: Text
    second: str = ""
    gold: int


class ClassificationSpec(SuiteDeclaration):
    """Classification tasks that belong together."""

    kind: Literal["classification"]
    licence: Text
    citation: Text
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of a train set that chooses the epoch."""
    training: TrainingSpec
    task: Annotated[dict[Text, TaskSpec], Field(min_length=1)]
    preset: dict[Text, PresetSpec] = Field(default={})
    data: DataSpec
    check: CheckSpec | None = None
    example: TomlTuple[ClassificationExampleSpec] = ()
    """Self-tests."""

    @model_validator(mode="after")
    def _check_consistency(self) -> ClassificationSpec:
        trained = {name: task for name, task in self.task.items() if task.train}
        for name, task in self.task.items():
            self._check_reference(f"task.{name}", task.trains_with, trained)
            for file in (task.train, task.valid):
                self._check_reference(f"task.{name}", file, self.data.files)
            if task.trains_with and self.task[task.trains_with].classes != task.classes:
                raise ValueError(
                    f"task.{name}: {task.trains_with!r}, that it trains with, has other classes"
                )
        for preset, spec in self.preset.items():
            for name in spec.task:  # a task that trains with another uses the other's settings
                self._check_reference(f"preset.{preset}.task", name, trained)
        for example in self.example:
            self._check_reference("example", example.task, self.task)
        for preset in ("", *self.preset):  # every combination is checked before anything runs
            for name in self.task:
                self.resolve_training(name, preset)
        return self

    def _check_reference(
        self, location: str, name: str | None, valid_names: Mapping[str, Any]
    ) -> None:
        if name is not None and name not in valid_names:
            hint = suggest_name(name, valid_names) or f"there are {', '.join(valid_names)}"
            raise ValueError(f"{location}: there is no {name!r}: {hint}")

    def resolve_training(self, task: str, preset: str = "") -> TrainingSpec:
        """Return the settings of a task under a preset ("" = none).

        Raises ValueError, naming the table and the key.
        """
        name = self.task[task].trains_with or task
        tables = {f"task.{name}.training": self.task[name].training}
        if preset:
            tables[f"preset.{preset}.training"] = self.preset[preset].training
            tables[f"preset.{preset}.task.{name}"] = self.preset[preset].task.get(name, {})
        settings = self.training
        for location, table in tables.items():
            try:
                settings = override_settings(settings, table)
            except ValueError as error:
                raise ValueError(f"{location}: {error}") from None
        return settings


def override_settings(settings: TrainingSpec, overrides: Mapping[str, Any]) -> TrainingSpec:
    """Return settings with those of a table on top. Raises ValueError, naming the key."""
    try:
        return TrainingSpec.model_validate(settings.model_dump() | dict(overrides))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key}: {message}" if key else message) from None
