"""Numbers that a task's own code makes of each document (`judged`): lm-eval's `process_results`.

    task-score, task-penalty    the mean of the first number over documents: more is better, or less
    whole-score, whole-penalty  a number of all documents together (F1, a bias score): the mean of
                                what each document contributes (lm_eval_bridge.jackknife)

Further numbers of a document become views of the Summary (`add_views`).
Corner case: a document of which the task says nothing (nan) is left out.
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
from antlm_bench.types import Floats, Prediction, Summary


def first_task_value(table: PredictionTable, settings: MetricSettings) -> Floats:
    """Return the first number (n,) that the task makes of each item."""
    del settings  # the task's code was given the scores as they are
    return task_values(table, 0)


def task_values(table: PredictionTable, column: int) -> Floats:
    """Return a number (n,) that the task makes of each item. DataError where it makes none."""
    if not table.judged.shape[1]:
        raise DataError("the answers were not judged", hint="score them again with this version")
    return table.judged[:, column]


def add_views(summary: Summary, predictions: Sequence[Prediction], names: Sequence[str]) -> Summary:
    """Return a Summary with further views: the task's numbers of these names, and a note of what
    they are.

    names: of each column of `judged`, "" = no view. A number that no item of a stratum has is no
    view; a note says so.
    """
    wanted = [(column, name) for column, name in enumerate(names) if name]
    if not wanted or not predictions[0].judged:
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
        notes.append(f"not computed, for no item has one: {', '.join(without_values)}")
    return replace(summary, views={**summary.views, **views}, notes=(*summary.notes, *notes))
