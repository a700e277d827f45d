"""What a suite is, as data: the typed tables of tasks/*.toml. A suite is a file here and no line of
Python.

Texts are built by templates (suites/templates.py).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, Strict, field_validator, model_validator

from antlm_bench.declarations import (
    Declaration,
    TomlTuple,
    parse_toml,
    suggest_name,
    validate_tables,
)
from antlm_bench.errors import DeclarationError
from antlm_bench.suites.gate import CheckSpec
from antlm_bench.suites.names import validate_name
from antlm_bench.suites.reading_times_spec import ChildVocabularySpec, ReadingTimesSpec
from antlm_bench.suites.templates import template_fields, validate_paths, validate_template

if TYPE_CHECKING:
    from antlm_bench.suites.acquisition import AcquisitionSpec
    from antlm_bench.suites.classification import ClassificationSpec
    from antlm_bench.suites.collection import CollectionSpec

    AnySpec: TypeAlias = "SuiteSpec | CollectionSpec | ClassificationSpec | AcquisitionSpec"

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, AfterValidator(validate_name)]
Template = Annotated[Text, AfterValidator(validate_template)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Pair = Annotated[tuple[Text, Text], Strict(False)]
Metric = Literal["accuracy", "spearman", "delta-r2", "surprisal"]


class OptionSpec(Declaration):
    """One candidate: the model reads context + scored; only `scored` counts (Option.span). No
    context: all counts.

    unless: field -> what it holds in rows that have no such option (words before the first).
    """

    scored: Text
    context: str = ""
    unless: dict[Text, TomlTuple[str]] = Field(default={})

    _validate_templates = field_validator("scored", "context")(validate_template)


class SkipSpec(Declaration):
    """Rows that are not items: those whose `field` (a text, or any entry of a list) holds
    `containing`.
    """

    field: Text
    containing: Text


class ItemSpec(Declaration):
    """How a record becomes an item.

    options: the candidates. each: a list field (or, with `split`, a text cut there) that gives one
    option per entry; `options` then holds the one template, with {each}. gold: index of the right
    option, or the name of the field that holds it (accuracy: an index; spearman: a rating in 0..1).
    alone: one option, whose probability is wanted. id: template; without it "<finest
    group>_<running number in that group>", BabyLM's prediction id and lm-eval's doc id.
    """

    options: Annotated[TomlTuple[OptionSpec], Field(min_length=1)]
    each: Text | None = None
    split: Text | None = None
    gold: Annotated[int, Field(ge=0)] | Text = 0
    alone: bool = False
    id: Template | None = None
    skip: SkipSpec | None = None

    @model_validator(mode="after")
    def _check_options(self) -> ItemSpec:
        if self.split and not self.each:
            raise ValueError("`split` cuts the field that `each` names; `each` is missing")
        if self.each and len(self.options) != 1:
            raise ValueError("with `each`, `options` holds one template, applied to every entry")
        if not self.each and len(self.options) < 1 + (not self.alone):
            raise ValueError("an item needs two options or more")
        if not self.each and isinstance(self.gold, int) and self.gold >= len(self.options):
            raise ValueError(f"gold = {self.gold}, but the options are 0..{len(self.options) - 1}")
        return self


class FileSpec(Declaration):
    """What is known of an official file: sha256 of its unpacked bytes, or (where nobody could
    compute it) its rows.
    """

    sha256: Sha256 | None = None
    rows: Annotated[int, Field(gt=0)] | None = None


class SourceSpec(Declaration):
    """One official place: http (a URL), osf (a project, and the `path` in it) or hub (a data set,
    and its `split`).

    config: of a hub data set whose rows are the files as they stand, one file per configuration and
    split; both may be templates of {config} and {split}, the two parts of a file's name:
    rte.train.jsonl.
    """

    http: Annotated[str, Field(pattern=r"^https?://")] | None = None
    osf: Annotated[str, Field(pattern=r"^[a-z0-9]{5}$")] | None = None
    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None = None
    path: Text | None = None
    revision: Text | None = None
    config: Text | None = None
    split: Text | None = None

    @model_validator(mode="after")
    def _check_address(self) -> SourceSpec:
        if sum(place is not None for place in (self.http, self.osf, self.hub)) != 1:
            raise ValueError("a source is one of http, osf and hub")
        if not {*template_fields(self.http or ""), *template_fields(self.path or "")} <= {"file"}:
            raise ValueError("only {file} stands in the address of a source")
        if (self.osf is None) != (self.path is None):
            raise ValueError("`path` goes with `osf`, and `osf` needs it")
        if (self.hub is None) != (self.split is None):
            raise ValueError("`split` goes with `hub`, and `hub` needs it")
        if self.config and not self.hub:
            raise ValueError("`config` goes with `hub`")
        if not {*template_fields(self.config or ""), *template_fields(self.split or "")} <= {
            "config",
            "split",
        }:
            raise ValueError("only {config} and {split} stand in a hub's configuration and split")
        return self

    @property
    def location(self) -> str:
        """The place in words, as an error names it."""
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
    """How hub rows become the official files: rows whose `fields` use only words of the vocabulary,
    one file per `partition`, each row followed by its twin with the `swap` pairs of fields
    exchanged.
    """

    partition: Text
    fields: Annotated[TomlTuple[Text], Field(min_length=1)]
    swap: TomlTuple[Pair] = ()
    vocabulary: VocabularySpec


class DataSpec(Declaration):
    """The files of a suite.

    where: templates of the path below a data root, tried in turn, `.gz` accepted beside plain,
    "archive.zip!member" for a member of a zip (read in place with `password`, never unpacked). The
    first one is where a download is kept.
    """

    where: Annotated[TomlTuple[Text], Field(min_length=1)]
    files: Annotated[dict[Text, FileSpec], Field(min_length=1)]
    sources: TomlTuple[SourceSpec] = ()
    password: Text | None = None
    derive: DerivationSpec | None = None

    _validate_paths = field_validator("where")(validate_paths)

    @model_validator(mode="after")
    def _check_consistency(self) -> DataSpec:
        if astray := [
            file for file in self.files if "/" in file or "\\" in file or file.startswith(".")
        ]:
            raise ValueError(f"{astray[0]!r} is a path; `where` says in which folder the files lie")
        if any(source.hub and not source.config for source in self.sources) and self.derive is None:
            raise ValueError(
                "a hub source needs `config`, or a [data.derive] table: how its rows become the files"
            )
        return self


class WordClassSpec(Declaration):
    """A word class: `words` lists its words, each with the forms named in `forms`, separated by
    spaces.
    """

    forms: Annotated[TomlTuple[Text], Field(min_length=1)]
    words: TomlTuple[Text] = ()
    of: TomlTuple[Text] = ()

    @model_validator(mode="after")
    def _check_words(self) -> WordClassSpec:
        if bool(self.words) == bool(self.of):
            raise ValueError("a word class has either `words` or `of` (the classes that it unites)")
        for word in self.words:
            if len(word.split()) != len(self.forms):
                raise ValueError(
                    f"{word!r} does not have the {len(self.forms)} forms {', '.join(self.forms)}"
                )
        return self


class ParadigmSpec(Declaration):
    """A contrast: (good, bad) templates with slots {class.form} or {class1.form}; a slot's word is
    the same in both.
    """

    name: Text
    phenomenon: Text
    field: Text
    pairs: Annotated[TomlTuple[Pair], Field(min_length=1)]


class GrammarSpec(Declaration):
    """A small grammar that generates its own pairs and training text; `also`: templates of the
    training text only.
    """

    seed: int
    pairs: Annotated[int, Field(gt=0)]
    lexicon: dict[Text, WordClassSpec]
    paradigm: Annotated[TomlTuple[ParadigmSpec], Field(min_length=1)]
    also: TomlTuple[Text] = ()


class ExpectedCountsSpec(Declaration):
    """What the complete suite holds: all items, and how many in each finest group (or in the suite,
    without groups).
    """

    items: Annotated[int, Field(gt=0)]
    counts: dict[Text, Annotated[int, Field(gt=0)]] = Field(default={})

    @model_validator(mode="after")
    def _check_total(self) -> ExpectedCountsSpec:
        total = sum(self.counts.values())
        if self.counts and total != self.items:
            raise ValueError(f"the counts add up to {total}, but items = {self.items}")
        return self


class ExampleSpec(Declaration):
    """A self-test: this record of this file becomes these options (their scored parts, gold,
    labels), or is skipped.
    """

    file: Text
    record: dict[str, Any]
    options: TomlTuple[str] = ()
    scored: TomlTuple[str] | None = None
    gold: int | float = 0
    labels: dict[str, str] = Field(default={})
    id: str | None = None
    skipped: bool = False


class SuiteSpec(Declaration):
    """A suite. groups: labels from coarse to fine. macro: the levels that the headline averages
    over, outermost first; empty = the mean (or the correlation) over all items. rename: label ->
    {as in the data: as we write it}. fill: field
    -> the text that an empty one stands for. times: of reading times (metric delta-r2). children: of words (metric
    surprisal, in nats), when children know them. reduction: which score of an option decides, its
    sum of log-probabilities or their mean per token. check: the margins of a gate.
    """

    kind: Literal["suite"]
    name: Name
    version: Text
    title: Text
    licence: Text
    citation: Text
    homepage: str = ""
    metric: Metric = "accuracy"
    reduction: Literal["sum", "per-token"] = "sum"
    groups: TomlTuple[Text] = ()
    macro: TomlTuple[Text] = ()
    notes: TomlTuple[Text] = ()
    item: ItemSpec
    labels: dict[Text, Template] = Field(default={})
    rename: dict[Text, dict[str, str]] = Field(default={})
    fill: dict[Text, str] = Field(default={})
    times: ReadingTimesSpec | None = None
    children: ChildVocabularySpec | None = None
    data: DataSpec | None = None
    grammar: GrammarSpec | None = None
    expect: ExpectedCountsSpec | None = None
    check: CheckSpec | None = None
    example: TomlTuple[ExampleSpec] = ()

    @model_validator(mode="after")
    def _check_consistency(self) -> SuiteSpec:
        if (self.data is None) == (self.grammar is None):
            raise ValueError("a suite has either a [data] or a [grammar] table")
        if (self.times is None) == (self.metric == "delta-r2"):
            raise ValueError("the metric delta-r2 and a [times] table go together")
        if (self.metric == "surprisal") != self.item.alone or (
            self.children and not self.item.alone
        ):
            raise ValueError("the metric surprisal is of items whose option is `alone`")
        if self.reduction != "sum" and self.metric not in ("accuracy", "spearman"):
            raise ValueError(f"`reduction` is of choices, and {self.metric} is of none")
        for name, levels in (("groups", self.groups), ("rename", tuple(self.rename))):
            if unknown := [level for level in levels if level not in self.labels]:
                known = ", ".join(self.labels)
                raise ValueError(
                    f"`{name}` names {unknown[0]!r}, which is no label; labels are {known}"
                )
        if unknown := [level for level in self.macro if level not in self.groups]:
            raise ValueError(f"`macro` names {unknown[0]!r}, which is none of `groups`")
        if self.macro and self.metric == "spearman":
            raise ValueError(
                "`macro` averages groups, and spearman runs over all items of a suite: leave it empty"
            )
        return self

    @property
    def finest_level(self) -> str | None:
        """The label of the smallest groups: `[expect]` counts, ids and limits go by it."""
        return self.groups[-1] if self.groups else None


# What a TOML of tasks/ may be: its key `kind` -> the declaration that checks it, resolved on use.
SPEC_CLASSES: dict[str, str] = {
    "suite": "antlm_bench.suites.spec:SuiteSpec",
    "collection": "antlm_bench.suites.collection:CollectionSpec",
    "classification": "antlm_bench.suites.classification:ClassificationSpec",
    "acquisition": "antlm_bench.suites.acquisition:AcquisitionSpec",
}


def read_spec(path: Path) -> AnySpec:
    """What a TOML of tasks/ declares; its key `kind` says which of KINDS it is."""
    tables = parse_toml(path)
    kind = tables.get("kind")
    if not isinstance(kind, str) or kind not in SPEC_CLASSES:
        message = f"kind is {kind!r}" if "kind" in tables else "the key `kind` is missing"
        close = suggest_name(kind, SPEC_CLASSES) if isinstance(kind, str) else ""
        known = ", ".join(f'"{name}"' for name in SPEC_CLASSES)
        raise DeclarationError(
            message, location=f"{path}: kind", hint=close or f"it is one of {known}"
        )
    module, _, name = SPEC_CLASSES[kind].partition(":")
    model: type[AnySpec] = getattr(import_module(module), name)
    return validate_tables(tables, model, path)
