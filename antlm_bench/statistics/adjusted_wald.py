"""The adjusted Wald interval of a paired difference (Bonett & Price 2012).

Each of n items moved by d_i in -1..1 (credit under b minus credit under a). Two imaginary items are
added, one that moved by +1 and one by -1, and the plain normal interval of the n + 2 is taken. It
covers also where few items flip, or none; there a bootstrap claims certainty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from antlm_bench.statistics.intervals import Interval, Z
from antlm_bench.types import Floats


def adjusted_wald_interval(
    total: Floats | float, squares: Floats | float, n: Floats | float
) -> tuple[Floats, Floats]:
    """Return the interval of a mean paired difference, elementwise, in -1..1.

    total: the sum of d_i over n >= 1 items. squares: the sum of d_i^2.

    Fractional differences (ties with 1/k credit) are allowed: they enter by their squares, as whole
    ones do.
    """
    total, squares, n = np.asarray(total, float), np.asarray(squares, float), np.asarray(n, float)
    mean = total / (n + 2)
    half = Z * np.sqrt(np.maximum((squares + 2) / (n + 2) - mean**2, 0.0) / (n + 2))
    return np.clip(mean - half, -1.0, 1.0), np.clip(mean + half, -1.0, 1.0)


def adjusted_wald_macro_interval(strata: Sequence[Floats], weights: Floats) -> Interval:
    """Return the interval of sum_k w_k mean_k from the strata's own (MOVER: Zou & Donner 2008), as
    `wilson_macro_interval` does."""
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
