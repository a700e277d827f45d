"""Intervals of paired differences that stay honest where few items flip, or none: there a bootstrap
claims certainty.

Each of n items moved by d_i in -1..1 (credit under b minus credit under a). Two items are added in
thought, one that moved by +1 and one by -1; the plain normal interval of the n + 2 (Bonett & Price
2012, the adjusted Wald interval of a difference of paired proportions, there in terms of the counts
of items that flipped).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antlm_bench.statistics.intervals import Interval, Z
from antlm_bench.types import Floats


def adjusted_wald_interval(
    total: Floats | float, squares: Floats | float, n: Floats | float
) -> tuple[Floats, Floats]:
    """Interval of a mean paired difference from the sums of d_i and of d_i^2 over n >= 1 items,
    elementwise, in -1..1.

    Fractional differences (ties with 1/k credit) are allowed: they enter by their squares, as whole
    ones do.
    """
    total, squares, n = np.asarray(total, float), np.asarray(squares, float), np.asarray(n, float)
    mean = total / (n + 2)
    half = Z * np.sqrt(np.maximum((squares + 2) / (n + 2) - mean**2, 0.0) / (n + 2))
    return np.clip(mean - half, -1.0, 1.0), np.clip(mean + half, -1.0, 1.0)


def adjusted_wald_macro_interval(strata: Sequence[Floats], weights: Floats) -> Interval:
    """Interval of sum_k w_k mean_k from the strata's `adjusted_wald_interval` (MOVER: Zou & Donner
    2008), as `wilson_macro_interval`.
    """
    means = np.array([values.mean() for values in strata])
    low, high = adjusted_wald_interval(
        np.array([values.sum() for values in strata]),
        np.array([(values**2).sum() for values in strata]),
        np.array([len(values) for values in strata]),
    )
    value = float(weights @ means)
    below = float(np.sqrt(np.sum((weights * (means - np.minimum(low, means))) ** 2)))
    above = float(np.sqrt(np.sum((weights * (np.maximum(high, means) - means)) ** 2)))
    return Interval(value - below, value + above)
