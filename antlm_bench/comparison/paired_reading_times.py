"""Paired comparison of the partial R2 of surprisal in regressions of reading times.

The surprisals come from predictions, the reading times from the suite's data. Interval and p-value
are those of one t test, whose standard error comes from leaving out each sentence in both runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

import numpy as np

from antlm_bench.comparison.join import JoinedTables
from antlm_bench.comparison.results import Difference, PairedResult
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
    PartialCorrelations,
    partial_correlations,
    partial_r2,
    partial_r2_difference,
)
from antlm_bench.types import Floats, Ints


def compare_reading_times(joined: JoinedTables) -> PairedResult:
    """Compare headline, measures and outcomes, on the words with a surprisal in both runs.

    Raises NotComparable if the suite's data is absent or was changed.
    """
    times = _load_reading_times(joined)
    tables = (joined.tables_a[0], joined.tables_b[0])
    surprisals = [_surprisal_columns(table) for table in tables]
    sentence = _sentence_codes(tables[0])
    human = align_columns(tables[0].ids, times)
    missing = np.isnan(surprisals[0][SURPRISAL_COLUMN] + surprisals[1][SURPRISAL_COLUMN])
    num_sentences = int(sentence.max()) + 1
    values, correlations, num_rows = [], [], []
    for columns in surprisals:
        model = {name: np.where(missing, np.nan, column) for name, column in columns.items()}
        regressions = build_regressions({**human, **model}, sentence, times)
        values.append([partial_r2(regression) for regression in regressions])
        correlations.append(
            None if None in values[-1] else partial_correlations(regressions, num_sentences)
        )
        num_rows = [len(regression.outcome) for regression in regressions]
    is_same_model = all(
        np.array_equal(column, surprisals[1][name], equal_nan=True)
        for name, column in surprisals[0].items()
    )
    differences = []
    for level, name, within, weights in estimate_weights(times):
        a, b = (float(weights @ [r2 or 0.0 for r2 in run_values]) for run_values in values)
        interval, p = _test_difference(correlations, weights, is_same_model)
        n = max(num_rows[i] for i in np.flatnonzero(weights))
        fields = (level, name or joined.suite, within, n, a, b, b - a, *interval, p)
        differences.append(Difference(*fields, df=num_sentences - 1))
    return PairedResult(differences[0], tuple(differences[1:]))


def _test_difference(
    correlations: Sequence[PartialCorrelations | None], weights: Floats, is_same_model: bool
) -> tuple[Interval, float | None]:
    """Return the interval of a difference of two runs and its p-value; None = there is no test."""
    a, b = correlations
    if is_same_model:
        return Interval(0.0, 0.0), 1.0
    if a is None or b is None:
        return Interval(-1.0, 1.0), None
    return partial_r2_difference(a, b, weights)


def _load_reading_times(joined: JoinedTables) -> ReadingTimes:
    """Load the suite's reading times from its data files, because run folders do not have them.

    Raises NotComparable if the data is absent, or differs from the data that was scored.
    """
    from antlm_bench.suites import loader

    cell = joined.cells_a[0]
    limit = cell.settings.get("limit")
    ref = cell.origin[0] if cell.origin else joined.suite
    hint = f"antlm-bench data fetch {shlex.quote(ref)}"
    try:
        loaded = loader.load_suite(
            ref, limit=limit if isinstance(limit, int) else None, allow_incomplete=True
        )
    except BenchError as error:
        message = f"its reading times cannot be loaded: {error.message}"
        raise NotComparable(message, location=joined.suite, hint=error.hint or hint) from None
    if loaded.reading_times is None or loaded.digest != cell.settings.get("suite_digest"):
        raise NotComparable(
            "its data files differ from those that were scored", location=joined.suite, hint=hint
        )
    return loaded.reading_times


def _surprisal_columns(table: PredictionTable) -> Mapping[str, Floats]:
    """Return surprisals (n,) in nats of each word and of the word before it; nan = none."""
    columns = {}
    for option, name in enumerate((SURPRISAL_COLUMN, PREVIOUS_COLUMN)):
        columns[name] = np.full(len(table.ids), np.nan)
        if option < table.scores.shape[1]:
            scored = table.valid[:, option] & ~table.get_flag("too-long")
            columns[name][scored] = -table.scores[scored, option]
    return columns


def _sentence_codes(table: PredictionTable) -> Ints:
    """Return the number of each word's sentence (n,). Without labels, each word is a sentence."""
    if CLUSTER_LABEL not in table.levels:
        return np.arange(len(table.ids), dtype=np.int32)
    codes = table.levels[CLUSTER_LABEL][0]
    return np.unique(codes, return_inverse=True)[1].reshape(-1).astype(np.int32)
