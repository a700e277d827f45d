"""Metrics that an lm-eval task's own code computes per document (its `process_results`).

    task-score, task-penalty    mean of the first value over documents: more is better, or less
    whole-score, whole-penalty  a value of all documents together (F1, a bias score): the mean of
                                each document's contribution (lm_eval_bridge.jackknife)

The other values of a document become views of the Summary (`add_views`).
Corner case: a document without a value (nan) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from antlm_bench import statistics
from antlm_bench.errors import DataError
from antlm_bench.metrics.item_mean import weighted_mean
from antlm_bench.metrics.prediction_table import PredictionTable, assign_strata, build_table
from antlm_bench.metrics.records import WORD_LABEL
from antlm_bench.metrics.summary import MetricSettings
from antlm_bench.predictions import Predictions
from antlm_bench.types import Floats, Summary


def first_task_value(table: PredictionTable, settings: MetricSettings) -> Floats:
    """Return the first value (n,) that the task computes for each item."""
    del settings  # the task's code was given the scores as they are
    return task_values(table, 0)


def task_values(table: PredictionTable, column: int) -> Floats:
    """Return a value (n,) that the task computes for each item. DataError if it computes none."""
    if not table.task_values.shape[1]:
        raise DataError(
            "the run has no values of the task's own metrics",
            hint="score it again with this version",
        )
    return table.task_values[:, column]


def add_views(summary: Summary, predictions: Predictions, names: Sequence[str]) -> Summary:
    """Return a Summary with the task's other values as views, and a note that lists them.

    names: name of each column of `task_values`, "" = no view. A value that all items of a stratum
    lack gives a note and no view.
    """
    wanted = [(column, name) for column, name in enumerate(names) if name]
    if not wanted or not predictions.task_values.shape[1]:
        missing = ", ".join(name for _, name in wanted)
        note = f"not computed by this engine: {missing}"
        return replace(summary, notes=(*summary.notes, *([note] if wanted else [])))
    # A document is a word of its own.
    macro = [level for level in summary.macro if level != WORD_LABEL]
    table = build_table(predictions, set(macro))
    codes, paths = assign_strata(table, macro)
    weights = statistics.macro_weights(paths)
    views, without_values = {}, []
    for column, name in wanted:
        try:
            views[name] = weighted_mean(table, task_values(table, column), codes, weights)
        except DataError:
            without_values.append(name)
    notes = []
    if views:
        numbers = ", ".join(f"{name} {view.value:.4g}" for name, view in views.items())
        notes.append(f"also: {numbers}")
    if without_values:
        notes.append(f"not computed, because no item has a value: {', '.join(without_values)}")
    return replace(summary, views={**summary.views, **views}, notes=(*summary.notes, *notes))
