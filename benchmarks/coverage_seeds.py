"""Simulate intervals over seeds and items: one run, two runs, seeds that collapsed.

Items are right with a probability that depends on the item and on the seed (a logistic model with
normal effects). `coverage.py` prints the results.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from coverage_metrics import Simulation
from scipy.optimize import brentq

from antlm_bench.metrics.classification import widen_near_top
from antlm_bench.statistics import Interval, score_interval, two_level_change, two_level_mean
from antlm_bench.types import Bools, Floats

INTERCEPT, ITEM_SD = 1.0, 1.0
"""Mean and standard deviation over items of the log-odds of a right answer."""
SEED_SDS = {"alike": 0.03, "unlike": 0.4}
"""How much seeds differ -> standard deviation of their log-odds: about .6 and 8 points."""
SHARED_SEED_VARIANCE = 0.5
"""Share of the variance of a seed that two runs with the same seed have in common."""
COLLAPSE_SHARE, COLLAPSED_ACCURACY = 0.2, 0.5
SHARE_OF_RUNS = 0.2
WIDE_ITEM_SD = 4.0
"""Standard deviation of the log-odds over items that nearly all seeds answer alike."""


def iterate_seed_simulations() -> Iterator[Simulation]:
    """Yield all simulations of this module."""
    for num_seeds in (2, 3, 5, 10):
        for num_items in (300, 3000):
            for name, sd in SEED_SDS.items():
                size = (num_seeds, num_items)
                yield _one_run(f"{num_seeds} seeds ({name}) of {num_items}", size, sd)
                yield _two_runs(f"paired {num_seeds} seeds ({name}) of {num_items}", size, sd, True)
                yield _two_runs(
                    f"independent {num_seeds} seeds ({name}) of {num_items}", size, sd, False
                )
    for num_seeds in (3, 5, 10):
        for name, sd in SEED_SDS.items():
            yield _collapsing(num_seeds, name, sd, num_runs=1)
            yield _collapsing(num_seeds, name, sd, num_runs=2)
    for num_seeds in (3, 5, 10):
        for accuracy in (0.95, 0.99):
            for num_items in (104, 277):
                yield _near_top((num_seeds, num_items), accuracy)


def _accuracy(seed_sd: float, intercept: float = INTERCEPT, item_sd: float = ITEM_SD) -> float:
    """Return the mean accuracy over items and seeds, by Gauss-Hermite quadrature."""
    x, weights = np.polynomial.hermite_e.hermegauss(61)
    log_odds = intercept + x * (item_sd**2 + seed_sd**2) ** 0.5
    return float((weights / (1 + np.exp(-log_odds))).sum() / weights.sum())


def _draw_credits(rng: np.random.Generator, items: Floats, seed_effects: Floats) -> Floats:
    """Return credits (S, n) of items with log-odds (n,) under seeds with effects (S,)."""
    rates = 1 / (1 + np.exp(-items - seed_effects[:, None]))
    return (rng.random(rates.shape) < rates).astype(float)


def _one_run(name: str, size: tuple[int, int], sd: float) -> Simulation:
    num_seeds, num_items = size

    def draw(rng: np.random.Generator) -> Interval:
        items = rng.normal(INTERCEPT, ITEM_SD, num_items)
        return two_level_mean(_draw_credits(rng, items, rng.normal(0, sd, num_seeds))).interval

    return Simulation(name, _accuracy(sd), draw, num_items / 4, SHARE_OF_RUNS)


def _near_top(size: tuple[int, int], accuracy: float) -> Simulation:
    """Return one run whose seeds answer nearly alike, with a few items wrong."""
    (num_seeds, num_items), sd = size, SEED_SDS["alike"]

    def excess(intercept: float) -> float:
        return _accuracy(sd, intercept, WIDE_ITEM_SD) - accuracy

    intercept = brentq(excess, 0, 40)

    def draw(rng: np.random.Generator) -> Interval:
        items = rng.normal(intercept, WIDE_ITEM_SD, num_items)
        values = _draw_credits(rng, items, rng.normal(0, sd, num_seeds))
        if np.ptp(values, axis=0).max() == 0:  # equal seeds, as in `classification.summarize_seeds`
            return score_interval(values[0], np.zeros(num_items, np.int32), np.ones(1))
        return widen_near_top(two_level_mean(values).interval, values, None)

    name = f"{num_seeds} seeds near the top, {num_items} items at {accuracy:g}"
    return Simulation(name, accuracy, draw, num_items * (1 - accuracy), SHARE_OF_RUNS)


def _two_runs(name: str, size: tuple[int, int], sd: float, paired: bool) -> Simulation:
    """Return two runs of equal models."""
    num_seeds, num_items = size

    def draw(rng: np.random.Generator) -> Interval:
        items = rng.normal(INTERCEPT, ITEM_SD, num_items)
        shared_share = SHARED_SEED_VARIANCE if paired else 0.0
        shared = rng.normal(0, sd * shared_share**0.5, num_seeds)
        own = rng.normal(0, sd * (1 - shared_share) ** 0.5, (2, num_seeds))
        a, b = (_draw_credits(rng, items, shared + effects) for effects in own)
        return two_level_change(a, b, paired=paired).interval

    return Simulation(name, 0.0, draw, num_items / 4, SHARE_OF_RUNS)


def _collapsing(num_seeds: int, name: str, sd: float, num_runs: int) -> Simulation:
    """Return one run, or two of equal models, a fifth of whose seeds collapse.

    Only samples with a collapsed seed in the first run are drawn: without one, nothing shows that
    seeds collapse. No interval is stated if a single seed of a run is left.
    """
    num_items = 300
    mean = (1 - COLLAPSE_SHARE) * _accuracy(sd) + COLLAPSE_SHARE * COLLAPSED_ACCURACY

    def draw_collapsed(rng: np.random.Generator) -> Bools:
        while True:
            collapsed = rng.random((num_runs, num_seeds)) < COLLAPSE_SHARE
            if collapsed[0].any() and not collapsed.all(axis=1).any():
                return collapsed

    def draw(rng: np.random.Generator) -> Interval | None:
        items = rng.normal(INTERCEPT, ITEM_SD, num_items)
        collapsed, runs = draw_collapsed(rng), []
        for is_collapsed in collapsed:
            credits = _draw_credits(rng, items, rng.normal(0, sd, num_seeds))
            guesses = (rng.random(credits.shape) < COLLAPSED_ACCURACY).astype(float)
            runs.append(np.where(is_collapsed[:, None], guesses, credits))
        if num_runs == 1:
            interval = two_level_mean(runs[0], collapsed[0]).interval
        else:
            interval = two_level_change(
                *runs, collapsed_a=collapsed[0], collapsed_b=collapsed[1]
            ).interval
        return interval if np.isfinite(interval.low) else None

    kind = "one run" if num_runs == 1 else "two runs"
    label = f"{kind} of {num_seeds} seeds ({name}), a fifth collapsed"
    truth = mean if num_runs == 1 else 0.0
    return Simulation(label, truth, draw, COLLAPSE_SHARE * num_seeds, SHARE_OF_RUNS)
