"""A run's answers in the form of a leaderboard's file: chosen texts, numbers, surprisals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from antlm_bench.errors import IncompleteError
from antlm_bench.exports.leaderboard import AnswerFormat, PartSpec
from antlm_bench.exports.tie_rules import (
    TIE_RULE_DESCRIPTIONS,
    TieRule,
    accuracy_by_group,
    choose_options,
    describe_ties,
)
from antlm_bench.metrics import ItemKind, MetricSettings, get_metric_spec, load_metric
from antlm_bench.metrics.prediction_table import build_table
from antlm_bench.predictions import Predictions
from antlm_bench.suites.task_types import Suite
from antlm_bench.types import Cell, Item, Option

LeaderboardAnswers = dict[str, dict[str, list[dict[str, Any]]]]
"""Subkey -> {"predictions": rows}."""
MilestoneScores = dict[str, float]


def require_complete(cell: Cell) -> Cell:
    """Return the cell. IncompleteError where items are missing."""
    if short := [note for note in cell.summary.notes if note.startswith("incomplete")]:
        raise IncompleteError(
            short[0], hint="get all data (antlm-bench data fetch), then score again"
        )
    return cell


def milestone_scores(
    cell: Cell,
    part: PartSpec,
    rule: TieRule,
    softmax: str,
    load_predictions: Callable[[], Predictions],
) -> MilestoneScores:
    """Return the numbers of a fast suite at a milestone, in 0..1: accuracies, Spearman's rho,
    partial R2.

    Accuracies with ties, and correlations for which the run ranked probabilities of another
    precision than `softmax`, are recomputed from the predictions as the official collator has them.
    """
    groups, metric = cell.summary.groups, get_metric_spec(cell.summary.metric)
    settings = MetricSettings.of_cell(cell)
    if part.names:
        return {
            part.names[group.name]: group.estimate.value
            for group in groups
            if group.name in part.names
        }
    if metric.tie_rule_matters and cell.summary.headline.flags.get("tie"):
        level = groups[-1].level if groups else ""
        table = build_table(load_predictions(), {level} if level else set(), settings.reduction)
        answers = choose_options(table, rule, settings.reduction)
        shares = accuracy_by_group(table, answers, level)
        return {name or part.key: share for name, share in shares.items()}
    rated = metric.item_kind is ItemKind.RATING
    if rated and settings.softmax != softmax:
        table = build_table(load_predictions(), set(), settings.reduction)
        correlation = load_metric(metric.name, replace(settings, softmax=softmax))
        return {part.key: correlation.headline(table, ()).estimate.value}
    if rated or not groups:
        return {part.key: cell.summary.headline.value}
    return {group.name: group.estimate.value for group in groups if group.level == groups[-1].level}


def build_text_answers(
    part: PartSpec,
    predictions: Predictions,
    suite: Suite,
    cell: Cell,
    rule: TieRule,
    softmax: str = "float64",
) -> tuple[LeaderboardAnswers, list[str]]:
    """Return the chosen texts under the keys of their part, in the suite's order, and notes about
    ties and items that do not fit the model.

    An item that does not fit the model is written as wrong. IncompleteError where the file also
    needs its probability.
    """
    reduction = str(cell.settings.get("reduction", "sum"))
    rated = part.writes == "share"
    table = build_table(predictions, set() if rated else set(suite.macro), reduction)
    lost, ties = int(table.get_flag("too-long").sum()), int(table.get_flag("tie").sum())
    if rated and lost:
        raise IncompleteError(f"{lost} items do not fit the model, and have no probability")
    answers = choose_options(table, rule, reduction)
    probability = None
    if rated:
        settings = replace(MetricSettings.of_cell(cell), softmax=softmax)
        probability = load_metric(cell.summary.metric, settings).per_item(table)
    level = part.by or suite.groups[-1]
    items = {item.id: item for item in suite.items}
    rows: LeaderboardAnswers = defaultdict(lambda: {"predictions": []})
    for n, item_id in enumerate(predictions.ids):
        item = items[item_id]
        row: dict[str, Any] = {
            "id": item.id,
            "pred": option_text(part.writes, item, int(answers[n])),
        }
        if probability is not None:
            row["prob"] = float(probability[n])
        rows[item.labels[level]]["predictions"].append(row)
    notes = []
    if ties:
        description = (
            f"{ties} ties, {TIE_RULE_DESCRIPTIONS[rule]}; "
            "a correlation with ratings does not depend on it"
            if rated
            else describe_ties(table, rule, reduction, suite.macro)
        )
        notes.append(f"{suite.name}: {description}")
    if lost:
        notes.append(f"{suite.name}: {lost} items do not fit the model and are written as wrong")
    return dict(rows), notes


def option_text(answer_format: AnswerFormat, item: Item, option_index: int) -> str:
    """Return the text that stands for an option: all of it, or the part that was scored."""
    option = item.options[option_index]
    if answer_format == "continuation":
        return continuation_text(option)
    return (
        option.text
        if answer_format == "sentence" or option.span is None
        else option.text[slice(*option.span)]
    )


def continuation_text(option: Option) -> str:
    r"""Return what lm-eval requests after a context: a text without context behind one space, its
    delimiter; a scored part has that space already.

    The collator of 2024 (_add_to_dict) turns the two characters \n into a line end.
    """
    continuation = option.text[slice(*option.span)] if option.span else f" {option.text}"
    return continuation.replace("\\n", "\n")


def surprisal_rows(predictions: Predictions) -> Iterator[dict[str, Any]]:
    """Yield surprisals in nats of each word and of the word before it; nan where there is none, as
    officially.

    IncompleteError for words that do not fit the model: the file cannot express that.
    """
    too_long = predictions.has_flag("too-long")
    if too_long.any():
        raise IncompleteError(
            f"{int(too_long.sum())} words do not fit the model",
            hint=f"the first is {predictions.ids[int(too_long.argmax())]}",
        )
    for n, scores in enumerate(predictions.iter_options("scores")):
        before = -scores[1] if len(scores) > 1 else float("nan")
        yield {"id": n, "pred": -scores[0], "prev_pred": before}


def curve_rows(predictions: Predictions, suite: Suite, milestone: int) -> Iterator[dict[str, Any]]:
    """Yield the surprisal in nats of every word in its contexts at a milestone (millions of words);
    nan where a text does not fit the model, as officially."""
    items = {item.id: item for item in suite.items}
    surprisal = np.where(predictions.has_flag("too-long"), np.nan, -predictions.first("scores"))
    for item_id, nats in zip(predictions.ids, surprisal.tolist(), strict=True):
        option, (word, _, number) = items[item_id].options[0], item_id.rpartition("_")
        context = option.text[: option.span[0]] if option.span else ""
        yield {
            "step": f"chck_{milestone}M",
            "word_count": milestone * 10**6,
            "target_word": word,
            "context_id": int(number),
            "context": context.removesuffix(" "),  # the template's
            "surprisal": nats,
        }


def count_answers(answers: LeaderboardAnswers, key: str) -> int:
    """Return how many answers stand under a key."""
    return len(answers[key]["predictions"]) if key in answers else 0
