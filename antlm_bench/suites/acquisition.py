"""Declarations of an age of acquisition: its words, the points of its curves, the chance level."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from antlm_bench.suites.declaration_types import SuiteDeclaration, Text


class AcquisitionSpec(SuiteDeclaration):
    """Does a model learn words in the order in which children do?

    The number is derived from the runs of the model's checkpoints (commands/acquisition.py).
    """

    kind: Literal["acquisition"]
    citation: Text
    words: Text
    """The suite that every checkpoint is scored on; it also declares what children know."""
    points: Literal["means", "contexts"]
    """Points of a word's curve: one per checkpoint (the mean over contexts), or one per checkpoint
    and context.
    """
    chance: Annotated[float, Field(gt=0)] | None = None
    """Surprisal in nats of a model that knows nothing; None = tokens of the word * ln(vocabulary).
    """
    bounded: bool
    """Whether the parameters of the sigmoid are bounded."""
    significance: Annotated[float, Field(gt=0, le=1)] | None = None
    """The correlation counts as 0 where its p lies above; None = it always counts."""

    @property
    def scoring_settings(self) -> dict[str, Any]:
        """The settings that decide the number, besides the words."""
        return self.model_dump(include={"points", "chance", "bounded", "significance"})
