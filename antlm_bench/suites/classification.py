"""What a suite of classification tasks is, as data: its texts, classes, metrics, files, and how it
is finetuned on.

Nothing of a task is known to the code: texts are templates of a row's fields, hyper-parameters are
tables. What a run trains with is four tables on top of each other: [training], [task.X.training],
[preset.P.training], [preset.P.task.X]; the last one that names a number wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, ValidationError, field_validator, model_validator

from antlm_bench.declarations import Declaration, TomlTuple, suggest_name
from antlm_bench.suites.gate import CheckSpec
from antlm_bench.suites.spec import DataSpec, Name, Sha256, Text
from antlm_bench.suites.templates import validate_template

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Metric = Literal["accuracy", "f1", "mcc"]
Split = Literal["train", "valid"]
Tables = dict[str, Any]


class TrainingSpec(Declaration):
    """How a task is finetuned on.

    lr: its peak. batch: examples per update. epochs: at most. patience: epochs without a better
    selection score, 0 = never stop early. warmup: share of the updates. schedule: what lr does
    after warm-up; a cosine ends at `floor`, a share of lr. clip: the gradient's norm, 0 =
    unclipped. dropout: of the head. max_length: tokens, specials included.
    """

    lr: Positive
    batch: Count
    epochs: Count
    patience: Annotated[int, Field(ge=0)]
    warmup: Share
    schedule: Literal["linear", "cosine", "constant"]
    floor: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(ge=0)] | None
    dropout: Share
    max_length: Annotated[int, Field(ge=8)]
    betas: Annotated[tuple[Share, Share], Strict(False)] = (0.9, 0.999)
    eps: Positive = 1e-8
    # Which law is followed where ours and an official pipeline's differ. The default is ours. Each
    # law has a test in tests/finetuning/test_official_finetuning.py.
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
        """Return what a cell's key holds: all numbers, and the laws that are not ours.

        A law of ours is left out, so that keys of cells that are older than the laws stay valid.
        """
        laws = {
            name: value for name, value in PIPELINE_DEFAULTS.items() if getattr(self, name) == value
        }
        return self.model_dump(mode="json", exclude=set(laws))

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
}  # ours


class SubstituteSpec(Declaration):
    """A known file that is not the official train set, but serves where that is absent. It may go
    by the official file's name: its sha256 tells. says: what it is, for the reader of a number that
    was trained on it.
    """

    file: Text
    sha256: Sha256
    rows: Count
    says: Text


class TaskSpec(Declaration):
    """How a row becomes an example.

    classes: their names, in the order of the integers that `label` (a field) holds; names are
    labels, too. first, second: templates of the text or the pair. group: template of what rows
    share that must not be split (a paragraph). id: template; without it the text's number. train,
    valid: files of [data]. trains_with: a task with the same classes that this one takes the train
    set and the settings of training from.
    """

    metric: Metric
    classes: Annotated[TomlTuple[Text], Field(min_length=2)]
    first: Text
    second: str = ""
    label: Text = "label"
    id: str = ""
    group: str = ""
    train: Text | None = None
    valid: Text
    trains_with: Text | None = None
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
        if self.metric == "f1" and len(self.classes) != 2:
            raise ValueError("f1 is of two classes, the second being the positive one")
        return self


class PresetSpec(Declaration):
    """Published settings, by name. select: which examples choose the epoch. source: whose, where,
    and how sure.
    """

    source: Text
    select: Literal["held-out", "valid"] = "held-out"
    training: Tables = Field(default={})
    task: dict[Text, Tables] = Field(default={})


class ClassificationExampleSpec(Declaration):
    """A self-test: this record of this task becomes this example."""

    task: Text
    record: Tables
    first: Text
    second: str = ""
    gold: int


class ClassificationSpec(Declaration):
    """Tasks of classification that belong together. held_out: share of a train set that chooses the
    epoch.
    """

    kind: Literal["classification"]
    name: Name
    version: Text
    title: Text
    licence: Text
    citation: Text
    homepage: str = ""
    notes: TomlTuple[Text] = ()
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    training: TrainingSpec
    task: Annotated[dict[Text, TaskSpec], Field(min_length=1)]
    preset: dict[Text, PresetSpec] = Field(default={})
    data: DataSpec
    check: CheckSpec | None = None
    example: TomlTuple[ClassificationExampleSpec] = ()

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
            for (
                name
            ) in spec.task:  # the settings of a task that trains with another are the other's
                self._check_reference(f"preset.{preset}.task", name, trained)
        for example in self.example:
            self._check_reference("example", example.task, self.task)
        for preset in (
            "",
            *self.preset,
        ):  # every combination now, so that no slip waits for its run
            for name in self.task:
                self.resolve_training(name, preset)
        return self

    def _check_reference(
        self, location: str, name: str | None, valid_names: Mapping[str, Any]
    ) -> None:
        if name is not None and name not in valid_names:
            hint = suggest_name(name, valid_names) or f"known are {', '.join(valid_names)}"
            raise ValueError(f"{location}: there is no {name!r}: {hint}")

    def resolve_training(self, task: str, preset: str = "") -> TrainingSpec:
        """What a task is trained with under a preset ("" = none). ValueError names the table and
        the key.
        """
        name = self.task[task].trains_with or task
        tables = {f"task.{name}.training": self.task[name].training}
        if preset:
            tables[f"preset.{preset}.training"] = self.preset[preset].training
            tables[f"preset.{preset}.task.{name}"] = self.preset[preset].task.get(name, {})
        settled = self.training
        for place, table in tables.items():
            try:
                settled = override_settings(settled, table)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
        return settled


def override_settings(settings: TrainingSpec, overrides: Mapping[str, Any]) -> TrainingSpec:
    """Settings with those of a table on top. ValueError, naming the key, where one is wrong."""
    try:
        return TrainingSpec.model_validate(settings.model_dump() | dict(overrides))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{where}: " * bool(where) + first["msg"].removeprefix("Value error, ")
        ) from None
