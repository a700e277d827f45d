"""Suites of reading times: how much more of them does the second run's surprisal explain? Sentences are resampled."""

from __future__ import annotations

import numpy as np

from antlm_bench.compare.join import Joined
from antlm_bench.compare.paired_accuracy import Found
from antlm_bench.compare.paired_seeds import POWERED
from antlm_bench.compare.results import Difference
from antlm_bench.errors import BenchError, NotComparable
from antlm_bench.metrics.prediction_table import Table
from antlm_bench.metrics.reading_times import CLUSTER, PREVIOUS, SURPRISAL, Times, beside, regressions, shares
from antlm_bench.statistics import Interval
from antlm_bench.statistics.regression import bias_corrected, bootstrap_partial_r2, clustered_p, influences, partial_r2
from antlm_bench.types import Floats, Ints


def explained(joined: Joined) -> Found:
    """Headline, measures and outcomes, on the words that both runs have a number for; the same sentences are drawn for
    both. The test rests on their influences. Raises NotComparable where the reading times are not at hand."""
    times = _human(joined)
    tables = (joined.a[0], joined.b[0])
    said = [{SURPRISAL: _said(table, 0), PREVIOUS: _said(table, 1)} for table in tables]
    human, cluster = beside(tables[0].ids, times), _sentences(tables[0])
    lost = np.isnan(said[0][SURPRISAL] + said[1][SURPRISAL])
    sides = []
    for columns in said:
        model = {name: np.where(lost, np.nan, column) for name, column in columns.items()}
        sides.append(regressions({**human, **model}, cluster, times))
    values = [[partial_r2(one) for one in side] for side in sides]
    clusters = int(cluster.max()) + 1
    vague = clusters < 2 or None in values[0] + values[1]
    same = all(np.array_equal(said[0][name], said[1][name], equal_nan=True) for name in said[0])
    count = len(sides[0])
    change, moved = np.zeros((1, count)), np.zeros((count, clusters))
    if not vague and not same:
        drawn = bootstrap_partial_r2([*sides[0], *sides[1]], clusters)
        change = drawn[:, count:] - drawn[:, :count]
        moved = np.array([influences(y, clusters) - influences(x, clusters) for x, y in zip(*sides, strict=True)])
    made = []
    for level, name, within, weights in shares(times):
        a, b = (float(weights @ [value or 0.0 for value in side]) for side in values)
        low, high = (
            Interval(0.0, 0.0) if same else Interval(-1.0, 1.0) if vague else bias_corrected(b - a, change @ weights)
        )
        p = 1.0 if same else None if vague else clustered_p(b - a, weights @ moved)
        n = max(len(sides[0][i].outcome) for i in np.flatnonzero(weights))
        detectable = POWERED * (high - low) / 2
        made.append(
            Difference(level, name or joined.suite, within, n, a, b, b - a, low, high, p, detectable=detectable or None)
        )
    return made[0], tuple(made[1:]), ()


def _human(joined: Joined) -> Times:
    """The reading times of the suite that both runs answered: no run holds them, the data at hand does."""
    from antlm_bench.suites import loader

    cell = joined.cells_a[0]
    limit = cell.settings.get("limit")
    ref = cell.origin[0] if cell.origin else joined.suite
    hint = f"antlm-bench data fetch {ref}"
    try:
        loaded = loader.load(ref, limit=limit if isinstance(limit, int) else None, allow_incomplete=True)
    except BenchError as error:
        message = f"its reading times are not at hand: {error.message}"
        raise NotComparable(message, place=joined.suite, hint=error.hint or hint) from None
    if loaded.times is None or loaded.digest != cell.settings.get("suite_digest"):
        raise NotComparable("its data here is not what was scored", place=joined.suite, hint=hint)
    return loaded.times


def _said(table: Table, option: int) -> Floats:
    """Surprisal (n,) in nats of a word, or (option 1) of the word before; nan where there is none."""
    if option >= table.scores.shape[1]:
        return np.full(len(table.ids), np.nan)
    return np.where(table.valid[:, option] & ~table.flag("too-long"), -table.scores[:, option], np.nan)


def _sentences(table: Table) -> Ints:
    if CLUSTER not in table.levels:
        return np.arange(len(table.ids), dtype=np.int32)
    return np.unique(table.levels[CLUSTER][0], return_inverse=True)[1].reshape(-1).astype(np.int32)
