"""Corrections for multiple testing.

statsmodels has both, too, but takes a second to import, half of the time of `check`. Our tests
compare these functions with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
