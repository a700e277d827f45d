"""Declarations of kind "acceptability": single sentences with a label, acceptable or not."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from antlm_bench.declarations import TomlTuple
from antlm_bench.errors import DataError
from antlm_bench.metrics import ItemKind
from antlm_bench.metrics.records import validate_metric
from antlm_bench.suites import pair_layouts
from antlm_bench.suites.declaration_types import Text
from antlm_bench.suites.spec import ItemSpec, OptionSpec, SuiteSpec

JudgementMetricName = Annotated[
    str, AfterValidator(partial(validate_metric, item_kinds=(ItemKind.JUDGEMENT,)))
]
MeasureName = Literal["sum", "per-token", "penalised", "slor"]


class JudgementSpec(ItemSpec):
    """The table [item] of judgements: by default the fields `sentence` and `label`."""

    options: Annotated[TomlTuple[OptionSpec], Field(min_length=1, max_length=1)] = (
        OptionSpec(scored="{sentence}"),
    )
    """The sentence."""
    gold: Text = "label"
    """Name of the field with the label."""
    alone: Literal[True] = True
    acceptable: Annotated[TomlTuple[str], Field(min_length=1)] = ("1",)
    """Labels of acceptable sentences."""
    unacceptable: Annotated[TomlTuple[str], Field(min_length=1)] = ("0",)
    """Labels of unacceptable sentences."""

    @model_validator(mode="after")
    def _check_labels(self) -> JudgementSpec:
        if self.each:
            raise ValueError("`each` has no meaning here: an item is one sentence")
        if both := {*self.acceptable} & {*self.unacceptable}:
            raise ValueError(f"`acceptable` and `unacceptable` both have {min(both)!r}")
        return self

    def read_label(self, value: object, location: str) -> int:
        """Return 1 for a label in `acceptable`, 0 for one in `unacceptable`. Raises DataError for
        another label.
        """
        # JSON writes a label as true or 1.0, too. Another number, such as a mean rating, is none.
        is_whole = isinstance(value, bool) or (isinstance(value, float) and value.is_integer())
        text = str(int(value)) if is_whole else str(value).strip()  # type: ignore[call-overload]
        if text in self.acceptable:
            return 1
        if text in self.unacceptable:
            return 0
        labels = ", ".join(map(repr, (*self.acceptable, *self.unacceptable)))
        raise DataError(
            f"the label {self.gold!r} must be one of {labels}, not {value!r:.40}",
            location=location,
            hint="`acceptable` and `unacceptable` in the [item] table list the labels",
        )


class AcceptabilitySpec(SuiteSpec):
    """A suite of sentences with judgements."""

    kind: Literal["acceptability"]  # type: ignore[assignment]  # narrower than SuiteSpec's
    metric: JudgementMetricName = "auc"
    reduction: MeasureName = "penalised"  # type: ignore[assignment]  # wider than SuiteSpec's
    """The acceptability measure of the headline: LP ("sum"), mean LP ("per-token"), PenLP
    ("penalised") or SLOR ("slor", needs `score --unigrams`). The others are views. PenLP is the
    default because it takes length into account and needs no corpus."""
    item: JudgementSpec = JudgementSpec()

    @property
    def task_type(self) -> str:
        return self.kind

    @model_validator(mode="after")
    def _check_layout(self) -> AcceptabilitySpec:
        layout = self.data.layout if self.data else None
        if layout and pair_layouts.LAYOUTS[layout].is_paired:
            raise ValueError(
                f"the layout {layout!r} makes pairs; use 'judgements', or leave it out"
            )
        return self
