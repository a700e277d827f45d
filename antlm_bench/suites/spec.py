"""Declarations of kind "suite": how the records of data files become items that are scored; and of
kind "syntaxgym": SyntaxGym files that are scored together.

Texts are templates of a record's fields (suites/templates.py).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from antlm_bench.declarations import Declaration, TomlTuple
from antlm_bench.errors import UsageError
from antlm_bench.metrics import METRICS, ItemKind
from antlm_bench.metrics.records import (
    CLUSTERED_KINDS,
    REDUCED_KINDS,
    SCORED_ITEM_KINDS,
    SINGLE_TEXT_KINDS,
    validate_metric,
)
from antlm_bench.suites import pair_layouts
from antlm_bench.suites.acquisition import ChildVocabularySpec
from antlm_bench.suites.declaration_types import (
    CheckSpec,
    DataSpec,
    SuiteDeclaration,
    Template,
    Text,
    TextPair,
)
from antlm_bench.suites.reading_times_spec import ReadingTimesSpec
from antlm_bench.suites.templates import FILE_FIELDS, template_fields, validate_template

MetricName = Annotated[str, AfterValidator(partial(validate_metric, item_kinds=SCORED_ITEM_KINDS))]


class SuiteDataSpec(DataSpec):
    """The table [data] of a suite of items: files, and how they are read."""

    layout: Text | None = None
    """Layout of files of pairs (suites.pair_layouts.LAYOUTS), whose records have the fields `good`
    and `bad` beside those of the file. None = a record is a row of the file.
    """
    columns: dict[Text, str] = Field(default={})
    """With `layout`: our column -> its name in the files. Recognised names may be left out."""
    good: str = ""
    """With `layout`: which sentence is right: "first" or "second" of two lines, or the label of the
    right sentences.
    """

    @model_validator(mode="after")
    def _check_layout(self) -> SuiteDataSpec:
        if self.layout is None:
            if self.columns or self.good:
                raise ValueError("`columns` and `good` need `layout`")
            return self
        try:
            pair_layouts.check_format(self.pair_format)
        except UsageError as error:
            raise ValueError(f"{error.message}: {error.hint}") from None
        return self

    @property
    def pair_format(self) -> pair_layouts.PairFormat:
        """How the files are read, where `layout` is given."""
        return pair_layouts.PairFormat(self.layout or "", self.columns, self.good)


class OptionSpec(Declaration):
    """A candidate text. The model reads context + scored."""

    scored: Text
    """Template of the text whose log-probability is computed (Option.span)."""
    context: str = ""
    """Template of the text before it, without a log-probability."""
    unless: dict[Text, TomlTuple[str]] = Field(default={})
    """Field -> values. Rows with one of these values do not have this option (the first word of a
    text has no previous word).
    """

    _validate_templates = field_validator("scored", "context")(validate_template)


GOOD_AND_BAD = (OptionSpec(scored="{good}"), OptionSpec(scored="{bad}"))


class SkipSpec(Declaration):
    """The table [item.skip]: rows that are left out."""

    field: Text
    """A field with a text or a list of texts."""
    containing: Text
    """Rows are left out if this string is in the text, or in any entry of the list."""


class ItemSpec(Declaration):
    """The table [item]: how a record of a data file becomes an item."""

    options: Annotated[TomlTuple[OptionSpec], Field(min_length=1)] = GOOD_AND_BAD
    """The candidate texts. Default: the fields `good` and `bad`, which a `layout` makes."""
    each: Text | None = None
    """A field with a list. Each entry gives one option, by the only template in `options`, which
    contains {each}.
    """
    split: Text | None = None
    """With `each`: separator at which the field, a text, is split into the list."""
    cloze: Text | None = None
    """A field with a text. What follows its last space becomes the field {last}, and what stands
    before that space becomes {before}.
    """
    gold: Annotated[int, Field(ge=0)] | Text = 0
    """Index of the right option, or the name of a field with the index. For the metric spearman,
    the name of a field with a rating in 0..1.
    """
    alone: bool = False
    """Whether items have a single option, for the metric surprisal."""
    id: Template | None = None
    """Template of the id. None = "<finest group>_<index in that group>", as in BabyLM's prediction
    files; the index is lm-eval's doc id.
    """
    skip: SkipSpec | None = None

    @model_validator(mode="after")
    def _check_options(self) -> ItemSpec:
        if self.split and not self.each:
            raise ValueError("`split` needs `each`, the field that is split")
        if self.each and len(self.options) != 1:
            raise ValueError(f"with `each`, `options` must have one entry, not {len(self.options)}")
        if self.alone and not self.each and len(self.options) > 1:
            raise ValueError("with `alone`, `options` must have one entry")
        if not self.each and not self.alone and len(self.options) < 2:
            raise ValueError("an item needs two options or more")
        if not self.each and isinstance(self.gold, int) and self.gold >= len(self.options):
            raise ValueError(f"gold = {self.gold} must be 0..{len(self.options) - 1}")
        return self


class WordClassSpec(Declaration):
    """A word class of a grammar."""

    forms: Annotated[TomlTuple[Text], Field(min_length=1)]
    """Names of the forms of each word (singular, plural)."""
    words: TomlTuple[Text] = ()
    """The words: all forms of a word, separated by spaces ("dog dogs")."""
    of: TomlTuple[Text] = ()
    """Instead of `words`: classes whose words this class has."""

    @model_validator(mode="after")
    def _check_words(self) -> WordClassSpec:
        if bool(self.words) == bool(self.of):
            raise ValueError("a word class needs either `words` or `of`")
        for word in self.words:
            if len(word.split()) != len(self.forms):
                raise ValueError(
                    f"{word!r} does not have the {len(self.forms)} forms {', '.join(self.forms)}"
                )
        return self


class ParadigmSpec(Declaration):
    """A paradigm of a grammar."""

    name: Text
    phenomenon: Text
    field: Text
    pairs: Annotated[TomlTuple[TextPair], Field(min_length=1)]
    """(good, bad) templates with slots {class.form} or {class1.form}. A slot has the same word in
    both.
    """


class GrammarSpec(Declaration):
    """The table [grammar]: a small grammar that generates minimal pairs and training text."""

    seed: int
    pairs: Annotated[int, Field(gt=0)]
    """Number of pairs of each paradigm."""
    lexicon: dict[Text, WordClassSpec]
    """Name of a word class -> its words."""
    paradigm: Annotated[TomlTuple[ParadigmSpec], Field(min_length=1)]
    also: TomlTuple[Text] = ()
    """Templates of sentences that are only in the training text."""


class ExpectedCountsSpec(Declaration):
    """The table [expect]: number of items of the complete suite."""

    items: Annotated[int, Field(gt=0)]
    counts: dict[Text, Annotated[int, Field(gt=0)]] = Field(default={})
    """Name of each finest group -> its number of items."""

    @model_validator(mode="after")
    def _check_total(self) -> ExpectedCountsSpec:
        total = sum(self.counts.values())
        if self.counts and total != self.items:
            raise ValueError(f"the counts add up to {total}, but items = {self.items}")
        return self


class ExampleSpec(Declaration):
    """A table [[example]]: a record, and the expected item. The tests of this package check it."""

    file: Text
    """The file that the record is in."""
    record: dict[str, Any]
    options: TomlTuple[str] = ()
    """Expected texts of the options, with their contexts."""
    scored: TomlTuple[str] | None = None
    """Expected texts without their contexts. None = as in `options`."""
    gold: int | float = 0
    labels: dict[str, str] = Field(default={})
    id: str | None = None
    skipped: bool = False
    """Whether no item is expected."""


class SuiteSpec(SuiteDeclaration):
    """A suite of items: minimal pairs, multiple choice, ratings, words, reading times."""

    kind: Literal["suite"]
    licence: Text
    citation: Text
    metric: MetricName = "accuracy"
    reduction: Literal["sum", "per-token"] = "sum"
    """Score by which options are compared: the sum of an option's log-probabilities, or their mean
    per token."""
    groups: TomlTuple[Text] = ()
    """Label levels that group the items, coarse to fine."""
    macro: TomlTuple[Text] = ()
    """Levels of `groups` whose groups the headline averages with equal weights, outermost first. ()
    = over all items.
    """
    item: ItemSpec = Field(default=ItemSpec())
    labels: dict[Text, Template] = Field(default={})
    """Label level -> template of an item's label."""
    rename: dict[Text, dict[str, str]] = Field(default={})
    """Label level -> {label in the data: label in reports}."""
    cluster: TomlTuple[Template] = ()
    """Templates of what items share that belong together (a passage). Items for which they give the
    same texts, in any order, form a cluster: intervals and tests count it as a unit. Scores do not
    depend on it. () = items are independent.
    """
    fill: dict[Text, str] = Field(default={})
    """Field -> text that replaces an empty one."""
    times: ReadingTimesSpec | None = None
    """Human reading times, for the metric delta-r2."""
    children: ChildVocabularySpec | None = None
    """Ages at which children know the words, for an age of acquisition."""
    data: SuiteDataSpec | None = None
    grammar: GrammarSpec | None = None
    expect: ExpectedCountsSpec | None = None
    check: CheckSpec | None = None
    example: TomlTuple[ExampleSpec] = ()

    @property
    def task_type(self) -> str:
        if self.times:
            return "reading-times"
        return "surprisal" if self.item.alone else "suite"

    @model_validator(mode="after")
    def _check_consistency(self) -> SuiteSpec:
        if (self.data is None) == (self.grammar is None):
            raise ValueError("a suite needs either a [data] or a [grammar] table")
        metric = METRICS[self.metric]
        if (self.times is not None) != metric.needs_suite_data:
            raise ValueError("a [times] table and the metric delta-r2 must be used together")
        if (metric.item_kind in SINGLE_TEXT_KINDS) != self.item.alone:
            raise ValueError("`alone` and the metric surprisal must be used together")
        if self.children and metric.item_kind is not ItemKind.TEXT:
            raise ValueError("a [children] table needs items with `alone` and the metric surprisal")
        if self.reduction != "sum" and metric.item_kind not in REDUCED_KINDS:
            raise ValueError(f"`reduction` has no effect on the metric {self.metric}; remove it")
        if self.cluster and metric.item_kind not in CLUSTERED_KINDS:
            raise ValueError(f"`cluster` has no effect on the metric {self.metric}; remove it")
        self._check_levels(metric.averages_groups)
        return self

    def _check_levels(self, metric_averages_groups: bool) -> None:
        for key, levels in (("groups", self.groups), ("rename", tuple(self.rename))):
            for level in levels:
                if level not in self.labels:
                    raise ValueError(
                        f"`{key}` names {level!r}, which is not in `labels`: "
                        f"{', '.join(self.labels)}"
                    )
        for level in self.macro:
            if level not in self.groups:
                raise ValueError(f"`macro` names {level!r}, which is not in `groups`")
        if self.macro and not metric_averages_groups:
            raise ValueError(
                f"`macro` must be empty: {self.metric} is computed over all items of a suite"
            )

    @property
    def finest_level(self) -> str | None:
        """The level of the smallest groups, None without groups. Used by ids, limits, [expect]."""
        return self.groups[-1] if self.groups else None


class SyntaxGymSpec(SuiteDeclaration):
    """SyntaxGym files that are scored together, as one suite."""

    kind: Literal["syntaxgym"]
    licence: Text
    citation: Text
    labels: dict[Text, Template]
    """Label level -> template of the label of a file's items, with templates.FILE_FIELDS."""
    groups: Annotated[TomlTuple[Text], Field(min_length=1)]
    """Label levels that group the items, coarse to fine."""
    macro: TomlTuple[Text] = ()
    """As in SuiteSpec."""
    data: DataSpec

    @property
    def metric(self) -> str:
        """Name of the metric: an item is right if its formula holds."""
        return "accuracy"

    @model_validator(mode="after")
    def _check_levels(self) -> SyntaxGymSpec:
        for key, levels, known in (
            ("groups", self.groups, tuple(self.labels)),
            ("macro", self.macro, self.groups),
        ):
            for level in levels:
                if level not in known:
                    raise ValueError(f"`{key}` names {level!r}, which is not in {list(known)}")
        for level, template in self.labels.items():
            if not set(template_fields(template)) <= set(FILE_FIELDS):
                raise ValueError(
                    f"the label {level!r} may contain only {{file}}, {{stem}} and {{folder}}"
                )
        return self
