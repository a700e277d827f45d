"""Multiple testing: which tests form a family, and how their p-values are adjusted.

The headline is tested first and alone (a fixed sequence, which needs no adjustment). The groups of
each label level are one family. Among few and broad groups (12 phenomena, 7 tasks) every claim has
to hold: Holm. Among paradigms, and wherever there are many groups, most claims have to hold:
Benjamini and Hochberg, with at most 1 in 20 of the marked groups false on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from antlm_bench import statistics
from antlm_bench.comparison.results import Difference

MAX_HOLM_TESTS = 20
"""Tests in a family up to which every claim has to hold."""
BH_LEVEL = "paradigm"
"""The level at which groups are explored and nothing is claimed."""
HEADLINE_FAMILY = "tested first, alone"
LEVEL_PLURALS = {"phenomenon": "phenomena"}


def adjust_p_values(
    headline: Difference, groups: Sequence[Difference]
) -> tuple[Difference, tuple[Difference, ...]]:
    """Return the same differences with `adjusted` and `family`; those without a test stay as they
    are."""
    adjusted = {id(group): group for group in groups}
    for level in dict.fromkeys(group.level for group in groups):
        tested = [group for group in groups if group.level == level and group.p is not None]
        many = level == BH_LEVEL or len(tested) > MAX_HOLM_TESTS
        name, rule = ("BH", statistics.benjamini_hochberg) if many else ("Holm", statistics.holm)
        family = f"{name} over {len(tested)} {LEVEL_PLURALS.get(level, level + 's')}"
        for group, p in zip(tested, rule([group.p or 0.0 for group in tested]), strict=True):
            adjusted[id(group)] = replace(group, adjusted=p, family=family)
    return replace(headline, adjusted=headline.p, family=HEADLINE_FAMILY), tuple(adjusted.values())
