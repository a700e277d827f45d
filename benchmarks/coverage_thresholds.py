"""Simulate intervals of accuracy and Matthews' correlation of decisions by a threshold.

    python benchmarks/coverage_thresholds.py [--runs 400]

Scores of acceptable and of other sentences are normal with equal standard deviations. Thresholds
are chosen out of sample, as in `metrics.acceptability`. The true value is the mean over the runs.
No limits are checked: the intervals treat thresholds as given and are too narrow.
"""

from __future__ import annotations

import argparse
from functools import cache

import numpy as np
from scipy.special import ndtri

from antlm_bench.metrics.acceptability import (
    THRESHOLD_METRICS,
    assign_folds,
    decide_out_of_sample,
)
from antlm_bench.metrics.classification import ConfusionCounts
from antlm_bench.types import Estimate

SIZES = {50: 1.0, 200: 0.75, 1000: 0.25}
"""Number of sentences -> share of `--runs`."""
SHARES = (0.5, 0.85)
"""Shares of acceptable sentences."""
AUCS = (0.5, 0.8, 0.97)


@cache
def estimate_table(metric: str, cells: tuple[int, int, int, int]) -> Estimate:
    """Return the estimate of a confusion table. cells: counts of gold 0 and 1 by decision."""
    gold, decided = np.repeat([0, 0, 1, 1], cells), np.repeat([0, 1, 0, 1], cells)
    counts = ConfusionCounts.from_items(gold.astype(np.int32), np.eye(2)[decided], None)
    return counts.estimate(metric, {})


def simulate_coverage(n: int, share: float, auc: float, runs: int) -> dict[str, float]:
    """Return the coverage of the intervals of each metric."""
    rng = np.random.default_rng(1)
    labels = np.arange(n) < round(n * share)
    folds = assign_folds([str(i) for i in range(n)], labels)
    shift = float(ndtri(auc)) * 2**0.5
    coverage = {}
    for metric in THRESHOLD_METRICS:
        estimates = []
        for _ in range(runs):
            scores = rng.normal(size=n) + shift * labels
            decisions = decide_out_of_sample(scores, labels, folds, metric)
            cells = np.bincount(2 * labels + decisions, minlength=4)
            estimates.append(estimate_table(metric.name, tuple(cells.tolist())))
        truth = np.mean([estimate.value for estimate in estimates])
        coverage[metric.name] = float(np.mean([e.low <= truth <= e.high for e in estimates]))
    return coverage


def main() -> None:
    """Print a line per number of sentences, share of acceptable ones and true AUC."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=400)
    all_runs = parser.parse_args().runs
    print("    n  acceptable   AUC  " + "  ".join(metric.name for metric in THRESHOLD_METRICS))
    for n, share_of_runs in SIZES.items():
        for share in SHARES:
            for auc in AUCS:
                coverage = simulate_coverage(n, share, auc, round(share_of_runs * all_runs))
                values = "  ".join(f"{value:8.3f}" for value in coverage.values())
                print(f"{n:5}  {share:10.0%}  {auc:4}  {values}", flush=True)


if __name__ == "__main__":
    main()
