"""Count how often a verdict worsens if a lost item is kept, in random tables of clustered changes.

    python benchmarks/kept_losses.py [--tables 150]

A table has clusters of 1 to 6 items in 1 to 3 strata; some items of a cluster change alike. Up to
four of its lost items are kept, one at a time; each is a flip. A flip counts as worse if an end of
the interval falls below its former value and below 0: then there is a margin for which the verdict
of `check` worsens, or a drop becomes significant. docs/explanation/statistics.md shows the output.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from coverage import count_clusters

from antlm_bench.statistics.stratified_score import StratifiedCounts, score_changes
from antlm_bench.types import Floats, Ints

EFFECTIVE_CLUSTERS = ((2, 8), (8, 12), (12, 20), (20, 60))
RATES = {"up to 60% lost, 35% gained": (0.6, 0.35), "up to 5% lost, 2% gained": (0.05, 0.02)}
MAX_KEPT = 4
TOLERANCE = 1e-6
"""Items by which an end must fall to count as fallen."""


class Table(NamedTuple):
    """Changes of n items, in strata and clusters."""

    changes: Floats
    """(n,) 1 = gained, 0 = kept, -1 = lost."""
    codes: Ints
    """(n,) stratum of each item."""
    weights: Floats
    """Weight of each stratum in the macro-average."""
    clusters: Ints
    """(n,) cluster of each item."""

    @property
    def shares(self) -> Floats:
        """The share (n,) of each item in the macro-average."""
        return np.asarray((self.weights / np.bincount(self.codes))[self.codes])

    @property
    def num_effective_clusters(self) -> float:
        """Kish's effective number of clusters."""
        return float(1 / np.sum(np.bincount(self.clusters, self.shares) ** 2))


def draw_table(rng: np.random.Generator, max_lost: float, max_gained: float) -> Table:
    """Draw a table with at least one lost item. max_lost, max_gained: largest rates of items."""
    sizes = rng.integers(1, 7, rng.integers(2, 61))
    clusters = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    lost, gained = rng.uniform(0, max_lost), rng.uniform(0, max_gained)
    values, rates = np.array([-1.0, 0.0, 1.0]), [lost, 1 - lost - gained, gained]
    by_cluster = rng.choice(values, len(sizes), p=rates)[clusters]
    by_item = rng.choice(values, len(clusters), p=rates)
    changes = np.where(rng.random(len(clusters)) < rng.random(), by_cluster, by_item)
    changes[0] = -1.0
    num_strata = int(rng.integers(1, 4))
    codes = np.arange(len(clusters), dtype=np.int32) % min(num_strata, len(clusters))
    return Table(changes, codes, np.full(codes.max() + 1, 1 / (codes.max() + 1)), clusters)


def worst_falls(table: Table, rng: np.random.Generator) -> Floats:
    """Return for each of some lost items by how many items an end falls if it is kept."""
    rows = rng.permutation(np.flatnonzero(table.changes < 0))[:MAX_KEPT]
    variants = np.tile(table.changes, (1 + len(rows), 1))
    variants[np.arange(1, 1 + len(rows)), rows] = 0.0

    def count(changes: Floats) -> StratifiedCounts:
        return count_clusters(changes, *table[1:], (-1.0, 1.0))

    tests = score_changes(count, variants, are_clustered=True)
    before, *after = np.array([interval for interval, _ in tests])
    falls = (np.minimum(before, 0.0) - after).max(axis=1)
    return np.asarray(falls / table.shares[rows])


def main() -> None:
    """Print a line per range of effective clusters and of rates."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", type=int, default=150, help="tables per line")
    options = parser.parse_args()
    print("worse  flips  tables  at most (items)  effective clusters")
    for name, rates in RATES.items():
        for fewest, most in EFFECTIVE_CLUSTERS:
            rng, falls = np.random.default_rng(0), list[Floats]()
            while len(falls) < options.tables:
                table = draw_table(rng, *rates)
                if fewest <= table.num_effective_clusters < most:
                    falls.append(worst_falls(table, rng))
            all_falls = np.concatenate(falls)
            num_tables = sum(max(fall) > TOLERANCE for fall in falls)
            print(
                f"{np.sum(all_falls > TOLERANCE):5} {len(all_falls):6} {num_tables:7} "
                f"{max(all_falls.max(), 0.0):16.1f}  {fewest} to {most}, {name}",
                flush=True,
            )


if __name__ == "__main__":
    main()
