"""Tests between two runs that answered the same items: does chance explain how they differ?

A difference is what an item adds to the second run less what it adds to the first: -1, 0 or 1 where
answers are right or wrong, a fraction where ties share a credit, nats where log-probabilities are
compared. Intervals of a mean difference are those of any mean (`intervals`); where few items
differ, see `adjusted_wald`.

Several tests at once: `holm`, `benjamini_hochberg`. statsmodels has both and is the oracle of the
tests; importing it takes a second of the two that a verdict has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr, ndtri

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, DRAWS, SEED, standard_error
from antlm_bench.types import Floats

MIN_EQUAL_FOR_BINOMIAL = 8
"""From so many equal differences on, the number of plus signs is drawn, not each sign."""
SIGN_BATCH_SIZE = 512
"""Differences whose signs are drawn at once: 40 MB."""


def mcnemar_test(lost: int, gained: int, *, mid_p: bool = True) -> float:
    """Return the two-sided p that two runs are equally often right, from the items that only one of
    them has right.

    mid_p: the mid-p of the exact binomial test, which counts half of what was observed. Its error
    rate hardly ever passes the nominal one, where the exact test (mid_p=False) stays far
    below (Fagerland, Lydersen & Laake 2013). Without such items p is 1.
    """
    fewer, n = min(lost, gained), lost + gained
    if lost == gained:
        return 1.0
    below = float(bdtr(fewer - 1, n, 0.5)) if fewer else 0.0
    upto = float(bdtr(fewer, n, 0.5))
    return min(1.0, below + upto if mid_p else 2 * upto)


def permutation_test(differences: Floats, draws: int = DRAWS, seed: int = SEED) -> float:
    """Return the two-sided p that differences (n,) of each size are as often positive as negative:
    signs are flipped."""
    return macro_permutation_test([differences], np.ones(1), draws, seed)


def macro_permutation_test(
    strata: Sequence[Floats], weights: Floats, draws: int = DRAWS, seed: int = SEED
) -> float:
    """Return the two-sided p that sum_k w_k mean_k of differences is 0: signs are flipped within
    strata, the statistic is studentised.

    If no item prefers a run, flipping signs is exact. If items do but their weighted mean is 0 (one
    paradigm better, another worse), only dividing every draw by its own standard error keeps the
    error rate (Janssen 1997; Chung & Romano 2013): the plain sum counts the paradigms' own
    differences as noise, and misses too much. Of one stratum both are the same test. p is (1 +
    draws as extreme) / (1 + draws) (Phipson & Smyth 2010): never 0.
    """
    rng = np.random.default_rng(seed)
    observed, spread = np.zeros(1), np.zeros(1)
    replicates, spreads = np.zeros(draws), np.zeros(draws)
    for values, weight in zip(strata, weights, strict=True):
        n, squares = len(values), float(values @ values)
        if not squares:
            continue
        for sums, total, variance in (
            (np.array([values.sum()]), observed, spread),
            (_sign_flipped_sums(rng, values, draws), replicates, spreads),
        ):
            total += weight * sums / n
            variance += weight**2 * (
                np.maximum(squares - sums**2 / n, 0) / (n * (n - 1)) if n > 1 else squares
            )
    # Sums that are 0 differ in their last digits.
    threshold = float(_studentize(observed, spread)[0]) * (1 - 1e-9) - 1e-12
    extreme = _studentize(replicates, spreads) >= threshold
    return float((1 + np.count_nonzero(extreme)) / (1 + draws))


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


def _sign_flipped_sums(rng: np.random.Generator, values: Floats, draws: int) -> Floats:
    """Return sums (draws,) of values whose signs are drawn; of many equal sizes the number of plus
    signs is binomial."""
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    common = counts >= MIN_EQUAL_FOR_BINOMIAL
    plus = rng.binomial(counts[common], 0.5, size=(draws, int(common.sum())))
    sums = (2 * plus - counts[common]) @ sizes[common]
    rare = np.repeat(sizes[~common], counts[~common])
    for part in np.split(rare, range(SIGN_BATCH_SIZE, len(rare), SIGN_BATCH_SIZE)):
        drawn = rng.integers(0, 256, size=(draws, -(-len(part) // 8)), dtype=np.uint8)
        sums = sums + 2 * (np.unpackbits(drawn, axis=1)[:, : len(part)] @ part) - part.sum()
    return np.asarray(sums)


def _studentize(sums: Floats, variances: Floats) -> Floats:
    """Return |sum| in standard errors; infinite where all differences are equal, 0 where all are
    0."""
    without_variance = np.where(np.abs(sums) > 0, np.inf, 0.0)
    errors = np.sqrt(np.where(variances > 0, variances, 1.0))
    return np.where(variances > 0, np.abs(sums) / errors, without_variance)
