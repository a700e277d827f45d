"""What an age of acquisition is, as data: of whose words, through which points, against which
chance.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from antlm_bench.declarations import Declaration, TomlTuple
from antlm_bench.suites.spec import Name, Text


class AcquisitionSpec(Declaration):
    """Does a model learn words in the order in which children do? Derived from the runs of its
    checkpoints.

    words: the suite that every checkpoint is scored on, and that says what children know. points:
    of a word's curve, one per checkpoint (the mean over contexts) or one per checkpoint and
    context. chance: the surprisal in nats of who knows nothing; None = tokens of the word *
    ln(vocabulary). bounded: are the sigmoid's parameters? significance: the correlation counts as 0
    where its p lies above; None = it always counts.
    """

    kind: Literal["acquisition"]
    name: Name
    version: Text
    title: Text
    citation: Text
    homepage: str = ""
    notes: TomlTuple[Text] = ()
    words: Text
    points: Literal["means", "contexts"]
    chance: Annotated[float, Field(gt=0)] | None = None
    bounded: bool
    significance: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def scoring_settings(self) -> dict[str, Any]:
        """What decides the number, besides the words."""
        return self.model_dump(include={"points", "chance", "bounded", "significance"})
