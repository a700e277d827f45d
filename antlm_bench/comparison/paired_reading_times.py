"""Paired comparison of reading times: how much more of them does the second run's surprisal
explain?

The predictions are one half of the regressions, the suite's data the other. Sentences are
resampled, the same ones for both runs; the test rests on the influence of each sentence.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from antlm_bench.comparison.join import JoinedTables
from antlm_bench.comparison.results import POWER_FACTOR, Difference, PairedResult
from antlm_bench.errors import BenchError, NotComparable
from antlm_bench.metrics.prediction_table import PredictionTable
from antlm_bench.metrics.reading_times import (
    CLUSTER_LABEL,
    PREVIOUS_COLUMN,
    SURPRISAL_COLUMN,
    ReadingTimes,
    align_columns,
    build_regressions,
    estimate_weights,
)
from antlm_bench.statistics import Interval
from antlm_bench.statistics.regression import (
    NestedRegression,
    bias_corrected_interval,
    bootstrap_partial_r2,
    cluster_influences,
    clustered_t_test,
    partial_r2,
)
from antlm_bench.types import Floats, Ints

Regressions = list[NestedRegression]


def compare_reading_times(joined: JoinedTables) -> PairedResult:
    """Compare headline, measures and outcomes, on the words that both runs have a number for.

    Raises NotComparable where the reading times are not at hand.
    """
    times = _load_reading_times(joined)
    tables = (joined.tables_a[0], joined.tables_b[0])
    surprisals = [_surprisal_columns(table) for table in tables]
    sentence = _sentence_codes(tables[0])
    human = align_columns(tables[0].ids, times)
    missing = np.isnan(surprisals[0][SURPRISAL_COLUMN] + surprisals[1][SURPRISAL_COLUMN])
    sides = []
    for columns in surprisals:
        model = {name: np.where(missing, np.nan, column) for name, column in columns.items()}
        sides.append(build_regressions({**human, **model}, sentence, times))
    values = [[partial_r2(regression) for regression in side] for side in sides]
    num_sentences = int(sentence.max()) + 1
    undefined = num_sentences < 2 or None in values[0] + values[1]
    identical = all(
        np.array_equal(column, surprisals[1][name], equal_nan=True)
        for name, column in surprisals[0].items()
    )
    replicates, influences = np.zeros((1, len(sides[0]))), np.zeros((len(sides[0]), num_sentences))
    if not undefined and not identical:
        replicates, influences = _resample_sentences(sides[0], sides[1], num_sentences)
    differences = []
    for level, name, within, weights in estimate_weights(times):
        a, b = (float(weights @ [r2 or 0.0 for r2 in side]) for side in values)
        p: float | None
        if identical:
            interval, p = Interval(0.0, 0.0), 1.0
        elif undefined:
            interval, p = Interval(-1.0, 1.0), None
        else:
            interval = bias_corrected_interval(b - a, replicates @ weights)
            p = clustered_t_test(b - a, weights @ influences)
        n = max(len(sides[0][i].outcome) for i in np.flatnonzero(weights))
        detectable = POWER_FACTOR * (interval.high - interval.low) / 2 or None
        line = (level, name or joined.suite, within, n, a, b, b - a, *interval, p)
        differences.append(Difference(*line, detectable=detectable))
    return PairedResult(differences[0], tuple(differences[1:]))


def _resample_sentences(
    side_a: Regressions, side_b: Regressions, num_sentences: int
) -> tuple[Floats, Floats]:
    """Return the change of each of r regressions' R2 in resamples (draws, r), and by sentence
    (r, sentences)."""
    replicates = bootstrap_partial_r2([*side_a, *side_b], num_sentences)
    influences = [
        cluster_influences(b, num_sentences) - cluster_influences(a, num_sentences)
        for a, b in zip(side_a, side_b, strict=True)
    ]
    return replicates[:, len(side_a) :] - replicates[:, : len(side_a)], np.array(influences)


def _load_reading_times(joined: JoinedTables) -> ReadingTimes:
    """Load the reading times of the suite that both runs answered: no run holds them, the data at
    hand does."""
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
    if loaded.reading_times is None or loaded.digest != cell.settings.get("suite_digest"):
        raise NotComparable(
            "its data here is not what was scored", location=joined.suite, hint=hint
        )
    return loaded.reading_times


def _surprisal_columns(table: PredictionTable) -> Mapping[str, Floats]:
    """Return surprisals (n,) in nats of each word and of the word before it; nan where there is
    none."""
    columns = {}
    for option, name in enumerate((SURPRISAL_COLUMN, PREVIOUS_COLUMN)):
        columns[name] = np.full(len(table.ids), np.nan)
        if option < table.scores.shape[1]:
            scored = table.valid[:, option] & ~table.get_flag("too-long")
            columns[name][scored] = -table.scores[scored, option]
    return columns


def _sentence_codes(table: PredictionTable) -> Ints:
    """Return which sentence each word (n,) is of; without labels, each is its own."""
    if CLUSTER_LABEL not in table.levels:
        return np.arange(len(table.ids), dtype=np.int32)
    codes = table.levels[CLUSTER_LABEL][0]
    return np.unique(codes, return_inverse=True)[1].reshape(-1).astype(np.int32)
