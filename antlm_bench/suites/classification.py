"""Declarations of classification suites: tasks, classes, metrics, files, and finetuning settings.

Texts are templates of a row's fields. The settings of a run are merged from four tables:
[training], [task.X.training], [preset.P.training], [preset.P.task.X]; later tables override earlier
ones.
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
    Template,
    Text,
)
from antlm_bench.suites.templates import validate_template

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
MetricName = Annotated[str, AfterValidator(partial(validate_metric, is_classified=True))]
Split = Literal["train", "valid"]
TomlTable = dict[str, Any]


class TrainingSpec(Declaration):
    """How a model is finetuned on a task.

    The fields from `last_batch` on choose between the rule of this package (the default) and that
    of an official pipeline. tests/finetuning/test_official_finetuning.py tests every rule.
    """

    lr: PositiveFloat
    """The peak learning rate."""
    batch: PositiveInt
    """Examples per update."""
    epochs: PositiveInt
    """Maximum number of epochs."""
    patience: Annotated[int, Field(ge=0)]
    """Epochs since the best one before training stops; 0 = never stop early. Of epochs with equal
    selection scores, `equal_epochs` says which is the best.
    """
    warmup: Share
    """Share of the updates during which the learning rate rises."""
    schedule: Literal["linear", "cosine", "constant"]
    """Course of the learning rate after warm-up."""
    floor: Share = 0.0
    """Final learning rate of a cosine schedule, as a share of lr."""
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(ge=0)] | None
    """Maximum norm of the gradient; 0 in a TOML, None here = no clipping."""
    dropout: Share
    """Dropout rate of the classification head."""
    max_length: Annotated[int, Field(ge=8)]
    """Maximum number of tokens of a text, special tokens included."""
    betas: Annotated[tuple[Share, Share], Strict(False)] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    last_batch: Literal["keep", "drop"] = "keep"
    """What happens to the texts of an epoch that do not fill a batch."""
    order: Literal["by-length", "random"] = "by-length"
    """How texts are grouped into updates: by similar length, or at random."""
    warmup_start: Literal["first-step", "zero"] = "first-step"
    """Learning rate of update n (from 1) of w warm-up updates: "first-step" = lr * n / w; "zero" =
    lr * (n - 1) / w, with w rounded down.
    """
    decay: Literal["matrices", "all"] = "matrices"
    """Tensors with weight decay: those of two or more dimensions, or all (biases and norms, too).
    """
    equal_epochs: Literal["lowest-loss", "first"] = "lowest-loss"
    """How a tie between epochs with the best selection score is broken."""
    token_types: bool = True
    """Whether a model with token types (BERT) gets `token_type_ids`."""
    pooling: Literal["auto", "first", "last", "mean"] = "auto"
    """Which hidden states the head reads; "auto" = by attention (finetuning.heads). `--pooling`
    overrides it.
    """
    head_init: Literal["truncated-normal", "uniform"] = "truncated-normal"
    """Initial weights of the head; "uniform" = torch's for a linear layer."""
    rows: Literal["framed", "tokenizer"] = "framed"
    """What adds special tokens and truncates long texts: "framed" = finetuning.data, "tokenizer" =
    a call of the tokenizer.
    """
    strip: bool = True
    """Whether white space at the ends of texts is removed."""

    def settings_for_key(self) -> dict[str, Any]:
        """Return the settings that enter a cell's content key.

        Pipeline rules with the default value are left out: a new rule does not change the keys of
        older cells.
        """
        unchanged = {
            name for name, value in PIPELINE_DEFAULTS.items() if getattr(self, name) == value
        }
        return self.model_dump(mode="json", exclude=unchanged)

    @field_validator("clip")
    @classmethod
    def _zero_clip_to_none(cls, clip: float | None) -> float | None:
        return clip or None  # TOML has no null

    @model_validator(mode="after")
    def _check_floor(self) -> TrainingSpec:
        if self.floor and self.schedule != "cosine":
            raise ValueError(f"floor needs schedule = 'cosine', not {self.schedule!r}")
        return self


_FIRST_PIPELINE_RULE = list(TrainingSpec.model_fields).index("last_batch")
PIPELINE_DEFAULTS = {
    name: field.default
    for name, field in list(TrainingSpec.model_fields.items())[_FIRST_PIPELINE_RULE:]
}
"""Field of TrainingSpec that chooses a pipeline's rule -> its default."""


class SubstituteSpec(Declaration):
    """A file that may replace an official train set that is not available.

    It may have the name of the official file, because it is recognised by its sha256.
    """

    file: Text
    sha256: Sha256
    rows: PositiveInt
    says: Text
    """A description of the file, for a note on scores that were trained with it."""


class TaskSpec(Declaration):
    """The table [task.X]: how a row of a data file becomes an example."""

    metric: MetricName
    classes: Annotated[TomlTuple[Text], Field(min_length=2)]
    """Names of the classes. The label of a row is a name, or its index here."""
    first: Text
    """Template of the text, or of the first text of a pair."""
    second: str = ""
    label: Text = "label"
    id: str = ""
    """Template of the id; "" = the number of the row."""
    group: str = ""
    """Template of a text (a paragraph) whose rows are held out together; "" = none."""
    cluster: TomlTuple[Template] = ()
    """As in SuiteSpec. () = the rows of a `group` belong together."""
    train: Text | None = None
    """A file of [data], with the train set."""
    valid: Text
    """A file of [data], with the rows that are scored."""
    trains_with: Text | None = None
    """Another task, whose train set and settings are used. It has the same classes."""
    substitutes: TomlTuple[SubstituteSpec] = ()
    training: TomlTable = Field(default={})
    notes: TomlTuple[Text] = ()

    _validate_templates = field_validator("first", "second", "id", "group")(validate_template)

    @model_validator(mode="after")
    def _check_consistency(self) -> TaskSpec:
        if (self.train is None) == (self.trains_with is None):
            raise ValueError("a task needs either `train` or `trains_with`")
        if self.trains_with and (self.training or self.substitutes):
            raise ValueError(
                "`training` and `substitutes` are those of the task in `trains_with`; remove them"
            )
        for name in self.classes:
            if self.classes.count(name) > 1:
                raise ValueError(f"two classes are called {name!r}")
        num_classes = METRICS[self.metric].num_classes
        if num_classes not in (None, len(self.classes)):
            raise ValueError(
                f"{self.metric} needs {num_classes} classes (the second is the positive one), "
                f"not {len(self.classes)}"
            )
        return self


class PresetSpec(Declaration):
    """The table [preset.P]: published settings."""

    source: Text
    """Authors, place of publication, and what is uncertain."""
    select: Literal["held-out", "valid"] = "held-out"
    """Examples on which the best epoch is selected."""
    training: TomlTable = Field(default={})
    task: dict[Text, TomlTable] = Field(default={})


class ClassificationExampleSpec(Declaration):
    """A self-test: this record of this task becomes this example."""

    task: Text
    record: TomlTable
    first: Text
    second: str = ""
    gold: int


class ClassificationSpec(SuiteDeclaration):
    """A suite of classification tasks."""

    kind: Literal["classification"]
    licence: Text
    citation: Text
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the train set that is held out to select the best epoch."""
    training: TrainingSpec
    task: Annotated[dict[Text, TaskSpec], Field(min_length=1)]
    preset: dict[Text, PresetSpec] = Field(default={})
    data: DataSpec
    check: CheckSpec | None = None
    example: TomlTuple[ClassificationExampleSpec] = ()
    """Self-tests."""

    @model_validator(mode="after")
    def _check_consistency(self) -> ClassificationSpec:
        with_train_set = {name: task for name, task in self.task.items() if task.train}
        for name, task in self.task.items():
            self._check_reference(f"task.{name}", task.trains_with, with_train_set)
            for file in (task.train, task.valid):
                self._check_reference(f"task.{name}", file, self.data.files)
            if task.trains_with and self.task[task.trains_with].classes != task.classes:
                raise ValueError(f"task.{name}: trains_with {task.trains_with!r} has other classes")
        for preset, spec in self.preset.items():
            for name in spec.task:  # a task with `trains_with` has no settings
                self._check_reference(f"preset.{preset}.task", name, with_train_set)
        for example in self.example:
            self._check_reference("example", example.task, self.task)
        for preset in ("", *self.preset):  # raises for an invalid combination of tables
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

        Raises ValueError, which names the table and the key.
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
    """Return settings with some values replaced. Raises ValueError, which names the key."""
    try:
        return TrainingSpec.model_validate(settings.model_dump() | dict(overrides))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{key}: {message}" if key else message) from None
