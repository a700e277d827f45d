"""Many groups, many tests: which belong to one family, and what their p-values are worth when all
of them are read.

The headline is tested first and alone (a fixed sequence: it costs the groups nothing, and nothing
is paid for it). The groups of each label level are one family. Of few and broad ones (12 phenomena,
7 tasks) every claim shall hold: Holm. Of paradigms, and wherever there are many, most of them:
Benjamini and Hochberg, at most 1 in 20 of those marked is false on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from antlm_bench import statistics
from antlm_bench.comparison.results import Difference

MAX_HOLM_TESTS = 20  # tests in a family up to which each claim shall hold
BH_LEVEL = "paradigm"  # the level at which one looks for what to look into, not for claims
HEADLINE_FAMILY = "tested first, alone"
LEVEL_PLURALS = {"phenomenon": "phenomena"}


def adjust_p_values(
    headline: Difference, groups: Sequence[Difference]
) -> tuple[Difference, tuple[Difference, ...]]:
    """The same differences with `adjusted` and `family`; those without a test stay as they are."""
    found = {id(group): group for group in groups}
    for level in dict.fromkeys(group.level for group in groups):
        tested = [group for group in groups if group.level == level and group.p is not None]
        many = level == BH_LEVEL or len(tested) > MAX_HOLM_TESTS
        name, rule = ("BH", statistics.benjamini_hochberg) if many else ("Holm", statistics.holm)
        family = f"{name} over {len(tested)} {LEVEL_PLURALS.get(level, level + 's')}"
        for group, p in zip(tested, rule([group.p or 0.0 for group in tested]), strict=True):
            found[id(group)] = replace(group, adjusted=p, family=family)
    return replace(headline, adjusted=headline.p, family=HEADLINE_FAMILY), tuple(found.values())
