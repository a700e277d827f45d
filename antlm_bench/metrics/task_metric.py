"""Metrics that an lm-eval task's own code computes per document (its `process_results`).

    task-score, task-penalty    mean of the task's first metric over documents
    whole-score, whole-penalty  a metric of all documents together (F1, a bias score), as the mean
                                of the documents' contributions (lm_eval_bridge.jackknife)

Higher scores and lower penalties are better. The task's other metrics become views of the Summary
(`add_views`).
Corner case: a document without a value (nan) is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from antlm_bench import statistics
from antlm_bench.errors import DataError
from antlm_bench.metrics.item_mean import weighted_mean
from antlm_bench.metrics.prediction_table import PredictionTable, assign_strata, build_table
from antlm_bench.metrics.records import WORD_LABEL
from antlm_bench.metrics.summary import MetricSettings
from antlm_bench.types import Floats, Summary

if TYPE_CHECKING:
    from antlm_bench.predictions import Predictions


def first_task_value(table: PredictionTable, settings: MetricSettings) -> Floats:
    """Return the value (n,) of the task's first metric for each item."""
    del settings  # the task's code has applied its own rules
    return task_values(table, 0)


def task_values(table: PredictionTable, column: int) -> Floats:
    """Return the value (n,) of one of the task's metrics for each item.

    column: index of the metric. Raises DataError if the run has no values of the task's metrics.
    """
    if not table.task_values.shape[1]:
        raise DataError(
            "the run has no values of the metrics that the task's code computes",
            hint="score it again with this version",
        )
    return table.task_values[:, column]


def add_views(summary: Summary, predictions: Predictions, names: Sequence[str]) -> Summary:
    """Return a Summary with the task's other metrics as views, and a note that lists them.

    names: name of each column of `PredictionTable.task_values`, "" = no view. A metric without any
    value in a stratum gives a note instead of a view.
    """
    view_names = {column: name for column, name in enumerate(names) if name}
    if not view_names:
        return summary
    if not predictions.task_values.shape[1]:
        note = f"not computed by this engine: {', '.join(view_names.values())}"
        return replace(summary, notes=(*summary.notes, note))
    # Averaging over words would be averaging over documents: each document has its own word.
    macro = [level for level in summary.macro if level != WORD_LABEL]
    table = build_table(predictions, set(macro))
    codes, stratum_labels = assign_strata(table, macro)
    weights = statistics.macro_weights(stratum_labels)
    views, without_values = {}, []
    for column, name in view_names.items():
        try:
            views[name] = weighted_mean(table, task_values(table, column), codes, weights)
        except DataError:
            without_values.append(name)
    notes = []
    if views:
        values = ", ".join(f"{name} {view.value:.4g}" for name, view in views.items())
        notes.append(f"also: {values}")
    if without_values:
        notes.append(f"not computed, because no item has a value: {', '.join(without_values)}")
    return replace(summary, views={**summary.views, **views}, notes=(*summary.notes, *notes))
