"""Declarations of suites that are scored: the tables of a TOML whose kind is "suite".

Texts are built by templates (suites/templates.py).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from antlm_bench.declarations import Declaration, TomlTuple
from antlm_bench.metrics import METRICS, ItemKind
from antlm_bench.metrics.records import OPTION_KINDS, SCORED_ITEM_KINDS, validate_metric
from antlm_bench.suites.declaration_types import (
    CheckSpec,
    DataSpec,
    Pair,
    SuiteDeclaration,
    Template,
    Text,
)
from antlm_bench.suites.reading_times_spec import ChildVocabularySpec, ReadingTimesSpec
from antlm_bench.suites.templates import validate_template

Metric = Annotated[str, AfterValidator(partial(validate_metric, item_kinds=SCORED_ITEM_KINDS))]


class OptionSpec(Declaration):
    """One candidate text: the model reads context + scored."""

    scored: Text
    """The part whose probability counts (Option.span); without a context that is the whole text."""
    context: str = ""
    unless: dict[Text, TomlTuple[str]] = Field(default={})
    """Field -> its values in the rows that have no such option (words before the first)."""

    _validate_templates = field_validator("scored", "context")(validate_template)


class SkipSpec(Declaration):
    """Rows that are no items: `field` (a text, or any entry of a list) contains `containing`."""

    field: Text
    containing: Text


class ItemSpec(Declaration):
    """The table [item]: how a record of a data file becomes an item."""

    options: Annotated[TomlTuple[OptionSpec], Field(min_length=1)]
    """The candidates."""
    each: Text | None = None
    """A list field that gives one option per entry. `options` then holds one template, with {each}.
    """
    split: Text | None = None
    """With `each`: the text at which the field is cut into a list."""
    gold: Annotated[int, Field(ge=0)] | Text = 0
    """Index of the right option, or the name of the field that holds it (spearman: a rating in
    0..1).
    """
    alone: bool = False
    """Whether an item has one option, whose probability is wanted."""
    id: Template | None = None
    """None = "<finest group>_<running number in that group>", BabyLM's prediction id and lm-eval's
    doc id.
    """
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


class SuiteSpec(SuiteDeclaration):
    """A suite of items: minimal pairs, multiple choice, ratings, words, reading times."""

    kind: Literal["suite"]
    licence: Text
    citation: Text
    metric: Metric = "accuracy"
    reduction: Literal["sum", "per-token"] = "sum"
    """Which score of an option decides: its sum of log-probabilities, or their mean per token."""
    groups: TomlTuple[Text] = ()
    """Labels that group the items, from coarse to fine."""
    macro: TomlTuple[Text] = ()
    """Levels that the headline averages over, outermost first. Empty = the mean (or the
    correlation) over all items.
    """
    item: ItemSpec
    labels: dict[Text, Template] = Field(default={})
    rename: dict[Text, dict[str, str]] = Field(default={})
    """Label -> {its value in the data: as we write it}."""
    fill: dict[Text, str] = Field(default={})
    """Field -> the text that an empty one stands for."""
    times: ReadingTimesSpec | None = None
    """Reading times of people, for the metric delta-r2."""
    children: ChildVocabularySpec | None = None
    """When children know the words, for an age of acquisition."""
    data: DataSpec | None = None
    grammar: GrammarSpec | None = None
    expect: ExpectedCountsSpec | None = None
    check: CheckSpec | None = None
    example: TomlTuple[ExampleSpec] = ()
    """Self-tests."""

    @property
    def task_type(self) -> str:
        if self.times:
            return "reading-times"
        return "surprisal" if self.item.alone else "suite"

    @model_validator(mode="after")
    def _check_consistency(self) -> SuiteSpec:
        if (self.data is None) == (self.grammar is None):
            raise ValueError("a suite has either a [data] or a [grammar] table")
        metric = METRICS[self.metric]
        if (self.times is None) == metric.needs_suite_data:
            raise ValueError("the metric delta-r2 and a [times] table go together")
        if (metric.item_kind is ItemKind.TEXT) != self.item.alone or (
            self.children and not self.item.alone
        ):
            raise ValueError("the metric surprisal is of items whose option is `alone`")
        if self.reduction != "sum" and metric.item_kind not in OPTION_KINDS:
            raise ValueError(f"`reduction` is for choices; {self.metric} has none")
        for name, levels in (("groups", self.groups), ("rename", tuple(self.rename))):
            if unknown := [level for level in levels if level not in self.labels]:
                known = ", ".join(self.labels)
                raise ValueError(
                    f"`{name}` names {unknown[0]!r}, which is no label; labels are {known}"
                )
        if unknown := [level for level in self.macro if level not in self.groups]:
            raise ValueError(f"`macro` names {unknown[0]!r}, which is none of `groups`")
        if self.macro and not metric.averages_groups:
            raise ValueError(
                f"`macro` averages groups, and {self.metric} runs over all items of a suite: "
                "leave it empty"
            )
        return self

    @property
    def finest_level(self) -> str | None:
        """The label of the smallest groups: `[expect]` counts, ids and limits go by it."""
        return self.groups[-1] if self.groups else None
