"""Many tests at once: p-values adjusted so that one may read them all.

statsmodels has both, and is the oracle of the tests; its import takes a second, and a verdict has
two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) adjustment: an adjusted p below alpha errs anywhere in the family at most alpha
    of the time.
    """
    values = np.asarray(p, float)
    order, m = np.argsort(values), len(values)
    stepped = np.maximum.accumulate(values[order] * np.arange(m, 0, -1))
    return [float(x) for x in np.minimum(stepped, 1)[np.argsort(order)]]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini & Hochberg's (1995): of those with an adjusted p below q, a share of at most q is
    false on average.
    """
    values = np.asarray(p, float)
    order, m = np.argsort(values)[::-1], len(values)
    stepped = np.minimum.accumulate(values[order] * m / np.arange(m, 0, -1))
    return [float(x) for x in np.minimum(stepped, 1)[np.argsort(order)]]
