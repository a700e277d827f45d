"""Paired comparison of the partial R2 of surprisal in regressions of reading times.

The surprisals come from predictions, the reading times from the suite's data. The interval comes
from resampling sentences, the same ones for both runs. The p-value comes from the influence of each
sentence on the difference.
"""

from __future__ import annotations

import shlex
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
    """Compare headline, measures and outcomes, on the words with a surprisal in both runs.

    Raises NotComparable if the suite's data is absent or was changed.
    """
    times = _load_reading_times(joined)
    tables = (joined.tables_a[0], joined.tables_b[0])
    surprisals = [_surprisal_columns(table) for table in tables]
    sentence = _sentence_codes(tables[0])
    human = align_columns(tables[0].ids, times)
    missing = np.isnan(surprisals[0][SURPRISAL_COLUMN] + surprisals[1][SURPRISAL_COLUMN])
    regressions_by_run = []
    for columns in surprisals:
        model = {name: np.where(missing, np.nan, column) for name, column in columns.items()}
        regressions_by_run.append(build_regressions({**human, **model}, sentence, times))
    regressions_a, regressions_b = regressions_by_run
    values = [[partial_r2(regression) for regression in regressions_a]]
    values.append([partial_r2(regression) for regression in regressions_b])
    num_sentences = int(sentence.max()) + 1
    is_undefined = num_sentences < 2 or None in values[0] + values[1]
    is_same_model = all(
        np.array_equal(column, surprisals[1][name], equal_nan=True)
        for name, column in surprisals[0].items()
    )
    replicates = np.zeros((1, len(regressions_a)))
    influences = np.zeros((len(regressions_a), num_sentences))
    if not is_undefined and not is_same_model:
        replicates, influences = _resample_sentences(regressions_a, regressions_b, num_sentences)
    differences = []
    for level, name, within, weights in estimate_weights(times):
        a, b = (float(weights @ [r2 or 0.0 for r2 in run_values]) for run_values in values)
        p: float | None
        if is_same_model:
            interval, p = Interval(0.0, 0.0), 1.0
        elif is_undefined:
            interval, p = Interval(-1.0, 1.0), None
        else:
            interval = bias_corrected_interval(b - a, replicates @ weights)
            p = clustered_t_test(b - a, weights @ influences)
        n = max(len(regressions_a[i].outcome) for i in np.flatnonzero(weights))
        detectable = POWER_FACTOR * (interval.high - interval.low) / 2 or None
        fields = (level, name or joined.suite, within, n, a, b, b - a, *interval, p)
        differences.append(Difference(*fields, detectable=detectable))
    return PairedResult(differences[0], tuple(differences[1:]))


def _resample_sentences(
    regressions_a: Regressions, regressions_b: Regressions, num_sentences: int
) -> tuple[Floats, Floats]:
    """Return the differences of partial R2, b - a, of r regressions: in each resample (draws, r),
    and the influence of each sentence on them (r, sentences).
    """
    replicates = bootstrap_partial_r2([*regressions_a, *regressions_b], num_sentences)
    influences = [
        cluster_influences(b, num_sentences) - cluster_influences(a, num_sentences)
        for a, b in zip(regressions_a, regressions_b, strict=True)
    ]
    r = len(regressions_a)
    return replicates[:, r:] - replicates[:, :r], np.array(influences)


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
