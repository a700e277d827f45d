"""Simulate how often `check` calls any of five suites a regression by chance.

    python benchmarks/family_wise.py [--runs 4000]

Every suite has a true drop of exactly its margin, the worst case. The verdicts are those of the
package: `judge`, then `adjust_for_multiple_suites` (Holm). Allowed are 5% with any regression, plus
two standard errors of the simulation; Holm's correction aims at 2.5%, the wrong side of a two-sided
95% interval. The exit code is 1 if a case misses that.
docs/explanation/statistics.md shows the output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from coverage import SUPPLEMENT, two_runs
from coverage_seeds import SEED_SDS
from scipy.special import stdtrit

from antlm_bench.comparison import Comparison, Difference
from antlm_bench.comparison.verdict import Margins, adjust_for_multiple_suites, judge
from antlm_bench.statistics import score_intervals, two_level_change
from antlm_bench.statistics.stratified_score import StratifiedCounts
from antlm_bench.types import Floats

NUM_SUITES = 5
MARGIN = 0.01
MAX_ANY_REGRESSION = 0.05
SHARE_OF_RUNS_OF_SEEDS = 0.5
"""Share of `--runs` of the cases with seeds, whose intervals take long."""


class DrawnDifferences(NamedTuple):
    """Differences of independent suites whose true value is -MARGIN."""

    values: Floats
    """(r, NUM_SUITES)."""
    lows: Floats
    highs: Floats
    degrees: Floats
    """Degrees of freedom; inf for score intervals."""


Draw = Callable[[np.random.Generator, int], DrawnDifferences]
"""Draws the suites of r repetitions."""


def draw_t_means(df: int) -> Draw:
    """Return a draw of means of df + 1 normal values, with their t intervals."""

    def draw(rng: np.random.Generator, runs: int) -> DrawnDifferences:
        samples = -MARGIN + rng.normal(0, MARGIN, (runs, NUM_SUITES, df + 1))
        means, errors = samples.mean(axis=2), samples.std(axis=2, ddof=1) / (df + 1) ** 0.5
        half = stdtrit(df, 0.975) * errors
        return DrawnDifferences(means, means - half, means + half, np.full(means.shape, df))

    return draw


def draw_scores(sizes: tuple[int, ...], gained: float) -> Draw:
    """Return a draw of macro-averages of changes: lost items exceed gained ones by MARGIN."""
    case = two_runs("", sizes, gained, gained + MARGIN)

    def draw(rng: np.random.Generator, runs: int) -> DrawnDifferences:
        num_averages, shape = runs * NUM_SUITES, (runs, NUM_SUITES)
        tables = [
            rng.multinomial(size, p, size=num_averages)
            for size, p in zip(sizes, case.probabilities, strict=True)
        ]
        counts = np.stack(tables, axis=1).reshape(num_averages * len(sizes), -1).astype(float)
        means = counts @ np.array(case.values) / np.tile(sizes, num_averages)
        starts = len(sizes) * np.arange(num_averages, dtype=np.int32)
        strata = StratifiedCounts(
            np.array(case.values), counts, means, np.tile(case.weights, num_averages), starts
        )
        low, high = score_intervals(strata)
        values = strata.estimates.reshape(shape)
        return DrawnDifferences(
            values, low.reshape(shape), high.reshape(shape), np.full(shape, np.inf)
        )

    return draw


def draw_seeds(num_seeds: int, num_items: int, seed_sd: float) -> Draw:
    """Return a draw of paired differences of finetuned tasks: two equal models, minus MARGIN."""

    def draw(rng: np.random.Generator, runs: int) -> DrawnDifferences:
        rows = []
        for _ in range(runs * NUM_SUITES):
            items = rng.normal(1.4, 1.0, num_items)
            effects = rng.normal(0, seed_sd, (2, num_seeds, 1))
            rates = 1 / (1 + np.exp(-items - effects))
            a, b = (rng.random(rates.shape) < rates).astype(float)
            change = two_level_change(a, b - MARGIN, paired=True)
            rows.append((change.value, *change.interval, change.tail_df))
        table = np.array(rows).reshape(runs, NUM_SUITES, 4)
        return DrawnDifferences(*np.moveaxis(table, 2, 0))

    return draw


def iterate_cases() -> Iterator[tuple[str, Draw, float]]:
    """Yield name, draw and share of `--runs`."""
    for df in (1, 2, 4, 9, 29):
        yield f"means of {df + 1} normal values, {df} df", draw_t_means(df), 1.0
    for gained in (0.0, 0.01, 0.05):
        name = f"+{gained:g} -{gained + MARGIN:g}"
        yield f"one stratum of 1000 items, {name}", draw_scores((1000,), gained), 1.0
        yield f"supplement, {name}", draw_scores(SUPPLEMENT, gained), 1.0
    for num_seeds in (2, 3, 5):
        for kind, sd in SEED_SDS.items():
            name = f"{num_seeds} seeds ({kind}) of 300 items"
            yield name, draw_seeds(num_seeds, 300, sd), SHARE_OF_RUNS_OF_SEEDS


def count_regressions(drawn: DrawnDifferences) -> tuple[float, float]:
    """Return the share of repetitions with any regression, without and with the correction."""
    alone = together = 0
    for row in zip(*drawn, strict=True):
        if not (row[2] < -MARGIN).any():
            continue
        alone += 1
        verdicts = [
            judge(_build_comparison(*map(float, numbers)), Margins(MARGIN))
            for numbers in zip(*row, strict=True)
        ]
        corrected = adjust_for_multiple_suites(verdicts)
        together += any(verdict.status == "regression" for verdict in corrected)
    return alone / len(drawn.values), together / len(drawn.values)


def _build_comparison(value: float, low: float, high: float, df: float) -> Comparison:
    degrees = df if np.isfinite(df) else None
    difference = Difference(
        "headline", "toy", "", 100, 0.8, 0.8 + value, value, low, high, None, df=degrees
    )
    return Comparison("toy", "causal", "causal", "accuracy", (1, 1), difference, (), (), ())


def main() -> int:
    """Print the table. Return 1 if a case has too many regressions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000)
    runs = parser.parse_args().runs
    num_failed = 0
    print("alone   Holm  runs  case")
    for name, draw, share in iterate_cases():
        count = round(share * runs)
        alone, together = count_regressions(draw(np.random.default_rng(0), count))
        error = (MAX_ANY_REGRESSION * (1 - MAX_ANY_REGRESSION) / count) ** 0.5
        failed = together > MAX_ANY_REGRESSION + 2 * error
        num_failed += failed
        print(f"{alone:.3f}  {together:.3f}  {count:4}  {name}{'  <--' * failed}", flush=True)
    return int(num_failed > 0)


if __name__ == "__main__":
    sys.exit(main())
