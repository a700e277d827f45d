"""Planning of paired tests, and several tests at once: `holm`, `benjamini_hochberg`.

The tests themselves: `stratified_score` (means over items), `clustered_test` (strata as a sample),
`crossed_design` (seeds), `spearman`. statsmodels has both corrections and is the oracle of the
tests; importing it takes a second of the two that a verdict has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, standard_error
from antlm_bench.types import Floats


def min_detectable_difference(
    strata: Sequence[Floats], weights: Floats, power: float = 0.8
) -> float:
    """Return the smallest true difference of sum_k w_k mean_k that a two-sided test at
    1 - CONFIDENCE_LEVEL finds with that power.

    It is (z_{1 - alpha/2} + z_power) standard errors, given the variance of the observed
    differences. Where no item differs, it is computed as if one of them did: nothing is known about
    larger differences then, and 0 would claim too much.
    """
    error = standard_error(strata, weights)
    if not error:
        everything = sum(len(values) for values in strata)
        sizes = np.array([len(values) for values in strata])
        error = float(np.sqrt(np.sum(weights**2 / sizes) / everything))
    return float(ndtri((1 + CONFIDENCE_LEVEL) / 2) + ndtri(power)) * error


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm (1979): the chance that any p below alpha in the family is a
    false claim is at most alpha."""
    values = np.asarray(p, float)
    order, m = np.argsort(values), len(values)
    stepped = np.maximum.accumulate(values[order] * np.arange(m, 0, -1))
    return [float(x) for x in np.minimum(stepped, 1)[np.argsort(order)]]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Benjamini & Hochberg (1995): of those below q, a share of at most
    q is false on average."""
    values = np.asarray(p, float)
    order, m = np.argsort(values)[::-1], len(values)
    stepped = np.minimum.accumulate(values[order] * m / np.arange(m, 0, -1))
    return [float(x) for x in np.minimum(stepped, 1)[np.argsort(order)]]
