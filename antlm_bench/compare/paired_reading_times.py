"""Suites of reading times: how much more of them does the second run's surprisal explain? Sentences
are resampled.
"""

from __future__ import annotations

import numpy as np

from antlm_bench.compare.join import JoinedTables
from antlm_bench.compare.paired_accuracy import PairedResult
from antlm_bench.compare.paired_seeds import POWER_FACTOR
from antlm_bench.compare.results import Difference
from antlm_bench.errors import BenchError, NotComparable
from antlm_bench.metrics.prediction_table import PredictionTable
from antlm_bench.metrics.reading_times import (
    CLUSTER_LABEL,
    PREVIOUS_SURPRISAL,
    SURPRISAL,
    ReadingTimes,
    align_columns,
    build_regressions,
    estimate_weights,
)
from antlm_bench.statistics import Interval
from antlm_bench.statistics.regression import (
    bias_corrected_interval,
    bootstrap_partial_r2,
    cluster_influences,
    clustered_t_test,
    partial_r2,
)
from antlm_bench.types import Floats, Ints


def compare_reading_times(joined: JoinedTables) -> PairedResult:
    """Headline, measures and outcomes, on the words that both runs have a number for; the same
    sentences are drawn for both. The test rests on their influences. Raises NotComparable where the
    reading times are not at hand.
    """
    times = _load_reading_times(joined)
    tables = (joined.tables_a[0], joined.tables_b[0])
    said = [
        {SURPRISAL: _surprisals(table, 0), PREVIOUS_SURPRISAL: _surprisals(table, 1)}
        for table in tables
    ]
    human, cluster = align_columns(tables[0].ids, times), _sentence_codes(tables[0])
    lost = np.isnan(said[0][SURPRISAL] + said[1][SURPRISAL])
    sides = []
    for columns in said:
        model = {name: np.where(lost, np.nan, column) for name, column in columns.items()}
        sides.append(build_regressions({**human, **model}, cluster, times))
    values = [[partial_r2(one) for one in side] for side in sides]
    clusters = int(cluster.max()) + 1
    vague = clusters < 2 or None in values[0] + values[1]
    same = all(np.array_equal(said[0][name], said[1][name], equal_nan=True) for name in said[0])
    count = len(sides[0])
    change, moved = np.zeros((1, count)), np.zeros((count, clusters))
    if not vague and not same:
        drawn = bootstrap_partial_r2([*sides[0], *sides[1]], clusters)
        change = drawn[:, count:] - drawn[:, :count]
        moved = np.array(
            [
                cluster_influences(y, clusters) - cluster_influences(x, clusters)
                for x, y in zip(*sides, strict=True)
            ]
        )
    made = []
    for level, name, within, weights in estimate_weights(times):
        a, b = (float(weights @ [value or 0.0 for value in side]) for side in values)
        low, high = (
            Interval(0.0, 0.0)
            if same
            else Interval(-1.0, 1.0)
            if vague
            else bias_corrected_interval(b - a, change @ weights)
        )
        p = 1.0 if same else None if vague else clustered_t_test(b - a, weights @ moved)
        n = max(len(sides[0][i].outcome) for i in np.flatnonzero(weights))
        detectable = POWER_FACTOR * (high - low) / 2
        made.append(
            Difference(
                level,
                name or joined.suite,
                within,
                n,
                a,
                b,
                b - a,
                low,
                high,
                p,
                detectable=detectable or None,
            )
        )
    return made[0], tuple(made[1:]), ()


def _load_reading_times(joined: JoinedTables) -> ReadingTimes:
    """The reading times of the suite that both runs answered: no run holds them, the data at hand
    does.
    """
    from antlm_bench.suites import loader

    cell = joined.cells_a[0]
    limit = cell.settings.get("limit")
    ref = cell.origin[0] if cell.origin else joined.suite
    hint = f"antlm-bench data fetch {ref}"
    try:
        loaded = loader.load_suite(
            ref, limit=limit if isinstance(limit, int) else None, allow_incomplete=True
        )
    except BenchError as error:
        message = f"its reading times are not at hand: {error.message}"
        raise NotComparable(message, location=joined.suite, hint=error.hint or hint) from None
    if loaded.times is None or loaded.digest != cell.settings.get("suite_digest"):
        raise NotComparable(
            "its data here is not what was scored", location=joined.suite, hint=hint
        )
    return loaded.times


def _surprisals(table: PredictionTable, option: int) -> Floats:
    """Surprisal (n,) in nats of a word, or (option 1) of the word before; nan where there is none.
    """
    if option >= table.scores.shape[1]:
        return np.full(len(table.ids), np.nan)
    return np.where(
        table.valid[:, option] & ~table.get_flag("too-long"), -table.scores[:, option], np.nan
    )


def _sentence_codes(table: PredictionTable) -> Ints:
    if CLUSTER_LABEL not in table.levels:
        return np.arange(len(table.ids), dtype=np.int32)
    return (
        np.unique(table.levels[CLUSTER_LABEL][0], return_inverse=True)[1]
        .reshape(-1)
        .astype(np.int32)
    )
