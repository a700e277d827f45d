"""Every item of every run as one row of a table: what R, pandas and mixed models want. Ids and
numbers, no texts.

What a row holds depends on the metric: its record names one of the functions here
(`MetricSpec.export_rows`).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from antlm_bench import runs
from antlm_bench.metrics import MetricSettings, get_metric_spec, load_cell_metric
from antlm_bench.metrics.prediction_table import PredictionTable, build_table, gold_credits
from antlm_bench.predictions import Predictions
from antlm_bench.registry import load_target
from antlm_bench.types import Cell, Run

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
Row = Mapping[str, float]
"""Some of NUMBER_COLUMNS; a column that is missing or not finite stays empty."""


def format_items_csv(opened_runs: Sequence[Run]) -> bytes:
    """Return CSV with a header (UTF-8): KEY_COLUMNS (weights: 8 digits of their sha256), the labels
    of all suites (empty where a suite lacks one), NUMBER_COLUMNS, flags.

    score: summed log-probability (nats) of the right option, score_other of the best other one,
    margin the difference. correct: credit in 0..1, a tie under the run's tie rule; where a task
    has metrics of its own, its value (then score is the preferred option's). share:
    probability of the first option among the options, where humans rated it (then gold is that
    rating and there is no right option). Empty: not defined.
    """
    cells = [
        (run, cell, runs.read_predictions(run.path, cell))
        for run in opened_runs
        for cell in run
        if get_metric_spec(cell.summary.metric).export_rows is not None
    ]
    levels = sorted({level for *_, predictions in cells for level in predictions.label_levels})
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([*KEY_COLUMNS, *levels, *NUMBER_COLUMNS, "flags"])
    for run, cell, predictions in cells:
        model = run.manifest.model
        key = [
            model.get("name", ""),
            str(model.get("weights", ""))[:8],
            cell.suite,
            cell.method,
            "" if cell.seed is None else cell.seed,
        ]
        table = build_table(predictions, set(), str(cell.settings.get("reduction", "sum")))
        write_rows = load_target(get_metric_spec(cell.summary.metric).export_rows or "")
        rows: Iterator[Row] = write_rows(cell, predictions, table)
        # One list per level; without levels each item has no label.
        labels = list(zip(*(predictions.labels(level) for level in levels), strict=True))
        item_labels = labels if levels else [()] * len(predictions)
        for item_id, labels_of_item, row, flags in zip(
            predictions.ids, item_labels, rows, predictions.flag_lists(), strict=True
        ):
            numbers = [_format_number(row.get(name, math.nan)) for name in NUMBER_COLUMNS]
            writer.writerow([*key, item_id, *labels_of_item, *numbers, " ".join(flags)])
    return sink.getvalue().encode("utf-8", "surrogatepass")


def choice_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the right option against the best other one; of one option its score."""
    settings = MetricSettings.of_cell(cell)
    credits = gold_credits(table, settings.ties, settings.reduction)
    golds = predictions.gold.tolist()
    for index, (gold, pred) in enumerate(zip(golds, predictions.pred.tolist(), strict=True)):
        yield {
            "gold": gold if predictions.has_ratings else int(gold),
            "pred": pred,
            "correct": credits[index],
            **_gold_and_best_other(table, index, int(gold)),
        }


def rating_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the first option's score and probability, beside the rating."""
    shares = load_cell_metric(cell).per_item(table)
    rows = logprob_rows(cell, predictions, table)
    golds = predictions.gold.tolist()
    for gold, pred, share, row in zip(golds, predictions.pred.tolist(), shares, rows, strict=True):
        gold = gold if predictions.has_ratings else int(gold)
        yield {"gold": gold, "pred": pred, "share": share, **row}


def value_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the item's own value, beside the preferred option's score."""
    values = load_cell_metric(cell).per_item(table)
    rows = preference_rows(cell, predictions, table)
    for row, value in zip(rows, values, strict=True):
        yield {**row, "correct": value}


def preference_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the preferred option's score: no option is right, no item has a value of its own."""
    del cell, table
    columns = (predictions.iter_options(name) for name in ("scores", "tokens"))
    for pred, scores, tokens in zip(predictions.pred.tolist(), *columns, strict=True):
        yield {"pred": pred, "score": scores[pred], "tokens": tokens[pred]}


def logprob_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the first option's score: further options are questions of their own."""
    del cell, table
    scores, tokens = (predictions.first(name).tolist() for name in ("scores", "tokens"))
    for score, num_tokens in zip(scores, tokens, strict=True):
        yield {"score": score, "tokens": num_tokens}


def _gold_and_best_other(table: PredictionTable, index: int, gold: int) -> Row:
    if table.get_flag("too-long")[index]:
        return {}
    scores, tokens = table.scores[index], table.tokens[index]
    row = {"score": scores[gold], "tokens": int(tokens[gold])}
    others = np.where(table.valid[index], scores, -np.inf)
    others[gold] = -np.inf
    other = int(others.argmax())
    if not np.isfinite(others[other]):
        return row
    margin = {"margin": scores[gold] - scores[other]}
    return row | margin | {"score_other": scores[other], "tokens_other": int(tokens[other])}


def _format_number(value: float) -> float | str:
    if not np.isfinite(value):
        return ""
    return value if isinstance(value, int) else float(value)
