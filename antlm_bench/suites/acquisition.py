"""Declarations of ages of acquisition: of children (a table), and of a model (a TOML)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict

from antlm_bench.declarations import Declaration
from antlm_bench.suites.declaration_types import SuiteDeclaration, Text


class ChildVocabularySpec(Declaration):
    """The table [children] of a suite of words: at what age children know them."""

    human: Text
    """A file of the suite with a row per word (column `word`) and a column per age in months: the
    share of children who know the word.
    """
    ages: Annotated[tuple[int, int], Strict(False)]
    """The first and the last age."""


class AcquisitionSpec(SuiteDeclaration):
    """A declaration of kind "acquisition": does a model learn words in the order of children?

    `antlm-bench acquisition` computes the score from the runs of several checkpoints.
    """

    kind: Literal["acquisition"]
    citation: Text
    words: Text
    """Name of the suite on which every checkpoint is scored. It has a table [children]."""
    points: Literal["means", "contexts"]
    """Points of a word's curve: "means" = one per checkpoint, the mean over contexts; "contexts" =
    one per checkpoint and context.
    """
    chance: Annotated[float, Field(gt=0)] | None = None
    """Surprisal of a word at chance, in nats; None = tokens of the word * ln(vocabulary)."""
    bounded: bool
    """Whether the parameters of the sigmoid are bounded."""
    significance: Annotated[float, Field(gt=0, le=1)] | None = None
    """A correlation with a larger p counts as 0; None = it always counts."""

    @property
    def scoring_settings(self) -> dict[str, Any]:
        """The settings that decide the score, besides the words."""
        return self.model_dump(include={"points", "chance", "bounded", "significance"})
