"""Ages of acquisition: sigmoids through learning curves of children and models.

    y = a / (1 + exp(-b (x - c))) + d

Sources: babylm-eval 2026, strict/evaluation_pipeline/utils.py (after Chang & Bergen 2022), also for
bounds, starting points and the conditions under which a word has no age. Unbounded fits:
evaluation-pipeline-2025, evaluation_pipeline/utils.py.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, Interval
from antlm_bench.statistics.special_functions import stdtrit
from antlm_bench.types import Floats

ParameterBound = Sequence[float] | float
"""A bound for each parameter, or one bound for all parameters."""
HALFWAY = 0.5
"""Share of the rise of a curve at which a word counts as acquired."""
MIN_POINTS = 3
"""Fewest points of a curve, and fewest words of a correlation."""
MAX_CORRELATION = 1 - 1e-15
"""Largest correlation with a finite value on Fisher's scale."""
UNBOUNDED = (-np.inf, np.inf)
"""Bounds with which scipy fits by Levenberg-Marquardt."""


def child_age_of_acquisition(ages: Floats, proportions: Floats) -> float | None:
    """Return the age in months at which half of the children know a word.

    ages (n,): in months, increasing. proportions (n,): shares of children in 0..1, nan = missing.
    Returns None with fewer than MIN_POINTS ages, or if the curve does not pass one half within
    these ages.
    """
    is_present = np.isfinite(proportions)
    x, y = ages[is_present], proportions[is_present]
    if len(x) < MIN_POINTS:
        return None
    bounds = ([0, 0, x[0], -0.5], [2.0, 1.0, x[-1], 0.5])
    parameters = _fit_sigmoid(x, y, [1.0, 0.1, x.mean(), 0.0], bounds, 1000)
    age = _sigmoid_crossing(parameters, HALFWAY, 0.0)
    return age if age is not None and x[0] <= age <= x[-1] else None


def model_age_of_acquisition(
    words_seen: Floats, surprisal: Floats, chance_surprisal: float, bounded: bool = True
) -> float | None:
    """Return log10(words seen + 1) at which surprisal is halfway between chance and its minimum.

    words_seen (n,): words seen at each checkpoint, not decreasing. surprisal (n,): in nats, nan =
    missing. chance_surprisal: in 2026, the word's number of tokens * ln(size of the vocabulary).
    Returns None with fewer than MIN_POINTS checkpoints, or if the curve does not pass that level
    within them.
    """
    is_present = np.isfinite(surprisal)
    words, y = words_seen[is_present], -surprisal[is_present]
    if len(y) < MIN_POINTS:
        return None
    x = np.log10(words + 1)
    height, low, high = float(np.ptp(y)), float(y.min()), float(y.max())
    limits = (
        [0.0, 0.0, x.min() - 1, low - 2 * height - 1],
        [10 * height + 1, 100.0, x.max() + 1, high + 1],
    )
    start = [height, 1.0, x.mean(), low]
    if bounded:
        parameters = _fit_sigmoid(x, y, start, limits, max_evaluations=20_000)
        min_parameter = 1e-6
    else:
        parameters = _fit_sigmoid(x, y, start, UNBOUNDED, max_evaluations=1000)
        min_parameter = 0.0
    level = -(chance_surprisal - HALFWAY * (chance_surprisal + high))
    age = _sigmoid_crossing(parameters, level, min_parameter)
    return age if age is not None and x[0] <= age <= x[-1] else None


def pearson_correlation(x: Floats, y: Floats) -> tuple[float, float, Interval] | None:
    """Return Pearson's r of x (n,) and y (n,), its two-sided p-value and its interval.

    Returns None if n is below MIN_POINTS, or if x or y is constant.

    p is that of the t test with n - 2 degrees of freedom, and below 1 - CONFIDENCE_LEVEL if and
    only if the interval excludes 0. The interval is Fisher's (1921), tanh(atanh r -+ h), but with
    h = atanh of the smallest r that is significant in place of 1.96 / sqrt(n - 3). The two differ
    by 1% at n = 10.
    """
    from scipy.stats import pearsonr

    n = len(x)
    if n < MIN_POINTS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    r, p = (float(number) for number in pearsonr(x, y))
    t = float(stdtrit(n - 2, (1 + CONFIDENCE_LEVEL) / 2))
    half_width = math.atanh(t / math.sqrt(n - 2 + t**2))
    z = math.atanh(min(max(r, -MAX_CORRELATION), MAX_CORRELATION))
    low, high = math.tanh(z - half_width), math.tanh(z + half_width)
    return r, p, Interval(min(low, r), max(high, r))


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
    """Return the fitted a, b, c, d; None if there is no fit."""
    from scipy.optimize import OptimizeWarning, curve_fit

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", OptimizeWarning
            )  # about the covariance, which is not used
            fitted, _ = curve_fit(_sigmoid, x, y, p0=start, bounds=bounds, maxfev=max_evaluations)
    except (RuntimeError, ValueError, TypeError):
        return None  # no convergence, a start outside of its bounds, or too few points
    return tuple(float(number) for number in fitted)


def _sigmoid_crossing(
    parameters: tuple[float, ...] | None, level: float, min_parameter: float
) -> float | None:
    """Return the x at which the curve passes a level; None if it does not pass it or does not rise.

    The curve rises if a and b are above `min_parameter`.
    """
    if parameters is None:
        return None
    a, b, c, d = parameters
    if a <= min_parameter or b <= min_parameter or not d < level < a + d:
        return None
    return c - math.log(a / (level - d) - 1) / b
