"""Export the items of runs as a CSV table with one row per item, for R, pandas, mixed models.

The table has ids and numbers, no texts. The content of a row depends on the metric:
`MetricSpec.export_rows` names one of the functions of this module.
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
from antlm_bench.printable import to_csv_text
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
"""Column of NUMBER_COLUMNS -> value. Columns without a finite value stay empty."""


def format_items_csv(opened_runs: Sequence[Run]) -> bytes:
    """Return the table as UTF-8 CSV with a header.

    Names that begin like a formula have an apostrophe in front (printable.to_csv_text).
    Columns, in order; a value that is not defined is empty:
    KEY_COLUMNS: what identifies an item of a run; `weights` is 8 digits of their sha256.
    One column per label level of any suite.
    gold, pred: indices of the correct and of the preferred option; gold is the rating if the items
    have human ratings.
    correct: credit in 0..1, for ties by the run's tie rule; or the value of the lm-eval task's
    metric. For bits per byte, a contribution of the document; their mean is the score.
    score, score_other: summed log-probabilities (nats) of the correct option and of the best other
    option. Without a correct option, `score` is that of the preferred one. For reading times, those
    of the word and of the word before it. For judgements, those of the sentence under the model and
    under the unigram model; gold is 1 for an acceptable sentence.
    margin: score - score_other.
    tokens, tokens_other: numbers of tokens of the two options.
    share: probability of the first option among the options, for items with ratings.
    flags: separated by spaces.
    cluster: number of the item's cluster within its run and suite; a column only if any run has
    clusters, which its intervals count as units.
    """
    cells_with_predictions = [
        (run, cell, runs.read_predictions(run.path, cell))
        for run in opened_runs
        for cell in run
        if get_metric_spec(cell.summary.metric).export_rows is not None
    ]
    levels = sorted({level for _, _, each in cells_with_predictions for level in each.label_levels})
    buffer = io.BytesIO()
    text = io.TextIOWrapper(buffer, "utf-8", "surrogatepass", newline="")
    writer = csv.writer(text, lineterminator="\n")
    level_names = map(to_csv_text, levels)
    has_clusters = any(each.clusters is not None for _, _, each in cells_with_predictions)
    last_columns = ["flags", "cluster"] if has_clusters else ["flags"]
    writer.writerow([*KEY_COLUMNS, *level_names, *NUMBER_COLUMNS, *last_columns])
    for run, cell, predictions in cells_with_predictions:
        model = run.manifest.model
        key = [
            model.get("name", ""),
            str(model.get("weights", ""))[:8],
            cell.suite,
            cell.method,
            "" if cell.seed is None else cell.seed,
        ]
        table = build_table(predictions, set(), str(cell.settings.get("reduction", "sum")))
        build_rows = load_target(get_metric_spec(cell.summary.metric).export_rows or "")
        rows: Iterator[Row] = build_rows(cell, predictions, table)
        # One list per level; without levels each item has no label.
        labels = list(zip(*(predictions.labels(level) for level in levels), strict=True))
        item_labels = labels if levels else [()] * len(predictions)
        flag_lists, clusters = predictions.flag_lists(), _cluster_numbers(predictions)
        columns = (predictions.ids, item_labels, rows, flag_lists, clusters)
        for item_id, labels_of_item, row, flags, cluster in zip(*columns, strict=True):
            numbers = [_format_number(row.get(name, math.nan)) for name in NUMBER_COLUMNS]
            names = [to_csv_text(str(name)) for name in (*key, item_id, *labels_of_item)]
            last_values = [" ".join(flags), cluster][: len(last_columns)]
            writer.writerow([*names, *numbers, *last_values])
    text.flush()
    return buffer.getvalue()


def _cluster_numbers(predictions: Predictions) -> list[str]:
    """Return the number of each item's cluster; "" if the run does not state clusters."""
    clusters = predictions.clusters
    return [""] * len(predictions) if clusters is None else list(map(str, clusters.tolist()))


def choice_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the scores of the correct option and of the best other option, if there is one."""
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
    """Yield the rating of each item with the score and the probability of the first option."""
    probabilities = load_cell_metric(cell).per_item(table)
    rows = logprob_rows(cell, predictions, table)
    golds, preds = predictions.gold.tolist(), predictions.pred.tolist()
    for gold, pred, probability, row in zip(golds, preds, probabilities, rows, strict=True):
        rating = gold if predictions.has_ratings else int(gold)
        yield {"gold": rating, "pred": pred, "share": probability, **row}


def value_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Return rows with the metric's value of each item and the score of the preferred option."""
    return _add_metric(preference_rows(cell, predictions, table), cell, table)


def preference_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the score of the preferred option, for items without a correct option."""
    del cell, table
    columns = (predictions.iter_options(name) for name in ("scores", "tokens"))
    for pred, scores, tokens in zip(predictions.pred.tolist(), *columns, strict=True):
        yield {"pred": pred, "score": scores[pred], "tokens": tokens[pred]}


def logprob_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the score of the first option; further options are other texts, not alternatives."""
    del cell, table
    scores, tokens = (predictions.first(name).tolist() for name in ("scores", "tokens"))
    for score, num_tokens in zip(scores, tokens, strict=True):
        yield {"score": score, "tokens": num_tokens}


def judgement_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the label and score of each sentence; `score_other` is that of the unigram model."""
    unigram_scores = predictions.unigram_scores
    rows = logprob_rows(cell, predictions, table)
    for index, (row, label) in enumerate(zip(rows, predictions.gold.tolist(), strict=True)):
        if table.get_flag("too-long")[index]:
            yield {"gold": int(label)}
            continue
        unigram = {} if unigram_scores is None else {"score_other": unigram_scores[index]}
        yield {"gold": int(label), **row, **unigram}


def document_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Return rows with the score of each document and its linearised contribution to the metric."""
    return _add_metric(logprob_rows(cell, predictions, table), cell, table)


def _add_metric(rows: Iterator[Row], cell: Cell, table: PredictionTable) -> Iterator[Row]:
    """Yield rows with the metric's value of each item in the column `correct`."""
    values = load_cell_metric(cell).per_item(table)
    for row, value in zip(rows, values, strict=True):
        yield {**row, "correct": value}


def reading_rows(cell: Cell, predictions: Predictions, table: PredictionTable) -> Iterator[Row]:
    """Yield the score of each word and, if there is one, of the word before it. Words that are too
    long have none."""
    is_too_long = table.get_flag("too-long")
    for index, row in enumerate(logprob_rows(cell, predictions, table)):
        if is_too_long[index]:
            yield {}
        elif table.valid.shape[1] > 1 and table.valid[index, 1]:
            yield {
                **row,
                "score_other": table.scores[index, 1],
                "tokens_other": int(table.tokens[index, 1]),
            }
        else:
            yield row


def _gold_and_best_other(table: PredictionTable, index: int, gold: int) -> Row:
    if table.get_flag("too-long")[index]:
        return {}
    scores, tokens = table.scores[index], table.tokens[index]
    row = {"score": scores[gold], "tokens": int(tokens[gold])}
    other_scores = np.where(table.valid[index], scores, -np.inf)
    other_scores[gold] = -np.inf
    other = int(other_scores.argmax())
    if not np.isfinite(other_scores[other]):
        return row  # there is no other option
    return row | {
        "margin": scores[gold] - scores[other],
        "score_other": scores[other],
        "tokens_other": int(tokens[other]),
    }


def _format_number(value: float) -> float | str:
    if not np.isfinite(value):
        return ""
    return value if isinstance(value, int) else float(value)
