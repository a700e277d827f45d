"""Simulate intervals of F1, macro-F1, MCC, bits per byte and of groups as a sample.

`coverage.py` prints the results, together with those of `coverage_seeds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cluster_sizes
import numpy as np
from scipy.special import ndtri

from antlm_bench.metrics.classification import (
    ConfusionCounts,
    ConfusionTotals,
    load_confusion_metric,
)
from antlm_bench.statistics import (
    Interval,
    ratio_interval,
    sampled_groups_interval,
    score_test,
)
from antlm_bench.types import Floats

Draw = Callable[[np.random.Generator], Interval | None]
"""Draws a sample. Returns its interval, or None if none is stated."""
METRICS = ("f1", "macro-f1", "mcc")
SIZES = {"wsc": 104, "rte": 277, "mrpc": 408, "cola-like": 1000}
PREDICTORS = {
    # name -> (share of class 1, accuracy in class 0, accuracy in class 1)
    "at .99": (0.3, 0.99, 0.99),
    "at .55": (0.5, 0.55, 0.55),
    "at .9": (0.7, 0.9, 0.9),
    "nearly constant": (0.7, 0.05, 0.97),
}
PAIRS = {
    # name -> (share of class 1, accuracies of runs a and b by class, correlation of their errors)
    "at .99 and .98": (0.3, (0.99, 0.99), (0.98, 0.98), 0.5),
    "at .9 and .85": (0.7, (0.9, 0.9), (0.85, 0.85), 0.5),
    "at .55 and .6": (0.5, (0.55, 0.55), (0.6, 0.6), 0.4),
}


@dataclass(frozen=True, slots=True)
class Simulation:
    """A population with a true value, from which samples are drawn one at a time."""

    name: str
    truth: float
    draw: Draw
    effective_errors: float
    """Expected number of errors, flips or collapsed seeds in a sample."""
    share_of_runs: float = 1.0
    """Share of `--runs` that is simulated: less than 1 if an interval takes milliseconds."""

    def simulate(self, runs: int, seed: int = 0) -> tuple[Floats, Floats]:
        """Return both ends (r,) of the intervals of r samples that have one."""
        rng = np.random.default_rng(seed)
        num_samples = max(1, round(self.share_of_runs * runs))
        drawn = [self.draw(rng) for _ in range(num_samples)]
        intervals = np.array([interval for interval in drawn if interval is not None])
        return intervals[:, 0], intervals[:, 1]


def iterate_metric_simulations() -> Iterator[Simulation]:
    """Yield all simulations of this module."""
    for metric in METRICS:
        for index, (suite, n) in enumerate(SIZES.items()):
            for name in list(PREDICTORS)[index % 2 :: 2]:
                share, *accuracies = PREDICTORS[name]
                yield _one_run(f"{metric} of {n} ({suite}) {name}", metric, n, share, accuracies)
        for (suite, n), (name, pair) in zip(SIZES.items(), [*PAIRS.items()] * 2, strict=False):
            yield _two_runs(f"difference of {metric}, {n} ({suite}) {name}", metric, n, *pair)
        for correlation in (0.0, 0.3, 0.9):
            yield _clustered_run(metric, 0.6, correlation)
    for num_documents in (20, 50, 500):
        for spread in (0.5, 1.0, 1.5):
            yield _documents(num_documents, spread)
    for num_groups in (8, 12, 20, 67):
        for mean, sd in ((0.7, 0.15), (0.9, 0.1)):
            yield _groups(num_groups, mean, sd)
    yield _groups(67, 0.97, 0.03)
    yield _groups(67, 0.97, 0.08)


def _one_run(
    name: str, metric: str, n: int, share: float, accuracies: Sequence[float]
) -> Simulation:
    right = np.array(accuracies)
    rates = np.array([1 - share, share])[:, None] * np.array(
        [[right[0], 1 - right[0]], [1 - right[1], right[1]]]
    )

    def draw(rng: np.random.Generator) -> Interval:
        table = rng.multinomial(n, rates.ravel()).reshape(2, 2).astype(float)
        estimate = _count_pairs(table).estimate(metric, {})
        return Interval(estimate.low, estimate.high)

    errors = n * float(rates[0, 1] + rates[1, 0])
    return Simulation(name, _score(metric, rates), draw, min(errors, n - errors), 0.15)


def _clustered_run(metric: str, accuracy: float, correlation: float) -> Simulation:
    """Return a simulation with the sizes of MultiRC's paragraphs, whose answers are correlated.

    An answer is right if a normal variable, correlated within its paragraph, is below a threshold.
    """
    sizes = [int(size) for size in cluster_sizes.MULTIRC.split()]
    clusters = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    n, share = len(clusters), 0.43
    rates = np.array(
        [
            [(1 - share) * accuracy, (1 - share) * (1 - accuracy)],
            [share * (1 - accuracy), share * accuracy],
        ]
    )

    def draw(rng: np.random.Generator) -> Interval:
        gold = (rng.random(n) < share).astype(np.int32)
        shared, own = rng.standard_normal(len(sizes))[clusters], rng.standard_normal(n)
        is_right = correlation**0.5 * shared + (1 - correlation) ** 0.5 * own < ndtri(accuracy)
        cells = np.column_stack([gold, np.where(is_right, gold, 1 - gold)])
        distinct, pair_index, counts = np.unique(
            cells, axis=0, return_inverse=True, return_counts=True
        )
        items = ConfusionCounts(
            counts.astype(float),
            distinct[:, 0],
            np.eye(2)[distinct[:, 1]],
            pair_index.reshape(-1).astype(np.int32),
            clusters,
        )
        estimate = items.estimate(metric, {})
        return Interval(estimate.low, estimate.high)

    name = f"{metric}, multirc at {accuracy}, correlation {correlation}"
    return Simulation(name, _score(metric, rates), draw, n * (1 - accuracy), 0.15)


def _two_runs(
    name: str,
    metric: str,
    n: int,
    share: float,
    accuracies_a: tuple[float, float],
    accuracies_b: tuple[float, float],
    correlation: float,
) -> Simulation:
    rates = np.zeros((2, 2, 2))  # gold class, prediction of a, prediction of b
    for gold, (a, b) in enumerate(zip(accuracies_a, accuracies_b, strict=True)):
        both = a * b + correlation * (a * (1 - a) * b * (1 - b)) ** 0.5
        by_correctness = {(1, 1): both, (1, 0): a - both, (0, 1): b - both}
        by_correctness[0, 0] = 1 - sum(by_correctness.values())
        for (right_a, right_b), rate in by_correctness.items():
            cell = (gold, gold if right_a else 1 - gold, gold if right_b else 1 - gold)
            rates[cell] = rate * (share if gold else 1 - share)

    def draw(rng: np.random.Generator) -> Interval:
        cells = rng.multinomial(n, rates.ravel()).reshape(2, 2, 2)
        gold, *predictions = (np.repeat(axis, cells.ravel()) for axis in np.indices(cells.shape))
        change = np.zeros(n)
        for sign, predicted in zip((-1, 1), predictions, strict=True):
            table = np.zeros((2, 2))
            np.add.at(table, (gold, predicted.ravel()), 1)
            values = _count_pairs(table).jackknife_pseudovalues(metric)
            order = np.lexsort((predicted.ravel(), gold))  # the order of `_count_pairs`
            change[order] += sign * values
        bound = max(1.0, float(np.abs(change).max()))
        return score_test(change, np.zeros(n, np.int32), np.ones(1), (-bound, bound))[0]

    table_a, table_b = rates.sum(axis=2), rates.sum(axis=1)
    flips = n * float(rates[:, 0, 1].sum() + rates[:, 1, 0].sum())
    return Simulation(name, _score(metric, table_b) - _score(metric, table_a), draw, flips, 0.1)


def _count_pairs(table: Floats) -> ConfusionCounts:
    """Return the items of a confusion table, sorted by gold and predicted class."""
    gold, predicted = np.nonzero(table)
    counts = table[gold, predicted].astype(float)
    pair_index = np.repeat(np.arange(len(counts)), counts.astype(int))
    return ConfusionCounts(
        counts, gold.astype(np.int32), np.eye(2)[predicted], pair_index.astype(np.int32)
    )


def _score(metric: str, table: Floats) -> float:
    return float(load_confusion_metric(metric).compute_many(ConfusionTotals.from_tables(table)))


def _documents(n: int, spread: float) -> Simulation:
    """Return documents with log-normal lengths whose bits per byte have heavy tails."""
    bits_per_byte, sd, df = 1.2, 0.2, 5

    def draw(rng: np.random.Generator) -> Interval:
        lengths = np.exp(rng.normal(6, spread, n))
        rates = bits_per_byte + sd * rng.standard_t(df, n).clip(-5, 5)
        return ratio_interval(lengths * rates, lengths)

    name = f"bits per byte of {n} documents, log-lengths with sd {spread:g}"
    return Simulation(name, bits_per_byte, draw, n)


def _groups(num_groups: int, mean: float, sd: float) -> Simulation:
    """Return groups of 200 items whose true means have a beta distribution."""
    strength = mean * (1 - mean) / sd**2 - 1
    weights = np.full(num_groups, 1 / num_groups)

    def draw(rng: np.random.Generator) -> Interval | None:
        rates = rng.beta(mean * strength, (1 - mean) * strength, num_groups)
        means = rng.binomial(200, rates) / 200
        return sampled_groups_interval(means, weights, (0.0, 1.0))[0]

    name = f"groups like these {num_groups} with mean {mean:g} and sd {sd:g}"
    return Simulation(name, mean, draw, num_groups * (1 - mean), 0.1)
