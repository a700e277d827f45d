"""What a run answered, in the words of a leaderboard's file: texts that were chosen, numbers,
surprisals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

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
from antlm_bench.suites.task_types import Suite
from antlm_bench.types import Cell, Item, Option, Prediction

LeaderboardAnswers = dict[str, dict[str, list[dict[str, Any]]]]  # subkey -> {"predictions": rows}
MilestoneScores = dict[str, float]


def require_complete(cell: Cell) -> Cell:
    """The cell. IncompleteError where items are missing."""
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
    load_predictions: Callable[[], Sequence[Prediction]],
) -> MilestoneScores:
    """What a fast suite says of a milestone, in 0..1: accuracies, Spearman's rho, partial R2.

    Where there are ties, accuracies are those of the answers that the official collator would have
    compared, made of the predictions; so is a correlation where the run ranked probabilities of
    another precision (`softmax`).
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
    predictions: Sequence[Prediction],
    suite: Suite,
    cell: Cell,
    rule: TieRule,
    softmax: str = "float64",
) -> tuple[LeaderboardAnswers, list[str]]:
    """The chosen texts under the keys of their part, in the suite's order, and notes about ties and
    lost items.

    An item that does not fit the model counts as wrong, and is written so. IncompleteError where
    the file also wants its probability.
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
    for n, prediction in enumerate(predictions):
        item = items[prediction.id]
        row: dict[str, Any] = {
            "id": item.id,
            "pred": option_text(part.writes, item, int(answers[n])),
        }
        if probability is not None:
            row["prob"] = float(probability[n])
        rows[item.labels[level]]["predictions"].append(row)
    notes = []
    if ties:
        how = f"{ties} ties, {TIE_RULE_DESCRIPTIONS[rule]}; a correlation with ratings does not depend on it"
        notes.append(
            f"{suite.name}: {how if rated else describe_ties(table, rule, reduction, suite.macro)}"
        )
    if lost:
        notes.append(f"{suite.name}: {lost} items do not fit the model and are written as wrong")
    return dict(rows), notes


def option_text(answer_format: AnswerFormat, item: Item, option_index: int) -> str:
    """The text that stands for an option: all of it, or the part that was scored."""
    option = item.options[option_index]
    if answer_format == "continuation":
        return continuation_text(option)
    return (
        option.text
        if answer_format == "sentence" or option.span is None
        else option.text[slice(*option.span)]
    )


def continuation_text(option: Option) -> str:
    r"""What lm-eval asks after a context: its delimiter, one space, before a text without context;
    a scored part has that space already. The collator of 2024 (_add_to_dict) makes a line end of
    the two characters \n.
    """
    asked = option.text[slice(*option.span)] if option.span else f" {option.text}"
    return asked.replace("\\n", "\n")


def surprisal_rows(predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    """Surprisals in nats of each word and of the word before it; NaN where there is none, as
    officially.

    IncompleteError for words that do not fit the model: the file has no way to say so.
    """
    if lost := [p.id for p in predictions if "too-long" in p.flags]:
        raise IncompleteError(
            f"{len(lost)} words do not fit the model", hint=f"the first is {lost[0]}"
        )
    for n, prediction in enumerate(predictions):
        before = -prediction.scores[1] if len(prediction.scores) > 1 else float("nan")
        yield {"id": n, "pred": -prediction.scores[0], "prev_pred": before}


def curve_rows(
    predictions: Sequence[Prediction], suite: Suite, milestone: int
) -> Iterator[dict[str, Any]]:
    """The surprisal in nats of every word in its contexts at a milestone (millions of words); NaN
    where a text did not fit into the model, as officially.
    """
    items = {item.id: item for item in suite.items}
    for prediction in predictions:
        option, (word, _, number) = items[prediction.id].options[0], prediction.id.rpartition("_")
        context = option.text[: option.span[0]] if option.span else ""
        yield {
            "step": f"chck_{milestone}M",
            "word_count": milestone * 10**6,
            "target_word": word,
            "context_id": int(number),
            "context": context.removesuffix(" "),  # the template's
            "surprisal": float("nan") if "too-long" in prediction.flags else -prediction.scores[0],
        }


def count_answers(answers: LeaderboardAnswers, key: str) -> int:
    return len(answers[key]["predictions"]) if key in answers else 0
