"""Simulate intervals of the AUC of acceptability judgements, and of its paired differences.

Scores of acceptable and of other sentences are normal. Those of other sentences have a standard
deviation of 1, or of 2 in the cases called "spread". `coverage.py` prints the results.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from coverage_metrics import Simulation
from scipy.special import ndtri

from antlm_bench.statistics import Interval, auc_difference, auc_interval
from antlm_bench.types import Bools

SIZES = (50, 200, 1000)
AUCS = (0.5, 0.8, 0.97)
SHARES = (0.5, 0.85)
"""Shares of acceptable sentences."""
PAIRS = ((0.5, 0.5), (0.8, 0.8), (0.8, 0.9), (0.97, 0.97), (0.97, 0.9))
"""AUCs of two runs."""


def iterate_auc_simulations() -> Iterator[Simulation]:
    """Yield all simulations of this module."""
    for n in SIZES:
        for share in SHARES:
            for auc in AUCS:
                for spread in (1.0, 2.0):
                    yield _one_run(n, share, auc, spread)
            for pair in PAIRS:
                for correlation in (0.3, 0.9):
                    yield _two_runs(n, share, pair, correlation)
    for auc in AUCS:
        yield _clusters(100, auc, 0.5)


def _one_run(n: int, share: float, auc: float, spread: float) -> Simulation:
    labels = _labels(n, share)

    def draw(rng: np.random.Generator) -> Interval:
        noise = rng.normal(size=n) * np.where(labels, 1.0, spread)
        return auc_interval(noise + _shift(auc, spread) * labels, labels)

    name = f"AUC of {n}, {share:.0%} acceptable, at {auc:g}{' spread' * (spread > 1)}"
    return Simulation(name, auc, draw, _errors(labels, auc), 0.5)


def _two_runs(n: int, share: float, aucs: tuple[float, float], correlation: float) -> Simulation:
    labels = _labels(n, share)

    def draw(rng: np.random.Generator) -> Interval:
        shared = correlation**0.5 * rng.normal(size=n)
        a, b = (
            shared + (1 - correlation) ** 0.5 * rng.normal(size=n) + _shift(auc) * labels
            for auc in aucs
        )
        return auc_difference(a, b, labels).interval

    name = (
        f"difference of AUC, {n}, {share:.0%} acceptable, at {aucs[0]:g} and {aucs[1]:g}, "
        f"correlation {correlation:g}"
    )
    return Simulation(name, aucs[1] - aucs[0], draw, _errors(labels, max(aucs)), 0.5)


def _clusters(num_clusters: int, auc: float, correlation: float) -> Simulation:
    """Return a simulation of clusters of four sentences, two of them acceptable, whose scores are
    correlated."""
    clusters = np.repeat(np.arange(num_clusters, dtype=np.int32), 4)
    labels = np.tile([True, False, True, False], num_clusters)

    def draw(rng: np.random.Generator) -> Interval:
        shared = correlation**0.5 * rng.normal(size=num_clusters)[clusters]
        noise = shared + (1 - correlation) ** 0.5 * rng.normal(size=len(labels))
        return auc_interval(noise + _shift(auc) * labels, labels, clusters)

    name = f"AUC of {num_clusters} clusters of 4, correlation {correlation:g}, at {auc:g}"
    return Simulation(name, auc, draw, _errors(labels, auc), 0.5)


def _labels(n: int, share: float) -> Bools:
    return np.arange(n) < round(n * share)


def _shift(auc: float, spread: float = 1.0) -> float:
    """Return the distance of the means of both classes that gives an AUC."""
    return float(ndtri(auc) * (1 + spread**2) ** 0.5)


def _errors(labels: Bools, auc: float) -> float:
    """Return the expected number of wrong items of the smaller class."""
    return float(min(labels.sum(), (~labels).sum()) * min(auc, 1 - auc))
