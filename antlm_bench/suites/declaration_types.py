"""Types that the declarations of every kind of suite share: names, texts, data files, margins.

A declaration is a TOML of tasks/. `SuiteDeclaration` is the base class of all kinds
(suites/task_types.py says which kinds there are).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, Strict, field_validator, model_validator

from antlm_bench.declarations import Declaration, TomlTuple
from antlm_bench.suites.names import validate_name
from antlm_bench.suites.templates import template_fields, validate_paths, validate_template

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, AfterValidator(validate_name)]
Template = Annotated[Text, AfterValidator(validate_template)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pair = Annotated[tuple[Text, Text], Strict(False)]
Points = Annotated[float, Field(gt=0, le=100)]


class SuiteDeclaration(Declaration):
    """Base of every declaration in tasks/: what its TOML says whatever its kind."""

    kind: str
    """The name of a task type (suites.task_types.TASK_TYPES)."""
    name: Name
    version: Text
    title: Text
    homepage: str = ""
    notes: TomlTuple[Text] = ()
    """Sentences that a reader of the number needs."""

    @property
    def task_type(self) -> str:
        """The name of the task type that scores it: `kind`, unless its other keys say more."""
        return self.kind


class CheckSpec(Declaration):
    """The table [check]: how much worse a suite may get before `check` fails.

    Margins are in points (hundredths, for correlations and nats).
    """

    margin: Points | None = None
    """Margin of the headline."""
    every_group: Points | None = None
    """Margin of every group of the level that explains a suite (its phenomena)."""
    groups: dict[str, Points] = Field(default_factory=dict)
    """Field, phenomenon, paradigm or task -> its margin. Groups without one are not judged."""


class FileSpec(Declaration):
    """What is published about an official file."""

    sha256: Sha256 | None = None
    """Of the unpacked bytes; None where nobody could compute it."""
    rows: Annotated[int, Field(gt=0)] | None = None


class SourceSpec(Declaration):
    """An official source of files: one of `http`, `osf` and `hub`.

    `config` and `split` may be templates of {config} and {split}, the two parts of a file's name:
    rte.train.jsonl.
    """

    http: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """A URL, a template of {file}."""
    osf: Annotated[str, Field(pattern=r"^[a-z0-9]{5}$")] | None = None
    """A project of the Open Science Framework; `path` is the file's path in it."""
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    """A data set of the Hugging Face Hub; `split` is its split."""
    path: Text | None = None
    revision: Text | None = None
    config: Text | None = None
    """The configuration of a hub data set whose rows are the files as they stand, one file per
    configuration and split.
    """
    split: Text | None = None

    @model_validator(mode="after")
    def _check_address(self) -> SourceSpec:
        if sum(address is not None for address in (self.http, self.osf, self.hub)) != 1:
            raise ValueError("a source is one of http, osf and hub")
        if not {*template_fields(self.http or ""), *template_fields(self.path or "")} <= {"file"}:
            raise ValueError("only {file} may stand in the address of a source")
        if (self.osf is None) != (self.path is None):
            raise ValueError("`path` goes with `osf`, and `osf` needs it")
        if (self.hub is None) != (self.split is None):
            raise ValueError("`split` goes with `hub`, and `hub` needs it")
        if self.config and not self.hub:
            raise ValueError("`config` goes with `hub`")
        hub_fields = {*template_fields(self.config or ""), *template_fields(self.split or "")}
        if not hub_fields <= {"config", "split"}:
            raise ValueError("only {config} and {split} may stand in `config` and `split`")
        return self

    @property
    def location(self) -> str:
        """The source as an error message names it."""
        if self.osf:
            return f"https://osf.io/{self.osf} ({self.path})"
        return self.http or f"https://huggingface.co/datasets/{self.hub}"


class VocabularySpec(Declaration):
    """A word list, one word per line, that a derivation filters with; found and fetched like a file
    of the suite.
    """

    file: Text
    where: Annotated[TomlTuple[Text], Field(min_length=1)]
    sources: TomlTuple[SourceSpec] = ()
    sha256: Sha256 | None = None

    _validate_paths = field_validator("where")(validate_paths)


class DerivationSpec(Declaration):
    """How the rows of a hub data set become the official files."""

    partition: Text
    """The field whose value names a row's file."""
    fields: Annotated[TomlTuple[Text], Field(min_length=1)]
    """A row is kept if these fields use only words of the vocabulary."""
    swap: TomlTuple[Pair] = ()
    """Each row is followed by its twin, in which these pairs of fields are exchanged."""
    vocabulary: VocabularySpec


class DataSpec(Declaration):
    """The table [data]: the files of a suite."""

    where: Annotated[TomlTuple[Text], Field(min_length=1)]
    """Templates of the path below a data root, tried in order; the first is where a download is
    kept. `.gz` is accepted beside plain; "archive.zip!member" is a member of a zip, which is read
    in place with `password` and never unpacked.
    """
    files: Annotated[dict[Text, FileSpec], Field(min_length=1)]
    sources: TomlTuple[SourceSpec] = ()
    password: Text | None = None
    derive: DerivationSpec | None = None

    _validate_paths = field_validator("where")(validate_paths)

    @model_validator(mode="after")
    def _check_consistency(self) -> DataSpec:
        paths = [f for f in self.files if "/" in f or "\\" in f or f.startswith(".")]
        if paths:
            raise ValueError(f"{paths[0]!r} is a path; `where` says in which folder the files lie")
        if any(source.hub and not source.config for source in self.sources) and self.derive is None:
            raise ValueError(
                "a hub source needs `config`, or a [data.derive] table: "
                "how its rows become the files"
            )
        return self
