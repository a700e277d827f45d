"""How much worse a suite may get, as data: the [check] table of its TOML, and what every policy
file says beside it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from antlm_bench.declarations import Declaration

Points = Annotated[float, Field(gt=0, le=100)]


class CheckSpec(Declaration):
    """margin: of the headline, in points (of correlations and nats: hundredths). groups: field,
    phenomenon, paradigm or task -> margin; groups without one are reported and not judged.
    every_group: a margin for all groups of the level that explains a suite (its phenomena).
    """

    margin: Points | None = None
    every_group: Points | None = None
    groups: dict[str, Points] = Field(default_factory=dict)
