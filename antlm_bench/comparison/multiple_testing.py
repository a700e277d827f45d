"""Multiple testing: which tests form a family, and how their p-values are adjusted.

The headline is tested first and alone (a fixed sequence, which needs no adjustment). The groups of
each label level are one family. Holm's correction is for few and broad groups (12 phenomena, 7
tasks), where every claim has to hold. Benjamini and Hochberg's is for paradigms and for many
groups, where most claims have to hold: on average, at most 1 in 20 significant groups is false.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from antlm_bench import statistics
from antlm_bench.comparison.results import Difference

MAX_HOLM_TESTS = 20
"""Largest number of tests in a family that Holm's correction is used for."""
BH_LEVEL = "paradigm"
"""The level whose groups are always corrected by Benjamini and Hochberg."""
HEADLINE_FAMILY = "tested first, alone"
LEVEL_PLURALS = {"phenomenon": "phenomena"}


def adjust_p_values(
    headline: Difference, groups: Sequence[Difference]
) -> tuple[Difference, tuple[Difference, ...]]:
    """Return the differences with `adjusted` and `family`. Groups without a test stay unchanged."""
    adjusted_by_id = {id(group): group for group in groups}
    for level in dict.fromkeys(group.level for group in groups):
        tested = [group for group in groups if group.level == level and group.p is not None]
        name, adjusted = adjust_family(
            [group.p or 0.0 for group in tested], always_bh=level == BH_LEVEL
        )
        family = f"{name} over {len(tested)} {LEVEL_PLURALS.get(level, level + 's')}"
        for group, p in zip(tested, adjusted, strict=True):
            adjusted_by_id[id(group)] = replace(group, adjusted=p, family=family)
    headline = replace(headline, adjusted=headline.p, family=HEADLINE_FAMILY)
    return headline, tuple(adjusted_by_id.values())


def adjust_family(p_values: Sequence[float], always_bh: bool = False) -> tuple[str, list[float]]:
    """Return (name of the correction, the adjusted p-values of one family of tests).

    always_bh: whether to correct few tests by Benjamini and Hochberg, too.
    """
    if always_bh or len(p_values) > MAX_HOLM_TESTS:
        return "BH", statistics.benjamini_hochberg(p_values)
    return "Holm", statistics.holm(p_values)
