"""Power of paired tests, and corrections for multiple testing.

statsmodels has both corrections, too, but takes a second to import, half of the time of `check`.
Our tests compare these functions with it.
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
    """Return the smallest true difference of sum_k w_k mean_k that is found with probability
    `power` by a two-sided test at alpha = 1 - CONFIDENCE_LEVEL.

    It is (z_{1 - alpha/2} + z_power) standard errors, given the variance of the observed
    differences. If all strata have no variance, it is computed as if one item differed, because 0
    would claim too much.
    """
    error = standard_error(strata, weights)
    if not error:
        num_items = sum(len(values) for values in strata)
        sizes = np.array([len(values) for values in strata])
        error = float(np.sqrt(np.sum(weights**2 / sizes) / num_items))
    return float(ndtri((1 + CONFIDENCE_LEVEL) / 2) + ndtri(power)) * error


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm (1979).

    If all hypotheses with an adjusted p below alpha are rejected, any of them is true with a
    probability of at most alpha.
    """
    values = np.asarray(p, float)
    order, m = np.argsort(values), len(values)
    adjusted = np.maximum.accumulate(values[order] * np.arange(m, 0, -1))
    return [float(x) for x in np.minimum(adjusted, 1)[np.argsort(order)]]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Benjamini & Hochberg (1995).

    If all hypotheses with an adjusted p below q are rejected, a share of at most q of them is true
    on average.
    """
    values = np.asarray(p, float)
    order, m = np.argsort(values)[::-1], len(values)
    adjusted = np.minimum.accumulate(values[order] * m / np.arange(m, 0, -1))
    return [float(x) for x in np.minimum(adjusted, 1)[np.argsort(order)]]
