"""Base class and shared tables of the declarations in tasks/*.toml: data files, sources, margins.

`SuiteDeclaration` is the base class. Each task type has its subclass (suites/task_types.py).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, Strict, field_validator, model_validator

from antlm_bench.declarations import Declaration, TomlTuple
from antlm_bench.suites.names import validate_name
from antlm_bench.suites.templates import template_fields, validate_paths, validate_template

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, AfterValidator(validate_name)]
Template = Annotated[Text, AfterValidator(validate_template)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TextPair = Annotated[tuple[Text, Text], Strict(False)]
Points = Annotated[float, Field(gt=0, le=100)]


class SuiteDeclaration(Declaration):
    """Base class of declarations in tasks/: the keys of every kind of suite."""

    kind: str
    """Name of a task type (suites.task_types.TASK_TYPES)."""
    name: Name
    version: Text
    title: Text
    homepage: str = ""
    notes: TomlTuple[Text] = ()
    """Sentences that qualify the score."""

    @property
    def task_type(self) -> str:
        """Name of the task type that scores the suite. Subclasses derive it from more keys."""
        return self.kind


class CheckSpec(Declaration):
    """The table [check]: how much worse a suite may get before `antlm-bench check` fails.

    Margins are in percentage points, or hundredths of a correlation or of a nat.
    """

    margin: Points | None = None
    """Margin of the headline."""
    every_group: Points | None = None
    """Margin of every group of the level by which `check` explains a drop (BLiMP's phenomena)."""
    groups: dict[str, Points] = Field(default_factory=dict)
    """Name of a field, phenomenon, paradigm or task -> its margin. Other groups are not checked."""


class FileSpec(Declaration):
    """The published properties of an official file."""

    sha256: Sha256 | None = None
    """sha256 of the unpacked bytes; None = not known."""
    rows: Annotated[int, Field(gt=0)] | None = None


class SourceSpec(Declaration):
    """An official source of files: one of `http`, `osf` and `hub`."""

    http: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """A URL, which may contain {file}."""
    osf: Annotated[str, Field(pattern=r"^[a-z0-9]{5}$")] | None = None
    """Id of a project of the Open Science Framework."""
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """Id of a dataset of the Hugging Face Hub."""
    path: Text | None = None
    """With `osf`: path of the file in the project. It may contain {file}."""
    revision: Text | None = None
    """With `hub`: a commit, branch or tag."""
    config: Text | None = None
    """With `hub`: configuration of the dataset, if each configuration and split is one file. A
    template, in which a file called rte.train.jsonl has {config} = rte and {split} = train. None =
    [data.derive] makes the files from the rows.
    """
    split: Text | None = None
    """With `hub`: split of the dataset, a template like `config`."""
    max_bytes: Annotated[int, Field(gt=0)] | None = None
    """Largest download in bytes; None = suites.downloads.MAX_BYTES."""

    @model_validator(mode="after")
    def _check_address(self) -> SourceSpec:
        if sum(address is not None for address in (self.http, self.osf, self.hub)) != 1:
            raise ValueError("a source needs exactly one of `http`, `osf` and `hub`")
        if not {*template_fields(self.http or ""), *template_fields(self.path or "")} <= {"file"}:
            raise ValueError("`http` and `path` may contain only the field {file}")
        if (self.osf is None) != (self.path is None):
            raise ValueError("`osf` and `path` must be used together")
        if (self.hub is None) != (self.split is None):
            raise ValueError("`hub` and `split` must be used together")
        if self.config and not self.hub:
            raise ValueError("`config` needs `hub`")
        hub_fields = {*template_fields(self.config or ""), *template_fields(self.split or "")}
        if not hub_fields <= {"config", "split"}:
            raise ValueError("`config` and `split` may contain only {config} and {split}")
        return self

    @property
    def location(self) -> str:
        """The source, for error messages."""
        if self.osf:
            return f"https://osf.io/{self.osf} ({self.path})"
        return self.http or f"https://huggingface.co/datasets/{self.hub}"


class VocabularySpec(Declaration):
    """The vocabulary of a derivation: a file with one word per line."""

    file: Text
    where: Annotated[TomlTuple[Text], Field(min_length=1)]
    """As in DataSpec."""
    sources: TomlTuple[SourceSpec] = ()
    sha256: Sha256 | None = None

    _validate_paths = field_validator("where")(validate_paths)


class DerivationSpec(Declaration):
    """The table [data.derive]: how the rows of a hub dataset become the official files."""

    partition: Text
    """Name of the field whose value is the name of a row's file."""
    fields: Annotated[TomlTuple[Text], Field(min_length=1)]
    """Names of text fields. A row is kept if all their words are in the vocabulary."""
    swap: TomlTuple[TextPair] = ()
    """Pairs of field names. Each row is followed by a copy in which these fields are exchanged."""
    vocabulary: VocabularySpec


class DataSpec(Declaration):
    """The table [data]: the files of a suite."""

    where: Annotated[TomlTuple[Text], Field(min_length=1)] = ("{file}",)
    """Templates of a file's path below a data root. They are tried in order, also with `.gz`
    appended; downloads are stored at the first. "archive.zip!member" is a member of a zip, which is
    read with `password` and never unpacked on disk.
    """
    files: Annotated[dict[Text, FileSpec], Field(min_length=1)]
    """Each official file -> its properties, or a list of files. A name may begin with folders, so
    that files of different folders can have the same name.
    """
    sources: TomlTuple[SourceSpec] = ()
    """Sources for downloads, in the order in which they are tried."""
    password: Text | None = None
    """Published password of the zip archives."""
    derive: DerivationSpec | None = None

    _validate_paths = field_validator("where")(validate_paths)

    @field_validator("files", mode="before")
    @classmethod
    def _convert_list(cls, value: Any) -> Any:
        is_list = isinstance(value, list) and all(isinstance(file, str) for file in value)
        return dict.fromkeys(value, FileSpec()) if is_list else value

    @model_validator(mode="after")
    def _check_consistency(self) -> DataSpec:
        for file in self.files:
            if "\\" in file or any(part.startswith(".") or not part for part in file.split("/")):
                raise ValueError(
                    f"{file!r} must be a relative path with '/', without '..' and hidden folders"
                )
        if any(source.hub and not source.config for source in self.sources) and self.derive is None:
            raise ValueError("a hub source needs `config`, or a [data.derive] table")
        return self
