"""A gate's policy as data: how much worse is tolerated where, in points, written down before the result is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from antlm_bench.compare.verdict import Margins
from antlm_bench.declarations import Declaration, read_toml
from antlm_bench.errors import UsageError

POINT = 0.01
Points = Annotated[float, Field(gt=0, le=100)]


class Policy(Declaration):
    """A policy's TOML. margin: of every suite's headline, in points (of a correlation: hundredths). suites: name -> its
    own. groups: field, phenomenon, paradigm or task -> margin; groups without one are reported and not judged.
    every_group: a margin for all groups of the level that explains a suite (its phenomena)."""

    margin: Points = 1.0
    every_group: Points | None = None
    suites: dict[str, Points] = Field(default_factory=dict)
    groups: dict[str, Points] = Field(default_factory=dict)


def margins(path: str | Path = "", margin: float | None = None, every_group: float | None = None) -> Margins:
    """The margins of a policy file; `margin` and `every_group` (in points) overrule what it says of all suites.

    Raises DeclarationError, naming the file and the key, and UsageError for a margin that is not above 0.
    """
    policy = read_toml(Path(path), Policy) if path else Policy()
    for option, value in (("--margin", margin), ("--group-margin", every_group)):
        if value is not None and not 0 < value <= 100:
            raise UsageError(f"a margin is above 0 and at most 100 points, not {value:g}", place=option)
    every = policy.every_group if every_group is None else every_group
    return Margins(
        default=POINT * (policy.margin if margin is None else margin),
        suites={suite: POINT * value for suite, value in policy.suites.items()},
        groups={group: POINT * value for group, value in policy.groups.items()},
        every_group=None if every is None else POINT * every,
    )
