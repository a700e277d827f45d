"""Ages of acquisition: sigmoids through learning curves of children and models.

    y = a / (1 + exp(-b (x - c))) + d

Source: babylm-eval 2026, strict/evaluation_pipeline/utils.py (after Chang & Bergen 2022), with its
bounds, starting points and conditions; unbounded fits: evaluation-pipeline-2025,
evaluation_pipeline/utils.py. A word whose curve has no answer has no age.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from antlm_bench.statistics.intervals import Interval, Z
from antlm_bench.types import Floats

ParameterBound = Sequence[float] | float
"""Of each parameter, or of all."""
HALFWAY = 0.5
MIN_POINTS = 3
"""Points of a curve, words of a correlation."""
UNBOUNDED = (-np.inf, np.inf)
"""Makes scipy fit by Levenberg-Marquardt."""


def child_age_of_acquisition(ages: Floats, proportions: Floats) -> float | None:
    """Return the age in months at which half of the children know a word.

    ages (n,): months. proportions (n,): shares in 0..1, nan = missing. None with fewer than
    MIN_POINTS ages, or where the curve passes one half outside of these ages.
    """
    known = np.isfinite(proportions)
    x, y = ages[known], proportions[known]
    if len(x) < MIN_POINTS:
        return None
    bounds = ([0, 0, x[0], -0.5], [2.0, 1.0, x[-1], 0.5])
    fitted = _fit_sigmoid(x, y, [1.0, 0.1, x.mean(), 0.0], bounds, 1000)
    age = _sigmoid_crossing(fitted, HALFWAY, 0.0)
    return age if age is not None and x[0] <= age <= x[-1] else None


def model_age_of_acquisition(
    words_seen: Floats, surprisal: Floats, chance_surprisal: float, bounded: bool = True
) -> float | None:
    """Return log10(words seen + 1) at which surprisal is halfway between chance and its minimum.

    words_seen (n,): increasing; several points may have seen equally many. surprisal (n,): in nats,
    nan = missing. chance_surprisal: in 2026 the word's number of tokens * ln(size of the
    vocabulary). None as in `child_age_of_acquisition`.
    """
    known = np.isfinite(surprisal)
    seen, y = words_seen[known], -surprisal[known]
    if len(y) < MIN_POINTS:
        return None
    x = np.log10(seen + 1)
    height, low, high = float(np.ptp(y)), float(y.min()), float(y.max())
    limits = (
        [0.0, 0.0, x.min() - 1, low - 2 * height - 1],
        [10 * height + 1, 100.0, x.max() + 1, high + 1],
    )
    bounds, max_evaluations, min_parameter = (
        (limits, 20_000, 1e-6) if bounded else (UNBOUNDED, 1000, 0.0)
    )
    fitted = _fit_sigmoid(x, y, [height, 1.0, x.mean(), low], bounds, max_evaluations)
    level = -(chance_surprisal - HALFWAY * (chance_surprisal + high))
    age = _sigmoid_crossing(fitted, level, min_parameter)
    return age if age is not None and x[0] <= age <= x[-1] else None


def pearson_correlation(x: Floats, y: Floats) -> tuple[float, float, Interval] | None:
    """Return Pearson's r of x (n,) and y (n,), its two-sided p and Fisher's (1921) interval; None
    with fewer than MIN_POINTS, or where one is constant."""
    from scipy.stats import pearsonr

    if len(x) < MIN_POINTS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    r, p = (float(number) for number in pearsonr(x, y))
    if len(x) == MIN_POINTS or abs(r) == 1:
        return r, p, Interval(-1.0, 1.0)
    half = Z / math.sqrt(len(x) - 3)
    return r, p, Interval(math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def _sigmoid(x: Floats, a: float, b: float, c: float, d: float) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(a / (1 + np.exp(-b * (x - c))) + d)


def _fit_sigmoid(
    x: Floats,
    y: Floats,
    start: Sequence[float],
    bounds: tuple[ParameterBound, ParameterBound],
    max_evaluations: int,
) -> tuple[float, ...] | None:
    from scipy.optimize import OptimizeWarning, curve_fit

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # about the covariance, unused here
            fitted, _ = curve_fit(_sigmoid, x, y, p0=start, bounds=bounds, maxfev=max_evaluations)
    except (RuntimeError, ValueError, TypeError):
        return None  # no convergence; a start outside of its bounds; too few points
    return tuple(float(number) for number in fitted)


def _sigmoid_crossing(
    parameters: tuple[float, ...] | None, level: float, min_parameter: float
) -> float | None:
    """Return where the curve passes a level; None where it does not, or does not rise."""
    if parameters is None:
        return None
    a, b, c, d = parameters
    if a <= min_parameter or b <= min_parameter or not d < level < a + d:
        return None
    return c - math.log(a / (level - d) - 1) / b
