"""Tests between two runs that answered the same items: what they differ by, item by item, and
whether luck explains it.

A difference is what an item adds to the second run less what it adds to the first: -1, 0 or 1 where
answers are right or wrong, a fraction where ties share a credit, nats where margins are compared.
Intervals of a mean difference are those of any mean (`bootstrap`, `normal_interval`, `clustered`);
where few items differ, see `adjusted`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr, ndtri

from antlm_bench.statistics.intervals import CONFIDENCE_LEVEL, DRAWS, SEED, standard_error
from antlm_bench.types import Floats

MIN_EQUAL_FOR_BINOMIAL = (
    8  # from so many equal differences on, the number of signs is drawn, not each sign
)
SIGN_BATCH_SIZE = 512  # differences whose signs are drawn at once: 40 MB


def mcnemar_test(lost: int, gained: int, *, mid_p: bool = True) -> float:
    """Two-sided p that two runs are equally often right, from the items only one of them has right.

    mid: the mid-p of the exact binomial test, which counts half of what was observed. Its error
    rate hardly ever passes the nominal one, where the exact test (mid=False) stays far below
    (Fagerland, Lydersen & Laake 2013). None: 1.
    """
    fewer, n = min(lost, gained), lost + gained
    if lost == gained:
        return 1.0
    below = float(bdtr(fewer - 1, n, 0.5)) if fewer else 0.0
    upto = float(bdtr(fewer, n, 0.5))
    return min(1.0, below + upto if mid_p else 2 * upto)


def permutation_test(differences: Floats, draws: int = DRAWS, seed: int = SEED) -> float:
    """Two-sided p that differences (n,) are as often for as against, each size of difference: signs
    are flipped.
    """
    return macro_permutation_test([differences], np.ones(1), draws, seed)


def macro_permutation_test(
    strata: Sequence[Floats], weights: Floats, draws: int = DRAWS, seed: int = SEED
) -> float:
    """Two-sided p that sum_k w_k mean_k of differences is 0: signs flipped within strata, the
    statistic studentised.

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
    seen = (
        float(_studentize(observed, spread)[0]) * (1 - 1e-9) - 1e-12
    )  # sums that are 0 differ in their last digits
    extreme = _studentize(replicates, spreads) >= seen
    return float((1 + np.count_nonzero(extreme)) / (1 + draws))


def min_detectable_difference(
    strata: Sequence[Floats], weights: Floats, power: float = 0.8
) -> float:
    """The smallest true difference of sum_k w_k mean_k that a two-sided test at 1 - LEVEL finds
    with that power.

    (z_{1 - alpha/2} + z_power) standard errors, given the variance of the differences observed.
    Where no item differs, as if one of them all did: nothing is known about larger differences
    then, and 0 would be a boast.
    """
    error = standard_error(strata, weights)
    if not error:
        everything = sum(len(values) for values in strata)
        sizes = np.array([len(values) for values in strata])
        error = float(np.sqrt(np.sum(weights**2 / sizes) / everything))
    return float(ndtri((1 + CONFIDENCE_LEVEL) / 2) + ndtri(power)) * error


def _sign_flipped_sums(rng: np.random.Generator, values: Floats, draws: int) -> Floats:
    """Sums (draws,) of values whose signs are drawn. Equal sizes together: the number of plus signs
    is binomial.
    """
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
    """|sum| in standard errors; infinite where all differences are alike, 0 where there are none."""
    alike = np.where(np.abs(sums) > 0, np.inf, 0.0)
    return np.where(
        variances > 0, np.abs(sums) / np.sqrt(np.where(variances > 0, variances, 1.0)), alike
    )
