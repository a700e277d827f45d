"""Every item of every run as one row of a table: what R, pandas and mixed models want. Ids and
numbers, no texts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from antlm_bench import runs
from antlm_bench.metrics.measures import Accuracy, Spearman
from antlm_bench.metrics.prediction_table import PredictionTable, build_table
from antlm_bench.metrics.task_metric import (
    BITS_PER_BYTE,
    TASK_METRIC_NAMES,
    WHOLE_PENALTY,
    WHOLE_SCORE,
)
from antlm_bench.types import Cell, Floats, Prediction, Run

KEY_COLUMNS = ("model", "weights", "suite", "method", "seed", "id")
NUMBER_COLUMNS = (
    "gold",
    "pred",
    "correct",
    "margin",
    "score",
    "score_other",
    "tokens",
    "tokens_other",
    "share",
)


def format_items_csv(opened_runs: Sequence[Run]) -> bytes:
    """CSV with a header (UTF-8): KEYS (weights: 8 digits of their sha256), the labels of all suites
    (empty where a suite lacks one), NUMBERS, flags.

    score: summed log-probability (nats) of the right option, score_other of the best other one,
    margin the difference. correct: credit in 0..1, a tie under the run's tie rule; where a task
    judges its answers itself, what it says (then score is the preferred option's). share:
    probability of the first option among the options, where humans rated it (then gold is that
    rating and there is no right option). Empty: not defined.
    """
    told = [
        (run, cell) for run in opened_runs for cell in run if cell.summary.metric != "acquisition"
    ]  # curves are no items
    cells = [(run, cell, runs.read_predictions(run.path, cell)) for run, cell in told]
    levels = sorted(
        {level for _, _, predictions in cells for p in predictions for level in p.labels}
    )
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([*KEY_COLUMNS, *levels, *NUMBER_COLUMNS, "flags"])
    for run, cell, predictions in cells:
        about = run.manifest.model
        where = [
            about.get("name", ""),
            str(about.get("weights", ""))[:8],
            cell.suite,
            cell.method,
            "" if cell.seed is None else cell.seed,
        ]
        for prediction, numbers in zip(predictions, _number_rows(cell, predictions), strict=True):
            labels = [prediction.labels.get(level, "") for level in levels]
            writer.writerow([*where, prediction.id, *labels, *numbers, " ".join(prediction.flags)])
    return sink.getvalue().encode("utf-8", "surrogatepass")


def _number_rows(cell: Cell, predictions: Sequence[Prediction]) -> Iterator[list[Any]]:
    """NUMBERS of each prediction."""
    reduction = str(cell.settings.get("reduction", "sum"))
    columns = build_table(predictions, set(), "sum" if reduction == "class" else reduction)
    if (
        cell.summary.metric == "delta-r2"
    ):  # options are questions of their own: a word, and the word before it
        for p in predictions:
            yield ["", "", "", "", p.scores[0], "", p.tokens[0], "", ""]
    elif cell.summary.metric in TASK_METRIC_NAMES:  # no option is right by itself
        whole = cell.summary.metric in (
            WHOLE_SCORE,
            WHOLE_PENALTY,
        )  # which no document has a number of
        for p, said in zip(predictions, columns.judged[:, 0], strict=True):
            yield [
                "",
                p.pred,
                "" if whole else _finite_or_empty(said),
                "",
                p.scores[p.pred],
                "",
                p.tokens[p.pred],
                "",
                "",
            ]
    elif cell.summary.metric == BITS_PER_BYTE:
        for p in predictions:
            yield ["", "", "", "", p.scores[0], "", p.tokens[0], "", ""]
    elif all(isinstance(p.gold, int) for p in predictions):
        credit = Accuracy(str(cell.settings.get("ties", "half")), effective_reduction(reduction))
        correct = credit.per_item(columns, effective_reduction(reduction))
        for row, (p, credited) in enumerate(zip(predictions, correct, strict=True)):
            yield [
                p.gold,
                p.pred,
                _finite_or_empty(credited),
                *_gold_vs_best_other(columns, row, int(p.gold)),
                "",
            ]
    else:
        softmax = str(cell.settings.get("softmax", "float64"))
        measure = Spearman("half", effective_reduction(reduction), softmax)
        share: Floats = measure.per_item(columns, effective_reduction(reduction))
        for p, value in zip(predictions, share, strict=True):
            yield [
                p.gold,
                p.pred,
                "",
                "",
                p.scores[0],
                "",
                p.tokens[0],
                "",
                _finite_or_empty(value),
            ]


def effective_reduction(reduction: str) -> str:
    """Scores of classes are log-probabilities already: nothing is divided."""
    return "sum" if reduction == "class" else reduction


def _gold_vs_best_other(columns: PredictionTable, row: int, gold: int) -> list[Any]:
    """[margin, score, score_other, tokens, tokens_other] of the right option against the best other
    one.
    """
    if columns.get_flag("too-long")[row]:
        return [""] * 5
    scores, tokens = columns.scores[row], columns.tokens[row]
    others = np.where(columns.valid[row], scores, -np.inf)
    others[gold] = -np.inf
    other = int(others.argmax())
    if not np.isfinite(others[other]):
        return ["", _finite_or_empty(scores[gold]), "", int(tokens[gold]), ""]
    pair = [
        _finite_or_empty(scores[gold]),
        _finite_or_empty(scores[other]),
        int(tokens[gold]),
        int(tokens[other]),
    ]
    return [_finite_or_empty(scores[gold] - scores[other]), *pair]


def _finite_or_empty(value: float) -> float | str:
    return float(value) if np.isfinite(value) else ""
